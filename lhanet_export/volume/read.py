"""CT volumes and label maps from NIfTI files: the whole of a file, checked, or one clear line.

A file's bytes are read once: hashed, inflated to the end (where gzip keeps its checksum) and decoded. A bit that
flipped in a `.nii.gz` is found that way. A bare `.nii` has no checksum; only its SHA-256 tells.
"""

from __future__ import annotations

import gzip
import hashlib
import math
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Protocol

import numpy as np
from typing_extensions import Self

from lhanet_export.errors import EnvironmentLacks, RefusedInput
from lhanet_export.volume.header import (
    HEADER_BYTES,
    MOST_VOXELS,
    Header,
    corners_apart_mm,
    header_from_bytes,
    spacing_of,
    version_of,
)

_PIECE_BYTES = 1 << 22
#: Voxels that are decoded at a time, in whole slices.
_SLAB_VOXELS = 1 << 20
#: CT numbers are 16 bits wide in every file that a scanner writes, signed or not.
_CT_NUMBERS = (-32768.0, 65535.0)


@dataclass(frozen=True, kw_only=True, eq=False)
class Scan:
    """A CT volume as its file holds it.

    `hu` is (X,Y,Z) in the order of the file's axes, float32, in Fortran order; `affine` takes its
    indices to mm (RAS), (4,4) float64; `sha256` is that of the bytes that were decoded.
    """

    path: Path
    sha256: str
    hu: np.ndarray
    affine: np.ndarray

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Voxel sides (x, y, z) in mm along the axes of `hu`, from the affine."""
        return spacing_of(self.affine)


def read_scan(path: Path, *, assume_hu: bool = False, max_voxels: int = MOST_VOXELS) -> Scan:
    """A whole CT in HU from a `.nii` or `.nii.gz` file (NIfTI-1 or NIfTI-2), with slope and intercept applied.

    Memory is 4 bytes a voxel and a slab. What counts as HU says `hu_slabs`. Raises `RefusedInput` naming the file,
    what is wrong with it, and what to do; `EnvironmentLacks` without the memory.
    """
    with _reading(path), VoxelFile(path, most_voxels=max_voxels) as file:
        hu = np.empty(file.header.shape, np.float32, order="F")
        first = 0
        for slab in hu_slabs(file, assume_hu=assume_hu):
            hu[:, :, first : first + slab.shape[2]] = slab
            first += slab.shape[2]
        return Scan(path=path, sha256=file.sha256, hu=hu, affine=file.header.affine)


def read_label_map(path: Path, like: Scan) -> np.ndarray:
    """The segmentation of a scan, uint8 (X,Y,Z), from a `.nii` or `.nii.gz` file on the very grid of `like`.

    Labels may be stored as any number type; they must be whole numbers from 0 to 255. Raises
    `RefusedInput` for others, for another shape, for an affine that puts a corner a tenth of a voxel elsewhere, and for
    all that `read_scan` refuses in a file.
    """
    with _reading(path), VoxelFile(path, most_voxels=max(MOST_VOXELS, like.hu.size)) as file:
        header = file.header
        if header.shape != like.hu.shape:
            raise RefusedInput(
                f"{path} has the shape {header.shape}, but its scan {like.path} has {like.hu.shape}; name "
                "the labels that were drawn on this scan"
            )
        apart = corners_apart_mm(header.affine, like.affine, header.shape)
        if apart > 0.1 * min(like.spacing_mm):
            raise RefusedInput(
                f"{path} lies elsewhere than its scan {like.path}: corners are {apart:.3g} mm apart; "
                "resample it to the scan's grid"
            )
        labels = np.empty(header.shape, np.uint8, order="F")
        first = 0
        for stored in file.slabs():
            # As float64: no whole number up to 255 is off by rounding, whatever it is stored as.
            values = stored.astype(np.float64) * header.slope + header.intercept
            whole = np.rint(values)
            if not np.array_equal(values, whole) or whole.min() < 0 or whole.max() > 255:
                odd = values[(values != whole) | ~((whole >= 0) & (whole <= 255))][0]
                raise RefusedInput(f"{path} holds the value {odd:g}; labels are whole numbers from 0 to 255")
            labels[:, :, first : first + stored.shape[2]] = whole
            first += stored.shape[2]
        return labels


def hu_slabs(file: VoxelFile, *, assume_hu: bool = False) -> Iterator[np.ndarray]:
    """A CT's values in HU, float32 (X,Y,t) in Fortran order, slab by slab along Z, with slope and intercept applied.

    After the last slab the values are judged as a whole. They count as HU if at least 5 % of the voxels are soft
    tissue (-200 to 300), at least 0.1 % are fat or air (below -50), and at most 10 % are denser than any large
    bone (above 700). Cut-outs with a little fat pass; volumes of air alone, volumes shifted by 1024, normalized
    ones and MRI do not. `assume_hu` takes finite values of any range that are not all one. Raises `RefusedInput`
    then, and for what `VoxelFile` refuses: nothing made from the slabs may be used before the last one.
    """
    seen = _Seen()
    for stored in file.slabs():
        hu = _scaled(file.header, stored)
        seen.add(hu)
        yield hu
    seen.check(file.path)
    if not assume_hu:
        seen.check_hounsfield(file.path)


class VoxelFile:
    """A `.nii` or `.nii.gz` file in a `with` block, whose voxels are read once, from its begin to its end.

    `header` is checked when the block begins. Raises `RefusedInput` naming the file, what is wrong with it, and what to
    do.
    """

    header: Header

    def __init__(self, path: Path, *, most_voxels: int = MOST_VOXELS) -> None:
        self.path = path
        self._most_voxels = most_voxels
        self._open = ExitStack()

    def __enter__(self) -> Self:
        with _reading(self.path), ExitStack() as opened:
            file = opened.enter_context(_opened(self.path))
            is_packed = self.path.name.lower().endswith(".gz")
            _check_kind(self.path, file.read(512), is_packed)
            file.seek(0)
            self._source = _Hashed(file)
            self._content: _Readable = self._source
            if is_packed:
                self._content = gzip.GzipFile(fileobj=self._source, mode="rb")  # type: ignore[call-overload]
            start = self._content.read(HEADER_BYTES[1])
            if version_of(start) == 2:
                start += self._content.read(HEADER_BYTES[2] - len(start))
            self.header = header_from_bytes(self.path, start, most_voxels=self._most_voxels)
            self._left_of_header = self.header.offset - len(start)
            self._open = opened.pop_all()
        return self

    @property
    def sha256(self) -> str:
        """Hex SHA-256 of the bytes that were decoded; of the whole file once `slabs` are done."""
        return self._source.digest.hexdigest()

    def slabs(self) -> Iterator[np.ndarray]:
        """The stored values (X,Y,t) in the file's type, byte order and Fortran order, slab by slab along Z.

        After the last one the file must end, and a packed one must have its checksum.
        """
        header = self.header
        x, y, z = header.shape
        thickness = max(1, _SLAB_VOXELS // (x * y))
        with _reading(self.path):
            self._exactly(self._left_of_header)  # extensions of the header, which say nothing about voxels
            for first in range(0, z, thickness):
                count = min(thickness, z - first)
                raw = self._exactly(x * y * count * header.dtype.itemsize)
                yield raw.view(header.dtype).reshape((x, y, count), order="F")
            # Reading on is what makes gzip compare its checksum.
            if self._content.read(1):
                raise RefusedInput(
                    f"{self.path} is longer than its header {header.shape} says; one of the two is damaged"
                )

    def _exactly(self, count: int) -> np.ndarray:
        """The next `count` bytes."""
        raw = np.empty(count, np.uint8)
        done = 0
        while done < count:
            piece = self._content.read(min(count - done, _PIECE_BYTES))
            if not piece:
                expected = self.header.offset + self.header.data_bytes
                raise RefusedInput(
                    f"{self.path} ends before the {expected:,} bytes that its header {self.header.shape} asks for"
                )
            raw[done : done + len(piece)] = np.frombuffer(piece, np.uint8)
            done += len(piece)
        return raw

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._open.close()


class _Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...


class _Hashed:
    """A file whose bytes are hashed as they are read."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self.digest = hashlib.sha256()

    def read(self, size: int = -1, /) -> bytes:
        data = self._stream.read(size)
        self.digest.update(data)
        return data


