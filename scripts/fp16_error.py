"""What FP16 costs in accuracy at full width, preset by preset, with and without the way into the attention in FP32.

    python scripts/fp16_error.py [PRESET...] [--shape DxHxW]... --json docs/measurements/fp16-error.json

Prints a row for each preset and size: relative L2 and label agreement of the FP16 graph against the
FP32 graph (both in ONNX Runtime, FP16 with every tensor rounded), on the volumes that `verify` uses, of four seeds.
Takes about three minutes a preset and 5 GB.
"""

from __future__ import annotations

import datetime
import tempfile
from pathlib import Path
from typing import Any

import click
import numpy as np
from _machine import machine

from lhanet_export.cli.options import json_option, shape_option
from lhanet_export.cli.show import Show
from lhanet_export.export.artifact import OnnxArtifact
from lhanet_export.export.onnx_from_network import onnx_from_network
from lhanet_export.model.checkpoint import open_checkpoint
from lhanet_export.model.presets import PRESETS
from lhanet_export.precision import fp16
from lhanet_export.precision.convert import fp16_from_fp32
from lhanet_export.runners.onnxruntime_ import OnnxRuntimeRunner
from lhanet_export.shapes import Shape, format_shape
from lhanet_export.verify.inputs import Case, cases_for
from lhanet_export.verify.metrics import difference

#: For residual networks the error depends much on the volume: one set of volumes is not enough.
SEEDS = range(4)


@click.command()
@click.argument("presets", nargs=-1)
@shape_option("By default 33x64x64, 64x64x64, 51x71x90 and 48x96x96.")
@json_option
def main(presets: tuple[str, ...], shapes: tuple[Shape, ...], show: Show) -> None:
    """Measure the error of FP16 for PRESETS, by default all."""
    sizes = list(shapes) or [(33, 64, 64), (64, 64, 64), (51, 71, 90), (48, 96, 96)]
    cases = [case for seed in SEEDS for case in cases_for(sizes, seed=seed)]
    rows = [row for preset in presets or PRESETS for row in measure(preset, cases, show)]
    show.table(
        "FP16 against FP32",
        [
            (row["preset"], row["size"], row["volume"], f"{row['relative_l2']:.1e}", f"{row['labels_equal']:.3%}",
             f"{row['relative_l2_without']:.1e}", f"{row['labels_equal_without']:.3%}")
            for row in rows
        ],
        ("preset", "size", "volume", "relative L2", "labels equal", "without: L2", "without: labels"),
    )  # fmt: skip
    show.facts(
        {"date": str(datetime.date.today()), "machine": machine("torch", "onnx", "onnxruntime-gpu"), "rows": rows}
    )


def measure(preset: str, cases: list[Case], show: Show) -> list[dict[str, Any]]:
    """The rows of one preset."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        network, identity = open_checkpoint(f"preset:{preset}")
        whole = onnx_from_network(network, identity.as_json(), folder / "fp32.onnx", progress=show.progress)
        del network
        expected = outputs(whole, cases)
        kept, _ = fp16_from_fp32(whole, folder / "fp16.onnx", progress=show.progress)
        found = outputs(kept, cases)
        island = fp16._way_into_attention
        fp16._way_into_attention = lambda graph, nodes: set()
        try:
            plain, _ = fp16_from_fp32(whole, folder / "plain.onnx", progress=show.progress)
        finally:
            fp16._way_into_attention = island
        without = outputs(plain, cases)
    rows = []
    for case, reference, one, other in zip(cases, expected, found, without, strict=True):
        kept_error, plain_error = (difference(case, reference, logits, "logits", 0.0) for logits in (one, other))
        rows.append({
            "preset": preset, "size": format_shape(case.shape), "volume": case.kind,
            "relative_l2": kept_error.relative_l2, "labels_equal": kept_error.label_agreement,
            "relative_l2_without": plain_error.relative_l2, "labels_equal_without": plain_error.label_agreement,
        })  # fmt: skip
    return rows


def outputs(artifact: OnnxArtifact, cases: list[Case]) -> list[np.ndarray]:
    """The logits of a graph for each case."""
    with OnnxRuntimeRunner(artifact) as runner:
        return [runner.infer(case.image) for case in cases]


if __name__ == "__main__":
    main()
