"""Windows that cover a volume, and how much each of them counts at every voxel.

Windows and weights are products of the three axes, so an axis says all: where its windows begin, and for each
window the share that it has at each of its voxels. At every voxel the shares of all windows sum up to 1.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import product

import numpy as np

from lhanet_export.conventions import BLENDINGS, MOST_OVERLAP, Preprocessing
from lhanet_export.errors import RefusedInput
from lhanet_export.shapes import Shape


@dataclass(frozen=True, kw_only=True)
class Axis:
    """The windows of one axis: `side` voxels are covered by windows of `patch` voxels that begin at `starts`.

    A side shorter than the patch has one window, which reaches beyond its end.
    """

    side: int
    patch: int
    starts: tuple[int, ...]
    blending: str
    sigma_divisor: float

    @cached_property
    def shares(self) -> np.ndarray:
        """(windows, patch) float64: what part of the result at each of its voxels a window has."""
        weights = _weights(self.patch, self.blending, self.sigma_divisor)
        total = np.zeros(max(self.side, self.patch))
        for start in self.starts:
            total[start : start + self.patch] += weights
        return np.stack([weights / total[start : start + self.patch] for start in self.starts])


@dataclass(frozen=True, kw_only=True)
class Window:
    """One window: its number along each axis and the voxels (D,H,W) that it begins with."""

    index: tuple[int, int, int]
    start: Shape


@dataclass(frozen=True, kw_only=True)
class Tiling:
    """The windows of a volume, one `Axis` for each of D, H and W."""

    axes: tuple[Axis, Axis, Axis]

    @property
    def patch(self) -> Shape:
        """Sides (D,H,W) of every window."""
        depth, height, width = (axis.patch for axis in self.axes)
        return depth, height, width

    @property
    def rows(self) -> int:
        """How many windows lie along W, the axis that a scan is worked through."""
        return len(self.axes[2].starts)

    def row(self, number: int) -> Iterator[Window]:
        """The windows that begin at the `number`-th place along W, from first to last along D and H."""
        d, h, w = (axis.starts for axis in self.axes)
        for i, j in product(range(len(d)), range(len(h))):
            yield Window(index=(i, j, number), start=(d[i], h[j], w[number]))

    def __len__(self) -> int:
        return math.prod(len(axis.starts) for axis in self.axes)


def tiling_of(shape: Shape, how: Preprocessing) -> Tiling:
    """Windows of `how.patch` that cover every voxel of (D,H,W), neighbours sharing at least `how.overlap` of a side.

    They are spread evenly: the first begins at 0, the last ends at the end. Along an axis of n voxels and windows
    of p, with s = floor(p * (1 - overlap)) but at least 1, there are ceil((n - p) / s) + 1 of them, and the i-th of m
    begins at i * (n - p) / (m - 1), rounded half up. A Gaussian has its middle in the window's and sigma = p /
    `blending_sigma_divisor`. Raises `RefusedInput` for an overlap or a blending that is none.
    """
    if not 0 <= how.overlap <= MOST_OVERLAP:
        raise RefusedInput(f"an overlap of {how.overlap} is no share of a window; give 0 to {MOST_OVERLAP}, often 0.5")
    if how.blending not in BLENDINGS:
        raise RefusedInput(f"the blending '{how.blending}' is not known; known are {' and '.join(BLENDINGS)}")
    depth, height, width = (
        Axis(
            side=side, patch=patch, starts=_starts(side, patch, how.overlap), blending=how.blending,
            sigma_divisor=how.blending_sigma_divisor,
        )
        for side, patch in zip(shape, how.patch, strict=True)
    )  # fmt: skip
    return Tiling(axes=(depth, height, width))


def window_of(image: np.ndarray, window: Window, patch: Shape, fill: float) -> np.ndarray:
    """A window (D,H,W) of an image, its own copy; what lies beyond the image is `fill`."""
    found = image[tuple(slice(start, start + side) for start, side in zip(window.start, patch, strict=True))]
    if found.shape == patch:
        return found.copy()
    filled = np.full(patch, fill, image.dtype)
    filled[tuple(slice(side) for side in found.shape)] = found
    return filled


def _starts(side: int, patch: int, overlap: float) -> tuple[int, ...]:
    room = side - patch
    if room <= 0:
        return (0,)
    # 48 * (1 - 0.9) is 4.8, but 10 * (1 - 0.9) a little less than 1: what is a rounding error below a whole is it.
    step = max(1, math.floor(patch * (1 - overlap) + 1e-6))
    gaps = -(-room // step)
    return tuple((2 * index * room + gaps) // (2 * gaps) for index in range(gaps + 1))


def _weights(patch: int, blending: str, sigma_divisor: float) -> np.ndarray:
    if blending == "constant":
        return np.ones(patch)
    distance = (np.arange(patch) - (patch - 1) / 2) / (patch / sigma_divisor)
    return np.exp(-0.5 * distance**2)
