"""What the header of a NIfTI file says about its voxels, taken only where it is certain.

nibabel knows the fields; what it repairs or lets pass in silence is refused here: a spacing of 0 or NaN,
a sheared or singular affine, two affines that disagree, other units than mm, a size that the data cannot have.
The fields and their meaning: https://nifti.nimh.nih.gov/pub/dist/src/niftilib/nifti1.h and nifti2.h.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from nibabel import Nifti1Header, Nifti2Header
from nibabel.spatialimages import HeaderDataError

from lhanet_export.errors import RefusedInput

#: Bytes of the headers of NIfTI-1 and NIfTI-2, which are also the first number in them.
HEADER_BYTES = {1: 348, 2: 540}
#: A larger scan is 2 GB in float32; 2048 slices of 512 x 512 are the limit.
MOST_VOXELS = 1 << 29
#: Spacing in mm of any CT of a body, with room on both sides.
_SPACING_MM = (0.1, 50.0)
#: Cosine between two axes of the affine up to which they count as perpendicular.
_MOST_SHEAR = 1e-3
#: No scanner's coordinates reach so far (a kilometre); only damage does.
_FARTHEST_MM = 1e6
#: Bytes between header and voxels; header extensions hold at most a DICOM header.
_MOST_OFFSET = 1 << 26
#: CT in 8 bits over its whole range has a slope of 16.
_MOST_SLOPE, _MOST_INTERCEPT = 1e3, 1e6
_MAGIC = {1: b"n+1\0", 2: b"n+2\0\r\n\x1a\n"}
_MAGIC_OF_PAIR = {1: b"ni1\0", 2: b"ni2\0\r\n\x1a\n"}
_DTYPES = {
    2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 256: "i1", 512: "u2", 768: "u4", 1024: "i8", 1280: "u8",
}  # fmt: skip
_OTHER_TYPES = {
    1: "single bits", 32: "complex numbers", 128: "RGB colours", 1536: "128-bit floats", 1792: "complex numbers",
    2048: "complex numbers", 2304: "RGBA colours",
}  # fmt: skip
_UNITS = {1: "metres", 3: "micrometres"}


@dataclass(frozen=True, kw_only=True, eq=False)
class Header:
    """A volume's voxels as a header declares them, checked.

    `dtype` has the file's byte order. Values are `slope` times what is stored plus `intercept`; `affine`
    takes indices (X,Y,Z) to mm (RAS), (4,4) float64.
    """

    shape: tuple[int, int, int]
    dtype: np.dtype[Any]
    #: Bytes from the file's beginning to the first voxel.
    offset: int
    slope: float
    intercept: float
    affine: np.ndarray
    #: The bytes of the header itself, as they are in the file.
    raw: bytes

    @property
    def data_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def spacing_of(affine: np.ndarray) -> tuple[float, float, float]:
    """Voxel sides (x, y, z) in mm: the lengths of the affine's columns."""
    x, y, z = np.sqrt((affine[:3, :3] ** 2).sum(axis=0))
    return float(x), float(y), float(z)


def corners_apart_mm(first: np.ndarray, second: np.ndarray, shape: tuple[int, ...]) -> float:
    """How far two affines put a corner voxel of one volume apart, at most."""
    corners = np.stack(np.meshgrid(*((0, side - 1) for side in shape), (1,), indexing="ij")).reshape(4, -1)
    return float(np.sqrt((((first - second) @ corners)[:3] ** 2).sum(axis=0)).max())


def version_of(start: bytes) -> int | None:
    """1 or 2 where a file begins like a NIfTI header of that version, in either byte order; else None."""
    for version, size in HEADER_BYTES.items():
        if start[:4] in (size.to_bytes(4, "little"), size.to_bytes(4, "big")):
            return version
    return None


