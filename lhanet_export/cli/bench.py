"""`lhanet-export bench`: time, memory and error of a model beside every fair baseline."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from lhanet_export.cli.options import OutputPath, checkpoint_option, command, json_option, shape_option
from lhanet_export.cli.show import Show, format_bytes, format_seconds
from lhanet_export.files import staged
from lhanet_export.shapes import Shape, format_shape

if TYPE_CHECKING:
    from lhanet_export.bench.result import Bench, Row


@command("bench")
@click.argument("models", metavar="[MODEL]...", nargs=-1, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@checkpoint_option
@shape_option("By default 48x96x96.")
@click.option(
    "--device", type=click.Choice(("cpu", "cuda")), help="Where to measure. Default: the GPU if there is one."
)
@click.option(
    "--rounds", type=click.IntRange(1, 1000), help="Timed inferences of each. Default: 5 on a CPU, 20 on a GPU."
)
@click.option(
    "--volumes", type=click.IntRange(1, 100), default=3, show_default=True, help="Volumes to compare outputs on."
)
@click.option(
    "--threads", type=click.IntRange(1, 1024), help="Threads of each candidate on a CPU. Default: the machine's cores."
)
@click.option("--report", type=OutputPath(folder=False), metavar="FILE", help="Also write an HTML report, in one file.")
@json_option
def bench(
    models: tuple[Path, ...], checkpoint: str, shapes: tuple[Shape, ...], device: Literal["cpu", "cuda"] | None,
    rounds: int | None, volumes: int, threads: int | None, report: Path | None, show: Show,
) -> None:  # fmt: skip
    """Measure MODELs (ONNX files, engines) beside the eager network of CHECKPOINT and other baselines.

    Every candidate has a process of its own and the same weights and volumes; they take turns, inference by
    inference, and none of those is left out. On a GPU times are of the network alone, and copies are given apart.
    Memory is the peak of the process in any inference but its first. Without an ONNX file among MODELs, the graph
    that this toolkit exports is measured, too.
    """
    from lhanet_export.bench.run import Order, benches_of, facts_of

    order = Order(
        shapes=shapes or Order.shapes, device=device, rounds=rounds, volumes=volumes, threads=threads,
        command=shlex.join(["lhanet-export", *sys.argv[1:]]),
    )  # fmt: skip
    found = benches_of(checkpoint, models, order, show.progress)
    facts = facts_of(found)
    for one, told in zip(found, facts["benches"], strict=True):
        _say(one, told, show)
    if facts["scaling"] is not None:
        _say_scaling(facts["scaling"], show)
    if report is not None:
        write_report(report, facts, f"LHA-Net, {checkpoint}")
    show.facts(facts)


def _say(found: Bench, facts: dict[str, Any], show: Show) -> None:
    from lhanet_export.bench.agreement import said_of

    def cells(row: Row, told: dict[str, Any]) -> tuple[str, ...]:
        share = told["share_of_peak_memory"]
        return (
            row.name + (" (flagged)" if row.flag else ""), f"{row.median_seconds:.3g} s", f"{told['speedup']:.2f}x",
            format_bytes(row.peak_bytes), "" if share is None else f"{share:.0%}", f"{row.relative_l2:.1e}",
            f"{row.label_agreement:.3%}", "reference" if row is found.rows[0] else said_of(told),
        )  # fmt: skip

    where = f"{found.device.name}, {found.threads} threads" if found.device.kind == "cpu" else found.device.name
    show.table(
        f"One inference at {format_shape(found.shape)}, {where}",
        [cells(row, told) for row, told in zip(found.rows, facts["rows"], strict=True)],
        ("", "median", "gain", "memory", "share", "L2 error", "labels", "agrees"),
    )
    show.line(
        "Gain and share are against the first row; memory is the peak of any inference but the first. Errors are the "
        "worst of all volumes, and agree where they are within what verify asks of the number format."
    )
    for row in found.rows:
        if row.flag:
            show.line(f"{row.name}: {row.flag}")
    show.table(
        "Of the same inferences, and what comes before and beside them",
        [
            (row.name, f"{told['p10_seconds']:.3g} - {told['p90_seconds']:.3g} s", f"{told['voxels_per_second']:,.0f}",
             format_seconds(row.ready_seconds), f"{row.first_seconds:.3g} s",
             format_bytes(row.disk_bytes) if row.disk_bytes else "checkpoint",
             "none" if row.copy_seconds is None else f"{row.copy_seconds:.3g} s")
            for row, told in zip(found.rows, facts["rows"], strict=True)
        ],
        ("", "p10 to p90", "voxels/s", "ready in", "first call", "on disk", "copies"),
    )  # fmt: skip
    show.table(
        f"The least time on a {facts['floors'][0]['card']}, computed",
        [(one["precision"], f"{one['seconds'] * 1000:.3g} ms") for one in facts["floors"]],
    )
    if found.skipped:
        show.table("Not measured", [(one.name, one.reason) for one in found.skipped])


def _say_scaling(scaling: dict[str, Any], show: Show) -> None:
    show.table(
        "Cost by volume: a straight line through the sizes",
        [
            (fit["name"], f"{fit['seconds_per_megavoxel']:.3g} s", f"{fit['fixed_seconds']:.3g} s",
             f"{fit['bytes_per_voxel']:,.0f} B", format_bytes(int(fit["fixed_bytes"])))
            for fit in scaling["fits"]
        ],
        ("", "a million voxels", "fixed", "a voxel", "fixed"),
    )  # fmt: skip


def write_report(target: Path, facts: dict[str, Any], title: str, proof: dict[str, Any] | None = None) -> None:
    """One HTML page of `run.facts_of`; `proof` is the manifest of a deployment."""
    from lhanet_export.bench.report import report_html

    with staged(target) as (path,):
        page = report_html(facts["benches"], scaling=facts["scaling"], proof=proof, title=title)
        path.write_text(page, encoding="utf-8")
