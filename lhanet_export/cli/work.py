"""`lhanet-export work`: where a graph's arithmetic and memory traffic go."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING

from lhanet_export.cli.options import command, file_argument, json_option, shape_option
from lhanet_export.cli.show import Show
from lhanet_export.shapes import Shape, format_shape

if TYPE_CHECKING:
    from lhanet_export.export.work import Amount, Work

USUAL_SHAPE: Shape = (64, 128, 128)


@command("work")
@file_argument("model")
@shape_option("By default 64x128x128 if the graph serves it, otherwise the size that it is best at.")
@json_option
def work(model: Path, shapes: tuple[Shape, ...], show: Show) -> None:
    """Count the multiply-adds of MODEL, an ONNX file, and the bytes it reads and writes, part by part.

    Counted is the graph as it was exported, node by node; a runtime that fuses nodes moves less. The
    last lines compare it with the network as it was trained. No weight is read and nothing is run.
    """
    from lhanet_export.export.work import read_graph, work_of
    from lhanet_export.inference.as_trained import multiply_adds_as_trained
    from lhanet_export.verify.inputs import check_shapes

    graph = read_graph(model)
    check_shapes(list(shapes), graph.spatial)
    usual = USUAL_SHAPE if USUAL_SHAPE in graph.spatial else graph.spatial.opt
    facts = []
    for shape in shapes or (usual,):
        counted = work_of(graph.model, shape)
        trained = multiply_adds_as_trained(
            graph.preset, shape, base_channels=graph.base_channels, num_classes=graph.num_classes, head=graph.head,
            batch=counted.batch,
        )  # fmt: skip
        saved = 1 - counted.total().multiply_adds / trained
        _say(model.name, counted, trained, saved, show)
        facts.append({**counted.as_json(), "multiply_adds_as_trained": trained, "saved": saved})
    show.facts({"model": str(model), "sizes": facts})


def _say(name: str, counted: Work, trained: int, saved: float, show: Show) -> None:
    together = counted.total().multiply_adds
    size = format_shape(counted.shape) + (f", {counted.batch} volumes" if counted.batch > 1 else "")

    def share(amount: Amount) -> str:
        return f"{amount.multiply_adds / together:.1%}"

    pieces = _pieces(counted)
    headings = (*(piece.removesuffix(" convolution") for piece in pieces), "together")
    rows = _rows(counted, pieces, lambda amount: amount.multiply_adds / 1e9, share)
    blank = [""] * len(pieces)
    rows += [["the network as trained", *blank, f"{trained / 1e9:,.1f}", ""], ["saved", *blank, f"{saved:.1%}", ""]]
    _table(show, f"{name} at {size}: multiply-adds in billions", rows, (*headings, "share"))
    rows = _rows(counted, pieces, lambda amount: amount.moved_bytes / 1e6, _weights)
    _table(show, "Tensors read and written, and weights stored, in MB", rows, (*headings, "weights"))


def _weights(amount: Amount) -> str:
    return f"{amount.weight_bytes / 1e6:,.1f}"


def _pieces(counted: Work) -> tuple[str, ...]:
    """The pieces of a scale's branch, with one for other pieces where there are any."""
    from lhanet_export.export.work import OTHER, PIECES

    return (*PIECES, OTHER) if any(place.piece == OTHER for place in counted.amounts) else PIECES


def _rows(
    counted: Work, pieces: tuple[str, ...], number: Callable[[Amount], float], last: Callable[[Amount], str]
) -> list[list[str]]:
    """A row for each part, for each of its branches, and for all: numbers of the pieces and together, a last cell."""

    def row(label: str, part: str | None = None, branch: str | None = None) -> list[str]:
        sums = [number(counted.total(part, branch, piece)) for piece in pieces]
        total = counted.total(part, branch)
        return [label, *(f"{value:,.1f}" if value else "" for value in sums), f"{number(total):,.1f}", last(total)]

    rows = []
    for part, branches in groupby(counted.branches(), key=itemgetter(0)):
        rows.append(row(part, part))
        rows += [row(f"  {branch}", part, branch) for _, branch in branches if branch]
    return [*rows, row("together")]


def _table(show: Show, title: str, rows: list[list[str]], headings: tuple[str, ...]) -> None:
    """A table whose numbers stand flush right."""
    widths = [max(map(len, column)) for column in zip(headings, *(row[1:] for row in rows), strict=True)]

    def flush(cells: Sequence[str]) -> list[str]:
        return [cell.rjust(width) for cell, width in zip(cells, widths, strict=True)]

    show.table(title, [[row[0], *flush(row[1:])] for row in rows], ("", *flush(headings)))
