"""Writes docs/measurements/README.md from the figures beside it, and from nothing else.

python scripts/render_measurements.py
"""

from __future__ import annotations

from typing import Any

import click
from _pages import MEASUREMENTS, figures_in, table

from lhanet_export.shapes import format_shape

PAGE = MEASUREMENTS / "README.md"
_FILES = (
    ("deploy.json", "`deploy` of the full-size lightweight network: time, memory, comparisons, the engine's planned "
     "memory; the README's result section", "python scripts/measure_deploy.py"),
    ("fp16-error.json", "FP16 against FP32 at full width for every preset, with and without the way into the attention "
     "in FP32", "python scripts/fp16_error.py --json docs/measurements/fp16-error.json"),
    ("demo-training.json", "the training of the reference network ([card](../demo.md))",
     "python scripts/train_demo.py -o lhanet_export/model/demo.safetensors --log docs/measurements/demo-training.json"),
    ("demo.json", "its Dice on unseen phantoms, beside the ceiling of its final head",
     "python scripts/evaluate_demo.py lhanet_export/model/demo.safetensors --json docs/measurements/demo.json"),
    ("precision.json", "what FP16 and INT8 cost it, organ by organ ([page](../precision.md))",
     "python scripts/measure_precision.py"),
    ("predict.json", "time and memory of `predict` on large scans", "python scripts/measure_predict.py"),
    ("labels.json", "whether all runtimes agree on a scan's labels", "python scripts/compare_labels.py"),
)  # fmt: skip


def page() -> str:
    """The whole page."""
    return "\n".join([
        "# Measurements",
        "",
        "Each file holds figures with the date, the machine and the versions they belong to, and is written by one "
        "script. This page",
        "is made from them by `python scripts/render_measurements.py`. No file here is of a GPU: none was at hand.",
        "Time and memory beside eager PyTorch, the memory of engines, and what each rewrite brings are in",
        "[docs/benchmarks](../benchmarks/README.md).",
        "",
        *table(("file", "what", "script"), [(f"`{name}`", what, f"`{script}`") for name, what, script in _FILES]),
        "",
        *fp16_error(figures_in(MEASUREMENTS / "fp16-error.json")),
        "",
        *predict(figures_in(MEASUREMENTS / "predict.json")),
        "",
        *labels(figures_in(MEASUREMENTS / "labels.json")),
        "",
    ])  # fmt: skip


def predict(figures: dict[str, Any]) -> list[str]:
    """Large scans, one row each."""
    rows = []
    for row in figures["scans"]:
        seconds = row["seconds"]
        rest = seconds["read"] + seconds["windows"] + seconds["write"] - seconds["network"]
        rows.append((
            row["network"], format_shape(row["shape"]), format_shape(row["network_shape"]), str(row["windows"]),
            f"{seconds['network']:.0f} s", f"{rest:.1f} s", f"{rest / (rest + seconds['network']):.1%}",
            f"{row['peak_rss_bytes'] / 1e6:,.0f} MB",
        ))  # fmt: skip
    names = ("network", "scan", "at 1.5 mm", "windows", "network", "all else", "of the time", "peak resident memory")
    return [
        "## Segmenting large scans",
        "",
        f"`predict` of phantoms of {' x '.join(map(str, figures['spacing_mm']))} mm, packed NIfTI in and out: demo in "
        "eager PyTorch, the full-size network (coarse",
        f"logits, weights by rule) in OpenVINO. {figures['machine']['cpu']}, {figures['machine']['cores']} cores, "
        f"torch {figures['machine']['torch']}, OpenVINO {figures['machine']['openvino'].split('-')[0]}, "
        f"{figures['date']}.",
        "All else is reading, preprocessing, and what of blending and writing the network does not hide.",
        "",
        *table(names, rows),
    ]


def labels(figures: dict[str, Any]) -> list[str]:
    """One scan by every runtime, and at once."""
    voxels = figures["voxels"]
    counts = {"blending the whole volume at once (float64)": figures["differ_from_whole_volume"]}
    counts |= {name: count for name, count in figures["differ_from_eager"].items() if not name.startswith("eager")}
    rows = [(name, f"{count:,}", f"{count / voxels:.1e}") for name, count in counts.items()]
    machine = figures["machine"]
    return [
        "## One scan, one segmentation",
        "",
        f"Voxels of a phantom of {format_shape(figures['shape'])} (of {voxels:,}, {figures['organ_voxels']:,} of them "
        "of an organ) whose label is not the one that `predict demo`",
        f"gives. {machine['cpu']}, torch {machine['torch']}, ONNX Runtime {machine['onnxruntime-gpu']}, OpenVINO "
        f"{machine['openvino'].split('-')[0]}, {figures['date']}.",
        "",
        *table(("instead", "voxels that differ", "of all"), rows),
    ]


def fp16_error(figures: dict[str, Any]) -> list[str]:
    """The worst volume of each preset."""
    rows = []
    for preset in dict.fromkeys(row["preset"] for row in figures["rows"]):
        mine = [row for row in figures["rows"] if row["preset"] == preset]
        cells = []
        for suffix in ("", "_without"):
            error = max(row[f"relative_l2{suffix}"] for row in mine)
            cells += [f"{error:.1e}", f"{min(row[f'labels_equal{suffix}'] for row in mine):.3%}"]
        rows.append((preset, *cells[:2], *(cells[2:] if cells[2:] != cells[:2] else ["the same"] * 2)))
    volumes = len(figures["rows"]) // len(rows)
    return [
        "## What FP16 costs in accuracy",
        "",
        f"The worst of {volumes} volumes a preset, weights by rule, {figures['date']}. For residual networks "
        "(`standard`, `high_capacity`) the FP16 graph keeps",
        'what the attention is computed from in FP32 (`standard`: but for its last stage); "without" is '
        "the same graph with that",
        "in FP16, too.",
        "",
        *table(("preset", "relative L2", "labels equal", "without: relative L2", "without: labels equal"), rows),
    ]


@click.command()
def main() -> None:
    """Write the page."""
    PAGE.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
