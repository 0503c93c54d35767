"""`lhanet-export verify`: hold an ONNX file or an engine against the network it was made from."""

from __future__ import annotations

from pathlib import Path

from lhanet_export.cli.options import (
    checkpoint_option,
    command,
    data_option,
    file_argument,
    json_option,
    runtime_option,
    seed_option,
    shape_option,
    windows_option,
)
from lhanet_export.cli.report import show_verification
from lhanet_export.cli.show import Show
from lhanet_export.shapes import Shape


@command("verify")
@file_argument("model")
@checkpoint_option
@shape_option("By default the smallest of the model, 48x96x96 and an odd one, as far as the model serves them.")
@runtime_option
@data_option
@windows_option
@seed_option
@json_option
def verify(
    model: Path, checkpoint: str, shapes: tuple[Shape, ...], runtime: str | None, data: Path | None, assume_hu: bool,
    windows: int, seed: int, show: Show,
) -> None:  # fmt: skip
    """Compare MODEL, an ONNX file or an engine, with the eager PyTorch network of CHECKPOINT.

    Volumes by rule show errors of size and meaning. With --data, or if the network has AMOS22's 16
    classes, windows of scans follow, and every organ's Dice is compared; without --data they are synthetic CT.

    ONNX files run on the CPU, FP16 ones with every tensor rounded to FP16, or with --runtime onnxruntime-cuda on a GPU
    as they are; engines need their GPU.
    Exit code 2 if any number is out of tolerance, or if the network does not depend on its input,
    because then every comparison passes.
    """
    from lhanet_export.cli.comparison import opened_with_reference
    from lhanet_export.verify.gate import TOLERANCES
    from lhanet_export.verify.gate import verify as compare

    opened, reference = opened_with_reference(
        model, checkpoint, runtime=runtime, shapes=shapes, data=data, assume_hu=assume_hu, windows=windows, seed=seed,
        progress=show.progress,
    )  # fmt: skip
    verification = compare(
        opened.runner, reference, TOLERANCES[opened.precision], output=opened.target.output, progress=show.progress
    )
    show_verification(show, model.name, verification, opened.labels)
    show.facts({"model": str(model), **verification.as_json()})
    verification.require(str(model))
