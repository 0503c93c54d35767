"""Slices of a blend are what blending the whole volume at once gives, whatever the grids."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from lhanet_export.conventions import Preprocessing
from lhanet_export.shapes import Shape
from lhanet_export.volume.blend import CoarseBlend, VoxelBlend, best_class, blend_of, on_scan
from lhanet_export.volume.windows import Tiling, tiling_of

CLASSES = 5
#: The network's grid, the scan's (X,Y,Z), and the cells of a window of 16x24x24.
CASES = [
    ((40, 50, 60), (40, 50, 60), (4, 6, 6)),
    ((40, 50, 60), (75, 93, 31), (1, 2, 2)),
    ((30, 24, 100), (60, 24, 300), (2, 3, 3)),
    ((9, 10, 11), (17, 5, 11), (4, 6, 6)),
    ((16, 24, 24), (3, 4, 2), (3, 5, 7)),
    ((33, 100, 25), (20, 80, 90), (8, 12, 12)),
]


def tiling_for(shape: Shape, overlap: float = 0.5, blending: str = "gaussian") -> Tiling:
    return tiling_of(shape, replace(Preprocessing(), patch=(16, 24, 24), overlap=overlap, blending=blending))


def resized(volume: np.ndarray, size: Shape) -> np.ndarray:
    """(K,D,H,W) resized an axis at a time, as PyTorch does it in float64."""
    result = torch.from_numpy(volume.astype(np.float64))
    for axis, side in enumerate(size, start=1):
        lines = result.movedim(axis, -1)
        flat = F.interpolate(lines.reshape(1, -1, lines.shape[-1]), side, mode="linear", align_corners=False)
        result = flat.reshape(*lines.shape[:-1], side).movedim(-1, axis)
    return result.numpy()


def scores_of(tiling: Tiling, cells: Shape) -> dict:
    generator = np.random.default_rng(0)
    return {
        window: generator.normal(size=(CLASSES, *cells)).astype(np.float32)
        for row in range(tiling.rows)
        for window in tiling.row(row)
    }


def at_once(tiling: Tiling, scores: dict, scan: Shape) -> np.ndarray:
    """Everything resized, weighed and summed in whole volumes: (K,X,Y,Z) float64."""
    shape = tuple(max(axis.side, axis.patch) for axis in tiling.axes)
    total, weights = np.zeros((CLASSES, *shape)), np.zeros(shape)
    depth, height, width = (
        np.ones(axis.patch)
        if axis.blending == "constant"
        else np.exp(-0.5 * ((np.arange(axis.patch) - (axis.patch - 1) / 2) / (axis.patch / 4)) ** 2)
        for axis in tiling.axes
    )
    weight = depth[:, None, None] * height[:, None] * width
    for window, one in scores.items():
        where = tuple(slice(start, start + side) for start, side in zip(window.start, tiling.patch, strict=True))
        total[(slice(None), *where)] += weight * resized(one, tiling.patch)
        weights[where] += weight
    mean = (total / weights)[(slice(None), *(slice(axis.side) for axis in tiling.axes))]
    return resized(mean, scan)


def in_slices(tiling: Tiling, scores: dict, scan: Shape, cells: Shape) -> np.ndarray:
    blend = blend_of(tiling, scan, (CLASSES, *cells))
    slices = []
    for row in range(tiling.rows):
        for window in tiling.row(row):
            blend.add(window, scores[window])
        slices += [on_scan(one, blend.along_x, blend.along_y) for one in blend.finish_row()]
    return np.stack(slices).transpose(1, 3, 2, 0)


@pytest.mark.parametrize(("overlap", "blending"), [(0.5, "gaussian"), (0.75, "gaussian"), (0.0, "constant")])
@pytest.mark.parametrize(("shape", "scan", "cells"), CASES, ids=str)
def test_slices_are_the_volume_blended_at_once(
    shape: Shape, scan: Shape, cells: Shape, overlap: float, blending: str
) -> None:
    tiling = tiling_for(shape, overlap, blending)
    coarse = scores_of(tiling, cells)
    expected = at_once(tiling, coarse, scan)
    found = in_slices(tiling, coarse, scan, cells)
    assert found.shape == expected.shape == (CLASSES, *scan)
    assert np.abs(found - expected).max() < 1e-9
    voxels = {window: resized(one, tiling.patch).astype(np.float32) for window, one in coarse.items()}
    whole = in_slices(tiling, voxels, scan, tiling.patch)
    # Sums of float32.
    assert np.abs(whole - expected).max() < 1e-5


def test_the_kind_of_blend_follows_from_the_scores() -> None:
    tiling = tiling_for((40, 50, 60))
    assert isinstance(blend_of(tiling, (40, 50, 60), (3, 16, 24, 24)), VoxelBlend)
    assert isinstance(blend_of(tiling, (40, 50, 60), (3, 8, 12, 12)), CoarseBlend)


@pytest.mark.parametrize("cells", [(4, 6, 6), (16, 24, 24)])
def test_slices_of_a_finished_row_stay_when_the_next_is_added(cells: Shape) -> None:
    """As they are computed in another thread while the network goes on."""
    tiling = tiling_for((20, 24, 100))
    scores = scores_of(tiling, cells)
    expected = in_slices(tiling, scores, (20, 24, 100), cells)
    blend = blend_of(tiling, (20, 24, 100), (CLASSES, *cells))
    waiting = []
    for row in range(tiling.rows):
        for window in tiling.row(row):
            blend.add(window, scores[window])
        waiting.append(blend.finish_row())
    late = [on_scan(one, blend.along_x, blend.along_y) for slices in waiting for one in slices]
    assert np.array_equal(np.stack(late).transpose(1, 3, 2, 0), expected)


@pytest.mark.parametrize("cells", [(2, 3, 3), (16, 24, 24)])
def test_memory_does_not_grow_with_depth(cells: Shape) -> None:
    peaks = []
    for width in (100, 800):
        tiling = tiling_for((20, 24, width))
        rows = [list(tiling.row(row)) for row in range(tiling.rows)]
        one = np.ones((CLASSES, *cells), np.float32)
        tracemalloc.start()
        blend = blend_of(tiling, (20, 24, width), (CLASSES, *cells))
        for row in rows:
            for window in row:
                blend.add(window, one)
            for _ in blend.finish_row():
                pass
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    # The matrix along Z has a few numbers for each slice.
    assert peaks[1] < peaks[0] + 700 * 400


def test_the_first_of_equal_classes_wins() -> None:
    scores = np.array([[0.0, 1, 2], [0, 1, 3], [1, 1, 3]])[:, None]
    assert best_class(scores).tolist() == [[2, 0, 1]]
    assert best_class(scores).dtype == np.uint8
    generator = np.random.default_rng(0)
    many = generator.integers(0, 3, (6, 50, 40)).astype(float)
    assert np.array_equal(best_class(many), many.argmax(0))
