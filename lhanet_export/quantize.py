"""INT8 from a folder of scans: which windows are run, what is measured on them, and the graph that follows."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lhanet_export.conventions import CALIBRATION_WINDOWS
from lhanet_export.errors import RefusedInput
from lhanet_export.export.artifact import OnnxArtifact
from lhanet_export.precision.calibrate import FEWEST_IMAGES, CalibrationImage, calibrate
from lhanet_export.precision.decision import Decision, decide
from lhanet_export.precision.int8 import Int8Report, int8_from_fp32, quantized_tensors
from lhanet_export.progress import SILENT, Progress
from lhanet_export.verify.cases import window_in
from lhanet_export.verify.metrics import dice_per_class
from lhanet_export.verify.volumes import scan_cases
from lhanet_export.volume.folder import entries_in

#: One window in so many is for choosing the method.
_HELD_OUT = 4


@dataclass(frozen=True, kw_only=True)
class Quantized:
    """An INT8 graph, what became of each convolution, and how the way there was chosen, on how many scans."""

    artifact: OnnxArtifact
    report: Int8Report
    decision: Decision
    scans: int

    def as_json(self) -> dict[str, Any]:
        """The same facts as JSON values, without those of the graph."""
        choice = self.decision.choice
        return {
            "scans": self.scans,
            "trials": [trial.as_json() for trial in choice.trials],
            "chosen": choice.trials.index(choice.best),
            "report": self.report.as_json(),
            "sensitivity": {name: layer.as_json() for name, layer in self.decision.layers.items()},
        }


def int8_from_scans(
    source: OnnxArtifact,
    target: Path,
    data: Path,
    *,
    method: str = "auto",
    keep_organs: bool = True,
    windows: int = CALIBRATION_WINDOWS,
    cache: Path | None = None,
    assume_hu: bool = False,
    progress: Progress = SILENT,
) -> Quantized:
    """Write the INT8 form of an FP32 graph, with scales from `windows` windows of the scans in `data`.

    A quarter of the windows gives no ranges: on them the ways to INT8 are compared, and unless `keep_organs` is off,
    layers that cost organs stay FP16. With `cache` the ranges are
    kept in that file and the choice beside it, and both are read again for the same graph and scans.
    `RefusedInput` for too few or unusable scans, for a graph that INT8 is not made from, and for a cache of another
    graph or other scans; no graph is written then.
    """
    tensors = quantized_tensors(source)
    scans = len(entries_in(data))
    if scans < FEWEST_IMAGES:
        raise RefusedInput(f"{data} holds {scans} volumes; to calibrate on, give at least {FEWEST_IMAGES}, better 16")
    cases = scan_cases(
        data, window_in(source.spatial), windows, classes=len(source.facts["labels"]), assume_hu=assume_hu,
        progress=progress,
    )  # fmt: skip
    images = [CalibrationImage(name=case.kind, voxels=case.image) for case in cases]
    kept = len(images) - windows // _HELD_OUT
    images, held_out = images[:kept], images[kept:]
    ranges = calibrate(source, images, tensors, cache=cache, progress=progress)
    decision = decide(
        source, ranges, images, held_out, dice_per_class, method=method, keep_organs=keep_organs,
        cache=cache.with_name(f"{cache.name}.choice.npz") if cache else None, progress=progress,
    )  # fmt: skip
    choice = decision.choice
    artifact, report = int8_from_fp32(
        source, ranges, target, options=choice.options, biases=choice.biases, progress=progress
    )
    return Quantized(artifact=artifact, report=report, decision=decision, scans=scans)
