"""How time and memory grow with the volume: a straight line through what was measured at several sizes."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import nnls

from lhanet_export.errors import RefusedInput


@dataclass(frozen=True, kw_only=True)
class Point:
    """One size of a row: voxels of the volume, median seconds of an inference, peak bytes."""

    voxels: int
    seconds: float
    bytes: int


def scalings(benches: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Points and `scaling` of each row that was measured at two sizes or more; None if none was.

    Benches are given as JSON values, and so is the result: `points` (`name`, `voxels`, `seconds`, `peak_bytes`) and
    `fits`, in the order of first appearance.
    """
    points: dict[str, list[Point]] = defaultdict(list)
    for bench in benches:
        for row in bench["rows"]:
            point = Point(voxels=math.prod(bench["shape"]), seconds=row["median_seconds"], bytes=row["peak_bytes"])
            points[row["name"]].append(point)
    several = {name: found for name, found in points.items() if len({point.voxels for point in found}) > 1}
    if not several:
        return None
    return {
        "points": [
            {"name": name, "voxels": point.voxels, "seconds": point.seconds, "peak_bytes": point.bytes}
            for name, found in several.items()
            for point in found
        ],
        "fits": [scaling(name, found) for name, found in several.items()],
    }


def scaling(name: str, points: Sequence[Point]) -> dict[str, Any]:
    """Fixed and per-voxel parts of the seconds and bytes, none negative, by least squares, as JSON values.

    Each point counts by its relative error: what disturbs a measurement disturbs a long one more. A
    `..._largest_residual` is the largest relative distance of a point from the line, 0.1 for 10 %; two sizes always
    lie on a line, unless a part would have to be negative, so theirs says little. `RefusedInput` for fewer than two
    different sizes, and for numbers that are not above zero.
    """
    if len({point.voxels for point in points}) < 2:
        raise RefusedInput(f"{name}: how it grows with the volume takes measurements at two sizes or more")
    voxels = [point.voxels for point in points]
    fixed_seconds, voxel_seconds, seconds_residual = _line(name, voxels, [point.seconds for point in points])
    fixed_bytes, voxel_bytes, bytes_residual = _line(name, voxels, [point.bytes for point in points])
    return {
        "name": name,
        "sizes": sorted(set(voxels)),
        "seconds_per_megavoxel": voxel_seconds * 1e6,
        "fixed_seconds": fixed_seconds,
        "seconds_largest_residual": seconds_residual,
        "bytes_per_voxel": voxel_bytes,
        "fixed_bytes": fixed_bytes,
        "bytes_largest_residual": bytes_residual,
    }


def _line(name: str, voxels: Sequence[int], values: Sequence[float]) -> tuple[float, float, float]:
    """The fixed part, the part per voxel, and the largest relative residual."""
    x, y = np.asarray(voxels, np.float64), np.asarray(values, np.float64)
    if not (np.isfinite(y).all() and (y > 0).all() and (x > 0).all()):
        raise RefusedInput(f"{name}: sizes, seconds and bytes have to be above zero")
    # Sizes and values as shares of their largest, so that all numbers are of one magnitude; each row divided by its
    # value, so that what is left over is relative.
    columns = np.stack([np.ones_like(x), x / x.max()], axis=1) / (y / y.max())[:, None]
    parts, _ = nnls(columns, np.ones_like(y))
    residual = float(np.abs(columns @ parts - 1).max())
    return float(parts[0] * y.max()), float(parts[1] * y.max() / x.max()), residual
