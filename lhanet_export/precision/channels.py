"""Weights of a convolution as INT8 with one scale an output channel, in the form that `precision.int8` writes.

The scale of a channel is the product of a power of two, `multiplier`, which all channels share and which stands at the
weights, and a factor of its own, exact in FP16, which stands behind the convolution.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from lhanet_export.errors import RefusedInput
from lhanet_export.precision.fp16 import HALF_SMALLEST_NORMAL
from lhanet_export.precision.scales import LEVELS

#: What the sum of a convolution may reach at most: half of FP16's largest number, for the roundings on the way.
_LARGEST_SUM = 2.0**15
#: The multiplier times 127 is an FP16 number, too.
_LARGEST_MULTIPLIER = 2.0**8
#: What 1 in a sum of integers stands for at least, before the factors: its digits lie in FP16's range then.
_SMALLEST_UNIT = 2.0**-21
_LARGEST_INT32 = 2**31 - 1
#: Shares of a channel's largest weight that `clip="mse"` tries as bounds.
_SHARES = np.linspace(1, 0.6, 17, dtype=np.float32)
#: Weights that are worked on at a time.
_BLOCK = 1 << 22

CLIPS = ("max", "mse")


@dataclass(frozen=True, kw_only=True, eq=False)
class ChannelWeights:
    """INT8 weights (O,I,...), the shared `multiplier`, and each channel's `factors` (O,) float32, exact in FP16.

    `noise` is the squared error of the weights, relative to their squares.
    """

    values: np.ndarray
    multiplier: float
    factors: np.ndarray
    noise: float


def quantize_weights(
    name: str, weights: np.ndarray, *, input_scale: float, input_is_positive: bool, clip: str = "max"
) -> ChannelWeights:
    """Quantize weights (O,I,...) float32 for an input of this scale; `name` is for the message.

    `clip` is how a channel's bound is found: its largest weight, or the bound with the least squared error.
    `RefusedInput` for weights that are not finite, and for sums that could leave int32's range.
    """
    if clip not in CLIPS:
        raise RefusedInput(f"there is no way '{clip}' to clip weights; ways: {', '.join(CLIPS)}")
    if not np.isfinite(weights).all():
        raise RefusedInput(f"the weights of {name} hold NaN or infinity")
    rows = weights.reshape(len(weights), -1)
    bounds = _bounds(rows, clip)
    # A channel of zeros has any scale.
    scales = np.where(bounds > 0, bounds, bounds.max() or 1.0) / LEVELS
    most = _largest_sum(_rounded(rows, scales), positive=input_is_positive)
    if most > _LARGEST_INT32:
        raise RefusedInput(f"sums of {name} could leave the range of int32: up to {most:.2g}; keep it in FP16")
    multiplier = min(
        _LARGEST_MULTIPLIER,
        2.0 ** math.floor(math.log2(_LARGEST_SUM / (input_scale * max(most, 1)))),
        # Small inputs would allow a large one, and factors so small that FP16 has fewer digits for them.
        2.0 ** math.floor(math.log2(max(scales.min() / HALF_SMALLEST_NORMAL, _SMALLEST_UNIT / input_scale))),
    )
    factors = np.maximum(scales / multiplier, HALF_SMALLEST_NORMAL).astype(np.float16).astype(np.float32)
    values = _rounded(rows, factors * np.float32(multiplier))
    return ChannelWeights(
        values=values.reshape(weights.shape),
        multiplier=multiplier,
        factors=factors,
        noise=_noise(rows, values, factors * np.float32(multiplier)),
    )


def _bounds(rows: np.ndarray, clip: str) -> np.ndarray:
    """The largest magnitude of each channel that is not clipped, float32."""
    largest = np.abs(rows).max(1)
    if clip == "max":
        return largest
    best = np.full(len(rows), np.inf, np.float32)
    bounds = largest.copy()
    for share in _SHARES:
        scales = np.maximum(largest * share, np.finfo(np.float32).tiny) / np.float32(LEVELS)
        for part in _blocks(rows):
            step = scales[part, None]
            error = np.square(np.clip(np.rint(rows[part] / step), -LEVELS, LEVELS) * step - rows[part]).sum(1)
            better = error < best[part]
            best[part] = np.where(better, error, best[part])
            bounds[part] = np.where(better, largest[part] * share, bounds[part])
    return bounds


def _rounded(rows: np.ndarray, scales: np.ndarray) -> np.ndarray:
    values = np.empty(rows.shape, np.int8)
    for part in _blocks(rows):
        values[part] = np.clip(np.rint(rows[part] / scales[part, None]), -LEVELS, LEVELS)
    return values


def _largest_sum(values: np.ndarray, *, positive: bool) -> int:
    """The largest magnitude that a sum of products can have, over all inputs there are."""
    most = 0
    for part in _blocks(values):
        above = np.maximum(values[part], 0).sum(1, dtype=np.int64)
        below = above - values[part].sum(1, dtype=np.int64)
        sums = np.maximum(above, below) * LEVELS if positive else (above + below) * (LEVELS + 1)
        most = max(most, int(sums.max()))
    return most


def _noise(rows: np.ndarray, values: np.ndarray, scales: np.ndarray) -> float:
    error = total = 0.0
    for part in _blocks(rows):
        error += float(np.square(values[part] * scales[part, None] - rows[part]).sum(dtype=np.float64))
        total += float(np.square(rows[part]).sum(dtype=np.float64))
    return error / total if total else 0.0


def _blocks(rows: np.ndarray) -> list[slice]:
    """Channels in parts of bounded size."""
    count = max(1, _BLOCK // rows.shape[1])
    return [slice(first, first + count) for first in range(0, len(rows), count)]
