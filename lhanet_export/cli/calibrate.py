"""`lhanet-export calibrate`: an FP32 graph becomes an INT8 one, with scales from scans."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from lhanet_export.cli.options import OutputPath, assume_hu_option, command, file_argument, json_option, target_option
from lhanet_export.cli.show import Show, format_bytes
from lhanet_export.conventions import CALIBRATION_WINDOWS
from lhanet_export.errors import RefusedInput

if TYPE_CHECKING:
    from lhanet_export.precision.decision import Decision
    from lhanet_export.precision.int8 import Int8Report

#: `precision.scales.METHODS`, which would be loaded with NumPy.
METHODS = ("min-max", "percentile-99.999", "percentile-99.99", "entropy", "mse")


@command("calibrate")
@file_argument("model")
@target_option("The INT8 ONNX file; its sidecar and large weights are written beside it.")
@click.option(
    "--data", required=True, type=click.Path(exists=True, file_okay=False, path_type=Path), metavar="DIR",
    help="CT volumes (.nii, .nii.gz) to calibrate on: images in DIR, or in DIR/images with DIR/labels beside.",
)  # fmt: skip
@assume_hu_option
@click.option(
    "--method", type=click.Choice(("auto", *METHODS)), default="auto", show_default=True,
    help="How scales follow from what was seen; auto takes what was measured to be best.",
)  # fmt: skip
@click.option(
    "--keep", type=click.Choice(("auto", "none")), default="auto", show_default=True,
    help="Which layers go back to FP16: auto those that cost organs, where organs are lost; none has the least memory.",
)  # fmt: skip
@click.option(
    "--windows", type=click.IntRange(CALIBRATION_WINDOWS, 1024), default=CALIBRATION_WINDOWS, show_default=True,
    help="How many windows of the scans to run. A quarter of them is held out to choose the method on.",
)  # fmt: skip
@click.option(
    "--cache", type=OutputPath(), metavar="FILE",
    help="Where the ranges are kept, and beside them the choice. Default: beside the target, as TARGET.ranges.npz.",
)  # fmt: skip
@json_option
def calibrate(
    model: Path, target: Path, data: Path, assume_hu: bool, method: str, keep: str, windows: int, cache: Path | None,
    show: Show,
) -> None:  # fmt: skip
    """Convert MODEL, an FP32 ONNX file of `onnx --without short-convolutions`, to INT8.

    Scales come from the scans in DIR, at least four, preprocessed as for inference. What is measured is kept
    and used again for the same model and scans. The result has to pass `verify` like any other graph.
    """
    from lhanet_export.export.artifact import read_onnx
    from lhanet_export.quantize import int8_from_scans

    if target.suffix != ".onnx":
        raise RefusedInput(f"{target} should end in .onnx: readers tell the format by it")
    made = int8_from_scans(
        read_onnx(model), target, data, method=method, keep_organs=keep == "auto", windows=windows, assume_hu=assume_hu,
        cache=cache or target.with_name(f"{target.name}.ranges.npz"), progress=show.progress,
    )  # fmt: skip
    _say_trials(made.decision, show)
    _say_layers(made.decision, made.report, show)
    bytes_on_disk = sum(path.stat().st_size for path in made.artifact.files)
    rows = [("file", str(target)), ("size", format_bytes(bytes_on_disk)), ("sizes", str(made.artifact.spatial))]
    show.table("INT8", rows + made.report.rows())
    show.facts({
        "file": str(target), "bytes": bytes_on_disk, "data": str(data), "windows": windows, **made.artifact.as_json(),
        **made.as_json(),
    })  # fmt: skip


def _say_trials(decision: Decision, show: Show) -> None:
    rows = [
        (
            trial.method, trial.clip, "yes" if trial.corrected else "", str(trial.kept or ""),
            f"{trial.error.relative_l2:.4f}", f"{1 - trial.error.labels_changed:.4%}", f"{trial.error.dice:.4f}",
            "chosen" if trial is decision.choice.best else "",
        )
        for trial in decision.choice.trials
    ]  # fmt: skip
    columns = ("activations", "weights", "biases corrected", "kept", "relative L2", "labels equal", "Dice", "")
    show.table("Ways to INT8, against FP32 on windows that gave no ranges", rows, columns)


def _say_layers(decision: Decision, report: Int8Report, show: Show) -> None:
    from lhanet_export.export.work import title_of

    total = sum(report.multiply_adds.values()) / report.share
    quantized = [
        (
            title_of(layer.name), f"{report.multiply_adds[layer.name] / total:.1%}", f"{layer.scale:.3g}",
            f"{layer.clipped:.3%}", f"{layer.weight_noise:.1e}", _sensitivity(decision, layer.name),
            "INT8; 0 on every scan" if layer.silent else "INT8",
        )
        for layer in report.layers
    ]  # fmt: skip
    kept = [
        (title_of(name), "", "", "", "", _sensitivity(decision, name), f"FP16: {reason}")
        for name, reason in decision.choice.options.keep.items()
    ]
    logits = any(layer.relative_l2 is not None for layer in decision.layers.values())
    columns = (
        "layer", "multiply-adds", "scale", "clipped", "weight noise",
        "error of the logits" if logits else "error of its output", "",
    )  # fmt: skip
    show.table("Layers: what INT8 in this one alone does", quantized + kept, columns)


def _sensitivity(decision: Decision, name: str) -> str:
    found = decision.layers.get(name)
    return f"{found.size:.2%}" if found else ""
