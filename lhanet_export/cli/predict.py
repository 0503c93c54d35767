"""`lhanet-export predict`: CT scans become segmentations."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lhanet_export.cli.options import OutputPath, ShapeType, assume_hu_option, command, json_option, runtime_option
from lhanet_export.cli.show import Show
from lhanet_export.conventions import BLENDINGS, MOST_LABELS, MOST_OVERLAP, Preprocessing
from lhanet_export.errors import EnvironmentLacks, RefusedInput
from lhanet_export.files import check_output_path
from lhanet_export.shapes import Shape

if TYPE_CHECKING:
    from lhanet_export.predict.task import Outcome, Prediction, Task

_AXES = "xyz"


class OrgansType(click.ParamType):
    """Class names, separated by commas."""

    name = "NAMES"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        return value if isinstance(value, tuple) else tuple(name.strip() for name in value.split(","))


class AxesType(click.ParamType):
    """Axes of the scan as stored, such as `z` or `xz`."""

    name = "AXES"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        if not isinstance(value, str):
            return value
        if not value or set(value) - set(_AXES) or len(set(value)) < len(value):
            self.fail(f"'{value}' does not name axes; write some of x, y and z, each once, as in xz", param, ctx)
        return tuple(sorted(_AXES.index(axis) for axis in value))


@command("predict")
@click.argument("model", metavar="MODEL")
@click.argument("scan", metavar="INPUT", type=click.Path(exists=True, path_type=Path))
@click.option(
    "-o", "target", required=True, type=OutputPath(folder=None), metavar="OUTPUT",
    help="The label map (.nii or .nii.gz), or the folder for those of a folder.",
)  # fmt: skip
@click.option(
    "--patch", type=ShapeType(), metavar="DxHxW",
    help="Size of a window in voxels of the network's grid. Default: what the model says, usually 48x96x96.",
)  # fmt: skip
@click.option(
    "--overlap", type=click.FloatRange(0, MOST_OVERLAP), metavar="SHARE",
    help="What neighbouring windows share of a side, 0 to 0.95. Default: what the model says, usually 0.5.",
)  # fmt: skip
@click.option(
    "--blending", type=click.Choice(BLENDINGS),
    help="How windows share voxels. Default: what the model says, usually gaussian.",
)  # fmt: skip
@click.option("--batch", type=click.IntRange(1, 64), default=1, show_default=True, help="Windows given at a time.")
@click.option(
    "--mirror", type=AxesType(), metavar="AXES", default=(),
    help="Also show windows mirrored along these axes of the file, and average; only as the network was trained.",
)  # fmt: skip
@click.option("--organs", type=OrgansType(), metavar="NAMES", help="Keep these organs only, separated by commas.")
@click.option("--largest-component", is_flag=True, help="Of each organ keep the largest piece only.")
@click.option(
    "--probabilities", type=OutputPath(folder=True), metavar="DIR",
    help="Also write each class's probability, a volume of 8 bits each, in a folder for every scan.",
)  # fmt: skip
@click.option(
    "--report", type=OutputPath(folder=True), metavar="DIR",
    help="Also write a picture of every scan: three planes with the organs in colour, and their volumes.",
)  # fmt: skip
@runtime_option
@click.option(
    "--null", is_flag=True,
    help="Run no network: label by brightness, as the embedded applications do with --null, to compare the rest.",
)  # fmt: skip
@assume_hu_option
@json_option
def predict(
    model: str, scan: Path, target: Path, patch: Shape | None, overlap: float | None, blending: str | None, batch: int,
    mirror: tuple[int, ...], organs: tuple[str, ...] | None, largest_component: bool, probabilities: Path | None,
    report: Path | None, runtime: str | None, null: bool, assume_hu: bool, show: Show,
) -> None:  # fmt: skip
    """Segment INPUT, a CT in HU as NIfTI, with MODEL: an engine, an ONNX file, a checkpoint, or demo.

    The label map has the scan's grid, affine and header. A folder gives a folder; a scan that cannot be used
    does not stop the others and is named at the end (exit code 2). Windows, preprocessing and class names are those
    that the model's manifest records.
    """
    from lhanet_export.predict.run import predict as run
    from lhanet_export.predict.task import Prediction
    from lhanet_export.runners.opening import runner_for
    from lhanet_export.verify.inputs import check_shapes

    tasks = _tasks(scan, target, probabilities, report)
    with show.progress.step(f"open {model}"):
        opened = runner_for(model, runtime, null=null)
    rules = _rules(opened.preprocessing, patch, overlap, blending)
    if opened.target.output == "labels":
        raise RefusedInput(f"{model} gives labels, of which no windows can be blended; export it with --output coarse")
    if len(opened.labels) > MOST_LABELS:
        raise RefusedInput(f"{model} has {len(opened.labels)} classes; a label map of 8 bits has {MOST_LABELS}")
    check_shapes([rules.patch], opened.spatial)
    how = Prediction(
        preprocessing=rules, batch=opened.batch or batch, fixed_batch=opened.batch is not None, mirrored=mirror,
        organs=_classes(organs, opened.labels), largest=largest_component,
        logits=opened.target.output != "probabilities", assume_hu=assume_hu,
    )  # fmt: skip
    with opened.runner:
        outcomes = run(opened.runner, tasks, opened.labels, how, progress=show.progress)
    while len(outcomes) < len(tasks):
        outcomes += _elsewhere(model, runtime, tasks[len(outcomes) :], how)
    _say(outcomes, show)
    show.facts({"model": model, "runner": opened.runner.name, "scans": [outcome.as_json() for outcome in outcomes]})
    failed = [outcome for outcome in outcomes if outcome.error]
    if failed:
        if len(tasks) == 1:
            assert failed[0].error is not None
            raise failed[0].error
        kind = EnvironmentLacks if any(isinstance(one.error, EnvironmentLacks) for one in failed) else RefusedInput
        raise kind(f"{len(failed)} of {len(tasks)} scans were not segmented; the table says why")


def _elsewhere(model: str, runtime: str | None, tasks: list[Task], how: Prediction) -> list[Outcome]:
    """Go on in a fresh process after a GPU failed: what was used by this one cannot be used by it any more.

    The outcomes of the first tasks, one at least.
    """
    from concurrent.futures import ProcessPoolExecutor
    from concurrent.futures.process import BrokenProcessPool
    from multiprocessing import get_context

    from lhanet_export.predict.task import Outcome

    try:
        with ProcessPoolExecutor(1, get_context("spawn")) as fresh:
            return fresh.submit(_segmented, model, runtime, tasks, how).result()
    except (EnvironmentLacks, BrokenProcessPool) as error:
        # There is no GPU any more, or it takes processes with it.
        return [Outcome(task=task, error=EnvironmentLacks(str(error))) for task in tasks]


def _segmented(model: str, runtime: str | None, tasks: list[Task], how: Prediction) -> list[Outcome]:
    """Open the model here, and run it."""
    from lhanet_export.predict.run import predict as run
    from lhanet_export.runners.opening import runner_for

    opened = runner_for(model, runtime)
    with opened.runner:
        return run(opened.runner, tasks, opened.labels, how, progress=Show().progress)


def _rules(rules: Preprocessing, patch: Shape | None, overlap: float | None, blending: str | None) -> Preprocessing:
    """The model's rules with what the command line says otherwise."""
    return replace(
        rules,
        patch=patch or rules.patch,
        overlap=rules.overlap if overlap is None else overlap,
        blending=blending or rules.blending,
    )