# What NaN and infinity do on their way is answered by the checks.
@np.errstate(all="ignore")
def header_from_bytes(path: Path, start: bytes, *, most_voxels: int = MOST_VOXELS) -> Header:
    """The header of one 3-D volume from the first 348 bytes (NIfTI-1) or 540 (NIfTI-2) of a file.

    Axes of one sample after the third are dropped. Raises `RefusedInput` naming the file, the field and what to do.
    Nothing is allocated for voxels.
    """
    version = version_of(start)
    if version is None:
        raise RefusedInput(f"{path} is no NIfTI file: it begins with neither 348 nor 540; convert the scan to NIfTI")
    if len(start) < HEADER_BYTES[version]:
        raise RefusedInput(f"{path} ends within its header; the file was cut off, copy it again")
    magic = start[344:348] if version == 1 else start[4:12]
    if magic == _MAGIC_OF_PAIR[version]:
        raise RefusedInput(f"{path} says that its voxels are in an .img file; convert the pair to one .nii.gz")
    if magic != _MAGIC[version]:
        raise RefusedInput(f"{path} has the magic {magic!r}, not NIfTI's: ANALYZE, or damaged; convert the scan anew")
    fields = _fields(start, version)
    shape = _shape(path, fields)
    if math.prod(shape) > most_voxels:
        raise RefusedInput(
            f"{path} has {math.prod(shape):,} voxels by its header {shape}, more than the {most_voxels:,} that are "
            "taken; crop it, or check that the header is not damaged"
        )
    slope, intercept = _scaling(path, fields)
    return Header(
        shape=shape,
        dtype=_dtype(path, fields),
        offset=_offset(path, fields, HEADER_BYTES[version] + 4),
        slope=slope,
        intercept=intercept,
        affine=_affine(path, fields, shape),
        raw=start[: HEADER_BYTES[version]],
    )


def _fields(start: bytes, version: int) -> Any:
    """nibabel's header, its numbers in the file's byte order."""
    order = "<" if start[:4] == HEADER_BYTES[version].to_bytes(4, "little") else ">"
    kind = Nifti1Header if version == 1 else Nifti2Header
    # Without its checks, because they repair.
    return kind(start[: HEADER_BYTES[version]], order, check=False)


def header_for(header: Header, slope: float) -> bytes:
    """The bytes of a header for uint8 voxels on the grid of another one: its version, byte order, shape and place.

    What a voxel means is `slope` times what is stored. Extensions are left out, voxels follow 4 bytes after it.
    """
    version = version_of(header.raw)
    assert version is not None
    fields = _fields(header.raw, version)
    fields.set_data_dtype(np.uint8)
    fields["vox_offset"] = HEADER_BYTES[version] + 4
    fields["scl_slope"], fields["scl_inter"] = slope, 0
    # How to show a CT in grey says nothing about labels.
    fields["cal_min"] = fields["cal_max"] = 0
    return bytes(fields.binaryblock)


def _shape(path: Path, fields: Any) -> tuple[int, int, int]:
    count, *sides = (int(number) for number in fields["dim"])
    if not 1 <= count <= 7:
        raise RefusedInput(f"{path} has {count} dimensions by its header; a volume has 3, the header may be damaged")
    sides = sides[:count]
    if min(sides) < 1:
        raise RefusedInput(f"{path} has the shape {tuple(sides)} by its header; no side can be below 1")
    if max(sides[3:], default=1) > 1:
        raise RefusedInput(f"{path} has the shape {tuple(sides)}, several volumes; write the one that is meant alone")
    if count < 3 or min(sides[:3]) == 1:
        raise RefusedInput(f"{path} has the shape {tuple(sides)}, a single slice; a volume of 2 or more is needed")
    return sides[0], sides[1], sides[2]


def _dtype(path: Path, fields: Any) -> np.dtype[Any]:
    code, bits = int(fields["datatype"]), int(fields["bitpix"])
    if code not in _DTYPES:
        kind = _OTHER_TYPES.get(code, "an unknown data type")
        raise RefusedInput(f"{path} holds {kind} (datatype {code}); a CT holds integers or floats of 8 to 64 bits")
    dtype = np.dtype(fields.endianness + _DTYPES[code])
    if bits != 8 * dtype.itemsize:
        raise RefusedInput(
            f"{path} has bitpix {bits}, but its datatype {code} takes {8 * dtype.itemsize}; the header is damaged"
        )
    return dtype


def _offset(path: Path, fields: Any, least: int) -> int:
    offset = float(fields["vox_offset"])
    if not (least <= offset <= _MOST_OFFSET and offset.is_integer()):
        raise RefusedInput(f"{path} has vox_offset {offset:g}; voxels begin at byte {least} or soon after")
    return int(offset)


