"""From what was seen of a tensor to the one number that INT8 needs of it: the largest magnitude that is not clipped.

Activations are symmetric: q = round(x / scale), clipped to [-127, 127], scale = bound / 127. What a bound costs
is read from a histogram of magnitudes, by one of several methods:

- `min-max`: nothing is clipped.
- `percentile-99.999`, `percentile-99.99`: that share of the values that are not 0 stays below the bound.
- `entropy`: the bound with the least Kullback-Leibler divergence of the quantized distribution from the true one
  (S. Migacz, 8-bit Inference with TensorRT, GTC 2017).
- `mse`: the bound with the least mean squared error.

Values that are exactly 0 (half of what comes out of a ReLU) are exact under every bound and count nowhere.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from lhanet_export.errors import RefusedInput

#: The largest quantized magnitude: TensorRT's symmetric INT8.
LEVELS = 127
#: Bins of a histogram of magnitudes, from 0 to the largest one seen.
BINS = 2048
#: Bounds that `mse` tries, as shares of the largest magnitude.
_SHARES = np.linspace(0.02, 1, 197)
#: `entropy` tries a bound every so many bins.
_STRIDE = 16


@dataclass(frozen=True, kw_only=True, eq=False)
class Magnitudes:
    """What was seen of one tensor: smallest and largest value, and how many magnitudes above 0 fell into each bin.

    `counts` (`BINS`,) float64; bin i holds magnitudes from i to i + 1 times `largest` / `BINS`.
    """

    minimum: float
    maximum: float
    counts: np.ndarray

    @property
    def largest(self) -> float:
        """The largest magnitude."""
        return max(-self.minimum, self.maximum)

    @property
    def middles(self) -> np.ndarray:
        """The magnitude in the middle of each bin."""
        return (np.arange(BINS) + 0.5) * (self.largest / BINS)

    def clipped(self, bound: float) -> float:
        """The share of the values above 0 in magnitude that lie beyond a bound."""
        total = self.counts.sum()
        return float(self.counts[self.middles > bound].sum() / total) if total else 0.0


def bound_of(name: str, seen: Magnitudes, method: str) -> float:
    """The bound of a tensor by a method from `METHODS`; `name` is for the message.

    `RefusedInput` for an unknown method and for a tensor that was 0 everywhere or not finite: there is no scale
    for it, and none is invented.
    """
    if method not in METHODS:
        raise RefusedInput(f"there is no calibration method '{method}'; methods: {', '.join(METHODS)}")
    if not np.isfinite([seen.minimum, seen.maximum]).all() or not np.isfinite(seen.counts).all():
        raise RefusedInput(f"the calibration volumes make {name} NaN or infinite; no scale follows from that")
    if seen.largest == 0 or not seen.counts.any():
        raise RefusedInput(
            f"{name} is 0 everywhere on the calibration volumes; no scale follows from that. Calibrate on scans, "
            "or look whether the network is trained"
        )
    return METHODS[method](seen)


def _percentile(share: float) -> Callable[[Magnitudes], float]:
    def bound(seen: Magnitudes) -> float:
        below = np.cumsum(seen.counts) / seen.counts.sum()
        return float((np.searchsorted(below, share) + 1) * seen.largest / BINS)

    return bound


def _least_squared_error(seen: Magnitudes) -> float:
    bounds = seen.largest * _SHARES
    middles = seen.middles
    steps = (bounds / LEVELS)[:, None]
    rounded = np.minimum(np.rint(middles / steps), LEVELS) * steps
    # Where the step is finer than a bin, a bin's middle may fall on it by chance; its other values do not.
    within = np.minimum(steps, seen.largest / BINS) ** 2 / 12
    errors = ((np.maximum((rounded - middles) ** 2, within)) * seen.counts).sum(1)
    return float(bounds[errors.argmin()])


def _least_divergence(seen: Magnitudes) -> float:
    ends = range(LEVELS + 1, BINS + 1, _STRIDE)
    divergences = [_divergence(seen.counts, end) for end in ends]
    return float(ends[int(np.argmin(divergences))] * seen.largest / BINS)


def _divergence(counts: np.ndarray, end: int) -> float:
    """Of the first `end` bins in 128 levels from the same bins, with what lies beyond added to the last one."""
    reference = counts[:end].copy()
    level = np.arange(end) * (LEVELS + 1) // end
    filled = reference > 0
    sums = np.bincount(level, counts[:end], LEVELS + 1)
    # A level's share is spread over those of its bins that hold anything.
    shares = np.bincount(level, filled, LEVELS + 1)
    quantized = np.where(filled, (sums / np.maximum(shares, 1))[level], 0.0)
    reference[-1] += counts[end:].sum()
    if not quantized.sum():
        return float("inf")
    p, q = reference / reference.sum(), quantized / quantized.sum()
    # Where the clipped values are all that the last bin has, no quantized value stands for them.
    q = np.maximum(q, 1e-12)
    return float((p[p > 0] * np.log(p[p > 0] / q[p > 0])).sum())


METHODS: dict[str, Callable[[Magnitudes], float]] = {
    "min-max": lambda seen: seen.largest,
    "percentile-99.999": _percentile(0.99999),
    "percentile-99.99": _percentile(0.9999),
    "entropy": _least_divergence,
    "mse": _least_squared_error,
}
