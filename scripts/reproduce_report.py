"""The report that started the project, again: the authors' parameters, memory and ten tests, on the machine at hand.

    python scripts/reproduce_report.py                              # rewrites docs/benchmarks/report.json
    python scripts/reproduce_report.py --out mine.json              # on a machine of yours
    python scripts/reproduce_report.py --width 8 --out quick.json   # narrow networks, to try it out

Beside each figure stands the one of the authors' report (2025-09-30, 14 classes, RTX 3060), and beside memory what the
builder of our engines planned (scripts/memory_plans.py). Parameters have to be equal, and all ten tests have to pass:
otherwise the exit code is 2. Memory is that of PyTorch's allocator on a GPU; without one it is the resident memory of
a process, which is another quantity and needs Linux. On two cores it takes three minutes and 5 GB.
"""

from __future__ import annotations

import datetime
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import click
import torch
from _machine import machine
from _pages import BENCHMARKS, figures_in
from _pages import table as markdown_table
from _reported import EAGER_MB, PARAMETERS, WEIGHTS_MB
from _ten_tests import CLASSES, make_networks, mismatches, outcome, ten_tests
from memory_plans import PLANS
from torch import nn

from lhanet_export.bench.conditions import gpu_conditions, peak_resident_bytes, reset_peak_resident
from lhanet_export.bench.public import use_torchs_resize
from lhanet_export.cli.show import Show, complain, format_bytes
from lhanet_export.errors import EnvironmentLacks, GateFailed, LhanetExportError
from lhanet_export.files import staged, write_json
from lhanet_export.model.network import LHANet
from lhanet_export.progress import SILENT, Progress
from lhanet_export.shapes import Shape, format_shape

FIGURES = BENCHMARKS / "report.json"
#: Volumes and batches whose memory is measured.
VOLUMES: tuple[tuple[Shape, int], ...] = (((64, 128, 128), 1), ((96, 192, 192), 1), ((64, 128, 128), 2))
#: Rows of the table of parameters: how the reader and how the figures call them.
_COUNTS = {
    "backbone": "backbone", "PMSA": "pmsa", "decoder": "decoder", "other heads": "rest", "total": "total",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Table:
    """One topic of the report, for a terminal and for a page."""

    title: str
    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    notes: Sequence[str]


@click.command()
@click.option("--width", type=click.IntRange(8, 512), help="Base channels, for a quick try; nothing is compared then.")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), default=FIGURES, help="Where the JSON goes.")
def main(width: int | None, out: Path) -> None:
    """Count, weigh and test the lightweight and the standard network, and set them beside the authors' report."""
    show = Show()
    try:
        # Opened first: a folder that cannot be written into is to be found before minutes of work.
        with staged(out) as (temporary,):
            figures = measure(width, progress=show.progress)
            write_json(temporary, figures)
        for table in tables(figures):
            show.table(table.title, table.rows, table.columns)
            show.line("\n".join((*table.notes, "")))
        if failed := [f"{row['name']}: {row['seen']}" for row in figures["tests"] if not row["passed"]]:
            raise GateFailed(f"the report does not hold here; {'; '.join(failed)}")
    except LhanetExportError as error:
        complain(str(error))
        sys.exit(error.exit_code)


def measure(
    width: int | None, volumes: Sequence[tuple[Shape, int]] = VOLUMES, progress: Progress = SILENT
) -> dict[str, Any]:
    """All figures, as they are written. Networks of a given width are set beside nothing.

    `EnvironmentLacks` where memory is too little or cannot be measured.
    """
    device = compute_device()
    # Before there are networks in this process: a small machine has no room for both.
    memory = [memory_row(preset, width, shape, batch, progress) for preset in PARAMETERS for shape, batch in volumes]
    engine = None
    if width is None:
        plans = figures_in(PLANS)
        engine = {"date": plans["date"], "tensorrt_rtx": plans["machine"]["tensorrt-rtx"]}
        memory = [row | beside(row, plans) for row in memory]
    with progress.step("make both networks"):
        networks = make_networks(width, device)
    parameters = [count(network, compare=width is None) for network in (networks.lightweight, networks.standard)]
    tests = []
    for name, check in ten_tests(parameters, memory):
        with progress.step(f"test: {name}"):
            tests.append(outcome(name, check, networks))
    return {
        "date": str(datetime.date.today()),
        "machine": {**machine("torch"), **gpu(device)},
        # Without --out, which changes no figure and may name a folder of this machine.
        "command": "python scripts/reproduce_report.py" + (f" --width {width}" if width else ""),
        "threads": torch.get_num_threads(),
        "width": width,
        "memory_kind": "allocator" if device == "cuda" else "resident",
        "engine": engine,
        "parameters": parameters,
        "memory": memory,
        "tests": tests,
    }