def _scaling(path: Path, fields: Any) -> tuple[float, float]:
    """Slope and intercept; a slope of 0 means that values are stored as they are (nifti1.h)."""
    slope, intercept = float(fields["scl_slope"]), float(fields["scl_inter"])
    if slope == 0 and intercept == 0:
        return 1.0, 0.0
    # An intercept beside a slope of 0 does not count by the letter, but somebody may have meant it.
    if not (0 < abs(slope) <= _MOST_SLOPE and abs(intercept) <= _MOST_INTERCEPT):
        raise RefusedInput(
            f"{path} has scl_slope {slope:g} and scl_inter {intercept:g}, by which no CT is stored; write it anew in HU"
        )
    return slope, intercept


def _affine(path: Path, fields: Any, shape: tuple[int, int, int]) -> np.ndarray:
    sides = np.array(fields["pixdim"][1:4], np.float64)
    low, high = _SPACING_MM
    if not ((sides >= low) & (sides <= high)).all():
        raise RefusedInput(f"{path} has pixdim {_text(sides)}; a CT's voxels have sides of {low:g} to {high:g} mm")
    unit = int(fields["xyzt_units"]) & 7
    # 0 is "unknown", which many programs write and mean mm.
    if unit not in (0, 2):
        found = _UNITS.get(unit, f"unit {unit}")
        raise RefusedInput(f"{path} gives lengths in {found} (xyzt_units); write the header in mm")
    affines = {name: affine for name in ("sform", "qform") if (affine := _form(path, fields, name)) is not None}
    if not affines:
        raise RefusedInput(
            f"{path} does not say how its axes lie (sform_code and qform_code are 0); convert the scan anew, or "
            "write its affine"
        )
    for name, affine in affines.items():
        _check_affine(path, name, affine, sides)
    if len(affines) == 2:
        apart = corners_apart_mm(affines["sform"], affines["qform"], shape)
        # Half a voxel is far more than rounding makes of a quaternion and less than any real difference.
        if apart > 0.5 * sides.min():
            raise RefusedInput(
                f"{path}: sform and qform put a corner of the volume {apart:.3g} mm apart; keep the one that is right"
            )
    return next(iter(affines.values()))


def _form(path: Path, fields: Any, name: str) -> np.ndarray | None:
    """The sform or qform, None where its code is 0."""
    code = int(fields[f"{name}_code"])
    if not 0 <= code <= 5:
        raise RefusedInput(f"{path} has {name}_code {code}; NIfTI knows 0 to 5, the header is damaged")
    if code == 0:
        return None
    if name == "sform":
        return np.array(fields.get_sform(), np.float64)
    if fields["pixdim"][0] == 0:
        fields["pixdim"][0] = 1  # which nifti1.h says it means
    try:
        return np.array(fields.get_qform(), np.float64)
    except (ValueError, HeaderDataError) as error:
        raise RefusedInput(f"{path} has a qform that is no rotation: {error}; write its affine anew") from error


def _check_affine(path: Path, name: str, affine: np.ndarray, sides: np.ndarray) -> None:
    if not (np.abs(affine) <= _FARTHEST_MM).all():
        raise RefusedInput(f"{path} has NaN or a place beyond a kilometre in its {name}; write its affine anew")
    spacing = np.array(spacing_of(affine))
    if not (spacing > 0).all() or abs(np.linalg.det(affine[:3, :3] / spacing)) < 1e-3:
        raise RefusedInput(f"{path} has a singular {name}: its axes do not span a volume; write its affine anew")
    axes = affine[:3, :3] / spacing
    shear = np.abs(axes.T @ axes - np.eye(3)).max()
    if shear > _MOST_SHEAR:
        raise RefusedInput(
            f"{path} has a sheared {name}: the cosine between two axes is {shear:.3g}, such as a tilted gantry gives; "
            "resample the scan to perpendicular axes"
        )
    if np.abs(spacing / sides - 1).max() > 1e-3:
        raise RefusedInput(
            f"{path}: voxels are {_text(spacing)} mm by its {name} and {_text(sides)} mm by pixdim; correct the one "
            "that is wrong"
        )


def _text(sides: np.ndarray) -> str:
    return " x ".join(f"{side:.4g}" for side in sides)
