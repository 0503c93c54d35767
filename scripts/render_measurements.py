"""Writes docs/measurements/README.md from the figures beside it, and from nothing else.

python scripts/render_measurements.py
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import click
from _reported import EAGER_MB

from lhanet_export.shapes import format_shape

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "measurements"
PAGE = FOLDER / "README.md"
_FILES = (
    ("deploy.json", "`deploy` of the full-size lightweight network: time, memory, comparisons, the engine's planned "
     "memory; the README's result section", "python scripts/measure_deploy.py"),
    ("memory_plans.json", "planned memory of engines of every kind", "python scripts/memory_plans.py"),
    ("cpu_speed.json", "speed and memory on a CPU, against eager PyTorch", "python scripts/cpu_speed.py"),
    ("ablation.json", "what each rewrite of the network brings",
     "python scripts/ablation.py --json docs/measurements/ablation.json"),
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
        "",
        *table(("file", "what", "script"), [(f"`{name}`", what, f"`{script}`") for name, what, script in _FILES]),
        "",
        *memory_plans(_figures("memory_plans.json")),
        "",
        *cpu_speed(_figures("cpu_speed.json")),
        "",
        *ablation(_figures("ablation.json")),
        "",
        *fp16_error(_figures("fp16-error.json")),
        "",
        *predict(_figures("predict.json")),
        *labels(_figures("labels.json")),
        "",
    ])  # fmt: skip


def memory_plans(figures: dict[str, Any]) -> list[str]:
    """Planned memory by engine."""
    rows = []
    for row in figures["rows"]:
        weights, activations = row["weights_bytes"] / 1e6, row["activation_bytes"] / 1e6
        eager = EAGER_MB.get((row["preset"], row["max"], row["batch"]))
        rows.append((
            row["preset"], row["precision"].upper(), f"{row['min']} to {row['max']}", str(row["batch"]),
            f"{weights:,.0f} MB", f"{activations:,.0f} MB", f"{weights + activations:,.0f} MB",
            f"{eager:,} MB" if eager else "not known",
        ))  # fmt: skip
    return [
        "## Memory of engines for an RTX 3060",
        "",
        f"Planned by TensorRT-RTX {figures['machine']['tensorrt-rtx']}, {figures['date']}; not run. The last column is "
        "the peak that the authors",
        "of the network report for eager FP32 on an RTX 3060 (2025-09-30).",
        "",
        *table(
            ("preset", "precision", "volumes", "batch", "weights", "activations", "together", "eager PyTorch FP32"),
            rows,
        ),
    ]


def cpu_speed(figures: dict[str, Any]) -> list[str]:
    """Times and memory by runtime."""
    rows = [
        (
            row["runtime"], f"{row['median_seconds']:.2f} s", f"{row['p10_seconds']:.2f} to {row['p90_seconds']:.2f} s",
            f"{row['speedup']:.2f}x", f"{row['relative_l2']:.1e}", f"{row['label_agreement']:.3%}",
            f"{row['opening_peak_bytes'] / 1e6:,.0f} MB", f"{row['inference_peak_bytes'] / 1e6:,.0f} MB",
        )
        for row in figures["rows"]
    ]  # fmt: skip
    names = ("runtime", "median", "p10 to p90", "speed-up", "relative L2", "labels equal", "peak, opening", "running")
    return [
        "## Speed on a CPU",
        "",
        f"One inference of the full-size {figures['checkpoint']['preset']} network, weights by rule, at "
        f"{format_shape(figures['shape'])}, {figures['threads']} threads, {figures['rounds']} rounds in turn;",
        f"outputs against eager PyTorch's, the worst of {figures['volumes']} volumes; graph of `--for cpu`. "
        f"{_where(figures)}.",
        "Mixed computes in BF16 where that changes few labels.",
        "Peaks are of resident memory, of each runtime's own process: from its start to when it is ready, and from the "
        "first inference on.",
        "",
        *table(names, rows),
    ]


def ablation(figures: dict[str, Any]) -> list[str]:
    """What each rewrite brings."""
    rows = [
        (
            row["variant"], f"{row['weights_bytes'] / 1e6:.0f} + {row['activation_bytes'] / 1e6:.0f} MB",
            f"{(row['weights_bytes'] + row['activation_bytes']) / 1e6:,.0f} MB", f"{row['build_seconds']:.0f} s",
            f"{row['multiply_adds'] / 1e9:,.0f} G", f"{row['cpu_seconds']:.2f} s", f"{row['relative_l2']:.1e}",
            f"{row['relative_l2_fp16']:.1e}",
        )
        for row in figures["rows"]
    ]  # fmt: skip
    names = (
        "rewrites", "weights + activations", "together", "build", "multiply-adds", "CPU", "error", "error, FP16",
    )  # fmt: skip
    return [
        "## What each rewrite brings",
        "",
        f"{figures['checkpoint']}. Memory as planned for an RTX 3060 (48x64x64 to 64x128x128), multiply-adds at "
        "64x128x128, OpenVINO FP32 at",
        f"48x96x96 on all cores (eager PyTorch: {figures['eager_seconds']:.2f} s), relative L2 against the eager "
        f"network there. {_where(figures)}.",
        "",
        *table(names, rows),
    ]


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


def _where(figures: dict[str, Any]) -> str:
    host = figures["machine"]
    return (
        f"{host['cpu']}, {host['cores']} cores, {host['memory_gib']} GiB, no GPU; torch {host['torch']}, ONNX Runtime "
        f"{host['onnxruntime-gpu']}, OpenVINO {host['openvino']}; {figures['date']}"
    )


def _figures(name: str) -> dict[str, Any]:
    figures: dict[str, Any] = json.loads((FOLDER / name).read_text(encoding="utf-8"))
    return figures


def table(names: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (names, ["---"] * len(names), *rows)]


@click.command()
def main() -> None:
    """Write the page."""
    PAGE.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