def compute_device() -> str:
    """`cuda` or `cpu`, whichever this machine computes on; FP32 is FP32 from here on, without TF32."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    return "cuda" if torch.cuda.is_available() else "cpu"


def gpu(device: str) -> dict[str, str | None]:
    """The GPU and its driver, None without one."""
    if device != "cuda":
        return {"gpu": None}
    conditions = gpu_conditions()
    return {"gpu": torch.cuda.get_device_name(), "driver": conditions.driver if conditions else None}


def count(network: LHANet, *, compare: bool) -> dict[str, Any]:
    """Parameters by part and in all, bytes of weights, and the authors' figures if they are to be compared."""
    name, total = network.preset.name, parameters_of(network)
    parts = {
        "backbone": parameters_of(network.backbone),
        "pmsa": parameters_of(network.hierarchical_pmsa),
        "decoder": parameters_of(network.decoder),
    }
    reported = None
    if compare:
        theirs = PARAMETERS[name]
        named = sum(number for part, number in theirs.items() if part != "total")
        reported = {**theirs, "rest": theirs["total"] - named, "weights_mb": WEIGHTS_MB[name]}
    return {
        "preset": name,
        **parts,
        "rest": total - sum(parts.values()),
        "total": total,
        "weights_bytes": sum(tensor.numel() * tensor.element_size() for tensor in network.parameters()),
        "reported": reported,
    }


def parameters_of(module: nn.Module) -> int:
    """How many numbers are trained in a module."""
    return sum(tensor.numel() for tensor in module.parameters())


def memory_row(preset: str, width: int | None, shape: Shape, batch: int, progress: Progress) -> dict[str, Any]:
    """Memory of one inference, in a process of its own; `EnvironmentLacks` where there is too little of it."""
    what = f"{preset}, {format_shape(shape)}, batch {batch}"
    with progress.step(f"memory: {what}"), ProcessPoolExecutor(1, get_context("spawn")) as child:
        try:
            found = child.submit(inference_memory, preset, width, shape, batch, torch.get_num_threads()).result()
        except (BrokenProcessPool, torch.OutOfMemoryError) as error:
            raise EnvironmentLacks(
                f"{what}: the process that measured its memory failed, most likely for want of it ({error}); "
                "free some, or use a larger machine"
            ) from error
    return {"preset": preset, "shape": list(shape), "batch": batch, **found}


def inference_memory(preset: str, width: int | None, shape: Shape, batch: int, threads: int) -> dict[str, int]:
    """Bytes when the network is there, and the most during one eager FP32 inference. For a process made for this."""
    torch.set_num_threads(threads)
    device = compute_device()
    # As the authors have it.
    use_torchs_resize()
    with torch.device(device), torch.inference_mode():
        network = LHANet.from_preset(preset, num_classes=CLASSES, base_channels=width).eval()
        volume = torch.randn(batch, 1, *shape)
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
            ready = torch.cuda.memory_allocated()
            network(volume)
            return {"ready_bytes": ready, "peak_bytes": torch.cuda.max_memory_allocated()}
        reset_peak_resident()
        ready = peak_resident_bytes()
        network(volume)
        return {"ready_bytes": ready, "peak_bytes": peak_resident_bytes()}


def beside(row: dict[str, Any], plans: dict[str, Any]) -> dict[str, int | None]:
    """The authors' peak (MB) and our FP16 engine's planned memory (bytes) for a row, None where there is none."""
    key = (row["preset"], format_shape(row["shape"]), row["batch"])
    planned = {
        (plan["preset"], plan["max"], plan["batch"]): plan["weights_bytes"] + plan["activation_bytes"]
        for plan in plans["rows"]
        if plan["precision"] == "fp16"
    }
    return {"reported_mb": EAGER_MB.get(key), "engine_bytes": planned.get(key)}


