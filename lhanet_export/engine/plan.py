"""What to build, decided before anything is built: pure data that needs neither TensorRT nor a GPU."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lhanet_export.conventions import PRECISIONS
from lhanet_export.engine.backends import BACKENDS
from lhanet_export.engine.recipes import Recipe
from lhanet_export.errors import RefusedInput
from lhanet_export.shapes import SpatialRange
from lhanet_export.strict import Node

#: The one input of every graph of this toolkit.
INPUT_NAME = "image"
_LARGEST_BATCH = 1024

Batch = tuple[int, int, int]


@dataclass(frozen=True, kw_only=True)
class EnginePlan:
    """Everything that decides what an engine becomes.

    The engine takes volumes (N,1,D,H,W) with N in `batch` (min, opt, max) and (D,H,W) in one of
    `profiles`, in voxels. `memory_bytes` is the memory of the card that it has to fit on.
    """

    onnx: Path
    onnx_sha256: str
    precision: str
    backend: str
    compute_capabilities: tuple[str, ...]
    profiles: tuple[SpatialRange, ...]
    batch: Batch
    memory_bytes: int

    def shapes(self, profile: SpatialRange) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
        """The smallest, best and largest input (N,1,D,H,W) of one profile."""
        low, best, high = self.batch
        return (low, 1, *profile.min), (best, 1, *profile.opt), (high, 1, *profile.max)

    def as_json(self) -> dict[str, Any]:
        """The plan as JSON values; inverse of `from_json`."""
        return {
            "onnx": str(self.onnx),
            "onnx_sha256": self.onnx_sha256,
            "precision": self.precision,
            "backend": self.backend,
            "compute_capabilities": list(self.compute_capabilities),
            "profiles": [profile.as_json() for profile in self.profiles],
            "batch": list(self.batch),
            "memory_bytes": self.memory_bytes,
        }

    @classmethod
    def from_json(cls, facts: Mapping[str, Any]) -> EnginePlan:
        """A plan from the JSON of `as_json`; anything else raises `RefusedInput`."""
        document = Node(dict(facts), "build plan").object()
        low, best, high = document.take("batch").list_of(
            lambda node: node.integer(1, _LARGEST_BATCH), at_least=3, at_most=3
        )
        plan = cls(
            onnx=Path(document.take("onnx").text()),
            onnx_sha256=document.take("onnx_sha256").sha256(),
            precision=document.take("precision").one_of(PRECISIONS),
            backend=document.take("backend").one_of(tuple(BACKENDS)),
            compute_capabilities=document.take("compute_capabilities").list_of(Node.capability),
            profiles=document.take("profiles").list_of(Node.spatial, at_most=16),
            batch=(low, best, high),
            memory_bytes=document.take("memory_bytes").integer(1),
        )
        document.finish()
        return plan


def plan_engine(
    onnx: Path,
    facts: Mapping[str, Any],
    *,
    recipe: Recipe,
    backend: str = "tensorrt-rtx",
    spatial: SpatialRange | None = None,
    batch: Batch | None = None,
) -> EnginePlan:
    """Plan an engine for a recipe's GPU from an ONNX file and its facts (the sidecar's: sha256, precision, ...).

    Without `spatial` the engine serves the recipe's sizes, as far as the graph was exported for them.
    Without `batch` it takes the graph's own batch, or 1 where that is dynamic. Raises `RefusedInput`
    where graph, recipe, backend and sizes do not go together.
    """
    known = Node(dict(facts), onnx).object()
    precision = known.take("precision").one_of(PRECISIONS)
    exported = known.take_if("spatial", Node.spatial)
    check_backend(recipe, backend)
    if spatial is not None and exported is not None and not (spatial.min in exported and spatial.max in exported):
        raise RefusedInput(
            f"sizes {spatial} go beyond {exported}, for which {onnx} was exported; "
            f"export it again with --spatial {spatial}"
        )
    if spatial is None:
        spatial = recipe.spatial if exported is None else recipe.spatial.within(exported)
    return EnginePlan(
        onnx=onnx.absolute(),
        onnx_sha256=known.take("sha256").sha256(),
        precision=precision,
        backend=backend,
        compute_capabilities=recipe.compute_capabilities,
        profiles=(spatial,),
        batch=_batch_of(onnx, known.take_if("batch", lambda node: node.integer(1, _LARGEST_BATCH)), batch),
        memory_bytes=recipe.memory_bytes,
    )


def check_backend(recipe: Recipe, backend: str) -> None:
    """Raise `RefusedInput` if the backend is unknown or does not build for the recipe's GPU."""
    if backend not in BACKENDS:
        raise RefusedInput(f"there is no backend '{backend}'; choose one of {', '.join(BACKENDS)}")
    if backend not in recipe.backends:
        raise RefusedInput(
            f"recipe '{recipe.name}' ({recipe.title}) is not for {backend}; "
            f"it builds with {' or '.join(recipe.backends)}"
        )


def _batch_of(onnx: Path, exported: int | None, wanted: Batch | None) -> Batch:
    if wanted is None:
        return (exported or 1,) * 3
    low, best, high = wanted
    if not 1 <= low <= best <= high <= _LARGEST_BATCH:
        raise RefusedInput(f"batch {low}:{best}:{high} needs 1 <= min <= opt <= max <= {_LARGEST_BATCH}")
    if exported is not None and (low, high) != (exported, exported):
        raise RefusedInput(
            f"{onnx} was exported for batch {exported}; batch {low} to {high} needs --batch dynamic there"
        )
    return wanted
