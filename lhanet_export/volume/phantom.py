"""Synthetic abdominal CT with its segmentation: any grid of the same patient, from a seed, without a download.

Everything here is in patient coordinates in mm, RAS: x grows to the patient's right, y to the front, z
to the head. The anatomy is made of functions of a place, so a coarse grid's label at a place is the fine grid's.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from lhanet_export.errors import RefusedInput
from lhanet_export.volume.anatomy import Anatomy, anatomy_from_seed
from lhanet_export.volume.implicit import Part, Point, Shape, enclosing, smooth_minimum
from lhanet_export.volume.tissues import LABEL_OF, Tissue, mottle
from lhanet_export.volume.torso import Field

__all__ = ["Anatomy", "Grid", "Phantom", "anatomy_from_seed", "grid_of", "render", "slabs"]

#: Voxels that are worked on at a time; about 20 float32 arrays of this size live at once.
_SLAB_VOXELS = 2_000_000
#: What a voxel's two neighbours add to it: a scanner's blur, in plane and along the body.
_BLUR_IN_PLANE, _BLUR_ALONG = 0.22, 0.12
_HU_RANGE = (-1024, 3071)
#: Standard deviations of filtered noise (see `_noise`), by which it is brought to 1.
_GRAIN_DEVIATION, _MOTTLE_DEVIATION = 0.183, 0.1045


@dataclass(frozen=True)
class Grid:
    """Where voxels lie: axes (X,Y,Z) along RAS, spacing in mm, and the place of the first voxel's centre in mm."""

    shape: tuple[int, int, int]
    spacing_mm: Point
    origin_mm: Point

    @property
    def affine(self) -> np.ndarray:
        """Voxel indices to RAS mm, (4,4) float64, as NIfTI wants it."""
        affine = np.diag([*self.spacing_mm, 1.0])
        affine[:3, 3] = self.origin_mm
        return affine

    def places(self, axis: int, first: int, last: int) -> np.ndarray:
        """Places in mm (float64) of the voxels `first` to `last` (exclusive, may lie beyond the grid) of an axis."""
        return self.origin_mm[axis] + self.spacing_mm[axis] * np.arange(first, last)


@dataclass(frozen=True)
class Phantom:
    """A scan and its truth: `hu` int16 and `labels` uint8 (AMOS), both (X,Y,Z) in Fortran order, and the RAS affine."""

    hu: np.ndarray
    labels: np.ndarray
    affine: np.ndarray


def grid_of(
    anatomy: Anatomy,
    spacing_mm: Point | None = None,
    shape: tuple[int, int, int] | None = None,
    centre_mm: Point | None = None,
) -> Grid:
    """The grid (X,Y,Z) that `render` fills: the patient's own spacing, the whole scan and its middle unless asked."""
    spacing = tuple(float(step) for step in spacing_mm or anatomy.spacing_mm)
    if len(spacing) != 3 or not all(0.1 <= step <= 50 for step in spacing):
        raise RefusedInput(f"spacing {spacing} is not three lengths of 0.1 to 50 mm")
    low, high = anatomy.extent_mm
    x, y, z = (math.ceil((top - bottom) / step) for bottom, top, step in zip(low, high, spacing, strict=True))
    shape = shape or (x, y, z)
    if len(shape) != 3 or min(shape) < 1:
        raise RefusedInput(f"shape {shape} is not three sides of 1 or more voxels")
    middle = centre_mm or tuple((bottom + top) / 2 for bottom, top in zip(low, high, strict=True))
    origin = tuple(place - step * (side - 1) / 2 for place, step, side in zip(middle, spacing, shape, strict=True))
    return Grid(shape, (spacing[0], spacing[1], spacing[2]), (origin[0], origin[1], origin[2]))


