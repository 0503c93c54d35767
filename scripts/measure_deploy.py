"""The figures of the README: what `deploy` takes and gives for the full-size lightweight network.

    python scripts/measure_deploy.py            # runs it (about four minutes, 6 GB) and rewrites figures and README
    python scripts/measure_deploy.py --render   # rewrites the README from the figures that are there

Figures are kept in docs/measurements/deploy.json with the date, the machine and the versions they
belong to; the README's result section is made from them and from nothing else.
"""

from __future__ import annotations

import datetime
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click
from _machine import machine
from _reported import EAGER_MB

REPOSITORY = Path(__file__).resolve().parents[1]
FIGURES = REPOSITORY / "docs" / "measurements" / "deploy.json"
README = REPOSITORY / "README.md"
BEGIN, END = "<!-- results: made by scripts/measure_deploy.py -->", "<!-- end of results -->"
CHECKPOINT = "preset:lightweight"
PACKAGES = ("torch", "onnx", "onnxruntime-gpu", "tensorrt-rtx", "polygraphy")
SMALLER = "48x64x64:64x128x128:64x128x128"


@click.command()
@click.option("--render", is_flag=True, help="Only rewrite the README.")
def main(render: bool) -> None:
    """Measure, keep the figures, and put them into the README."""
    if not render:
        FIGURES.parent.mkdir(parents=True, exist_ok=True)
        FIGURES.write_text(json.dumps(measure(), indent=2) + "\n", encoding="utf-8")
    text = README.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    README.write_text(before + section(json.loads(FIGURES.read_text(encoding="utf-8"))) + after, encoding="utf-8")


def measure() -> dict[str, Any]:
    """Run `deploy`, and `trt` once more for smaller volumes; everything that the README says of it."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        started = time.monotonic()
        deployed = command("deploy", CHECKPOINT, "-o", str(folder / "build"), folder=folder)
        seconds = time.monotonic() - started
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
        fp16 = deployed["onnx"]["fp16"]["file"]
        smaller = command("trt", fp16, "-o", str(folder / "small.engine"), "--spatial", SMALLER, folder=folder)
    manifest = deployed["manifest"]
    return {
        "date": str(datetime.date.today()),
        "machine": {**machine(*PACKAGES), "gpu": None},
        "deploy": {
            "seconds": round(seconds, 1),
            # The largest process of the run: the command itself or the child that builds.
            "peak_rss_bytes": peak,
            "checkpoint": deployed["checkpoint"],
            "verification": manifest["verification"],
        },
        "engines": [{key: one[key] for key in ("engine", "build")} for one in (smaller, manifest)],
    }


def command(*arguments: str, folder: Path) -> dict[str, Any]:
    """The JSON of one command of this toolkit."""
    report = folder / "report.json"
    subprocess.run([sys.executable, "-m", "lhanet_export", *arguments, "--json", str(report)], check=True)
    facts: dict[str, Any] = json.loads(report.read_text(encoding="utf-8"))
    return facts


def section(figures: dict[str, Any]) -> str:
    """The README's result section."""
    host, run = figures["machine"], figures["deploy"]
    lines = [
        BEGIN,
        "",
        f"What `lhanet-export deploy {CHECKPOINT}` gave on {figures['date']} on a machine without a GPU "
        f"({host['cpu']}, {host['cores']} cores, {host['memory_gib']} GiB; Python {host['python']}, "
        f"torch {host['torch']}, ONNX Runtime {host['onnxruntime-gpu']}, TensorRT-RTX {host['tensorrt-rtx']}), "
        f"in {run['seconds']:.0f} s and {run['peak_rss_bytes'] / 1e9:.1f} GB of memory:",
        "",
        "| against the eager network, worst of its volumes | relative L2 | labels equal |",
        "|---|---|---|",
    ]
    for kind in ("fp32", "fp16"):
        cases = run["verification"][kind]["cases"]
        error = max(case["relative_l2"] for case in cases)
        labels = min(case["label_agreement"] for case in cases)
        lines.append(f"| {kind.upper()} graph, {len(cases)} volumes | {error:.1e} | {labels:.4%} |")
    lines += [
        "",
        "| FP16 engine for an RTX 3060, device memory | weights | activations | together | eager PyTorch FP32 |",
        "|---|---|---|---|---|",
    ]
    for one in figures["engines"]:
        memory = one["engine"]["device_memory"]
        weights, activations = (memory[key] / 1e6 for key in ("weights_bytes", "activation_bytes"))
        size = "x".join(map(str, one["engine"]["profiles"][0]["max"]))
        lines.append(
            f"| volumes up to {size} | {weights:,.0f} MB | {activations:,.0f} MB | {weights + activations:,.0f} MB "
            f"| {EAGER_MB['lightweight', size, 1]:,} MB |"
        )
    lines += [
        "",
        "The engine's memory is what its builder planned; it was not run. The last column is the peak that the authors",
        "of the network report for an RTX 3060 (2025-09-30). Speed on the card was not measured.",
        "",
        END,
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
