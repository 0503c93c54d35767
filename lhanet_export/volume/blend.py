"""Scores of overlapping windows become scores on the scan's own grid, slice by slice, in memory that no depth fills.

Every step between a window's scores and the scan's voxels is linear along each axis by itself: the resize from a
head's coarse grid to the window, the window's share in the blend (`windows`), and the interpolation from the network's
voxels to the scan's. So an axis is one sparse matrix, and a slice of the scan is a product with three of them. Scores
on a head's own grid are a few kB a window and stay as they are until their slice is computed; scores of every voxel
are added up in slices that live as long as a window reaches into them. Sums are float64, which leaves the order of
summation no say in the labels.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
from scipy.sparse import csr_array

from lhanet_export.shapes import Shape
from lhanet_export.volume.linear import linear_taps
from lhanet_export.volume.windows import Axis, Tiling, Window


class Blend(Protocol):
    """Takes the scores of windows, row after row along W, and gives slices of the scan as soon as nothing changes them.

    A slice (K,D',H') becomes (K,Y,X), the scan's own grid, with `on_scan(slice, along_x, along_y)`.
    """

    along_x: csr_array
    along_y: csr_array

    def add(self, window: Window, scores: np.ndarray) -> None:
        """Take the scores (K,d,h,w) of a window of the row that is under way."""

    def finish_row(self) -> Iterator[np.ndarray]:
        """End the row; the slices along Z that are complete now and were not before, computed as they are asked for.

        They may be computed in another thread, while the next row is added.
        """


def blend_of(tiling: Tiling, scan_shape: Shape, scores_shape: Sequence[int]) -> Blend:
    """A blend of windows onto a scan (X,Y,Z), for scores (K,d,h,w) of each voxel of a window, or of a coarser grid."""
    classes, *grid = scores_shape
    if tuple(grid) == tiling.patch:
        return VoxelBlend(tiling, scan_shape, classes)
    return CoarseBlend(tiling, scan_shape, classes, (grid[0], grid[1], grid[2]))


class CoarseBlend:
    """For scores on a head's own grid of (d,h,w) cells a window: keeps them as they are."""

    def __init__(self, tiling: Tiling, scan_shape: Shape, classes: int, cells: Shape) -> None:
        self._cells = cells
        self.along_x, self.along_y, along_z = (
            _interpolation(axis.side, size) @ _resized_shares(axis, count)
            for axis, size, count in zip(tiling.axes, scan_shape, cells, strict=True)
        )
        self._slices = _Slices(along_z)
        across = [len(axis.starts) * count for axis, count in zip(tiling.axes[:2], cells[:2], strict=True)]
        self._shape = (cells[2], classes, across[0], across[1])
        self._row = np.empty(self._shape, np.float32)

    def add(self, window: Window, scores: np.ndarray) -> None:
        (i, j, _), (d, h, _) = window.index, self._cells
        self._row[:, :, i * d : (i + 1) * d, j * h : (j + 1) * h] = np.moveaxis(scores, 3, 0)

    def finish_row(self) -> Iterator[np.ndarray]:
        row, self._row = self._row, np.empty(self._shape, np.float32)
        return self._slices.after(list(row))


class VoxelBlend:
    """For scores of every voxel of a window: sums of as many of the network's slices as a window is wide."""

    def __init__(self, tiling: Tiling, scan_shape: Shape, classes: int) -> None:
        self._axes = tiling.axes
        self.along_x, self.along_y, along_z = (
            _interpolation(axis.side, size) for axis, size in zip(tiling.axes, scan_shape, strict=True)
        )
        self._slices = _Slices(along_z)
        self._shape = (classes, tiling.axes[0].side, tiling.axes[1].side)
        #: The network's slices that are not complete, from the row's first on.
        self._sums: deque[np.ndarray] = deque()
        self._number = 0

    def add(self, window: Window, scores: np.ndarray) -> None:
        depth, height, width = self._axes
        while len(self._sums) < width.patch:
            self._sums.append(np.zeros(self._shape, np.float32))
        i, j, row = window.index
        shares = np.outer(depth.shares[i], height.shares[j]).astype(np.float32)
        where = [slice(at, min(at + a.patch, a.side)) for at, a in zip(window.start[:2], self._axes[:2], strict=True)]
        inside = [slice(at.stop - at.start) for at in where]
        slices = np.ascontiguousarray(np.moveaxis(scores, 3, 0))
        for total, part, share in zip(self._sums, slices, width.shares[row].astype(np.float32), strict=True):
            total[:, where[0], where[1]] += (part * (shares * share))[:, inside[0], inside[1]]

    def finish_row(self) -> Iterator[np.ndarray]:
        width = self._axes[2]
        ends = (*width.starts[1:], width.side)
        complete = ends[self._number] - width.starts[self._number]
        self._number += 1
        return self._slices.after([self._sums.popleft() for _ in range(complete)])


