"""CT scans from NIfTI files, checked to the last byte, and label maps on the same grid.

nibabel knows the header's fields; what it repairs or lets pass in silence is refused here: a spacing of 0 or NaN, a
sheared or singular affine, two affines that disagree, other units than mm, values that are not HU, a file that is
longer or shorter than its header says. The fields and their meaning: https://nifti.nimh.nih.gov/pub/dist/src/niftilib.
"""

from __future__ import annotations

import gzip
import math
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from base import Refused, need, written
from nibabel import Nifti1Header, Nifti2Header
from nibabel.spatialimages import HeaderDataError

#: A larger volume is 2 GB in float32.
MOST_VOXELS = 1 << 29
_DTYPES = {2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 256: "i1", 512: "u2", 768: "u4", 1024: "i8", 1280: "u8"}


@dataclass(frozen=True)
class Header:
    """Voxels as a NIfTI header declares them, along X, Y, Z; spacing in mm, values are slope * stored + inter."""

    shape: tuple[int, int, int]
    dtype: np.dtype[Any]
    spacing: tuple[float, float, float]
    slope: float
    inter: float
    #: Bytes between the header and the first voxel.
    gap: int
    #: nibabel's header of just these bytes, nothing repaired.
    fields: Any


@contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """The content of a scan's file, unpacked; the end of a packed one must be read, where its checksum is compared."""
    packed = path.name.lower().endswith(".gz")
    try:
        need(path.exists(), f"{path} does not exist")
        need(path.is_file(), f"{path} is a folder or a device; name a .nii or .nii.gz file")
        pair = path.suffix.lower() in (".img", ".hdr")
        need(not pair, f"{path} is half of a pair of .hdr and .img; convert the pair to one .nii.gz")
        with path.open("rb") as file:
            start = file.read(512)
            file.seek(0)
            need(start, f"{path} is empty; copy it again")
            need(start[128:132] != b"DICM", f"{path} is a DICOM file; convert the series to NIfTI, as with dcm2niix")
            need(set(start) - {9, 10, 13, *range(32, 127)}, f"{path} is text: {start[:24]!r}; name a .nii or .nii.gz")
            need(packed == (start[:2] == b"\x1f\x8b"), f"{path}: packed with gzip or not, its name says otherwise")
            yield gzip.GzipFile(fileobj=file) if packed else file  # type: ignore[misc]
    except (OSError, EOFError, zlib.error) as error:
        raise Refused(f"cannot read {path}: {getattr(error, 'strerror', None) or error}; copy it again") from error


@np.errstate(all="ignore")
def read_header(path: Path, stream: BinaryIO) -> Header:
    """The checked header of one volume at the begin of a stream; nothing is allocated for voxels."""
    start = stream.read(348)
    size = next((n for n in (348, 540) if start[:4] in (n.to_bytes(4, "little"), n.to_bytes(4, "big"))), 0)
    need(size, f"{path} is no NIfTI file: it begins with neither 348 nor 540")
    start += stream.read(size - 348)
    need(len(start) == size, f"{path} ends within its header; copy it again")
    magic = {348: start[344:348] == b"n+1\0", 540: start[4:12] == b"n+2\0\r\n\x1a\n"}[size]
    need(magic, f"{path} has not the magic of a NIfTI file: one of a pair, ANALYZE, or damaged")
    order = "<" if start[:4] == size.to_bytes(4, "little") else ">"
    fields = (Nifti1Header if size == 348 else Nifti2Header)(start, order, check=False)  # its checks repair

    count, *sides = (int(side) for side in fields["dim"])
    one = 3 <= count <= 7 and min(sides[:3]) >= 2 and set(sides[3:count]) <= {1}
    need(one, f"{path} has {count} axes {sides} by its header; one volume, 2 voxels or more wide, is needed")
    shape = (sides[0], sides[1], sides[2])
    need(math.prod(shape) <= MOST_VOXELS, f"{path} has {math.prod(shape):,} voxels by its header; crop it")
    code = int(fields["datatype"])
    need(code in _DTYPES, f"{path} has datatype {code}; a CT holds integers or floats of 8 to 64 bits")
    dtype = np.dtype(order + _DTYPES[code])
    need(fields["bitpix"] == 8 * dtype.itemsize, f"{path} has bitpix {fields['bitpix']} with datatype {code}")
    offset, slope, inter = (float(fields[name]) for name in ("vox_offset", "scl_slope", "scl_inter"))
    need(size + 4 <= offset <= 1 << 26 and offset.is_integer(), f"{path} has vox_offset {offset:g}; it is damaged")
    if slope == inter == 0:
        slope = 1.0  # nifti1.h: values are stored as they are
    need(
        0 < abs(slope) <= 1e3 and abs(inter) <= 1e6, f"{path} has slope {slope:g}, intercept {inter:g}; write it in HU"
    )

    steps = np.array(fields["pixdim"][1:4], np.float64)
    need(((steps >= 0.1) & (steps <= 50)).all(), f"{path} has pixdim {steps}; a CT's voxels have 0.1 to 50 mm")
    need(int(fields["xyzt_units"]) & 7 in (0, 2), f"{path} gives lengths in another unit than mm")
    affines = list(_affines_of(path, fields.copy(), steps))
    need(affines, f"{path} does not say how its axes lie: sform_code and qform_code are 0")
    # Corners of the volume may be half a voxel apart: far more than rounding, less than any real difference.
    ends = np.stack(np.meshgrid(*((0, side - 1) for side in shape), 1, indexing="ij")).reshape(4, -1)
    apart = float(np.sqrt((((affines[0] - affines[-1]) @ ends)[:3] ** 2).sum(axis=0)).max())
    need(apart <= 0.5 * steps.min(), f"{path}: sform and qform put a corner {apart:.3g} mm apart; keep the right one")
    x, y, z = (float(step) for step in np.sqrt((affines[0][:3, :3] ** 2).sum(axis=0)))
    return Header(shape, dtype, (x, y, z), slope, inter, int(offset) - size, fields)


