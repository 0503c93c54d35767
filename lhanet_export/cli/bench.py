"""`lhanet-export bench`: time, memory and error of a model beside every fair baseline."""

from __future__ import annotations

import os
import shlex
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lhanet_export.cli.options import OutputPath, checkpoint_option, command, json_option, shape_option
from lhanet_export.cli.show import Show, format_bytes
from lhanet_export.files import staged
from lhanet_export.shapes import Shape, format_shape

if TYPE_CHECKING:
    from lhanet_export.bench.result import Bench, Row


@command("bench")
@click.argument("models", metavar="[MODEL]...", nargs=-1, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@checkpoint_option
@shape_option("By default 48x96x96.")
@click.option("--rounds", type=click.IntRange(1, 1000), default=5, show_default=True, help="Timed inferences of each.")
@click.option(
    "--volumes", type=click.IntRange(1, 100), default=3, show_default=True, help="Volumes to compare outputs on."
)
@click.option(
    "--threads", type=click.IntRange(1, 1024), help="Threads of each candidate. Default: the machine's cores."
)
@click.option("--report", type=OutputPath(folder=False), metavar="FILE", help="Also write an HTML report, in one file.")
@json_option
def bench(
    models: tuple[Path, ...], checkpoint: str, shapes: tuple[Shape, ...], rounds: int, volumes: int,
    threads: int | None, report: Path | None, show: Show,
) -> None:  # fmt: skip
    """Measure MODELs (ONNX files, engines) beside the eager network of CHECKPOINT and other baselines.

    Every candidate has a process of its own and the same weights and volumes; they take turns, inference by
    inference, and none of those is left out. Memory is the peak of the process. Without a MODEL, the graph that
    this toolkit exports for a CPU is measured.
    """
    from lhanet_export.bench.candidates import candidates_for
    from lhanet_export.bench.measure import Plan, measure
    from lhanet_export.bench.prepare import plain_export, prepared, work_at
    from lhanet_export.engine.gpu import find_gpus

    sizes = shapes or ((48, 96, 96),)
    threads = threads or os.cpu_count() or 1
    found: list[Bench] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with show.progress.step(f"prepare {checkpoint}"):
            ready = prepared(checkpoint, sizes, folder, models=models)
        for shape in sizes:
            with show.progress.step(f"export with PyTorch alone for {format_shape(shape)}"):
                plain = plain_export(ready.checkpoint, shape, folder)
            candidates, skipped = candidates_for(models or (ready.graph,), plain, find_gpus())
            plan = Plan(
                checkpoint=ready.checkpoint, identity=ready.identity, shape=shape, threads=threads,
                rounds=rounds, volumes=volumes, command=shlex.join(["lhanet-export", *sys.argv[1:]]),
                work=work_at(ready.graph, shape),
            )  # fmt: skip
            found.append(measure(candidates, skipped, plan, folder, show.progress))
    for one in found:
        _say(one, show)
    facts = {"benches": [one.as_json() for one in found]}
    if report is not None:
        _write_report(report, facts["benches"], checkpoint)
    show.facts(facts)


def _say(found: Bench, show: Show) -> None:
    first = found.rows[0]

    def cells(row: Row) -> tuple[str, ...]:
        low, high = (row.percentile_seconds(share) for share in (10, 90))
        speedup = first.median_seconds / row.median_seconds
        return (
            row.name + (" (flagged)" if row.flag else ""),
            f"{row.median_seconds:.3g} s", f"{low:.3g} to {high:.3g}", f"{speedup:.2f}x",
            format_bytes(row.peak_bytes), f"{row.peak_bytes / first.peak_bytes:.0%}",
            f"{row.relative_l2:.1e}", f"{row.label_agreement:.3%}",
        )  # fmt: skip

    title = f"One inference at {format_shape(found.shape)}, {found.threads} threads, {found.device.name}"
    headings = ("", "median", "p10 to p90", "speed-up", "peak memory", "of eager's", "relative L2", "labels equal")
    show.table(title, [cells(row) for row in found.rows], headings)
    for row in found.rows:
        if row.flag:
            show.line(f"{row.name}: {row.flag}")
    if found.skipped:
        show.table("Not measured", [(one.name, one.reason) for one in found.skipped])


def _write_report(target: Path, benches: list[dict[str, Any]], checkpoint: str) -> None:
    from lhanet_export.bench.report import report_html

    with staged(target) as (path,):
        path.write_text(report_html(benches, title=f"LHA-Net, {checkpoint}"), encoding="utf-8")
