"""From a scan in HU to what the network takes, and labels onto the same grid."""

import math

import numpy as np

from lhanet_export.conventions import Preprocessing
from lhanet_export.errors import RefusedInput
from lhanet_export.shapes import Shape
from lhanet_export.volume.header import MOST_VOXELS

#: Spacing that differs by less than this share is the same: a header's rounding, no reason to interpolate.
_SAME_SPACING = 1e-3
#: Voxels that are interpolated at a time; their temporary arrays are a few times 4 MB.
_SLAB_VOXELS = 1 << 20
#: Standard deviation (HU) of a clipped volume below which it holds nothing; any scanner's noise is more.
_LEAST_DEVIATION_HU = 1e-3


def preprocess(hu: np.ndarray, spacing_mm: tuple[float, float, float], how: Preprocessing) -> np.ndarray:
    """The network's input, float32 (D,H,W) in C order, from a scan (X,Y,Z) in HU with spacing (x, y, z) in mm.

    "As stored" means that the file's axes X, Y, Z become D, H, W in this order. The volume is resampled to
    `how.spacing_mm` (`grid_shape`), clipped to `how.clip_hu`, and brought to mean 0 and standard
    deviation 1 over all of its voxels. Interpolation is trilinear: sample i of m reads the n samples of its axis at
    (i + 0.5) * n / m - 0.5, held within 0 to n - 1. Nothing is smoothed before it is thinned out,
    as in the public implementation, so fine noise is kept where voxels grow. Axes of the right spacing are not touched.

    `hu` is not changed; besides it, memory holds at most the result and one array between two axes. Raises
    `RefusedInput` for a volume that is constant once it is clipped or holds NaN, and for rules that are not these.
    """
    _check_rules(how)
    shape = grid_shape(_shape(hu), spacing_mm, how)
    volume = hu.astype(np.float32, copy=False)
    # The axes that shrink most come first, which leaves less for the others.
    for axis in sorted(range(3), key=lambda axis: shape[axis] / hu.shape[axis]):
        if shape[axis] != volume.shape[axis]:
            volume = _resized(volume, axis, shape[axis])
    low, high = how.clip_hu
    own = not np.may_share_memory(volume, hu) and volume.flags.c_contiguous
    volume = np.clip(volume, low, high, out=volume if own else np.empty(shape, np.float32))
    _standardize(volume, how)
    return volume


def resample_labels(labels: np.ndarray, spacing_mm: tuple[float, float, float], how: Preprocessing) -> np.ndarray:
    """Labels (X,Y,Z) uint8 on the grid that `preprocess` makes of their scan: uint8 (D,H,W), the nearest voxel's."""
    _check_rules(how)
    if labels.dtype != np.uint8:
        raise ValueError(f"labels are uint8, not {labels.dtype}")
    shape = grid_shape(_shape(labels), spacing_mm, how)
    # floor((i + 0.5) * n / m) in whole numbers: ties go up on every machine.
    nearest = [(2 * np.arange(m) + 1) * n // (2 * m) for n, m in zip(labels.shape, shape, strict=True)]
    return np.ascontiguousarray(labels[np.ix_(*nearest)])


def grid_shape(shape: Shape, spacing_mm: tuple[float, float, float], how: Preprocessing) -> Shape:
    """The sides (D,H,W) that a scan (X,Y,Z) of this spacing gets: round(side * spacing / target), at least 1.

    An axis whose spacing is the target up to a thousandth keeps its side. More voxels than a scan may
    have are refused, before they are allocated.
    """
    if not all(math.isfinite(step) and step > 0 for step in (*spacing_mm, *how.spacing_mm)):
        raise RefusedInput(f"spacing {spacing_mm} or {how.spacing_mm} mm holds something that is no length above 0")
    depth, height, width = (
        side if abs(step / target - 1) <= _SAME_SPACING else max(1, round(side * step / target))
        for side, step, target in zip(shape, spacing_mm, how.spacing_mm, strict=True)
    )
    if depth * height * width > MOST_VOXELS:
        raise RefusedInput(
            f"a scan of {shape} voxels of {spacing_mm} mm becomes {(depth, height, width)} at {how.spacing_mm} mm, "
            f"more than {MOST_VOXELS:,} voxels; check its spacing, or crop it"
        )
    return depth, height, width


def _check_rules(how: Preprocessing) -> None:
    for name, found, known in (
        ("orientation", how.orientation, "as stored"),
        ("normalization", how.normalization, "z-score"),
    ):
        if found != known:
            raise RefusedInput(f"preprocessing: {name} '{found}' is not known; this version does '{known}'")
    low, high = how.clip_hu
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise RefusedInput(f"preprocessing: clip_hu {how.clip_hu} is not a range of HU; give the lower value first")


def _shape(volume: np.ndarray) -> Shape:
    if volume.ndim != 3 or not volume.size:
        raise ValueError(f"a volume has three axes and a voxel, not the shape {volume.shape}")
    x, y, z = volume.shape
    return x, y, z


def _resized(volume: np.ndarray, axis: int, size: int) -> np.ndarray:
    """One axis interpolated linearly to `size` samples, float32, in C order."""
    n = volume.shape[axis]
    source = np.clip((np.arange(size) + 0.5) * n / size - 0.5, 0, n - 1)
    first = source.astype(np.intp)
    second = np.minimum(first + 1, n - 1)
    share = (source - first).astype(np.float32).reshape([-1 if other == axis else 1 for other in range(3)])
    shape = [size if other == axis else side for other, side in enumerate(volume.shape)]
    result = np.empty(shape, np.float32)
    # Slabs along the first axis; if that is the one that is resized, of its results.
    thickness = max(1, _SLAB_VOXELS // (shape[1] * shape[2]))
    for start in range(0, shape[0], thickness):
        slab = slice(start, start + thickness)
        if axis == 0:
            low, high, weight = volume[first[slab]], volume[second[slab]], share[slab]
        else:
            low, high, weight = volume[slab].take(first, axis), volume[slab].take(second, axis), share
        # In this form equal neighbours give their value exactly.
        high -= low
        high *= weight
        np.add(low, high, out=result[slab])
    return result


def _standardize(volume: np.ndarray, how: Preprocessing) -> None:
    """Mean 0 and standard deviation 1, in place; sums in float64, slab by slab."""
    mean = float(volume.mean(dtype=np.float64))
    squares = sum(float(np.square(slab - mean, dtype=np.float64).sum()) for slab in volume)
    deviation = math.sqrt(squares / volume.size)
    # Written so that NaN is refused, too.
    if not deviation >= _LEAST_DEVIATION_HU:
        raise RefusedInput(
            f"a volume of {volume.shape} voxels is constant or not a number within {how.clip_hu} HU; "
            "there is nothing to segment, check that it is a CT in HU"
        )
    volume -= np.float32(mean)
    volume /= np.float32(deviation)
