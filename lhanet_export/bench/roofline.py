"""How much of a card's arithmetic and bandwidth an inference used, and how fast no inference can be.

A multiply-add is two operations here, as in NVIDIA's figures. `work` is what `prepare.work_at` counts of a graph:
`multiply_adds`, `moved_bytes` and `weight_bytes`; for a floor also `input_bytes` and `output_bytes`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lhanet_export.bench.cards import PRECISIONS, Card, card_named
from lhanet_export.bench.result import Bench, Row
from lhanet_export.errors import RefusedInput

_OPERATIONS_PER_MULTIPLY_ADD = 2
#: The card of the floors, and the number formats that they are computed for.
FLOOR_CARD = "NVIDIA GeForce RTX 3060"
FLOORS = ("fp32", "fp16", "fp16-fp16", "int8")
_BYTES: Mapping[str, int] = {"fp32": 4, "tf32": 4, "fp16": 2, "bf16": 2, "fp16-fp16": 2, "int8": 1}


def roofline(row: Row, work: Mapping[str, int], card: Card | None) -> dict[str, Any]:
    """What a row achieved, in 10^12 operations and 10^9 bytes a second at its median time; `card` is None for a CPU.

    The operations are those of the layers that the row runs, ours or those of the network as it was trained. The bytes
    are an upper estimate: every node's reads and writes, where a runtime that fuses nodes moves less; more than the
    card's bandwidth proves that it did. Those of the network as trained were not counted, so they are None.
    `share_of_peak` is of the arithmetic in the row's number format, and `bound` is what would take longer at the card's
    peaks, the operations or these bytes; None where one of them is not known, without a card, and for a number format
    that `cards.PRECISIONS` does not have. A share above 1 means another format than the row says (TF32 for FP32,
    adding up in FP16), a clock above the specified one, or an algorithm that saves multiply-adds.
    """
    ours = row.network == "ours"
    operations = _OPERATIONS_PER_MULTIPLY_ADD * _count(work, "multiply_adds" if ours else "multiply_adds_as_trained")
    tflops = operations / row.median_seconds / 1e12
    gbps = _count(work, "moved_bytes") / row.median_seconds / 1e9 if ours else None
    share = bound = None
    if card is not None and row.precision in PRECISIONS:
        share = tflops / card.peak_tflops(row.precision)
        if gbps is not None:
            bound = "compute" if share >= gbps / card.bandwidth_gbps else "memory"
    return {
        "name": row.name,
        "achieved_tflops": tflops,
        "achieved_gbps": gbps,
        "share_of_peak": share,
        "bound": bound,
    }


def floor_seconds(work: Mapping[str, int], card: Card, precision: str, *, counted_in: str = "fp32") -> float:
    """The seconds that no inference of this work takes less than on a card: the longer one of arithmetic and memory.

    Arithmetic: all multiply-adds in `precision`, at its peak. Memory: the weights, the input and the output, each once
    at full bandwidth. Tensors between nodes are left out, since a program could keep them on the chip. The weights'
    bytes, which the counted graph has in `counted_in`, are taken in `precision`; input and output are as in the graph.

    Assumed, so that a program which does otherwise can be faster: each multiply-add is done (Winograd's and Fourier
    algorithms save some), nothing is sparse, clocks are the specified ones, and nothing stays in the cache from one
    inference to the next. An engine that may add up in FP16 has the floor of `fp16-fp16`, not that of `fp16`.
    `RefusedInput` for a number format without a peak, and for work that lacks one of the counts.
    """
    return max(_floor_parts(work, card, precision, counted_in))


def floors(work: Mapping[str, int], card: Card, precisions: Sequence[str] = FLOORS) -> list[dict[str, Any]]:
    """The `floor_seconds` in several number formats, and what they are of: arithmetic or memory."""
    found = []
    for precision in precisions:
        arithmetic, memory = _floor_parts(work, card, precision, "fp32")
        found.append({
            "card": card.title, "precision": precision, "seconds": max(arithmetic, memory),
            "bound": "compute" if arithmetic >= memory else "memory",
        })  # fmt: skip
    return found


def rooflines(bench: Bench) -> dict[str, list[dict[str, Any]]]:
    """The `roofline` of each row of a bench, and the floors of its work on an RTX 3060; none for uncounted work."""
    if not bench.work:
        return {"roofline": [], "floors": []}
    gpu = bench.device.kind == "cuda"
    card = card_named(bench.device.name, bench.device.memory_bytes) if gpu else None
    target = card_named(FLOOR_CARD)
    assert target is not None, "the card that this toolkit is for is in the table"
    return {
        "roofline": [roofline(row, bench.work, card) for row in bench.rows],
        "floors": floors(bench.work, target),
    }


def _floor_parts(work: Mapping[str, int], card: Card, precision: str, counted_in: str) -> tuple[float, float]:
    """Seconds of the arithmetic, and of the memory."""
    operations = _OPERATIONS_PER_MULTIPLY_ADD * _count(work, "multiply_adds")
    arithmetic = operations / (card.peak_tflops(precision) * 1e12)
    if counted_in not in _BYTES:
        raise RefusedInput(f"weights counted in {counted_in!r} have no known size; choose from {', '.join(_BYTES)}")
    weights = _count(work, "weight_bytes") * _BYTES[precision] / _BYTES[counted_in]
    moved = weights + _count(work, "input_bytes") + _count(work, "output_bytes")
    return arithmetic, moved / (card.bandwidth_gbps * 1e9)


def _count(work: Mapping[str, int], key: str) -> int:
    if key not in work:
        raise RefusedInput(f"the counted work has no {key}; it has {', '.join(sorted(work)) or 'nothing'}")
    return work[key]
