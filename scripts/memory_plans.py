"""Device memory that engines of every kind need, as their builder plans it.

    python scripts/memory_plans.py        # rewrites docs/benchmarks/memory_plans.json

Full-size networks with weights by rule, for an RTX 3060: for each the sizes that its engine serves, weights and
activations. INT8 is calibrated on phantoms; no weights by rule keep organs, so accuracy is not looked at here, and no
layer goes back to FP16 for its sake. No GPU is needed, and none is used. Takes about twenty minutes and 6 GB.
"""

from __future__ import annotations

import datetime
import json
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from _machine import machine
from _pages import BENCHMARKS
from _scans import write_scans
from measure_deploy import command

PLANS = BENCHMARKS / "memory_plans.json"
CALIBRATION_PHANTOMS = 4


@dataclass(frozen=True, kw_only=True)
class Graph:
    """What a graph is made from, and the engines of it: the smallest volumes, and for each engine the largest."""

    preset: str
    precision: str = "fp16"
    batch: int = 1
    min: str = "48x64x64"
    max: tuple[str, ...] = ("64x128x128",)

    def spatial(self, largest: str) -> str:
        """The range of sizes up to the largest, as commands take it."""
        return f"{self.min}:{largest}:{largest}"


GRAPHS = (
    Graph(preset="lightweight", max=("64x128x128", "96x192x192")),
    Graph(preset="lightweight", batch=2),
    Graph(preset="standard"),
    Graph(preset="high_capacity", min="64x64x64"),
    Graph(preset="lightweight", precision="int8", max=("64x128x128", "96x192x192")),
)


def rows_of(graph: Graph, folder: Path) -> Iterator[dict[str, Any]]:
    """Write the graph, build its engines, and say what each needs."""
    make = int8_graph if graph.precision == "int8" else fp16_graph
    path, facts_of_graph = make(graph, folder)
    for largest in graph.max:
        options = ["--spatial", graph.spatial(largest)]
        if graph.batch > 1:
            options += ["--batch", f"1:{graph.batch}:{graph.batch}"]
        facts = command("trt", str(path), "-o", str(folder / "model.engine"), *options, folder=folder)
        yield {
            "preset": graph.preset, "precision": graph.precision, "batch": graph.batch, "min": graph.min,
            "max": largest, **facts["engine"]["device_memory"], "build_seconds": facts["build"]["seconds"],
            **facts_of_graph,
        }  # fmt: skip


def fp16_graph(graph: Graph, folder: Path) -> tuple[Path, dict[str, Any]]:
    """An FP16 graph, of which there is nothing to say."""
    path = folder / "model.onnx"
    command(
        "onnx", f"preset:{graph.preset}", "-o", str(path), "--precision", "fp16", "--spatial",
        graph.spatial(graph.max[-1]), "--batch", "dynamic" if graph.batch > 1 else "1", folder=folder,
    )  # fmt: skip
    return path, {}


def int8_graph(graph: Graph, folder: Path) -> tuple[Path, dict[str, Any]]:
    """An INT8 graph: its share of multiply-adds, and how long its calibration takes, anew and from the cache."""
    plain, path, scans = folder / "plain.onnx", folder / "model.onnx", folder / "scans"
    write_scans(scans, CALIBRATION_PHANTOMS)
    command(
        "onnx", f"preset:{graph.preset}", "-o", str(plain), "--without", "short-convolutions", "--spatial",
        graph.spatial(graph.max[-1]), folder=folder,
    )  # fmt: skip
    # Memory does not depend on the method, and one of them takes a third of the time of all. Without the labels: they
    # are of other classes than the network's.
    options = ["--data", str(scans / "images"), "-o", str(path), "--method", "min-max", "--keep", "none"]
    seconds = []
    for _ in range(2):
        start = time.monotonic()
        facts = command("calibrate", str(plain), *options, folder=folder)
        seconds.append(round(time.monotonic() - start, 1))
    return path, {
        "calibration_seconds": seconds[0],
        "again_seconds": seconds[1],
        "share_of_multiply_adds": facts["report"]["share_of_multiply_adds"],
    }


@click.command(help=__doc__)
def main() -> None:
    rows: list[dict[str, Any]] = []
    for graph in GRAPHS:
        with tempfile.TemporaryDirectory() as name:
            rows += rows_of(graph, Path(name))
    figures = {
        "date": str(datetime.date.today()),
        "machine": {**machine("torch", "onnx", "onnxruntime-gpu", "tensorrt-rtx"), "gpu": None},
        "rows": rows,
    }
    PLANS.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
