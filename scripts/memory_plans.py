"""Device memory that engines of every kind need, as their builder plans it.

    python scripts/memory_plans.py        # rewrites docs/measurements/memory_plans.json

Full-size networks with weights by rule, FP16, for an RTX 3060: for each the sizes that its engine serves, weights and
activations. No GPU is needed, and none is used. Takes about six minutes and 5 GB.
"""

from __future__ import annotations

import datetime
import json
import tempfile
from pathlib import Path
from typing import Any

import click
from _machine import machine
from measure_deploy import FIGURES, command

PLANS = FIGURES.with_name("memory_plans.json")
#: Preset, smallest and largest volumes, and how many at a time.
ENGINES = (
    ("lightweight", "48x64x64", "64x128x128", 1),
    ("lightweight", "48x64x64", "96x192x192", 1),
    ("lightweight", "48x64x64", "64x128x128", 2),
    ("standard", "48x64x64", "64x128x128", 1),
    ("high_capacity", "64x64x64", "64x128x128", 1),
)


@click.command()
def main() -> None:
    """Plan every engine and keep the figures."""
    rows: list[dict[str, Any]] = []
    for preset, least, most, batch in ENGINES:
        with tempfile.TemporaryDirectory() as name:
            folder, spatial = Path(name), f"{least}:{most}:{most}"
            graph = str(folder / "model.onnx")
            batches = ["dynamic", "--precision", "fp16"] if batch > 1 else ["1", "--precision", "fp16"]
            command("onnx", f"preset:{preset}", "-o", graph, "--spatial", spatial, "--batch", *batches, folder=folder)
            served = ["--spatial", spatial, *(["--batch", f"1:{batch}:{batch}"] if batch > 1 else [])]
            facts = command("trt", graph, "-o", str(folder / "model.engine"), *served, folder=folder)
        row = {"preset": preset, "batch": batch, "min": least, "max": most}
        rows.append(row | facts["engine"]["device_memory"] | {"build_seconds": facts["build"]["seconds"]})
    figures = {
        "date": str(datetime.date.today()),
        "machine": {**machine("torch", "onnx", "tensorrt-rtx"), "gpu": None},
        "rows": rows,
    }
    PLANS.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