def _affines_of(path: Path, fields: Any, steps: np.ndarray) -> Iterator[np.ndarray]:
    """The affines of a header that count, (4,4) float64 from indices to mm: the sform first, then the qform."""
    for name in ("sform", "qform"):
        code = int(fields[f"{name}_code"])
        need(0 <= code <= 5, f"{path} has {name}_code {code}; NIfTI knows 0 to 5")
        if code == 0:
            continue
        fields["pixdim"][0] = fields["pixdim"][0] or 1  # nifti1.h: that is what 0 means
        try:
            affine = np.array(fields.get_sform() if name == "sform" else fields.get_qform(), np.float64)
        except (ValueError, HeaderDataError) as error:
            raise Refused(f"{path} has a qform that is no rotation: {error}") from error
        need((np.abs(affine) <= 1e6).all(), f"{path} has NaN or a place beyond a kilometre in its {name}")
        spacing = np.sqrt((affine[:3, :3] ** 2).sum(axis=0))
        axes = affine[:3, :3] / spacing
        need((spacing > 0).all() and abs(np.linalg.det(axes)) >= 1e-3, f"{path} has a singular {name}")
        need(np.abs(axes.T @ axes - np.eye(3)).max() <= 1e-3, f"{path} has a sheared {name}; resample the scan")
        need(np.abs(spacing / steps - 1).max() <= 1e-3, f"{path}: voxels of {spacing} mm by {name}, {steps} by pixdim")
        yield affine


def planes_of(path: Path, header: Header, stream: BinaryIO, assume_hu: bool) -> Iterator[np.ndarray]:
    """A scan in HU, plane after plane (Y,X) float32; after the last one the file and the values are judged."""
    (x, y, z), counts, low, high = header.shape, np.zeros(4, np.int64), math.inf, -math.inf
    cut_off = f"{path} ends before the {math.prod(header.shape):,} voxels that its header says; copy it again"
    need(len(stream.read(header.gap)) == header.gap, cut_off)
    for _ in range(z):
        raw = stream.read(x * y * header.dtype.itemsize)
        need(len(raw) == x * y * header.dtype.itemsize, cut_off)
        stored = np.frombuffer(raw, header.dtype).reshape(y, x)
        with np.errstate(all="ignore"):  # in float64, so that one rounding is all
            plane = (stored.astype(np.float64) * header.slope + header.inter).astype(np.float32)
        soft, light, dense = (plane >= -200) & (plane <= 300), plane < -50, plane > 700
        counts += [np.count_nonzero(found) for found in (~np.isfinite(plane), soft, light, dense)]
        low, high = min(low, float(plane.min())), max(high, float(plane.max()))
        yield plane
    need(not stream.read(1), f"{path} is longer than its header says; one of the two is damaged")
    need(not counts[0], f"{path} holds NaN or infinity in {counts[0]:,} voxels; fill them with -1024")
    need(low < high, f"{path} holds {low:g} in every voxel; there is nothing to segment")
    _, soft, light, dense = counts / math.prod(header.shape)
    hu = low >= -32768 and high <= 65535 and soft >= 0.05 and light >= 0.001 and dense <= 0.1
    need(
        hu or assume_hu,
        f"{path} does not look like CT in HU: values from {low:g} to {high:g}, {soft:.2%} soft tissue, "
        f"{light:.2%} fat or air, {dense:.2%} above 700; convert it, or say --assume-hu if you know that it is",
    )


def write_labels(path: Path, header: Header, labels: np.ndarray) -> None:
    """Write labels uint8 (Z,Y,X) on the grid of a scan: with its version, byte order, shape, affines and units."""
    fields = header.fields.copy()
    fields.set_data_dtype(np.uint8)
    fields["vox_offset"] = len(fields.binaryblock) + 4
    fields["scl_slope"], fields["scl_inter"] = 1, 0
    # How to show a CT in grey says nothing about labels.
    fields["cal_min"] = fields["cal_max"] = 0
    with written(path) as file:
        if path.name.lower().endswith(".gz"):
            # Without name and time: they would make two files of one result differ.
            with gzip.GzipFile("", "wb", 1, file, 0) as packed:
                packed.write(fields.binaryblock + bytes(4))
                packed.write(np.ascontiguousarray(labels).data)
        else:
            file.write(fields.binaryblock + bytes(4))
            file.write(np.ascontiguousarray(labels).data)
