"""A benchmark from start to end: all that it needs is made, each size is measured, the facts are put together."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lhanet_export.bench.candidates import DeviceKind, candidates_for
from lhanet_export.bench.measure import Plan, measure
from lhanet_export.bench.prepare import plain_export, prepared, work_at
from lhanet_export.bench.result import Bench
from lhanet_export.bench.roofline import rooflines
from lhanet_export.bench.scaling import scalings
from lhanet_export.engine.gpu import find_gpus
from lhanet_export.engine.manifest import read_manifest
from lhanet_export.errors import EnvironmentLacks
from lhanet_export.export.artifact import read_onnx
from lhanet_export.progress import SILENT, Progress
from lhanet_export.runners.base import check_same_checkpoint
from lhanet_export.shapes import Shape, format_shape

#: A GPU is faster than its clocks are steady; a CPU takes seconds for one inference.
ROUNDS = {"cpu": 5, "cuda": 20}


@dataclass(frozen=True, kw_only=True)
class Order:
    """What to measure: sizes, where, and how often; None for what the machine suggests. `command` repeats it."""

    shapes: tuple[Shape, ...] = ((48, 96, 96),)
    device: DeviceKind | None = None
    rounds: int | None = None
    volumes: int = 3
    threads: int | None = None
    command: str


def benches_of(checkpoint: str, models: Sequence[Path], order: Order, progress: Progress = SILENT) -> list[Bench]:
    """Measure models (ONNX files, engines) beside the eager network of a checkpoint, a bench for each size.

    Without an ONNX file among the models, the graph that this toolkit exports is measured: on a CPU the one for a CPU.
    Errors as those of `measure`, `prepared` and `candidates_for`; nothing is left behind.
    """
    gpus = find_gpus()
    device: DeviceKind = order.device or ("cuda" if gpus else "cpu")
    if device == "cuda" and not gpus:
        raise EnvironmentLacks("there is no NVIDIA GPU here, or no driver for it; measure on the CPU: --device cpu")
    found = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with progress.step(f"prepare {checkpoint}"):
            ready = prepared(checkpoint, order.shapes, folder, models=models, device=device)
        for path in models:
            made_from = (
                read_onnx(path).facts["checkpoint"] if path.suffix == ".onnx" else read_manifest(path).checkpoint
            )
            check_same_checkpoint(path, made_from, ready.identity)
        for shape in order.shapes:
            with progress.step(f"export with PyTorch alone for {format_shape(shape)}"):
                plain = plain_export(ready.checkpoint, shape, folder)
            own = models if ready.graph in models else (*models, ready.graph)
            candidates, skipped = candidates_for(own, plain, shape, device, gpus)
            plan = Plan(
                checkpoint=ready.checkpoint, identity=ready.identity, shape=shape, device=device,
                threads=order.threads or os.cpu_count() or 1, rounds=order.rounds or ROUNDS[device],
                volumes=order.volumes, command=order.command, work=work_at(ready.graph, shape),
            )  # fmt: skip
            found.append(measure(candidates, skipped, plan, folder, progress))
    return found


def facts_of(benches: Sequence[Bench]) -> dict[str, Any]:
    """All that benches say, as JSON values, and what follows from it: how near to a card's peaks, how it scales."""
    told = [bench.as_json() | rooflines(bench) for bench in benches]
    return {"benches": told, "scaling": scalings(told)}
