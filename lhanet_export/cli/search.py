"""`lhanet-export search`: find the nodes that have to stay FP32 for the FP16 graph to pass."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from lhanet_export.cli.options import (
    checkpoint_option,
    command,
    data_option,
    file_argument,
    json_option,
    seed_option,
    shape_option,
    target_option,
    windows_option,
)
from lhanet_export.cli.show import Show
from lhanet_export.shapes import Shape

if TYPE_CHECKING:
    from lhanet_export.export.artifact import OnnxArtifact
    from lhanet_export.verify.gate import Verification


@command("search")
@file_argument("model")
@checkpoint_option
@target_option("The precision recipe to write, a YAML file.")
@data_option
@shape_option("By default the smallest of the model, 48x96x96 and an odd one, as far as the model serves them.")
@windows_option
@click.option(
    "--trials", type=click.IntRange(1, 10_000), default=200, show_default=True, help="Give up looking for less then."
)
@seed_option
@json_option
def search(
    model: Path,
    checkpoint: str,
    target: Path,
    data: Path | None,
    assume_hu: bool,
    shapes: tuple[Shape, ...],
    windows: int,
    trials: int,
    seed: int,
    show: Show,
) -> None:
    """Find a precision recipe with which the FP16 form of MODEL, an FP32 ONNX file, passes its comparison.

    The comparison is that of `verify` with the same options. A recipe names the nodes that stay FP32 and says why,
    on what it was measured, and what it costs. Where FP16 passes as it is, the recipe is empty. Everything runs
    on the CPU. Exit code 2 if no recipe helps.
    """
    from lhanet_export.cli.comparison import opened_with_reference
    from lhanet_export.export.artifact import read_onnx
    from lhanet_export.precision.recipe import write_recipe
    from lhanet_export.precision.search import search_fp16
    from lhanet_export.runners.onnxruntime_ import OnnxRuntimeRunner
    from lhanet_export.verify.gate import TOLERANCES
    from lhanet_export.verify.gate import verify as compare

    artifact = read_onnx(model)
    opened, reference = opened_with_reference(
        model, checkpoint, shapes=shapes, data=data, assume_hu=assume_hu, windows=windows, seed=seed,
        progress=show.progress,
    )  # fmt: skip

    def judge(trial: OnnxArtifact) -> Verification:
        return compare(OnnxRuntimeRunner(trial), reference, TOLERANCES["fp16"], output=opened.target.output)

    images = [case.image for case in reference.cases]
    result = search_fp16(artifact, judge, images, target.parent, most_trials=trials, progress=show.progress)
    write_recipe(result.recipe, target)
    show.table(f"{target.name}: FP16 of {model.name}", result.rows())
    show.facts({"recipe": str(target), "model": str(model), **result.as_json()})
