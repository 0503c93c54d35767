"""What patches of a checkpoint's graph need, asked of the graph and of the builder, and kept for the next time.

A build takes about a minute, so every answer is kept in a file. Its key names all that decides the
answers: the checkpoint's bytes, this package's own sources, the libraries, the builder and what it
builds for. An answer is taken from the file only where asking again would give the same.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from lhanet_export.engine.build import engine_from_onnx
from lhanet_export.engine.plan import plan_engine
from lhanet_export.engine.recipes import Recipe
from lhanet_export.errors import EnvironmentLacks, RefusedInput
from lhanet_export.files import read_json, scratch_folder, sha256_of, staged, write_json
from lhanet_export.inference.target import Target
from lhanet_export.model.demo import DEMO, demo_file
from lhanet_export.progress import Progress
from lhanet_export.shapes import LONGEST_SIDE, Shape, SpatialRange, TensorSizes, format_shape
from lhanet_export.strict import Node

if TYPE_CHECKING:
    import onnx_ir as ir

    from lhanet_export.export.artifact import OnnxArtifact

logger = logging.getLogger(__name__)

#: Parts of depth, height and width.
Aspect = tuple[int, int, int]

#: Libraries besides the builder's that decide what graph a checkpoint becomes.
_LIBRARIES = ("numpy", "onnx", "onnx-ir", "polygraphy", "torch")
_PRESET_PREFIX = "preset:"
#: Beyond any card: the builder is to say what a size needs, not to judge it.
_ANY_MEMORY = 2**62


@dataclass(frozen=True, kw_only=True)
class Ladder:
    """The sides that a network's patches may have: multiples of `stride` voxels, none below `smallest`."""

    stride: int
    smallest: int

    def of(self, aspect: Aspect) -> list[Shape]:
        """The patches of an aspect, growing; the last one is the first with a side beyond `LONGEST_SIDE`."""
        depth, height, width = (self.stride * part for part in aspect)
        first = math.ceil(self.smallest / min(depth, height, width))
        last = max(LONGEST_SIDE // max(depth, height, width) + 1, first)
        return [(scale * depth, scale * height, scale * width) for scale in range(first, last + 1)]


@dataclass(frozen=True, kw_only=True)
class Planned:
    """Device memory in bytes that the builder planned for one size."""

    weights_bytes: int
    activation_bytes: int


class Patches(Protocol):
    """What can be asked about patches of one graph."""

    @property
    def ladder(self) -> Ladder:
        """The sides that the network takes."""

    def tensors(self, shape: Shape) -> TensorSizes:
        """The graph's tensors at a size; within a second."""

    def planned(self, shape: Shape) -> Planned:
        """What the builder plans for all sizes up to this one; in about a minute."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """What is asked about a checkpoint: which graph is made of it, and for which card it is built."""

    checkpoint: str
    recipe: Recipe
    backend: str
    precision: str
    target: Target


Answer = Ladder | TensorSizes | Planned
T = TypeVar("T", Ladder, TensorSizes, Planned)
#: What is kept, by the first word of its name.
_ANSWERS: dict[str, type[Ladder] | type[TensorSizes] | type[Planned]] = {
    "ladder": Ladder, "tensors": TensorSizes, "planned": Planned
}  # fmt: skip


def key_of(question: Question, backend_version: str) -> dict[str, Any]:
    """All that decides the answers, as JSON values; `RefusedInput` where the checkpoint cannot be read."""
    sources = hashlib.sha256()
    package = Path(__file__).parent
    for path in sorted(package.rglob("*.py")):
        sources.update(f"{path.relative_to(package)} {sha256_of(path)}\n".encode())
    return {
        "checkpoint": _identity(question.checkpoint),
        "sources": sources.hexdigest(),
        "libraries": {name: _version(name) for name in _LIBRARIES},
        "backend": [question.backend, backend_version],
        "compute_capabilities": list(question.recipe.compute_capabilities),
        "precision": question.precision,
        "head": question.target.head,
        "output": question.target.output,
    }


def _version(library: str) -> str | None:
    try:
        return metadata.version(library)
    except metadata.PackageNotFoundError:
        return None  # what needs it will say so


def _identity(checkpoint: str) -> str:
    """A checkpoint file's SHA-256; a preset's name, because its weights follow from this package's sources."""
    if checkpoint.startswith(_PRESET_PREFIX):
        return checkpoint
    if checkpoint == DEMO:
        with demo_file() as path:
            return sha256_of(path)
    try:
        if Path(checkpoint).is_file():
            return sha256_of(Path(checkpoint))
    except OSError as error:
        raise RefusedInput(f"cannot read {checkpoint}: {error.strerror or error}") from error
    raise RefusedInput(f"there is no regular file {checkpoint}; name a checkpoint file, preset:lightweight, or demo")


@dataclass(kw_only=True)
class ExportedPatches:
    """Patches of a checkpoint's graph, which is exported when it is first needed; its files are gone with `stack`."""

    question: Question
    #: What the checkpoint was when its key was made.
    identity: str
    progress: Progress
    stack: ExitStack

    @property
    def ladder(self) -> Ladder:
        return self._exported[0]

    def tensors(self, shape: Shape) -> TensorSizes:
        from lhanet_export.export.work import tensor_sizes

        return tensor_sizes(self._model, shape)

    def planned(self, shape: Shape) -> Planned:
        ladder, artifact = self._exported
        # Best for the patch itself: that is the size an application with a sliding window runs.
        spatial = SpatialRange((ladder.smallest,) * 3, shape, shape)
        asked = self.question
        plan = plan_engine(
            artifact.path, artifact.as_json(), recipe=asked.recipe, backend=asked.backend, spatial=spatial
        )
        with self.progress.step(f"build for patches up to {format_shape(shape)}"):
            built = engine_from_onnx(replace(plan, memory_bytes=_ANY_MEMORY), artifact.path.parent)
        built.path.unlink()
        if built.weights_bytes is None or built.activation_bytes is None:
            raise EnvironmentLacks(f"{asked.backend} {built.backend_version} does not say what memory it planned")
        return Planned(weights_bytes=built.weights_bytes, activation_bytes=built.activation_bytes)

    @cached_property
    def _model(self) -> ir.Model:
        from lhanet_export.export.work import read_graph

        return read_graph(self._exported[1].path).model

    @cached_property
    def _exported(self) -> tuple[Ladder, OnnxArtifact]:
        # Imported here: what was answered before does without PyTorch.
        from lhanet_export.export.onnx_from_network import ExportOptions, default_range, onnx_from_network
        from lhanet_export.model.checkpoint import open_checkpoint
        from lhanet_export.precision.convert import fp16_from_fp32

        checkpoint = self.question.checkpoint
        folder = self.stack.enter_context(scratch_folder(cache_folder()))
        with self.progress.step(f"load {checkpoint}"):
            network, found = open_checkpoint(checkpoint)
        if self.identity not in (checkpoint, found.sha256):
            raise RefusedInput(f"{checkpoint} changed while it was read; start again")
        usual = default_range(network)
        ladder = Ladder(stride=network.preset.strides[-1], smallest=usual.min[0])
        options = ExportOptions(target=self.question.target, spatial=replace(usual, max=(LONGEST_SIDE,) * 3))
        artifact = onnx_from_network(network, found.as_json(), folder / "fp32.onnx", options, self.progress)
        if self.question.precision == "fp16":
            artifact, _ = fp16_from_fp32(artifact, folder / "fp16.onnx", progress=self.progress)
        return ladder, artifact


class CachedPatches:
    """Patches of a graph that are asked about once: the answers under `key` are kept in a file in `folder`.

    A file that is damaged, or of another key, is as good as none and is written anew.
    """

    def __init__(self, patches: Patches, folder: Path, key: Mapping[str, Any]) -> None:
        digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
        self.path = folder / f"fit-{digest[:16]}.json"
        self._patches, self._key = patches, dict(key)
        self._answers: dict[str, Answer] = {}
        if self.path.exists():
            try:
                self._answers = self._read()
            except RefusedInput as error:
                logger.warning("%s; its plans are made anew", error)

    @property
    def ladder(self) -> Ladder:
        return self._ask("ladder", Ladder, lambda: self._patches.ladder)

    def tensors(self, shape: Shape) -> TensorSizes:
        return self._ask(f"tensors {format_shape(shape)}", TensorSizes, lambda: self._patches.tensors(shape))

    def planned(self, shape: Shape) -> Planned:
        return self._ask(f"planned {format_shape(shape)}", Planned, lambda: self._patches.planned(shape))

    def _ask(self, name: str, kind: type[T], answer: Callable[[], T]) -> T:
        found = self._answers.get(name)
        if isinstance(found, kind):
            return found
        self._answers[name] = made = answer()
        # At once: an interruption loses only what it interrupts.
        with staged(self.path) as (temporary,):
            answers = {name: asdict(one) for name, one in self._answers.items()}
            write_json(temporary, {"key": self._key, "answers": answers})
        return made

    def _read(self) -> dict[str, Answer]:
        document = Node(read_json(self.path), self.path).object()
        key = document.take("key")
        if key.facts() != self._key:
            raise key.refused("this is another checkpoint, card or version")
        answers = document.take("answers").facts()
        document.finish()
        return {name: _answer(name, Node(value, self.path, name)) for name, value in answers.items()}


def _answer(name: str, kept: Node) -> Answer:
    """An answer as it was kept: whole numbers and texts by the names of its fields."""
    kind = _ANSWERS[Node(name.partition(" ")[0], kept.source, "answers").one_of(tuple(_ANSWERS))]
    document = kept.object()
    values: dict[str, Any] = {
        one.name: document.take(one.name).text() if one.type == "str" else document.take(one.name).integer(0)
        for one in fields(kind)
    }
    document.finish()
    return kind(**values)


def cache_folder() -> Path:
    """Where answers are kept: `lhanet-export` in `XDG_CACHE_HOME` if that is absolute, or else in `~/.cache`."""
    root = os.environ.get("XDG_CACHE_HOME", "")
    try:
        return (Path(root) if os.path.isabs(root) else Path.home() / ".cache") / "lhanet-export"
    except RuntimeError as error:
        raise EnvironmentLacks("there is no home folder to keep plans in; name a folder in XDG_CACHE_HOME") from error
