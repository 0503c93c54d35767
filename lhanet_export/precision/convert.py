"""From an FP32 ONNX file to one of another precision."""

from pathlib import Path

import onnx_ir as ir

from lhanet_export.errors import RefusedInput
from lhanet_export.export.artifact import OnnxArtifact, save_onnx
from lhanet_export.precision.fp16 import Fp16Report, convert_to_fp16
from lhanet_export.precision.recipe import PrecisionRecipe, check_recipe
from lhanet_export.progress import SILENT, Progress


class WeightsBeyondRange(RefusedInput):
    """Weights are larger than FP16 can hold; a precision recipe can keep their nodes in FP32."""


def fp16_from_fp32(
    source: OnnxArtifact,
    path: Path,
    *,
    half_io: bool = False,
    recipe: PrecisionRecipe | None = None,
    progress: Progress = SILENT,
) -> tuple[OnnxArtifact, Fp16Report]:
    """Write the FP16 form of an FP32 ONNX file with its sidecar, which names the source by its SHA-256.

    A recipe keeps more nodes in FP32 than the rule does; the facts then name the recipe by its SHA-256, and
    its nodes. Weights beyond FP16's range, but for those of FP32 nodes, raise `WeightsBeyondRange` with their
    names: the graph would compute infinities. A recipe with nodes that the graph does not have is refused, too.
    Nothing is written then.
    """
    if source.precision != "fp32":
        raise RefusedInput(f"{source.path} is {source.precision} already; FP16 is made from the FP32 graph")
    if recipe is not None:
        check_recipe(recipe, source)
    with progress.step("convert to FP16"):
        model = ir.load(source.path)
        report = convert_to_fp16(model, half_io=half_io, keep=recipe.reasons if recipe else {})
        if report.overflowing:
            named = ", ".join(f"{loss.name} (largest {loss.largest:.3g})" for loss in report.overflowing[:8])
            raise WeightsBeyondRange(
                f"{len(report.overflowing)} weight tensors are beyond FP16's range of 65,504: {named}. "
                "Find a precision recipe that keeps them in FP32 (lhanet-export search), or use --precision fp32"
            )
        facts = {**source.facts, "precision": "fp16", "half_io": half_io, "parent_sha256": source.sha256}
        if recipe is not None:
            facts["precision_recipe"] = {"sha256": recipe.sha256, "keep": [node.name for node in recipe.keep]}
        return save_onnx(model, path, facts), report
