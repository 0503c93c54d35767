"""Writes docs/benchmarks/README.md and the HTML reports beside it from the figures there, and from nothing else.

python scripts/render_benchmarks.py
python scripts/render_benchmarks.py --picture   # also the README's picture of one, which takes Chromium or Chrome
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import reproduce_report
from _browser import BROWSER, take_picture
from _pages import BENCHMARKS, DOCS, figures_in, table
from _reported import EAGER_MB

from lhanet_export.bench.agreement import said_of
from lhanet_export.bench.report import report_html
from lhanet_export.bench.units import equal_labels
from lhanet_export.shapes import format_shape

PAGE = BENCHMARKS / "README.md"
PICTURE = DOCS / "figures" / "benchmark.png"
#: Presets that were measured on a CPU, and the figures of each: the JSON of `bench`.
CPU: Mapping[str, Path] = {preset: BENCHMARKS / f"cpu-{preset}.json" for preset in ("lightweight", "standard")}


def page() -> str:
    """The whole page."""
    return "\n".join([
        "# Benchmarks",
        "",
        "No GPU was at hand: nothing here was measured on one, and no figure here stands for an RTX 3060. Where there",
        "is one, `python scripts/gpu_acceptance.py` measures what only a GPU can show, and leaves it in a folder",
        "beside this page. This page is made by `python scripts/render_benchmarks.py` from figures alone. What FP16",
        "and INT8 cost in accuracy, and large scans, are in [docs/measurements](../measurements/README.md).",
        "",
        *(line for preset in CPU for line in cpu(preset)),
        *memory_plans(figures_in(BENCHMARKS / "memory_plans.json")),
        "",
        *ablation(figures_in(BENCHMARKS / "ablation.json")),
        "",
        *reproduce_report.section(figures_in(reproduce_report.FIGURES)),
        "",
    ])  # fmt: skip


def reports() -> dict[Path, str]:
    """The HTML reports that stand beside the page, by file."""
    return {
        path.with_suffix(".html"): report_html(
            figures["benches"], scaling=figures["scaling"], title=f"LHA-Net, {preset}, weights by rule, on a CPU"
        )
        for preset, path in CPU.items()
        for figures in [figures_in(path)]
    }


def cpu(preset: str) -> list[str]:
    """One network beside every baseline on a CPU: a table for each size, and how both grow with it."""
    figures = figures_in(CPU[preset])
    first, *_ = figures["benches"]
    host, device, gib = first["machine"], first["device"], first["device"]["memory_bytes"] / 2**30
    lines = [
        f"## On a CPU: {preset}",
        "",
        f"`{first['command']}` on {first['date']}: {device['name']}, {device['cores']} cores, {gib:.0f} GiB, no GPU; "
        f"torch {host['torch']}, ONNX Runtime {host['onnxruntime-gpu']}, OpenVINO {host['openvino'].split('-')[0]}, "
        f"{first['threads']} threads.",
        f"Full width, weights by rule. Rows take turns, {first['rounds']} inferences each, none left out; gain and "
        "share are against the first row. Memory is the peak of",
        "a process that is resident in any inference but the first, libraries included. Errors are against the first "
        f"row, the worst of {first['volumes']} volumes; a row",
        "agrees where they are within what `verify` asks of its number format. The same with pictures: "
        f"[cpu-{preset}.html](cpu-{preset}.html).",
        "",
        *(f"- Not measured: {one['name']}; {one['reason']}." for one in first["not_measured"]),
        "",
    ]
    for bench in figures["benches"]:
        lines += [f"### {preset}, {format_shape(bench['shape'])}", "", *table(_CPU_NAMES, _cpu_rows(bench["rows"])), ""]
    if figures["scaling"] is not None:
        lines += [
            f"### {preset}, how both grow with the volume",
            "",
            "A straight line through the sizes above, none of its parts below zero, and how far a size is from it.",
            "",
            *table(
                ("row", "seconds a million voxels", "fixed", "away", "bytes a voxel", "fixed", "away"),
                [
                    (
                        fit["name"], f"{fit['seconds_per_megavoxel']:.2f}", f"{fit['fixed_seconds']:.2f} s",
                        f"{fit['seconds_largest_residual']:.0%}", f"{fit['bytes_per_voxel']:,.0f}",
                        f"{fit['fixed_bytes'] / 1e6:,.0f} MB", f"{fit['bytes_largest_residual']:.0%}",
                    )
                    for fit in figures["scaling"]["fits"]
                ],
            ),
            "",
        ]  # fmt: skip
    return lines


_CPU_NAMES = (
    "row", "median", "p10 to p90", "gain", "voxels/s", "peak memory", "share", "first call", "on disk", "relative L2",
    "labels equal", "agrees",
)  # fmt: skip


def _cpu_rows(rows: Sequence[dict[str, Any]]) -> list[tuple[str, ...]]:
    return [
        (
            row["name"], f"{row['median_seconds']:.2f} s", f"{row['p10_seconds']:.2f} to {row['p90_seconds']:.2f} s",
            f"{row['speedup']:.2f}x", f"{row['voxels_per_second']:,.0f}", f"{row['peak_bytes'] / 1e6:,.0f} MB",
            f"{row['share_of_peak_memory']:.0%}", f"{row['first_seconds']:.2f} s",
            f"{row['disk_bytes'] / 1e6:,.0f} MB" if row["disk_bytes"] else "checkpoint", f"{row['relative_l2']:.1e}",
            equal_labels(row["label_agreement"]), "reference" if row is rows[0] else said_of(row),
        )
        for row in rows
    ]  # fmt: skip


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
        f"`python scripts/memory_plans.py`: planned by TensorRT-RTX {figures['machine']['tensorrt-rtx']}, "
        f"{figures['date']}; not run. The last column is the peak that the authors",
        "of the network report for eager FP32 on an RTX 3060 (2025-09-30).",
        "",
        *table(
            ("preset", "precision", "volumes", "batch", "weights", "activations", "together", "eager PyTorch FP32"),
            rows,
        ),
    ]


def ablation(figures: dict[str, Any]) -> list[str]:
    """What each rewrite brings."""
    host = figures["machine"]
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
        f"`python scripts/ablation.py --json docs/benchmarks/ablation.json`, {figures['checkpoint']}. Memory as "
        "planned for an RTX 3060 (48x64x64 to",
        "64x128x128), multiply-adds at 64x128x128, OpenVINO FP32 at 48x96x96 on all cores (eager PyTorch: "
        f"{figures['eager_seconds']:.2f} s), relative L2 against",
        f"the eager network there. {host['cpu']}, {host['cores']} cores, {host['memory_gib']} GiB, no GPU; "
        f"torch {host['torch']}, ONNX Runtime {host['onnxruntime-gpu']}, OpenVINO {host['openvino']}; "
        f"{figures['date']}.",
        "",
        *table(names, rows),
    ]


@click.command()
@click.option("--picture", is_flag=True, help="Also take the README's picture of a report, in Chromium or Chrome.")
def main(picture: bool) -> None:
    """Write the page and the reports."""
    for path, text in {PAGE: page(), **reports()}.items():
        path.write_text(text, encoding="utf-8")
    if picture:
        if BROWSER is None:
            raise click.ClickException("no Chromium or Google Chrome is installed, and a picture takes one")
        take_picture(CPU["lightweight"].with_suffix(".html"), PICTURE, width=1200, height=880)


if __name__ == "__main__":
    main()
