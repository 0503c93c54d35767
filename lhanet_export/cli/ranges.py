"""`lhanet-export ranges`: how near the layers of a graph come to the ends of FP16's range, on data."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from lhanet_export.cli.options import command, data_option, file_argument, json_option, seed_option, shape_option
from lhanet_export.cli.show import Show
from lhanet_export.shapes import Shape

if TYPE_CHECKING:
    from lhanet_export.precision.ranges import NodeRange


@command("ranges")
@file_argument("model")
@data_option
@shape_option("By default 48x96x96, or the nearest that the graph serves.")
@click.option(
    "--windows", type=click.IntRange(1, 64), default=4, show_default=True,
    help="How many windows of scans to measure on, at each size.",
)  # fmt: skip
@click.option("--rows", type=click.IntRange(1, 1000), default=12, show_default=True, help="Rows of each table.")
@seed_option
@json_option
def ranges(
    model: Path,
    data: Path | None,
    assume_hu: bool,
    shapes: tuple[Shape, ...],
    windows: int,
    rows: int,
    seed: int,
    show: Show,
) -> None:
    """List the layers of MODEL, an FP32 ONNX file, that come nearest to overflow and to underflow in FP16.

    Measured are the tensors of the FP32 graph on CT volumes, never on noise. How long the sums of products
    are decides what the type that they are added up in would cost; what is known of that type is said, too.
    """
    from lhanet_export.export.artifact import read_onnx
    from lhanet_export.precision.ranges import activation_ranges, deepest, nearest_to_overflow, nearest_to_underflow
    from lhanet_export.verify.cases import window_in
    from lhanet_export.verify.inputs import check_shapes
    from lhanet_export.verify.volumes import VERIFICATION_SEEDS, scan_cases

    artifact = read_onnx(model)
    check_shapes(list(shapes), artifact.spatial)
    batch = artifact.facts["batch"] or 1
    cases = []
    for shape in shapes or (window_in(artifact.spatial),):
        cases += scan_cases(
            data, shape, -(-windows // batch), classes=len(artifact.facts["labels"]), batch=batch, assume_hu=assume_hu,
            first_seed=VERIFICATION_SEEDS + 100 * seed, progress=show.progress,
        )  # fmt: skip
    found = activation_ranges(artifact, [case.image for case in cases], show.progress)
    _say_overflow(nearest_to_overflow(found, rows), show)
    _say_underflow(nearest_to_underflow(found, rows), show)
    _say_accumulation(deepest(found, rows), show)
    show.facts({
        "model": str(model),
        "volumes": [{"shape": list(case.shape), "what": case.kind} for case in cases],
        "nodes": [node.as_json() for node in found],
    })  # fmt: skip


def _say_overflow(found: list[NodeRange], show: Show) -> None:
    columns = ("node", "operator", "largest", "on volume", "headroom", "products summed")
    rows = [
        (node.name, node.op_type, f"{node.largest:.4g}", str(node.largest_in), f"{node.headroom:,.4g} times",
         _depth(node))
        for node in found
    ]  # fmt: skip
    show.table("Nearest to overflow: FP16 ends at 65,504", rows, columns)


def _say_underflow(found: list[NodeRange], show: Show) -> None:
    columns = ("node", "operator", "RMS", "below 6.1e-05", "become 0", "products summed")
    rows = [
        (node.name, node.op_type, f"{node.rms:.3g}", f"{node.subnormal:.2%}", f"{node.vanishing:.2%}", _depth(node))
        for node in found
    ]
    show.table("Nearest to underflow: below 6.1e-05 FP16 loses digits, below 3e-08 everything", rows, columns)


def _say_accumulation(found: list[NodeRange], show: Show) -> None:
    from lhanet_export.precision.ranges import ACCUMULATION, accumulation_error

    rows = []
    for node in found:
        likely, worst = accumulation_error(node.depth or 0)
        rows.append((node.name, _depth(node), f"{likely:.1%}", f"{worst:.0%}"))
    columns = ("longest sums", "products", "likely error of an FP16 accumulator", "at worst")
    show.table("Sums of products, and what adding them up one by one in FP16 would do", rows, columns)
    show.table("What adds up in what", ACCUMULATION)


def _depth(node: NodeRange) -> str:
    return f"{node.depth:,}" if node.depth else ""
