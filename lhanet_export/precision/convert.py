"""From an FP32 ONNX file to one of another precision."""

from pathlib import Path

import onnx_ir as ir

from lhanet_export.errors import RefusedInput
from lhanet_export.export.artifact import OnnxArtifact, save_onnx
from lhanet_export.precision.fp16 import Fp16Report, convert_to_fp16
from lhanet_export.progress import SILENT, Progress


def fp16_from_fp32(
    source: OnnxArtifact, path: Path, *, half_io: bool = False, progress: Progress = SILENT
) -> tuple[OnnxArtifact, Fp16Report]:
    """Write the FP16 form of an FP32 ONNX file with its sidecar, which names the source by its SHA-256.

    Weights beyond FP16's range raise `RefusedInput` with their names: the graph would compute
    infinities. Nothing is written then.
    """
    if source.precision != "fp32":
        raise RefusedInput(f"{source.path} is {source.precision} already; FP16 is made from the FP32 graph")
    with progress.step("convert to FP16"):
        model = ir.load(source.path)
        report = convert_to_fp16(model, half_io=half_io)
        if report.overflowing:
            named = ", ".join(f"{loss.name} (largest {loss.largest:.3g})" for loss in report.overflowing[:8])
            raise RefusedInput(
                f"{len(report.overflowing)} weight tensors are beyond FP16's range of 65,504: {named}. "
                "Use --precision fp32"
            )
        facts = {**source.facts, "precision": "fp16", "half_io": half_io, "parent_sha256": source.sha256}
        return save_onnx(model, path, facts), report