def _opened(path: Path) -> BinaryIO:
    """The file, unless its name or its kind tells already that it is no NIfTI file of its own."""
    name = path.name.lower()
    if not path.exists():
        raise RefusedInput(f"{path} does not exist")
    if not path.is_file():
        raise RefusedInput(f"{path} is a folder or a device; name a .nii or .nii.gz file")
    if name.endswith((".img", ".hdr")):
        other = path.with_suffix(".hdr" if name.endswith(".img") else ".img")
        missing = "" if other.exists() else f", and its other half {other.name} is missing"
        raise RefusedInput(f"{path} is half of a pair of .hdr and .img{missing}; convert the pair to one .nii.gz")
    return path.open("rb")


def _check_kind(path: Path, start: bytes, is_packed: bool) -> None:
    """Say what a file is that is no NIfTI, by its first 512 bytes."""
    if not start:
        raise RefusedInput(f"{path} is empty; copy it again")
    if start[128:132] == b"DICM":
        raise RefusedInput(f"{path} is a DICOM file; convert the series to NIfTI, with dcm2niix for example")
    if start.startswith(b"version https://git-lfs"):
        raise RefusedInput(f"{path} is a Git LFS pointer, not the scan; fetch it with: git lfs pull")
    if not set(start) - set(range(32, 127)) - set(b"\t\r\n"):
        raise RefusedInput(f"{path} is text, which begins with {start[:24]!r}; name a .nii or .nii.gz file")
    if is_packed and start[:2] != b"\x1f\x8b":
        raise RefusedInput(f"{path} is not packed with gzip, although it is named .gz; if it is a .nii, rename it")
    if not is_packed and start[:2] == b"\x1f\x8b":
        raise RefusedInput(f"{path} is packed with gzip; if it is a .nii.gz, rename it")


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise RefusedInput(f"{path} is damaged or cut off ({error}); copy it again") from error
    except OSError as error:
        raise RefusedInput(f"cannot read {path}: {error.strerror or error}") from error
    except MemoryError as error:
        raise EnvironmentLacks(f"{path} needs more memory than there is; crop it") from error


