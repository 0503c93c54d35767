"""CT volumes and label maps from NIfTI files: the whole of a file, checked, or one clear line.

A file's bytes are read once: hashed, inflated to the end (where gzip keeps its checksum) and decoded. A bit that
flipped in a `.nii.gz` is found that way. A bare `.nii` has no checksum; only its SHA-256 tells.
"""

import gzip
import hashlib
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np

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
_PIECE_VOXELS = 1 << 20
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
    """A CT in HU from a `.nii` or `.nii.gz` file (NIfTI-1 or NIfTI-2), with slope and intercept applied.

    Memory is what the voxels take in the file, inflated, and 4 bytes a voxel. Values count as HU if at least
    5 % of the voxels are soft tissue (-200 to 300), at least 0.1 % are fat or air (below -50), and at most
    10 % are denser than any large bone (above 700). Cut-outs with a little fat pass; volumes of air alone, volumes
    shifted by 1024, normalized ones and MRI do not. `assume_hu` takes finite values of any range that are not all one.

    Raises `RefusedInput` naming the file, what is wrong with it, and what to do; `EnvironmentLacks` without
    the memory.
    """
    header, stored, digest = _read(path, max_voxels)
    hu = _scaled(path, header, stored)
    _check_values(path, hu)
    if not assume_hu:
        _check_hounsfield(path, hu)
    return Scan(path=path, sha256=digest, hu=hu, affine=header.affine)


def read_label_map(path: Path, like: Scan) -> np.ndarray:
    """The segmentation of a scan, uint8 (X,Y,Z), from a `.nii` or `.nii.gz` file on the very grid of `like`.

    Labels may be stored as any number type; they must be whole numbers from 0 to 255. Raises
    `RefusedInput` for others, for another shape, for an affine that puts a corner a tenth of a voxel elsewhere, and for
    all that `read_scan` refuses in a file.
    """

    def check(header: Header) -> None:
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

    header, stored, _ = _read(path, max(MOST_VOXELS, like.hu.size), check)
    labels = np.empty(stored.size, np.uint8)
    for piece in _pieces(stored.size):
        # As float64: no whole number up to 255 is off by rounding, whatever it is stored as.
        values = stored[piece].astype(np.float64) * header.slope + header.intercept
        whole = np.rint(values)
        if not np.array_equal(values, whole) or whole.min() < 0 or whole.max() > 255:
            odd = values[(values != whole) | ~((whole >= 0) & (whole <= 255))][0]
            raise RefusedInput(f"{path} holds the value {odd:g}; labels are whole numbers from 0 to 255")
        labels[piece] = whole
    return labels.reshape(header.shape, order="F")


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


def _read(
    path: Path, max_voxels: int, check: Callable[[Header], None] = lambda header: None
) -> tuple[Header, np.ndarray, str]:
    """Header, stored voxels (1-D, the file's type and byte order) and SHA-256; `check` runs before voxels are read."""
    with _reading(path), _opened(path) as file:
        is_packed = path.name.lower().endswith(".gz")
        _check_kind(path, file.read(512), is_packed)
        file.seek(0)
        source = _Hashed(file)
        content: _Readable = gzip.GzipFile(fileobj=source, mode="rb") if is_packed else source  # type: ignore[call-overload]
        start = content.read(HEADER_BYTES[1])
        if version_of(start) == 2:
            start += content.read(HEADER_BYTES[2] - len(start))
        header = header_from_bytes(path, start, most_voxels=max_voxels)
        check(header)
        for _ in _exactly(path, content, header.offset - len(start), header):
            pass  # extensions of the header, which say nothing about voxels
        stored = np.empty(header.data_bytes, np.uint8)
        done = 0
        for piece in _exactly(path, content, header.data_bytes, header):
            stored[done : done + len(piece)] = np.frombuffer(piece, np.uint8)
            done += len(piece)
        # Reading on is what makes gzip compare its checksum.
        if content.read(1):
            raise RefusedInput(f"{path} is longer than its header {header.shape} says; one of the two is damaged")
        return header, stored.view(header.dtype), source.digest.hexdigest()


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


def _exactly(path: Path, content: _Readable, count: int, header: Header) -> Iterator[bytes]:
    """The next `count` bytes in pieces."""
    left = count
    while left:
        piece = content.read(min(left, _PIECE_BYTES))
        if not piece:
            expected = header.offset + header.data_bytes
            raise RefusedInput(f"{path} ends before the {expected:,} bytes that its header {header.shape} asks for")
        left -= len(piece)
        yield piece


def _pieces(count: int) -> Iterator[slice]:
    for first in range(0, count, _PIECE_VOXELS):
        yield slice(first, min(first + _PIECE_VOXELS, count))


def _scaled(path: Path, header: Header, stored: np.ndarray) -> np.ndarray:
    """Values as float32 (X,Y,Z); the stored bytes themselves where they are that already."""
    is_scaled = (header.slope, header.intercept) != (1.0, 0.0)
    if stored.dtype == np.dtype(np.float32) and not is_scaled:
        values = stored
    else:
        with _reading(path):
            values = np.empty(stored.size, np.float32)
        for piece in _pieces(stored.size):
            # One rounding, so that a scan stored in two ways gives one result.
            exact: np.ndarray[Any, Any] = stored[piece].astype(np.float64)
            if is_scaled:
                exact = exact * header.slope + header.intercept
            with np.errstate(over="ignore", invalid="ignore"):
                values[piece] = exact
    return values.reshape(header.shape, order="F")


def _check_values(path: Path, hu: np.ndarray) -> None:
    flat = hu.reshape(-1, order="F")
    bad = sum(int((~np.isfinite(flat[piece])).sum()) for piece in _pieces(flat.size))
    if bad:
        raise RefusedInput(f"{path} holds NaN or infinity in {bad:,} of {flat.size:,} voxels; fill them with -1024")
    if flat.min() == flat.max():
        raise RefusedInput(f"{path} holds {flat.min():g} in every voxel; there is nothing to segment")


def _check_hounsfield(path: Path, hu: np.ndarray) -> None:
    flat = hu.reshape(-1, order="F")
    low, high = float(flat.min()), float(flat.max())
    soft = light = dense = 0
    for piece in _pieces(flat.size):
        values = flat[piece]
        soft += int(((values >= -200) & (values <= 300)).sum())
        light += int((values < -50).sum())
        dense += int((values > 700).sum())
    soft_share, light_share, dense_share = (count / flat.size for count in (soft, light, dense))
    if low < _CT_NUMBERS[0] or high > _CT_NUMBERS[1]:
        reason = "CT numbers fit into 16 bits"
    elif soft_share < 0.05:
        reason = f"soft tissue (-200 to 300 HU) is {soft_share:.2%} of the voxels, expected 5 % or more"
    elif light_share < 0.001:
        reason = f"fat and air (below -50 HU) are {light_share:.2%} of the voxels, expected 0.1 % or more"
    elif dense_share > 0.1:
        reason = f"{dense_share:.2%} of the voxels are above 700 HU, expected 10 % or less"
    else:
        return
    raise RefusedInput(
        f"{path} does not look like CT in HU: values from {low:g} to {high:g}, {reason}; "
        "convert it (often by subtracting 1024), or say --assume-hu if you know that it is"
    )
