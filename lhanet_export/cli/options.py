"""Options that several commands share, and the types of their values.

Imports no library but click: a command's `--help` is as light as the list of commands.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from decimal import Decimal
from itertools import combinations, product
from math import gcd
from pathlib import Path
from typing import Any, TypeVar

import click

from lhanet_export.cli.show import STDOUT, Show
from lhanet_export.conventions import DEFAULT_WINDOWS, PRECISIONS, RUNTIMES
from lhanet_export.errors import RefusedInput
from lhanet_export.files import check_output_path, sidecar_of
from lhanet_export.inference.rewrites.names import PURPOSES, REWRITES
from lhanet_export.inference.target import HEADS, OUTPUTS
from lhanet_export.shapes import Shape, SpatialRange, parse_shape

F = TypeVar("F", bound=Callable[..., Any])
Decorator = Callable[[F], F]

BACKENDS = ("tensorrt-rtx", "tensorrt")
_MEMORY_UNITS = {"gib": 2**30, "gb": 10**9, "mib": 2**20, "mb": 10**6}
_MOST_MEMORY = 2**40


class OutputPath(click.Path):
    """What the command writes, `-o` and `--json` have this type: a file, a folder, or (None) one or the other."""

    def __init__(self, *, folder: bool | None = False) -> None:
        super().__init__(file_okay=not folder, dir_okay=folder is not False, path_type=Path)
        self.folder = folder

    def names_folder(self, path: Path) -> bool:
        """Whether a value of this type is a folder, as far as that is known before it is written."""
        return path.is_dir() if self.folder is None else self.folder


class ShapeType(click.ParamType):
    """A volume size as `64x128x128`."""

    name = "DxHxW"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Shape:
        try:
            return parse_shape(value) if isinstance(value, str) else value
        except RefusedInput as error:
            self.fail(str(error), param, ctx)


class SpatialType(click.ParamType):
    """A range of volume sizes as `MIN:OPT:MAX`."""

    name = "MIN:OPT:MAX"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> SpatialRange:
        try:
            return SpatialRange.parse(value) if isinstance(value, str) else value
        except RefusedInput as error:
            self.fail(str(error), param, ctx)


class BatchType(click.ParamType):
    """A batch size; `dynamic` becomes None."""

    name = "N|dynamic"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | None:
        if value == "dynamic":
            return None
        if not (str(value).isascii() and str(value).isdigit() and 1 <= int(value) <= 1024):
            self.fail(f"'{value}' is not a batch size; write 1 to 1024, or 'dynamic'", param, ctx)
        return int(value)


class BatchRangeType(click.ParamType):
    """Batch sizes as `MIN:OPT:MAX`, or one number for all three."""

    name = "MIN:OPT:MAX"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int, int]:
        if not isinstance(value, str):
            return value
        parts = value.split(":") if ":" in value else [value] * 3
        if len(parts) != 3 or not all(part.isascii() and part.isdigit() and len(part) <= 4 for part in parts):
            self.fail(f"'{value}' is not a batch range; write MIN:OPT:MAX, as in 1:1:2, or one number", param, ctx)
        low, best, high = map(int, parts)
        return low, best, high


class MemoryType(click.ParamType):
    """An amount of memory with its unit, as `12GiB`, `11.5 GB` or `8000MiB`, in bytes."""

    name = "SIZE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if not isinstance(value, str):
            return int(value)
        found = re.fullmatch(r"([0-9]{1,7}(?:\.[0-9]{1,3})?) ?(GiB|GB|MiB|MB)", value, re.ASCII | re.IGNORECASE)
        count = int(Decimal(found[1]) * _MEMORY_UNITS[found[2].lower()]) if found else 0
        if not 0 < count <= _MOST_MEMORY:
            self.fail(f"'{value}' is not the memory of a card; write it as 12GiB, 12GB, 8000MiB or 8000MB", param, ctx)
        return count


class AspectType(click.ParamType):
    """Parts of depth, height and width as `1:2:2`, in lowest terms."""

    name = "D:H:W"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int, int]:
        if not isinstance(value, str):
            return value
        if not re.fullmatch(r"[1-9][0-9]?:[1-9][0-9]?:[1-9][0-9]?", value, re.ASCII):
            self.fail(f"'{value}' is no aspect; write parts of depth, height and width, as in 1:2:2", param, ctx)
        parts = [int(part) for part in value.split(":")]
        depth, height, width = (part // gcd(*parts) for part in parts)
        return depth, height, width


class Command(click.Command):
    """A command that never writes over its own inputs, nor two results into one file."""

    def invoke(self, ctx: click.Context) -> Any:
        _check_paths(self, ctx)
        return super().invoke(ctx)


def command(name: str) -> Callable[[Callable[..., Any]], Command]:
    """Decorator of every command: `@command("onnx")`."""
    return click.command(name, cls=Command, context_settings={"help_option_names": ["-h", "--help"]})


def checkpoint_argument(function: F) -> F:
    """`CHECKPOINT` as `checkpoint: str`: a file, or a name such as `preset:lightweight` or `demo`."""
    return click.argument("checkpoint", metavar="CHECKPOINT")(function)


def checkpoint_option(function: F) -> F:
    """`--checkpoint C` as `checkpoint: str`, required."""
    text = "What the model was made from: a file, preset:NAME, or demo."
    return click.option("--checkpoint", required=True, metavar="CHECKPOINT", help=text)(function)


def file_argument(name: str) -> Decorator[Any]:
    """An existing regular file as `name: Path`."""
    return click.argument(name, metavar=name.upper(), type=click.Path(exists=True, dir_okay=False, path_type=Path))


def target_option(what: str, *, folder: bool = False) -> Decorator[Any]:
    """`-o PATH` as `target: Path`, required; `what` is its help."""
    metavar = "DIR" if folder else "PATH"
    return click.option("-o", "target", required=True, type=OutputPath(folder=folder), metavar=metavar, help=what)


def json_option(function: F) -> F:
    """`--json FILE` as `show: Show`, through which the command says everything."""
    return click.option(
        "--json", "show", type=OutputPath(), metavar="FILE", callback=lambda ctx, param, value: Show(value),
        help="Also write the result as JSON; '-' for stdout.",
    )(function)  # fmt: skip


def spatial_option(text: str) -> Decorator[Any]:
    """`--spatial MIN:OPT:MAX` as `spatial: SpatialRange | None`; `text` says what holds without it."""
    help_text = f"Volume sizes to serve, each as DxHxW in voxels, e.g. 48x64x64:64x128x128:96x192x192. {text}"
    return click.option("--spatial", type=SpatialType(), metavar="MIN:OPT:MAX", help=help_text)


def shape_option(text: str) -> Decorator[Any]:
    """`--shape DxHxW`, any number of times, as `shapes: tuple[Shape, ...]`; `text` says what holds without it."""
    help_text = f"A volume size in voxels, e.g. 64x128x128; may be given several times. {text}"
    return click.option("--shape", "shapes", multiple=True, type=ShapeType(), metavar="DxHxW", help=help_text)


def precision_option(default: str, *, int8: bool = False) -> Decorator[Any]:
    """`--precision fp32|fp16` as `precision: str`, and `int8` for a command that takes scans to calibrate on."""
    known = [precision for precision in PRECISIONS if int8 or precision != "int8"]
    return click.option(
        "--precision", type=click.Choice(known), default=default, show_default=True,
        help="Number format of the network's arithmetic.",
    )  # fmt: skip


def gpu_option(function: F) -> F:
    """`--gpu NAME` as `gpu: str`: the name of a recipe in `engines/`, or the path of another one."""
    return click.option(
        "--gpu", default="rtx3060", show_default=True, metavar="NAME",
        help="The card that the engine is for: the name of a recipe in engines/, or a recipe file of your own.",
    )(function)  # fmt: skip


def backend_option(function: F) -> F:
    """`--backend tensorrt-rtx|tensorrt` as `backend: str`."""
    return click.option(
        "--backend", type=click.Choice(BACKENDS), default=BACKENDS[0], show_default=True,
        help="tensorrt-rtx builds without a GPU; tensorrt builds on the GPU that is there.",
    )(function)  # fmt: skip


def labels_option(function: F) -> F:
    """`--labels FILE` as `labels: Path | None`."""
    text = "Class names, one a line, background first."
    path = click.Path(exists=True, dir_okay=False, path_type=Path)
    return click.option("--labels", type=path, metavar="FILE", help=text)(function)


def calibration_option(function: F) -> F:
    """`--calibration DIR` as `calibration: Path | None`: the scans that INT8 has its scales from."""
    path = click.Path(exists=True, file_okay=False, path_type=Path)
    text = "With int8: CT volumes that its scales are measured on. Take others than those you verify on."
    return click.option("--calibration", type=path, metavar="DIR", help=text)(function)


def data_option(function: F) -> F:
    """`--data DIR` as `data: Path | None`, a folder of NIfTI volumes, and `--assume-hu` as `assume_hu: bool`."""
    path = click.Path(exists=True, file_okay=False, path_type=Path)
    text = "CT volumes (.nii, .nii.gz): images in DIR, or in DIR/images with DIR/labels beside. Default: synthetic CT."
    return click.option("--data", type=path, metavar="DIR", help=text)(assume_hu_option(function))


def assume_hu_option(function: F) -> F:
    """`--assume-hu` as `assume_hu: bool`."""
    text = "Take the volumes' values for HU even if they do not look like it."
    return click.option("--assume-hu", is_flag=True, help=text)(function)


def windows_option(function: F) -> F:
    """`--windows N` as `windows: int`, of scans to compare on."""
    return click.option(
        "--windows", type=click.IntRange(1), default=DEFAULT_WINDOWS, show_default=True,
        help="How many windows of scans to compare on.",
    )(function)  # fmt: skip


def recipe_option(function: F) -> F:
    """`--recipe FILE` as `precision_recipe: Path | None`: nodes that FP16 leaves in FP32."""
    path = click.Path(exists=True, dir_okay=False, path_type=Path)
    text = "With fp16: a precision recipe, nodes that stay FP32; lhanet-export search finds one."
    return click.option("--recipe", "precision_recipe", type=path, metavar="FILE", help=text)(function)


def seed_option(function: F) -> F:
    """`--seed N` as `seed: int`."""
    text = "Which volumes to compare on; another number gives others."
    return click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help=text)(function)


def target_options(function: F) -> F:
    """`--output KIND` and `--head NAME` as `output` and `head`: str."""
    function = click.option(
        "--head", type=click.Choice(HEADS), default="final", show_default=True,
        help="The final head, or a deep-supervision head; deep0 is the finest.",
    )(function)  # fmt: skip
    return click.option(
        "--output", type=click.Choice(OUTPUTS), default="logits", show_default=True,
        help="What the graph gives: coarse are the logits before their last resize.",
    )(function)  # fmt: skip


def graph_options(function: F) -> F:
    """What a graph computes: `output`, `head`: str; `batch`: int or None (dynamic); `half_io`: bool; `labels`: Path."""
    for option in reversed((
        target_options,
        click.option(
            "--batch", type=BatchType(), default=1, show_default=True, metavar="N|dynamic", help="Volumes in one call."
        ),
        click.option("--half-io", is_flag=True, help="With fp16: take and give FP16 numbers, too."),
        labels_option,
    )):  # fmt: skip
        function = option(function)
    return function


def purpose_option(function: F) -> F:
    """`--for engine|cpu` as `purpose: str`."""
    return click.option(
        "--for", "purpose", type=click.Choice(PURPOSES), default=PURPOSES[0], show_default=True,
        help="What the graph is for: an engine (little memory) or a runtime on a CPU (little arithmetic).",
    )(function)  # fmt: skip


def without_option(function: F) -> F:
    """`--without NAME`, any number of times, as `without: tuple[str, ...]`."""
    text = "Leave out a rewrite of the network, to check what it brings; may be given several times."
    return click.option("--without", multiple=True, type=click.Choice(tuple(REWRITES)), metavar="NAME", help=(
        f"{text} One of: {', '.join(REWRITES)}."
    ))(function)  # fmt: skip


def runtime_option(function: F) -> F:
    """`--runtime` as `runtime: str | None`, what an ONNX file runs in."""
    text = "What an ONNX file runs in: ONNX Runtime on the CPU (the default) or a GPU, or OpenVINO (FP32 only)."
    return click.option("--runtime", type=click.Choice(RUNTIMES), help=text)(function)


def _check_paths(command: click.Command, ctx: click.Context) -> None:
    """Refuse a command line in which a file to be written is also read, or written twice."""
    written, read = [], []
    for param in command.params:
        value = ctx.params.get(param.name or "")
        value = value.json_target if isinstance(value, Show) else value
        if isinstance(param.type, OutputPath):
            if value is not None and value != STDOUT and not param.type.names_folder(value):
                written.append(value)
        elif isinstance(value, Path) or (param.name in ("checkpoint", "model") and isinstance(value, str)):
            read.append(Path(value))
        elif isinstance(value, tuple):
            read += [path for path in value if isinstance(path, Path)]
    for path in written:
        check_output_path(path, *read)
    for one, other in combinations(written, 2):
        if one.absolute() == other.absolute():
            raise RefusedInput(f"{one} is named for two results of this command; name another file")
    for path, owner in product(written, (*written, *read)):
        if path.absolute() in (sidecar_of(owner).absolute(), owner.with_name(owner.name + ".data").absolute()):
            raise RefusedInput(f"{path} belongs to {owner} and is not free for another result; name another file")