def render(
    anatomy: Anatomy,
    spacing_mm: Point | None = None,
    shape: tuple[int, int, int] | None = None,
    centre_mm: Point | None = None,
) -> Phantom:
    """The patient as a CT of this spacing (x, y, z in mm) and shape (X,Y,Z), in about 3 bytes a voxel of memory.

    Without a spacing it is the patient's own, without a shape the whole abdomen, without a centre
    (RAS, mm) its middle. The same arguments give the same bytes, on every machine.
    """
    grid = grid_of(anatomy, spacing_mm, shape, centre_mm)
    hu = np.empty(grid.shape, np.int16, order="F")
    labels = np.empty(grid.shape, np.uint8, order="F")
    for along, slab_hu, slab_labels in slabs(anatomy, grid):
        hu[:, :, along] = slab_hu
        labels[:, :, along] = slab_labels
    return Phantom(hu, labels, grid.affine)


def slabs(anatomy: Anatomy, grid: Grid, voxels: int = _SLAB_VOXELS) -> Iterator[tuple[slice, np.ndarray, np.ndarray]]:
    """The same phantom piece by piece along z: its slices, HU int16 and labels uint8 (X,Y,slices).

    `voxels` bounds a piece, which is a slice at least; it changes the memory and nothing else.
    """
    columns, rows, count = grid.shape
    thickness = max(1, voxels // (columns * rows))
    for first in range(0, count, thickness):
        last = min(count, first + thickness)
        # A slice more at both ends, for the blur along the body.
        field = Field(
            anatomy.torso, grid.places(0, 0, columns), grid.places(1, 0, rows), grid.places(2, first - 1, last + 1)
        )
        tissue = _tissues(anatomy, field, grid.places(1, 0, rows), grid.places(0, 0, columns))
        hu = _hounsfield(anatomy, grid, tissue, first)
        yield slice(first, last), hu.T, LABEL_OF[tissue[1:-1]].T


def _tissues(anatomy: Anatomy, field: Field, y_mm: np.ndarray, x_mm: np.ndarray) -> np.ndarray:
    """Tissue codes (Z,Y,X) uint8 of a block of points."""
    tissue = np.full(field.shape, Tissue.AIR, np.uint8)
    if anatomy.has_table:
        _paint_table(anatomy, tissue, y_mm, x_mm)
    tissue[field.skin < 0] = Tissue.SKIN
    tissue[field.skin < -2] = Tissue.FAT
    tissue[field.wall < 0] = Tissue.MUSCLE
    # Sheets of fat between the muscles of the flanks.
    flank = (np.abs(field.axes[0]) > 75)[None, None, :] & ((field.axes[2] > -15) & (field.axes[2] < 150))[:, None, None]
    for depth in (4.0, 8.5):
        tissue[flank & (np.abs(field.cavity - depth) < 0.6) & (field.wall < -2)] = Tissue.FAT
    in_cavity = field.cavity < 0
    tissue[in_cavity] = Tissue.FAT
    tissue[in_cavity & (field.diaphragm > -2.5)] = Tissue.MUSCLE
    tissue[in_cavity & (field.diaphragm > 0)] = Tissue.LUNG
    for part in anatomy.parts:
        _paint(tissue, field, part)
    return tissue


def _paint_table(anatomy: Anatomy, tissue: np.ndarray, y_mm: np.ndarray, x_mm: np.ndarray) -> None:
    top = anatomy.extent_mm[0][1] + 22.0
    depth = top + x_mm[None, :] * x_mm[None, :] * (1 / 2400) - y_mm[:, None]
    within = np.abs(x_mm)[None, :] < 215
    tissue[:, within & (depth > 0) & (depth < 26)] = Tissue.TABLE
    tissue[:, within & (depth > 2) & (depth < 24)] = Tissue.TABLE_CORE


def _paint(tissue: np.ndarray, field: Field, part: Part) -> None:
    groups: tuple[tuple[Shape, ...], ...] = (part.shapes,) if part.blend else tuple((shape,) for shape in part.shapes)
    found = []
    for group in groups:
        low, high = enclosing([shape.box for shape in group])
        window = field.window(part, low, high)
        if window is None:
            continue
        x, y, z = field.at(window)
        distance = group[0].distance(x, y, z)
        for shape in group[1:]:
            distance = smooth_minimum(distance, shape.distance(x, y, z), part.blend)
        for a, b, c, d in part.beyond:
            distance = np.maximum(distance, (d - (x * a + y * b + z * c)) * (1 / math.sqrt(a * a + b * b + c * c)))
        if part.inside is not None:
            distance = np.maximum(distance, field.cavity[window] + part.inside)
            distance = np.maximum(distance, field.diaphragm[window] + part.inside)
        found.append((window, distance, y))
    allowed = np.zeros(len(LABEL_OF), bool)
    allowed[list(part.over)] = True
    # All of a layer before the next: where two shapes meet, the inner layer goes through.
    may_paint = [allowed[tissue[window]] if part.over else None for window, *_ in found]
    for layer in part.layers:
        for (window, distance, y), may in zip(found, may_paint, strict=True):
            chosen = distance < -layer.depth
            if may is not None:
                chosen &= may
            if layer.above is not None:
                chosen &= y > layer.above
            tissue[window][chosen] = layer.tissue


def _hounsfield(anatomy: Anatomy, grid: Grid, tissue: np.ndarray, first: int) -> np.ndarray:
    """HU int16 (Z,Y,X) of a block whose first and last slice serve the blur only."""
    image = np.array(anatomy.brightness_hu, np.float32)[tissue]
    image = _blurred(image, 0, _BLUR_ALONG)
    image = _blurred(np.pad(image, ((0, 0), (1, 1), (0, 0)), "edge"), 1, _BLUR_IN_PLANE)
    image = _blurred(np.pad(image, ((0, 0), (0, 0), (1, 1)), "edge"), 2, _BLUR_IN_PLANE)
    # A thin slice gets fewer photons.
    level = anatomy.noise_hu * min(1.5, max(0.7, math.sqrt(2.5 / grid.spacing_mm[2])))
    grain, patches = _noise(anatomy.seed, grid.shape, first, len(image))
    image += grain * np.float32(level)
    image += patches * mottle()[tissue[1:-1]]
    return np.rint(np.minimum(np.maximum(image, _HU_RANGE[0]), _HU_RANGE[1])).astype(np.int16)


def _noise(seed: int, shape: tuple[int, int, int], first: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Noise of `count` slices, (Z,Y,X) float32 of deviation 1: a CT's grain without long waves, and patches.

    Each slice has a generator of its own, so that a slab does not depend on where it begins.
    """
    columns, rows, _ = shape
    white = np.empty((count + 2, rows + 6, columns + 6), np.float32)
    for index, place in enumerate(range(first - 1, first + count + 1)):
        generator = np.random.default_rng([seed, 21, place + 1])
        # Sums of four bytes are near enough to normal, and whole numbers are the same everywhere.
        values = np.frombuffer(generator.bytes(4 * (rows + 6) * (columns + 6)), np.uint8).reshape(rows + 6, -1, 4)
        white[index] = sum(values[:, :, byte].astype(np.int16) for byte in range(4)) - np.int16(510)
    white *= np.float32(1 / 147.8)
    smooth = _blurred(_blurred(_blurred(white, 0, 0.25), 1, 0.25), 2, 0.25)
    patches = _sum_of_five(_sum_of_five(smooth, 1), 2) * np.float32(1 / 25)
    grain = smooth[:, 2:-2, 2:-2] - patches
    return grain * np.float32(1 / _GRAIN_DEVIATION), patches * np.float32(1 / _MOTTLE_DEVIATION)


def _blurred(image: np.ndarray, axis: int, share: float) -> np.ndarray:
    """Each sample but the first and last of an axis, with `share` of both neighbours."""
    before, middle, after = (
        image[(slice(None),) * axis + (slice(start, start + image.shape[axis] - 2),)] for start in range(3)
    )
    return middle * np.float32(1 - 2 * share) + (before + after) * np.float32(share)


def _sum_of_five(image: np.ndarray, axis: int) -> np.ndarray:
    count = image.shape[axis] - 4
    pieces = [image[(slice(None),) * axis + (slice(start, start + count),)] for start in range(5)]
    return pieces[0] + pieces[1] + pieces[2] + pieces[3] + pieces[4]