def _tasks(scan: Path, target: Path, probabilities: Path | None, report: Path | None) -> list[Task]:
    """What to make of a scan or of the scans of a folder."""
    from lhanet_export.predict.task import Task
    from lhanet_export.volume.folder import entries_in, stem_of

    if scan.is_dir():
        if target.is_file():
            raise RefusedInput(f"{scan} is a folder, so {target} has to be one, too; name another output")
        pairs = [(entry.image, target / f"{stem_of(entry.image)}.nii.gz") for entry in entries_in(scan)]
    else:
        if stem_of(target) is None or target.is_dir():
            raise RefusedInput(f"{target} should be a file that ends in .nii or .nii.gz: {scan} is one scan")
        pairs = [(scan, target)]
    tasks = []
    for source, labels in pairs:
        check_output_path(labels, *(image for image, _ in pairs))
        name = str(stem_of(labels))
        tasks.append(
            Task(
                scan=source,
                target=labels,
                probabilities=probabilities / name if probabilities else None,
                picture=report / f"{name}.png" if report else None,
            )
        )
    names = [task.target for task in tasks]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise RefusedInput(f"two scans of {scan} would be written to {twice}; segment their folders one by one")
    return tasks


def _classes(organs: tuple[str, ...] | None, names: tuple[str, ...]) -> frozenset[int] | None:
    if organs is None:
        return None
    unknown = [organ for organ in organs if organ not in names[1:]]
    if unknown:
        raise RefusedInput(f"the model has no organ '{unknown[0]}'; it has: {', '.join(names[1:])}")
    return frozenset(names.index(organ) for organ in organs)


def _say(outcomes: list[Outcome], show: Show) -> None:
    """A table of the organs for one scan, of the scans for several."""
    if len(outcomes) == 1 and not outcomes[0].error:
        volumes = outcomes[0].facts["volumes_ml"]
        rows = [(name, f"{volume:,.1f} ml") for name, volume in volumes.items() if volume]
        show.table(f"Organs of {outcomes[0].task.scan.name}", rows or [("none", "")])
    elif len(outcomes) > 1:
        scans = [
            (outcome.task.scan.name, "no", str(outcome.error)) if outcome.error
            else (outcome.task.scan.name, "yes", _seconds(outcome))
            for outcome in outcomes
        ]  # fmt: skip
        show.table("Scans", scans, ("scan", "segmented", ""))


def _seconds(outcome: Outcome) -> str:
    from lhanet_export.cli.show import format_seconds

    seconds = outcome.facts["seconds"]
    return f"{outcome.facts['windows']} windows in {format_seconds(seconds['windows'])}"