def _scaled(header: Header, stored: np.ndarray) -> np.ndarray:
    """Values as float32; the stored ones themselves where they are that already."""
    is_scaled = (header.slope, header.intercept) != (1.0, 0.0)
    if stored.dtype == np.dtype(np.float32) and not is_scaled:
        return stored
    # One rounding, so that a scan stored in two ways gives one result.
    exact: np.ndarray[Any, Any] = stored.astype(np.float64)
    if is_scaled:
        exact = exact * header.slope + header.intercept
    with np.errstate(over="ignore", invalid="ignore"):
        return exact.astype(np.float32)


class _Seen:
    """What the values of a scan are, counted slab by slab."""

    def __init__(self) -> None:
        self.voxels = self.bad = self.soft = self.light = self.dense = 0
        self.low, self.high = math.inf, -math.inf

    def add(self, hu: np.ndarray) -> None:
        self.voxels += hu.size
        self.bad += int((~np.isfinite(hu)).sum())
        self.low, self.high = min(self.low, float(hu.min())), max(self.high, float(hu.max()))
        self.soft += int(((hu >= -200) & (hu <= 300)).sum())
        self.light += int((hu < -50).sum())
        self.dense += int((hu > 700).sum())

    def check(self, path: Path) -> None:
        if self.bad:
            raise RefusedInput(
                f"{path} holds NaN or infinity in {self.bad:,} of {self.voxels:,} voxels; fill them with -1024"
            )
        if self.low == self.high:
            raise RefusedInput(f"{path} holds {self.low:g} in every voxel; there is nothing to segment")

    def check_hounsfield(self, path: Path) -> None:
        soft, light, dense = (count / self.voxels for count in (self.soft, self.light, self.dense))
        if self.low < _CT_NUMBERS[0] or self.high > _CT_NUMBERS[1]:
            reason = "CT numbers fit into 16 bits"
        elif soft < 0.05:
            reason = f"soft tissue (-200 to 300 HU) is {soft:.2%} of the voxels, expected 5 % or more"
        elif light < 0.001:
            reason = f"fat and air (below -50 HU) are {light:.2%} of the voxels, expected 0.1 % or more"
        elif dense > 0.1:
            reason = f"{dense:.2%} of the voxels are above 700 HU, expected 10 % or less"
        else:
            return
        raise RefusedInput(
            f"{path} does not look like CT in HU: values from {self.low:g} to {self.high:g}, {reason}; "
            "convert it (often by subtracting 1024), or say --assume-hu if you know that it is"
        )
