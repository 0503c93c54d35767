"""Shapes as functions of a point in mm: negative inside, positive outside, about the distance to the surface.

Only +, -, *, /, square roots and comparisons of float32 decide a voxel: these are exact by IEEE 754, so the
same phantom has the same labels on every machine. Sines, powers and matrix products are not, and do not occur.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

Point = tuple[float, float, float]
Axes = tuple[Point, Point, Point]
Box = tuple[Point, Point]
#: x, y, z and the radius there.
TubePoint = tuple[float, float, float, float]

UPRIGHT: Axes = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))


@dataclass(frozen=True)
class Blob:
    """An ellipsoid; the rows of `axes` are the directions of its radii."""

    centre: Point
    radii: Point
    axes: Axes = UPRIGHT

    @property
    def box(self) -> Box:
        """Lowest and highest corner of what it fills."""
        half = [
            math.sqrt(sum((axis[side] * radius) ** 2 for axis, radius in zip(self.axes, self.radii, strict=True)))
            for side in range(3)
        ]
        return _around(self.centre, (half[0], half[1], half[2]))

    def distance(self, x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
        """About the signed distance in mm of points given by coordinates that broadcast."""
        dx, dy, dz = x - self.centre[0], y - self.centre[1], z - self.centre[2]
        length: np.ndarray = np.zeros(1, np.float32)
        slope: np.ndarray = np.zeros(1, np.float32)
        for axis, radius in zip(self.axes, self.radii, strict=True):
            along = (dx * axis[0] + dy * axis[1] + dz * axis[2]) * (1 / radius)
            length = length + along * along
            along = along * (1 / radius)
            slope = slope + along * along
        length = np.sqrt(length)
        return length * (length - 1) / np.sqrt(np.maximum(slope, np.float32(1e-12)))


@dataclass(frozen=True)
class Capsule:
    """A rod with round ends whose radius goes from `radii[0]` at its start to `radii[1]` at its end."""

    start: Point
    end: Point
    radii: tuple[float, float]

    @property
    def box(self) -> Box:
        """Lowest and highest corner of what it fills."""
        first = _around(self.start, (self.radii[0],) * 3)
        last = _around(self.end, (self.radii[1],) * 3)
        return enclosing([first, last])

    def distance(self, x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
        """About the signed distance in mm of points given by coordinates that broadcast."""
        ax, ay, az = (end - start for start, end in zip(self.start, self.end, strict=True))
        dx, dy, dz = x - self.start[0], y - self.start[1], z - self.start[2]
        along = (dx * ax + dy * ay + dz * az) * (1 / max(ax * ax + ay * ay + az * az, 1e-6))
        along = np.minimum(np.maximum(along, np.float32(0)), np.float32(1))
        dx, dy, dz = dx - along * ax, dy - along * ay, dz - along * az
        return np.sqrt(dx * dx + dy * dy + dz * dz) - (self.radii[0] + along * (self.radii[1] - self.radii[0]))


@dataclass(frozen=True)
class Drum:
    """An upright cylinder of elliptic section, as a vertebral body is."""

    centre: Point
    radii: tuple[float, float]
    half_height: float

    @property
    def box(self) -> Box:
        """Lowest and highest corner of what it fills."""
        return _around(self.centre, (*self.radii, self.half_height))

    def distance(self, x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
        """About the signed distance in mm of points given by coordinates that broadcast."""
        u, v = (x - self.centre[0]) * (1 / self.radii[0]), (y - self.centre[1]) * (1 / self.radii[1])
        side = (np.sqrt(u * u + v * v) - 1) * min(self.radii)
        return np.maximum(side, np.abs(z - self.centre[2]) - self.half_height)


Shape = Blob | Capsule | Drum


@dataclass(frozen=True)
class Layer:
    """What a part consists of from `depth` mm below its surface on (above it, where negative).

    With `above`, only where y is larger: gas rises to the front of a patient who lies on the back.
    """

    depth: float
    tissue: int
    above: float | None = None


@dataclass(frozen=True, kw_only=True)
class Part:
    """One thing in the body, painted over what was there: layers from outside to inside.

    `shapes` are united, with a rounded seam of `blend` mm if that is not 0. `beyond` lists planes
    (a, b, c, d) that keep a*x + b*y + c*z >= d. `inside` keeps it that many mm inside the wall of the
    abdomen and under the diaphragm; `over` keeps it to places that hold one of these tissues.
    """

    shapes: tuple[Shape, ...]
    layers: tuple[Layer, ...]
    blend: float = 0.0
    beyond: tuple[tuple[float, float, float, float], ...] = ()
    inside: float | None = None
    over: tuple[int, ...] = ()

    @property
    def margin(self) -> float:
        """How many mm its outermost layer reaches beyond its shapes."""
        return max(0.0, *(-layer.depth for layer in self.layers)) + self.blend


def enclosing(boxes: Sequence[Box]) -> Box:
    """The smallest box around several."""
    low = tuple(min(box[0][side] for box in boxes) for side in range(3))
    high = tuple(max(box[1][side] for box in boxes) for side in range(3))
    return (low[0], low[1], low[2]), (high[0], high[1], high[2])


def smooth_minimum(first: np.ndarray, second: np.ndarray, blend: float) -> np.ndarray:
    """The minimum of two distances, rounded where they differ by less than `blend` mm: a union without a crease."""
    near = np.maximum(blend - np.abs(first - second), np.float32(0))
    return np.minimum(first, second) - near * near * (0.25 / blend)


def tube(points: Sequence[TubePoint], steps: int = 3) -> tuple[Capsule, ...]:
    """A smooth tube through (x, y, z, radius) points: each stretch becomes `steps` capsules (Catmull-Rom)."""
    padded = [points[0], *points, points[-1]]
    fine = [points[0]]
    for before, start, end, after in zip(padded, padded[1:], padded[2:], padded[3:], strict=False):
        for step in range(1, steps + 1):
            t = step / steps
            fine.append(tuple(_spline(*values, t) for values in zip(before, start, end, after, strict=True)))  # type: ignore[arg-type]
    return tuple(Capsule(start[:3], end[:3], (start[3], end[3])) for start, end in pairwise(fine))


def wave(place: np.ndarray) -> np.ndarray:
    """A wave of period 1 and height 1 made of parabolas, which unlike a sine is the same on every machine."""
    phase = (place - np.floor(place)) * 2 - 1
    return phase * (1 - np.abs(phase)) * 4


def turned(about_x: float = 0.0, about_y: float = 0.0, about_z: float = 0.0) -> Axes:
    """The axes of something turned by about these degrees, about x first; exact rotations by exact arithmetic."""
    axes = UPRIGHT
    for first, second, degrees in ((1, 2, about_x), (2, 0, about_y), (0, 1, about_z)):
        tangent = degrees * 0.0087266  # of half the angle, while that is small
        scale = 1 + tangent * tangent
        cosine, sine = (1 - tangent * tangent) / scale, 2 * tangent / scale
        rows = []
        for row in axes:
            values = list(row)
            values[first] = cosine * row[first] - sine * row[second]
            values[second] = sine * row[first] + cosine * row[second]
            rows.append((values[0], values[1], values[2]))
        axes = (rows[0], rows[1], rows[2])
    return axes


def _spline(before: float, start: float, end: float, after: float, t: float) -> float:
    slope, next_slope = (end - before) / 2, (after - start) / 2
    bend = 3 * (end - start) - 2 * slope - next_slope
    twist = 2 * (start - end) + slope + next_slope
    return start + t * (slope + t * (bend + t * twist))


def _around(centre: Point, half: Point) -> Box:
    low = tuple(middle - reach for middle, reach in zip(centre, half, strict=True))
    high = tuple(middle + reach for middle, reach in zip(centre, half, strict=True))
    return (low[0], low[1], low[2]), (high[0], high[1], high[2])
