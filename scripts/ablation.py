"""What each rewrite of the inference network brings: planned memory, multiply-adds, time on a CPU, error.

    python scripts/ablation.py --json docs/benchmarks/ablation.json [--checkpoint CHECKPOINT]

One row with all rewrites, one without each, one with none, and one for a CPU (`--for cpu`). For each: weights and
activations of an FP16 engine for an RTX 3060 as its builder plans them (sizes from 48x64x64 up to 64x128x128), the
time to build it, multiply-adds at 64x128x128, the time of one inference at 48x96x96 (median; OpenVINO FP32, all cores,
one graph after the other), and the relative L2 error of the FP32 and FP16 graphs against the eager network there.
At full width it takes about four minutes a row and 6 GB, and needs a machine that does nothing else.
"""

from __future__ import annotations

import datetime
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
from _machine import machine

from lhanet_export.cli.options import json_option
from lhanet_export.cli.show import Show
from lhanet_export.engine.build import engine_from_onnx
from lhanet_export.engine.plan import plan_engine
from lhanet_export.engine.recipes import recipe_named
from lhanet_export.export.artifact import OnnxArtifact
from lhanet_export.export.onnx_from_network import ExportOptions, onnx_from_network
from lhanet_export.export.work import work_of
from lhanet_export.inference.rewrites.names import REWRITES
from lhanet_export.model.checkpoint import CheckpointIdentity, open_checkpoint
from lhanet_export.model.network import LHANet
from lhanet_export.precision.convert import fp16_from_fp32
from lhanet_export.runners.base import Runner
from lhanet_export.runners.eager import EagerRunner
from lhanet_export.runners.onnxruntime_ import OnnxRuntimeRunner
from lhanet_export.runners.openvino_ import OpenVINORunner
from lhanet_export.shapes import SpatialRange
from lhanet_export.verify.inputs import Case, cases_for
from lhanet_export.verify.metrics import difference

MEMORY_SIZES = SpatialRange((48, 64, 64), (64, 128, 128), (64, 128, 128))
TIMED_SHAPE = (48, 96, 96)
ROUNDS = 5
#: Name of the row, purpose, rewrites left out.
VARIANTS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("all rewrites", "engine", ()),
    *((f"without {name}", "engine", (name,)) for name in REWRITES),
    ("none", "engine", tuple(REWRITES)),
    ("all, --for cpu", "cpu", ()),
)


@click.command()
@click.option("--checkpoint", default="preset:lightweight", show_default=True, metavar="CHECKPOINT")
@json_option
def main(checkpoint: str, show: Show) -> None:
    """Measure what each rewrite brings for CHECKPOINT."""
    with show.progress.step(f"load {checkpoint}"):
        network, identity = open_checkpoint(checkpoint)
    case = cases_for([TIMED_SHAPE])[0]
    reference, eager_seconds = _run(EagerRunner(network), case.image)
    rows: list[dict[str, Any]] = []
    for name, purpose, without in VARIANTS:
        with tempfile.TemporaryDirectory() as folder:
            row = _measure(network, identity, purpose, without, Path(folder), case, reference, show)
            rows.append({"variant": name, "purpose": purpose, "without": list(without), **row})
    _say(rows, eager_seconds, show)
    show.facts(
        {
            "date": str(datetime.date.today()),
            "machine": machine("torch", "onnx", "onnxruntime-gpu", "openvino", "tensorrt-rtx"),
            "checkpoint": checkpoint,
            "eager_seconds": eager_seconds,
            "rows": rows,
        }
    )


def _measure(
    network: LHANet, identity: CheckpointIdentity, purpose: str, without: Sequence[str], folder: Path,
    case: Case, reference: np.ndarray, show: Show,
) -> dict[str, Any]:  # fmt: skip
    options = ExportOptions(purpose=purpose, without=tuple(without))
    whole = onnx_from_network(network, identity.as_json(), folder / "fp32.onnx", options, show.progress)
    output, seconds = _run(OpenVINORunner(whole), case.image)
    half, _ = fp16_from_fp32(whole, folder / "fp16.onnx", progress=show.progress)
    half_output, _ = _run(OnnxRuntimeRunner(half), case.image, rounds=0)
    return {
        **_planned(half, folder, show),
        "multiply_adds": work_of(whole.path, MEMORY_SIZES.max).total().multiply_adds,
        "cpu_seconds": seconds,
        "relative_l2": difference(case, reference, output, "logits", 0.0).relative_l2,
        "relative_l2_fp16": difference(case, reference, half_output, "logits", 0.0).relative_l2,
    }


def _planned(half: OnnxArtifact, folder: Path, show: Show) -> dict[str, Any]:
    """Memory of the engine as its builder plans it, and the time that takes."""
    recipe = recipe_named("rtx3060")
    plan = plan_engine(half.path, half.as_json(), recipe=recipe, spatial=MEMORY_SIZES)
    target = folder / "build"
    target.mkdir()
    built = engine_from_onnx(plan, target, progress=show.progress)
    return {
        "weights_bytes": built.weights_bytes,
        "activation_bytes": built.activation_bytes,
        "build_seconds": built.seconds,
    }


def _run(runner: Runner, image: np.ndarray, rounds: int = ROUNDS) -> tuple[np.ndarray, float]:
    """The output, and the median of the seconds that further rounds take (0 without any)."""
    seconds = []
    with runner:
        output = runner.infer(image)
        for _ in range(rounds):
            start = time.perf_counter()
            runner.infer(image)
            seconds.append(time.perf_counter() - start)
    return output, statistics.median(seconds) if seconds else 0.0


def _say(rows: list[dict[str, Any]], eager_seconds: float, show: Show) -> None:
    show.table(
        "rewrites",
        [
            (
                row["variant"],
                f"{row['weights_bytes'] / 1e6:.0f} + {row['activation_bytes'] / 1e6:.0f} MB",
                f"{row['build_seconds']:.0f} s",
                f"{row['multiply_adds'] / 1e9:,.0f} G",
                f"{row['cpu_seconds']:.2f} s",
                f"{row['relative_l2']:.1e}",
                f"{row['relative_l2_fp16']:.1e}",
            )
            for row in rows
        ],
        ("variant", "planned memory", "build", "multiply-adds", "CPU", "error", "error FP16"),
    )
    show.line(f"Eager PyTorch FP32 takes {eager_seconds:.2f} s on this CPU.")


if __name__ == "__main__":
    main()
