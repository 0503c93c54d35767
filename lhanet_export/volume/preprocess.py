"""From a scan in HU to what the network takes, and labels onto the same grid."""

import math
from collections.abc import Iterable, Iterator

import numpy as np

from lhanet_export.conventions import Preprocessing
from lhanet_export.errors import RefusedInput
from lhanet_export.shapes import Shape
from lhanet_export.volume.header import MOST_VOXELS
from lhanet_export.volume.linear import linear_taps

#: Voxel sides (x, y, z) in mm.
Spacing = tuple[float, float, float]
#: Spacing that differs by less than this share is the same: a header's rounding, no reason to interpolate.
_SAME_SPACING = 1e-3
#: Voxels that are taken at a time; their temporary arrays are a few times 4 MB.
_SLAB_VOXELS = 1 << 20
#: Standard deviation (HU) of a clipped volume below which it holds nothing; any scanner's noise is more.
_LEAST_DEVIATION_HU = 1e-3


def preprocess(hu: np.ndarray, spacing_mm: Spacing, how: Preprocessing) -> np.ndarray:
    """The network's input, float32 (D,H,W) in C order, from a scan (X,Y,Z) in HU with spacing (x, y, z) in mm.

    The rules are those of `preprocess_slabs`. `hu` is not changed; besides it, memory holds the result and a slab.
    """
    x, y, z = shape_of(hu)
    thickness = max(1, _SLAB_VOXELS // (x * y))
    slabs = (hu[:, :, first : first + thickness] for first in range(0, z, thickness))
    return preprocess_slabs(slabs, (x, y, z), spacing_mm, how)


def preprocess_slabs(slabs: Iterable[np.ndarray], shape: Shape, spacing_mm: Spacing, how: Preprocessing) -> np.ndarray:
    """The network's input, float32 (D,H,W) in C order, from the slabs (X,Y,t) along Z of a scan of `shape` in HU.

    "As stored" means that the file's axes X, Y, Z become D, H, W in this order. The volume is resampled to
    `how.spacing_mm` (`grid_shape`), clipped to `how.clip_hu`, and brought to mean 0 and standard
    deviation 1 over all of its voxels. Interpolation is trilinear, an axis after the other from X to Z
    (`linear.linear_taps`). Nothing is smoothed before it is thinned out, as in the public implementation, so fine
    noise is kept where voxels grow. Axes of the right spacing are not touched.

    Memory holds the result and one slab. All slabs are taken. Raises `RefusedInput` for a volume that is constant once
    it is clipped or holds NaN, and for rules that are not these.
    """
    _check_rules(how)
    depth, height, width = grid_shape(shape, spacing_mm, how)
    image = np.empty((depth, height, width), np.float32)
    done = 0
    for planes in _along_z(_across(slabs, shape, depth, height), shape[2], width):
        part = image[:, :, done : done + len(planes)]
        np.clip(planes.T, *how.clip_hu, out=part)
        done += len(planes)
    _standardize(image, how)
    return image


def resample_labels(labels: np.ndarray, spacing_mm: Spacing, how: Preprocessing) -> np.ndarray:
    """Labels (X,Y,Z) uint8 on the grid that `preprocess` makes of their scan: uint8 (D,H,W), the nearest voxel's."""
    _check_rules(how)
    if labels.dtype != np.uint8:
        raise ValueError(f"labels are uint8, not {labels.dtype}")
    shape = grid_shape(shape_of(labels), spacing_mm, how)
    # floor((i + 0.5) * n / m) in whole numbers: ties go up on every machine.
    nearest = [(2 * np.arange(m) + 1) * n // (2 * m) for n, m in zip(labels.shape, shape, strict=True)]
    return np.ascontiguousarray(labels[np.ix_(*nearest)])


def grid_shape(shape: Shape, spacing_mm: Spacing, how: Preprocessing) -> Shape:
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


def shape_of(volume: np.ndarray) -> Shape:
    """The three sides of a volume; `ValueError` for an array that is none."""
    if volume.ndim != 3 or not volume.size:
        raise ValueError(f"a volume has three axes and a voxel, not the shape {volume.shape}")
    x, y, z = volume.shape
    return x, y, z


def _across(slabs: Iterable[np.ndarray], shape: Shape, depth: int, height: int) -> Iterator[np.ndarray]:
    """Slabs (X,Y,t) interpolated along X and Y: float32 (t,H,D)."""
    resized = []
    for axis, n, m in ((2, shape[0], depth), (1, shape[1], height)):
        if n != m:
            first, second, share = linear_taps(n, m)
            resized.append((axis, first, second, share.astype(np.float32).reshape((-1, 1) if axis == 1 else -1)))
    for slab in slabs:
        planes = slab.T.astype(np.float32, copy=False)
        for axis, first, second, share in resized:
            planes = _between(planes.take(first, axis), planes.take(second, axis), share)
        yield planes


def _along_z(slabs: Iterable[np.ndarray], n: int, m: int) -> Iterator[np.ndarray]:
    """Slabs (t,H,D), `n` planes in all, interpolated to `m` planes; each slab gives those that it completes."""
    if n == m:
        yield from slabs
        return
    first, second, share = linear_taps(n, m)
    weights = share.astype(np.float32)[:, None, None]
    done = end = 0
    known: np.ndarray | None = None
    for slab in slabs:
        # The last plane of the slab before is the first tap of the next result, if that has not been made.
        known = slab if known is None else np.concatenate([known[-1:], slab])
        end += len(slab)
        start = end - len(known)
        ready = slice(done, int(np.searchsorted(second, end)))
        done = ready.stop
        for at in range(ready.start, ready.stop):
            low, high = known[first[at] - start], known[second[at] - start]
            yield _between(low.copy(), high.copy(), weights[at])[None]


def _between(low: np.ndarray, high: np.ndarray, share: np.ndarray) -> np.ndarray:
    """low + (high - low) * share, in the memory of both; in this form equal neighbours give their value exactly."""
    high -= low
    high *= share
    low += high
    return low


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