def section(figures: dict[str, Any]) -> list[str]:
    """The figures as lines of Markdown: a heading, where they are from, and a table for each topic."""
    host = figures["machine"]
    lines = [
        "## The report that started the project, again",
        "",
        f"`{figures['command']}` on {figures['date']}: {host['cpu']}, {host['cores']} cores, {host['memory_gib']} GiB, "
        f"{host['gpu'] or 'no GPU'}; Python {host['python']}, torch {host['torch']}, {figures['threads']} threads.",
        "Beside it the authors' model initialization test report of 2025-09-30 (14 classes, RTX 3060).",
    ]
    for table in tables(figures):
        lines += ["", f"### {table.title}", "", *table.notes, "", *markdown_table(table.columns, table.rows)]
    return lines


def tables(figures: dict[str, Any]) -> list[Table]:
    """One for parameters, one for memory, one for the tests."""
    return [_parameter_table(figures), _memory_table(figures), _test_table(figures)]


def _narrow(figures: dict[str, Any]) -> list[str]:
    if figures["width"] is None:
        return []
    return [f"Networks of {figures['width']} base channels instead of their own: nothing is compared with the report."]


def _parameter_table(figures: dict[str, Any]) -> Table:
    counted = figures["parameters"]
    rows = []
    for name, key in _COUNTS.items():
        cells = [name]
        for row in counted:
            cells += [f"{row[key]:,}", f"{row['reported'][key]:,}" if row["reported"] else "not compared"]
        rows.append(tuple(cells))
    cells = ["weights, MiB"]
    for row in counted:
        theirs = f"~{row['reported']['weights_mb']:,}" if row["reported"] else "not compared"
        cells += [f"{row['weights_bytes'] / 2**20:,.1f}", theirs]
    notes = _narrow(figures)
    if not notes:
        differ = [line for row in counted for line in mismatches(row)]
        notes = [f"Not equal: {'; '.join(differ)}." if differ else "Every count equals the report's."]
    notes.append("Other heads are those of deep supervision and `final_conv`, which no path uses.")
    return Table(
        title="Parameters",
        columns=("", *(name for row in counted for name in (f"{row['preset']}, here", f"{row['preset']}, report"))),
        rows=[*rows, tuple(cells)],
        notes=notes,
    )


def _memory_table(figures: dict[str, Any]) -> Table:
    narrow, engine = _narrow(figures), figures["engine"]
    rows = []
    for row in figures["memory"]:
        theirs = engines = "not compared"
        if not narrow:
            theirs = f"~{row['reported_mb']:,} MB" if row["reported_mb"] else "not reported"
            engines = format_bytes(row["engine_bytes"]) if row["engine_bytes"] else "not planned"
        rows.append((
            row["preset"], format_shape(row["shape"]), str(row["batch"]), format_bytes(row["ready_bytes"]),
            format_bytes(row["peak_bytes"]), theirs, engines,
        ))  # fmt: skip
    if figures["memory_kind"] == "allocator":
        here = f"the most that PyTorch's allocator held at once on {figures['machine']['gpu']}, TF32 off."
    else:
        here = (
            "resident memory of a process on a CPU, not GPU memory; libraries are in it, "
            "and it cannot be compared with the other columns."
        )
    notes = [f"Here: {here}", *narrow]
    if engine:
        notes += [
            "Report: eager FP32 on the authors' RTX 3060; it does not say whether its MB are of 10^6 bytes, as all "
            "others here, or of 2^20, as those of its weights.",
            f"Our engine: FP16, weights and activations, planned by the builder for an RTX 3060 (TensorRT-RTX "
            f"{engine['tensorrt_rtx']}, {engine['date']}), not run.",
        ]
    return Table(
        title="Memory of one eager FP32 inference",
        columns=("network", "volume", "batch", "before it, here", "peak, here", "peak, report", "our engine, planned"),
        rows=rows,
        notes=notes,
    )


def _test_table(figures: dict[str, Any]) -> Table:
    rows = [
        (str(number), row["name"], "passed" if row["passed"] else "failed", row["seen"])
        for number, row in enumerate(figures["tests"], start=1)
    ]
    passed = sum(row["passed"] for row in figures["tests"])
    where = figures["machine"]["gpu"] or "a CPU"
    return Table(
        title="The ten tests",
        columns=("", "test", "here", "seen"),
        rows=rows,
        notes=[f"{passed} of {len(rows)} pass, on {where}, with weights by rule and small volumes.", *_narrow(figures)],
    )


if __name__ == "__main__":
    main()
