"""What the commands that compare a model with its network begin with."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lhanet_export.model.checkpoint import open_checkpoint
from lhanet_export.progress import Progress
from lhanet_export.runners.base import check_same_checkpoint
from lhanet_export.runners.opening import Opened, reference_runner, runner_of
from lhanet_export.shapes import Shape
from lhanet_export.verify.cases import comparison_cases
from lhanet_export.verify.gate import Reference, reference_for
from lhanet_export.verify.inputs import check_shapes


def opened_with_reference(
    model: Path,
    checkpoint: str,
    *,
    runtime: str | None = None,
    shapes: Sequence[Shape],
    data: Path | None,
    assume_hu: bool,
    windows: int,
    seed: int,
    progress: Progress,
) -> tuple[Opened, Reference]:
    """A model with its runner, not yet started, and what the network of `checkpoint` says on the volumes to compare on.

    Options as those of `verify`. Refused before the network runs: a size that the model does not serve, scans
    that are not usable, and a checkpoint that the model was not made from.
    """
    opened = runner_of(model, runtime)
    check_shapes(list(shapes), opened.spatial)
    cases = comparison_cases(
        opened.spatial, len(opened.labels), precision=opened.precision, shapes=shapes, batch=opened.batch, data=data,
        assume_hu=assume_hu, windows=windows, seed=seed, progress=progress,
    )  # fmt: skip
    with progress.step(f"load {checkpoint}"):
        network, identity = open_checkpoint(checkpoint)
    check_same_checkpoint(model, opened.checkpoint, identity.as_json())
    return opened, reference_for(reference_runner(network, opened.target), cases, progress)
