"""The last resize of the logits reads two planes for each plane of its result, in place of a product with a matrix.

Linear interpolation along depth is a product with a matrix of two numbers a row, and also

    result[i] = (1 - t[i]) * planes[low[i]] + t[i] * planes[low[i] + 1],   low = floor(source), t = source - low.

A builder writes such a sum where the caller wants the logits. A product of sizes that are not known beforehand it
writes into memory of its own first (59 MB of FP32 logits for 14 classes at 64x128x128), and copies. Nothing but the
last resize is written this way: inside the network, a builder joins the reads with what follows and needs more.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from lhanet_export.model.resize import reading_positions, resize_to_size


def resize_by_reading(x: Tensor, size: Sequence[int]) -> Tensor:
    """`resize_to_size` of `x` (N,C,D,H,W) to `size` (D,H,W), with sums of two planes along depth; FP32."""
    x = resize_to_size(x, size, (4, 3))
    source, samples = reading_positions(x.shape[2], size[0], (x.shape[2], size[0]), device=x.device)
    low = source.floor()
    # At the last plane t is 0, and any plane will do for the other.
    high = (low + 1).minimum(samples[-1])
    t = (source - low).reshape(-1, 1, 1)
    return x.index_select(2, low.long()) * (1 - t) + x.index_select(2, high.long()) * t