class _Slices:
    """The slices (K,D',H') of a scan along Z, made of planes that become known one after the other.

    Row z of `matrix` says which planes slice z reads. Planes that no further slice reads are let go.
    """

    def __init__(self, matrix: csr_array) -> None:
        self._matrix = matrix
        self._planes: dict[int, np.ndarray] = {}
        self._known = self._next = 0

    def after(self, planes: Sequence[np.ndarray]) -> Iterator[np.ndarray]:
        """Take the next planes; the slices that they complete, computed as they are asked for."""
        planes_now = self._planes | dict(enumerate(planes, start=self._known))
        self._known += len(planes)
        first, count = self._next, self._matrix.shape[0]
        while self._next < count and self._reads(self._next)[0].max() < self._known:
            self._next += 1
        oldest = self._reads(self._next)[0].min() if self._next < count else self._known
        self._planes = {number: plane for number, plane in planes_now.items() if number >= oldest}
        return self._made(planes_now, range(first, self._next))

    def _made(self, planes: dict[int, np.ndarray], which: range) -> Iterator[np.ndarray]:
        for z in which:
            yield sum(
                weight * planes[int(number)].astype(np.float64) for number, weight in zip(*self._reads(z), strict=True)
            )

    def _reads(self, z: int) -> tuple[np.ndarray, np.ndarray]:
        """The planes that a slice reads, and their weights."""
        where = slice(self._matrix.indptr[z], self._matrix.indptr[z + 1])
        return self._matrix.indices[where], self._matrix.data[where]


def on_scan(scores: np.ndarray, along_x: csr_array, along_y: csr_array) -> np.ndarray:
    """A slice (K,D',H') of a blend on the scan's grid: (K,Y,X) float64."""
    result = np.empty((len(scores), along_y.shape[0], along_x.shape[0]))
    for one, found in zip(scores, result, strict=True):
        found[:] = along_y @ (along_x @ one).T
    return result


def best_class(scores: np.ndarray) -> np.ndarray:
    """The class of the highest score, the first of equal ones: (K,Y,X) to uint8 (Y,X)."""
    labels = np.zeros(scores.shape[1:], np.uint8)
    best = scores[0].copy()
    for index, one in enumerate(scores[1:], start=1):
        labels[one > best] = index
        np.maximum(best, one, out=best)
    return labels


def _interpolation(n: int, m: int) -> csr_array:
    """(m, n): an axis of `n` of the network's voxels onto `m` of the scan's."""
    rows = np.arange(m)
    if n == m:
        return _matrix(rows, rows, np.ones(n), (n, n))
    first, second, share = linear_taps(n, m)
    return _matrix(
        np.concatenate([rows, rows]), np.concatenate([first, second]), np.concatenate([1 - share, share]), (m, n)
    )


def _resized_shares(axis: Axis, cells: int) -> csr_array:
    """(side, windows * cells): from the cells of all windows of an axis to its voxels, blended."""
    first, second, share = linear_taps(cells, axis.patch)
    rows, columns, values = [], [], []
    for index, (start, shares) in enumerate(zip(axis.starts, axis.shares, strict=True)):
        inside = np.arange(min(axis.patch, axis.side))
        for cell, weight in ((first, 1 - share), (second, share)):
            rows.append(start + inside)
            columns.append(index * cells + cell[inside])
            values.append((shares * weight)[inside])
    shape = (axis.side, len(axis.starts) * cells)
    return _matrix(np.concatenate(rows), np.concatenate(columns), np.concatenate(values), shape)


def _matrix(rows: np.ndarray, columns: np.ndarray, values: np.ndarray, shape: tuple[int, int]) -> csr_array:
    """A sparse matrix without zeros; what stands at one place is summed up."""
    found = csr_array((values, (rows, columns)), shape=shape)
    found.sum_duplicates()
    found.eliminate_zeros()
    return found
