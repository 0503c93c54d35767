"""A NIfTI file is read whole and right in every encoding, or refused with one line that says why."""

from __future__ import annotations

import functools
import gzip
import random
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from lhanet_export.errors import EnvironmentLacks, RefusedInput
from lhanet_export.files import sha256_of
from lhanet_export.volume import read
from lhanet_export.volume.folder import Entry, entries_in
from lhanet_export.volume.nifti import write_phantom
from lhanet_export.volume.phantom import Phantom, anatomy_from_seed, render
from lhanet_export.volume.read import Scan, read_label_map, read_scan

SHAPE = (20, 18, 16)
SPACING = (1.5, 0.75, 2.5)


def rotated(degrees: float = 10.0) -> np.ndarray:
    """An affine of SPACING, turned about an axis that is none of the volume's."""
    angle, axis = np.radians(degrees), np.array([1.0, 2.0, 2.0]) / 3
    cross = np.cross(np.eye(3), axis)
    affine = np.eye(4)
    affine[:3, :3] = (np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross) * SPACING
    affine[:3, 3] = (-90.5, 120.25, -300.75)
    return affine


def ct(seed: int = 0) -> np.ndarray:
    """A body of fat around soft tissue in air, int16 HU of multiples of 16, (X,Y,Z)."""
    places = np.stack(np.meshgrid(*(np.linspace(-1, 1, side) for side in SHAPE), indexing="ij"))
    radius = np.sqrt((places**2).sum(axis=0))
    hu = np.where(radius < 0.7, 48, np.where(radius < 0.9, -112, -1008))
    return (hu + 16 * np.random.default_rng(seed).integers(-1, 2, SHAPE)).astype(np.int16)


def nifti(
    array: np.ndarray,
    *,
    version: int = 1,
    order: str = "<",
    affine: np.ndarray | None = None,
    slope: float = 1,
    intercept: float = 0,
    **fields: Any,
) -> bytes:
    """The bytes of a `.nii` file, whose header fields can be set to anything."""
    header = {1: nibabel.Nifti1Header, 2: nibabel.Nifti2Header}[version](endianness=order)
    header.set_data_dtype(array.dtype)
    header.set_data_shape(array.shape)
    header.set_xyzt_units("mm")
    affine = rotated() if affine is None else affine
    header.set_qform(affine, 1)
    header.set_sform(affine, 1)
    values = {"vox_offset": {1: 352, 2: 544}[version], "scl_slope": slope, "scl_inter": intercept, **fields}
    for name, value in values.items():
        header[name] = value
    return bytes(header.binaryblock + bytes(4) + array.astype(array.dtype.newbyteorder(order)).tobytes(order="F"))


def packed(data: bytes) -> bytes:
    return gzip.compress(data, mtime=0)


def written(folder: Path, data: bytes, name: str = "scan.nii") -> Path:
    path = folder / name
    path.write_bytes(packed(data) if name.endswith(".gz") else data)
    return path


def patched(data: bytes, offset: int, form: str, *values: float) -> bytes:
    """The data with other bytes at an offset."""
    new = struct.pack(form, *values)
    return data[:offset] + new + data[offset + len(new) :]


def refused(path: Path, match: str, **options: Any) -> str:
    """The message with which a scan is refused: one line that names the file and the fact."""
    with pytest.raises(RefusedInput, match=match) as error:
        read_scan(path, **options)
    message = str(error.value)
    assert str(path) in message and "\n" not in message and len(message) < 400
    return message


# What is read


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("dtype", ["i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f4", "f8"])
def test_every_number_type_gives_the_same_scan(tmp_path: Path, dtype: str, order: str, version: int) -> None:
    hu, kind = ct(), np.dtype(dtype)
    # Bytes need the slope, unsigned numbers the intercept, signed bytes another one.
    slope = 16 if kind.itemsize == 1 else 1
    intercept = {"u": -1024, "i": 1024 - 16 * 64 if slope == 16 else 0, "f": 0}[kind.kind]
    stored = ((hu - intercept) // slope).astype(kind)
    assert np.array_equal(stored.astype(np.int64) * slope + intercept, hu), "the test's own encoding loses nothing"
    data = nifti(stored, version=version, order=order, slope=slope, intercept=intercept)
    for name in ("scan.nii", "scan.nii.gz"):
        scan = read_scan(written(tmp_path, data, name))
        assert scan.hu.dtype == np.float32 and scan.hu.dtype.isnative
        assert np.array_equal(scan.hu, hu)
        assert np.allclose(scan.affine, rotated(), atol=1e-5)
        assert scan.sha256 == sha256_of(scan.path)


def test_what_nibabel_writes_is_read_as_nibabel_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "scan.nii.gz"
    # Floats that nibabel scales to int16 by a slope and an intercept of its own.
    image = nibabel.Nifti1Image(ct() + np.float32(0.3), rotated())
    image.set_data_dtype(np.int16)
    nibabel.save(image, path)
    loaded, scan = nibabel.load(path), read_scan(path)
    assert loaded.dataobj.slope != 1
    assert np.allclose(scan.hu, loaded.get_fdata(), rtol=0, atol=1e-4)
    assert np.array_equal(scan.affine, loaded.affine)


def test_spacing_is_the_affines(tmp_path: Path) -> None:
    scan = read_scan(written(tmp_path, nifti(ct())))
    assert scan.spacing_mm == pytest.approx(SPACING, rel=1e-6)


@pytest.mark.parametrize("forms", [{"qform_code": 0}, {"sform_code": 0}, {"qform_code": 4, "sform_code": 2}], ids=str)
def test_one_affine_is_enough(tmp_path: Path, forms: dict[str, int]) -> None:
    scan = read_scan(written(tmp_path, nifti(ct(), **forms)))
    assert np.allclose(scan.affine, rotated(), atol=1e-4)


@pytest.mark.parametrize("signs", [(1, 1, 1), (-1, -1, 1), (-1, 1, 1), (1, 1, -1)], ids=str)
def test_mirrored_and_half_turned_axes_agree_in_both_forms(tmp_path: Path, signs: tuple[int, ...]) -> None:
    affine = rotated(3) @ np.diag([*signs, 1])
    for form in ("sform_code", "qform_code", "none"):
        data = nifti(ct(), affine=affine, **({} if form == "none" else {form: 0}))
        assert np.allclose(read_scan(written(tmp_path, data)).affine, affine, atol=2e-3)


def test_an_unset_qfac_means_one(tmp_path: Path) -> None:
    scan = read_scan(written(tmp_path, patched(nifti(ct(), sform_code=0), 76, "<f", 0)))
    assert np.allclose(scan.affine, rotated(), atol=1e-4)


@pytest.mark.parametrize("unit", [0, 2, 10])
def test_unknown_units_are_mm(tmp_path: Path, unit: int) -> None:
    assert read_scan(written(tmp_path, nifti(ct(), xyzt_units=unit))).spacing_mm == pytest.approx(SPACING)


def test_axes_of_one_sample_are_dropped(tmp_path: Path) -> None:
    scan = read_scan(written(tmp_path, nifti(ct()[..., None, None])))
    assert np.array_equal(scan.hu, ct())


def test_slope_zero_means_as_stored(tmp_path: Path) -> None:
    assert np.array_equal(read_scan(written(tmp_path, nifti(ct(), slope=0))).hu, ct())


def test_header_extensions_are_passed_over(tmp_path: Path) -> None:
    data = nifti(ct(), vox_offset=352 + 64)
    data = data[:348] + bytes([1, 0, 0, 0]) + struct.pack("<ii", 64, 6) + b"a comment".ljust(56, b"\0") + data[352:]
    assert np.array_equal(read_scan(written(tmp_path, data)).hu, ct())


def test_members_of_a_gzip_file_are_one_file(tmp_path: Path) -> None:
    data, path = nifti(ct()), tmp_path / "scan.nii.gz"
    path.write_bytes(packed(data[:1000]) + packed(data[1000:]))
    assert np.array_equal(read_scan(path).hu, ct())


def test_the_volume_can_be_written_into_and_passed_on(tmp_path: Path) -> None:
    for dtype in (np.int16, np.float32):
        hu = read_scan(written(tmp_path, nifti(ct().astype(dtype)))).hu
        hu += 1
        assert hu.flags.f_contiguous and np.array_equal(hu, ct() + 1)


def test_a_phantom_comes_back_as_it_was(tmp_path: Path) -> None:
    phantom = render(anatomy_from_seed(0), (6.0, 6.0, 6.0))
    image, labels = tmp_path / "scan.nii.gz", tmp_path / "labels.nii.gz"
    write_phantom(phantom, image, labels)
    scan = read_scan(image)
    assert np.array_equal(scan.hu, phantom.hu)
    assert np.abs(scan.affine - phantom.affine).max() <= 1e-6 * np.abs(phantom.affine).max()
    assert scan.spacing_mm == pytest.approx((6.0, 6.0, 6.0))
    read_labels = read_label_map(labels, scan)
    assert read_labels.dtype == np.uint8 and np.array_equal(read_labels, phantom.labels)


# What is no NIfTI file


@pytest.mark.parametrize(
    ("name", "content", "match"),
    [
        ("scan.nii", b"", "is empty"),
        ("scan.nii.gz", b"", "is empty"),
        ("scan.nii", b"patient,age\n1,70\n", "is text, which begins with b'patient"),
        ("scan.nii.gz", b"<!DOCTYPE html>\n<html>", "is text, which begins with b'<!DOCTYPE"),
        ("scan.nii.gz", b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "git lfs pull"),
        ("scan.nii", bytes(128) + b"DICM" + bytes(400), "DICOM.*dcm2niix"),
        ("scan.nii.gz", bytes(128) + b"DICM" + bytes(400), "DICOM"),
        ("scan.nii.gz", nifti(ct()), "not packed with gzip.*rename"),
        ("scan.nii", packed(nifti(ct())), "is packed with gzip.*rename"),
        ("scan.nii", bytes(range(256)) * 8, "is no NIfTI file"),
        ("scan.nii.gz", packed(b""), "is no NIfTI file"),
        ("scan.nii", nifti(ct())[:347], "ends within its header"),
        ("scan.nii", nifti(ct(), version=2)[:539], "ends within its header"),
        ("scan.img", bytes(5000), "half of a pair.*other half scan.hdr is missing"),
        ("scan.hdr", nifti(ct())[:348], "half of a pair.*other half scan.img is missing"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_files_that_are_something_else(tmp_path: Path, name: str, content: bytes, match: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    refused(path, match)


def test_missing_files_and_folders(tmp_path: Path) -> None:
    refused(tmp_path / "none.nii.gz", "does not exist")
    refused(tmp_path, "folder or a device")
    for name in ("pair.hdr", "pair.img"):
        (tmp_path / name).write_bytes(bytes(348))
    assert "other half" not in refused(tmp_path / "pair.img", "half of a pair")


def test_a_file_that_cannot_be_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path, nifti(ct()))

    def denied(*_: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", denied)
    refused(path, "cannot read .*Permission denied")


# Damage


@pytest.mark.parametrize("kept", [0.999, 0.9, 0.5, 0.1])
def test_a_packed_file_that_was_cut_off(tmp_path: Path, kept: float) -> None:
    data = packed(nifti(ct()))
    path = tmp_path / "scan.nii.gz"
    path.write_bytes(data[: int(kept * len(data))])
    refused(path, "damaged or cut off")


@pytest.mark.parametrize("missing", [1, 4, 8])
def test_a_packed_file_without_its_last_bytes(tmp_path: Path, missing: int) -> None:
    path = tmp_path / "scan.nii.gz"
    path.write_bytes(packed(nifti(ct()))[:-missing])
    refused(path, "damaged or cut off")


@pytest.mark.parametrize("junk", [b"x", b"more than a gzip header", packed(b"more")])
def test_a_packed_file_with_something_behind_it(tmp_path: Path, junk: bytes) -> None:
    path = tmp_path / "scan.nii.gz"
    path.write_bytes(packed(nifti(ct())) + junk)
    refused(path, "damaged or cut off|longer than its header")


def test_a_wrong_checksum(tmp_path: Path) -> None:
    data, path = packed(nifti(ct())), tmp_path / "scan.nii.gz"
    path.write_bytes(data[:-8] + bytes([data[-8] ^ 1]) + data[-7:])
    refused(path, "CRC")


def test_no_flipped_bit_of_a_packed_file_changes_a_voxel_in_silence(tmp_path: Path) -> None:
    data, path = packed(nifti(ct())), tmp_path / "scan.nii.gz"
    path.write_bytes(data)
    whole = read_scan(path)
    dice, refusals = random.Random(0), 0
    # In the gzip header a bit may be of no account (the time, the system); everywhere else it is found.
    for position in [*range(80), *(dice.randrange(8 * len(data)) for _ in range(120))]:
        damaged = bytearray(data)
        damaged[position // 8] ^= 1 << position % 8
        path.write_bytes(damaged)
        try:
            scan = read_scan(path)
        except RefusedInput:
            refusals += 1
        else:
            assert position < 80 and np.array_equal(scan.hu, whole.hu) and np.array_equal(scan.affine, whole.affine)
            assert scan.sha256 != whole.sha256
    assert refusals > 120


def test_a_flipped_bit_of_a_bare_file_shows_in_its_hash(tmp_path: Path) -> None:
    data = nifti(ct())
    digests = {read_scan(written(tmp_path, variant)).sha256 for variant in (data, patched(data, 5000, "<b", 1))}
    assert len(digests) == 2


@pytest.mark.parametrize("name", ["scan.nii", "scan.nii.gz"])
def test_voxels_that_are_missing_or_too_many(tmp_path: Path, name: str) -> None:
    data = nifti(ct())
    refused(written(tmp_path, data[:-1], name), r"ends before the 11,872 bytes")
    refused(written(tmp_path, data[:352], name), "ends before")
    refused(written(tmp_path, data + b"\0", name), "longer than its header")
    refused(written(tmp_path, patched(data, 46, "<h", 15), name), r"longer than its header \(20, 18, 15\)")


def test_a_gzip_bomb_is_not_inflated(tmp_path: Path) -> None:
    path = written(tmp_path, nifti(ct()) + bytes(1 << 24), "scan.nii.gz")
    assert path.stat().st_size < 1 << 18
    tracemalloc.start()
    refused(path, "longer than its header")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1 << 22


@pytest.mark.parametrize("name", ["scan.nii", "scan.nii.gz"])
@pytest.mark.parametrize("version", [1, 2])
def test_a_header_that_asks_for_too_much_gets_no_memory(tmp_path: Path, version: int, name: str) -> None:
    sides = 32767 if version == 1 else 2**40
    data = nifti(ct(), version=version, dim=[3, sides, sides, sides, 1, 1, 1, 1])
    tracemalloc.start()
    refused(written(tmp_path, data, name), "voxels by its header .*more than the 536,870,912")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1 << 22


def test_the_limit_of_voxels_is_the_callers(tmp_path: Path) -> None:
    path = written(tmp_path, nifti(ct()))
    assert read_scan(path, max_voxels=ct().size).hu.size == ct().size
    refused(path, "5,760 voxels .*more than the 5,759", max_voxels=ct().size - 1)


NAN, INF = float("nan"), float("inf")
TURNED = nibabel.Nifti1Header()
TURNED.set_qform(rotated(40), 1)


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"magic": b"ni1"}, "voxels are in an .img file"),
        ({"magic": b""}, r"magic b'.x00.x00.x00.x00'.*ANALYZE"),
        ({"magic": b"n+2"}, "magic b'n.2"),
        ({"dim": [0, 20, 18, 16, 1, 1, 1, 1]}, "0 dimensions"),
        ({"dim": [9, 20, 18, 16, 1, 1, 1, 1]}, "9 dimensions"),
        ({"dim": [-3, 20, 18, 16, 1, 1, 1, 1]}, "-3 dimensions"),
        ({"dim": [3, 20, 0, 16, 1, 1, 1, 1]}, r"\(20, 0, 16\).*below 1"),
        ({"dim": [3, 20, -18, 16, 1, 1, 1, 1]}, "below 1"),
        ({"dim": [4, 20, 18, 8, 2, 1, 1, 1]}, r"\(20, 18, 8, 2\), several volumes"),
        ({"dim": [5, 20, 18, 8, 1, 2, 1, 1]}, "several volumes"),
        ({"dim": [2, 20, 18, 1, 1, 1, 1, 1]}, r"\(20, 18\), a single slice"),
        ({"dim": [3, 20, 18, 1, 1, 1, 1, 1]}, "single slice"),
        ({"datatype": 0}, "unknown data type .datatype 0"),
        ({"datatype": 9999}, "unknown data type"),
        ({"datatype": 1, "bitpix": 1}, "single bits"),
        ({"datatype": 128, "bitpix": 24}, "RGB"),
        ({"datatype": 2304, "bitpix": 32}, "RGBA"),
        ({"datatype": 32, "bitpix": 64}, "complex"),
        ({"datatype": 1792, "bitpix": 128}, "complex"),
        ({"datatype": 1536, "bitpix": 128}, "128-bit"),
        ({"bitpix": 8}, "bitpix 8, but its datatype 4 takes 16"),
        ({"bitpix": -16}, "bitpix -16"),
        ({"vox_offset": NAN}, "vox_offset nan"),
        ({"vox_offset": INF}, "vox_offset inf"),
        ({"vox_offset": -352}, "vox_offset -352"),
        ({"vox_offset": 0}, "vox_offset 0"),
        ({"vox_offset": 352.5}, "vox_offset 352.5"),
        ({"vox_offset": 1e9}, r"vox_offset 1e\+09"),
        ({"vox_offset": 100_000}, "ends before"),
        ({"slope": NAN}, "scl_slope nan"),
        ({"slope": INF}, "scl_slope inf"),
        ({"slope": 1e30}, r"scl_slope 1e\+30"),
        ({"intercept": NAN}, "scl_inter nan"),
        ({"intercept": 1e30}, r"scl_inter 1e\+30"),
        ({"slope": 0, "intercept": -1024}, "scl_slope 0 and scl_inter -1024"),
        ({"slope": 0, "intercept": NAN}, "scl_slope 0 and scl_inter nan"),
        ({"pixdim": [1, 0, 0.75, 2.5, 0, 0, 0, 0]}, "pixdim 0 x 0.75 x 2.5"),
        ({"pixdim": [1, NAN, 0.75, 2.5, 0, 0, 0, 0]}, "pixdim nan"),
        ({"pixdim": [1, -1.5, 0.75, 2.5, 0, 0, 0, 0]}, "pixdim -1.5"),
        ({"pixdim": [1, 0.001, 0.75, 2.5, 0, 0, 0, 0]}, "pixdim 0.001"),
        ({"pixdim": [1, 1.5, 0.75, 1000, 0, 0, 0, 0]}, "pixdim 1.5 x 0.75 x 1000"),
        ({"pixdim": [1, 1.5, 0.75, 2.6, 0, 0, 0, 0], "qform_code": 0}, "by its sform and .* by pixdim"),
        ({"pixdim": [0.5, 1.5, 0.75, 2.5, 0, 0, 0, 0]}, "qform that is no rotation"),
        ({"xyzt_units": 1}, "in metres"),
        ({"xyzt_units": 3}, "in micrometres"),
        ({"xyzt_units": 5}, "in unit 5"),
        ({"qform_code": 0, "sform_code": 0}, "does not say how its axes lie"),
        ({"sform_code": -1}, "sform_code -1"),
        ({"qform_code": 77}, "qform_code 77"),
        ({"srow_x": [NAN, 0, 0, 0]}, "NaN or a place beyond a kilometre in its sform"),
        ({"srow_y": [0, 0.75, 0, INF]}, "NaN or a place beyond a kilometre in its sform"),
        ({"srow_z": [0, 0, 2.5, 1e30]}, "NaN or a place beyond a kilometre in its sform"),
        ({"qoffset_x": NAN}, "NaN or a place beyond a kilometre in its qform"),
        ({"quatern_b": NAN, "sform_code": 0}, "NaN or a place beyond a kilometre in its qform"),
        ({"quatern_b": 2, "sform_code": 0}, "no rotation"),
        ({"srow_x": [0, 0, 0, 5]}, "singular sform"),
        ({"srow_x": [1.5, 0, 0, 0], "srow_y": [0, 0, 0, 0], "srow_z": [0, 0.75, 2.5, 0]}, "singular sform"),
        ({"srow_x": [1.5, 0, 0, 0], "srow_y": [0, 0.75, 0.3, 0], "srow_z": [0, 0, 2.48, 0]}, "sheared sform"),
        ({"srow_x": [3, 0, 0, 0], "srow_y": [0, 3, 0, 0], "srow_z": [0, 0, 5, 0]}, "by its sform and .* by pixdim"),
        ({name: TURNED[name] for name in ("quatern_b", "quatern_c", "quatern_d")}, "sform and qform put a corner"),
        ({"qoffset_z": -290}, "sform and qform put a corner of the volume 10.8 mm apart"),
    ],
    ids=str,
)
def test_headers_that_say_what_cannot_be(tmp_path: Path, fields: dict[str, Any], match: str) -> None:
    data = nifti(ct(), **fields)
    for name in ("scan.nii", "scan.nii.gz"):
        refused(written(tmp_path, data, name), match)


def test_a_wrong_header_size(tmp_path: Path) -> None:
    refused(written(tmp_path, patched(nifti(ct()), 0, "<i", 349)), "neither 348 nor 540")


def test_shear_of_rounding_is_tolerated(tmp_path: Path) -> None:
    affine = np.diag([*SPACING, 1.0])
    affine[0, 1] = 0.0007 * SPACING[1]
    data = nifti(ct(), affine=affine)
    assert read_scan(written(tmp_path, data)).affine == pytest.approx(affine)
    affine[0, 1] *= 2
    refused(written(tmp_path, nifti(ct(), affine=affine)), "sheared sform: .* is 0.0014")


def test_damage_of_any_header_byte_is_answered(tmp_path: Path) -> None:
    """Whatever one byte is set to, a scan comes or one line: no other error, no traceback."""
    data, dice = nifti(ct()), random.Random(1)
    answers = {True: 0, False: 0}
    for position in range(352):
        path = written(tmp_path, patched(data, position, "<B", dice.randrange(256)))
        try:
            answers[bool(read_scan(path))] += 1
        except RefusedInput as error:
            assert str(path) in str(error)
            answers[False] += 1
    assert min(answers.values()) > 50


# Values


@pytest.mark.parametrize("value", [NAN, INF, -INF, 1e300])
def test_values_that_are_no_numbers(tmp_path: Path, value: float) -> None:
    volume = ct().astype(np.float64)
    volume[3, 4, 5] = value
    path = written(tmp_path, nifti(volume))
    refused(path, "NaN or infinity in 1 of 5,760 voxels")
    refused(path, "NaN or infinity", assume_hu=True)


@pytest.mark.parametrize("value", [0, -1024, 40])
def test_a_constant_volume(tmp_path: Path, value: int) -> None:
    path = written(tmp_path, nifti(np.full(SHAPE, value, np.int16)))
    refused(path, f"holds {value} in every voxel")
    refused(path, f"holds {value} in every voxel", assume_hu=True)


@functools.cache
def phantom() -> Phantom:
    return render(anatomy_from_seed(2), (9.0, 9.0, 9.0))


NOT_HOUNSFIELD = {
    "shifted": lambda hu: np.clip(hu.astype(np.int32) + 1024, 0, 4095).astype(np.uint16),
    # Outside of a scanner's circle some write a value that is lower than air; it must not pass for air.
    "shifted and padded": lambda hu: (np.where(hu < -990, -2000, hu) + 1024).astype(np.int16),
    "shifted twice": lambda hu: (hu - 1024).astype(np.int16),
    "0 to 255": lambda hu: np.clip((hu + 160.0) * 255 / 400, 0, 255).astype(np.uint8),
    "0 to 1": lambda hu: np.clip((hu + 160.0) / 400, 0, 1).astype(np.float32),
    "z-score": lambda hu: ((hu - hu.mean()) / hu.std()).astype(np.float32),
    "inverted": lambda hu: (-hu).astype(np.int16),
    "in tenths": lambda hu: (hu.astype(np.int32) * 10 + 10000).astype(np.int32),
    "air": lambda hu: np.random.default_rng(0).normal(-1000, 10, hu.shape).astype(np.int16),
    "a float of -1e9 outside": lambda hu: np.where(hu < -990, -1e9, hu).astype(np.float32),
}


@pytest.mark.parametrize("kind", NOT_HOUNSFIELD)
def test_values_that_are_not_hounsfield_units(tmp_path: Path, kind: str) -> None:
    volume = NOT_HOUNSFIELD[kind](phantom().hu)
    path = written(tmp_path, nifti(volume))
    refused(path, "does not look like CT in HU: values from .* --assume-hu")
    assert np.array_equal(read_scan(path, assume_hu=True).hu, volume.astype(np.float32))


def test_label_maps_are_no_scans(tmp_path: Path) -> None:
    refused(written(tmp_path, nifti(phantom().labels)), "does not look like CT in HU")


@pytest.mark.parametrize("seed", range(3))
def test_scans_and_cut_outs_without_air_are_hounsfield_units(tmp_path: Path, seed: int) -> None:
    scan = render(anatomy_from_seed(seed), (9.0, 9.0, 9.0)).hu
    middle = tuple(slice(3 * side // 8, 5 * side // 8) for side in scan.shape)
    for volume in (scan, scan[middle], np.clip(scan, -160, 240), np.where(scan == scan.min(), -3024, scan)):
        volume = volume.astype(np.int16)
        assert np.array_equal(read_scan(written(tmp_path, nifti(volume))).hu, volume)


# Label maps


@pytest.fixture
def scan(tmp_path: Path) -> Scan:
    return read_scan(written(tmp_path, nifti(ct()), "image.nii"))


def labels_of(dtype: Any = np.uint8) -> np.ndarray:
    return (ct() > -500).astype(dtype) * 15


@pytest.mark.parametrize("dtype", ["u1", "i2", "u2", "i4", "i8", "f4", "f8"])
def test_labels_of_any_number_type(tmp_path: Path, scan: Scan, dtype: str) -> None:
    labels = read_label_map(written(tmp_path, nifti(labels_of(dtype)), "labels.nii.gz"), scan)
    assert labels.dtype == np.uint8 and np.array_equal(labels, labels_of())


def test_an_empty_label_map_and_a_scaled_one(tmp_path: Path, scan: Scan) -> None:
    assert not read_label_map(written(tmp_path, nifti(np.zeros(SHAPE, np.uint8))), scan).any()
    doubled = written(tmp_path, nifti(labels_of(), slope=2, intercept=1))
    assert np.array_equal(read_label_map(doubled, scan), labels_of() * 2 + 1)


@pytest.mark.parametrize(
    ("value", "dtype"), [(0.5, "f4"), (-1, "i2"), (256, "i2"), (2**40, "i8"), (NAN, "f4"), (INF, "f8"), (15.001, "f8")]
)
def test_values_that_are_no_labels(tmp_path: Path, scan: Scan, value: float, dtype: str) -> None:
    labels = labels_of(dtype)
    labels[1, 2, 3] = value
    path = written(tmp_path, nifti(labels))
    with pytest.raises(RefusedInput, match=f"{path} holds the value .* whole numbers from 0 to 255"):
        read_label_map(path, scan)


def test_labels_of_another_grid(tmp_path: Path, scan: Scan) -> None:
    for other in (labels_of()[:-1], np.zeros((30, 30, 30), np.uint8)):
        with pytest.raises(
            RefusedInput, match=r"labels.nii has the shape .* but its scan .*image.nii has \(20, 18, 16\)"
        ):
            read_label_map(written(tmp_path, nifti(other), "labels.nii"), scan)
    near, far = rotated(), rotated()
    near[0, 3] += 0.05
    far[0, 3] += 0.2
    assert read_label_map(written(tmp_path, nifti(labels_of(), affine=near)), scan).any()
    for affine in (far, rotated(11), rotated() @ np.diag([-1, 1, 1, 1])):
        with pytest.raises(RefusedInput, match=r"lies elsewhere than its scan .* mm apart"):
            read_label_map(written(tmp_path, nifti(labels_of(), affine=affine)), scan)


def test_a_damaged_label_map(tmp_path: Path, scan: Scan) -> None:
    path = tmp_path / "labels.nii.gz"
    path.write_bytes(packed(nifti(labels_of()))[:-3])
    with pytest.raises(RefusedInput, match="damaged or cut off"):
        read_label_map(path, scan)


# Memory, and what the machine lacks


@pytest.mark.parametrize("dtype", ["i2", "f4", "f8"])
def test_memory_is_the_result_and_a_slab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str) -> None:
    monkeypatch.setattr(read, "_PIECE_BYTES", 1 << 16)
    monkeypatch.setattr(read, "_SLAB_VOXELS", 1 << 13)
    volume = np.tile(ct(), (6, 5, 5)).astype(dtype)
    path = written(tmp_path, nifti(volume), "scan.nii.gz")
    tracemalloc.start()
    read_scan(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert volume.size * 4 <= peak < volume.size * 4 + (1 << 20)


def test_too_little_memory_is_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path, nifti(ct()))

    def empty(*_: Any, **__: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(read.np, "empty", empty)
    with pytest.raises(EnvironmentLacks, match=f"{path} needs more memory"):
        read_scan(path)


# Folders


def filled(folder: Path, *names: str) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return folder


def test_images_with_labels_of_the_same_names(tmp_path: Path) -> None:
    folder = filled(
        tmp_path, "images/b.nii.gz", "images/a.nii", "images/c.NII.GZ", "labels/a.nii.gz", "labels/b.nii.gz",
        "images/notes.txt", "images/._a.nii", "dataset.json",
    )  # fmt: skip
    assert entries_in(folder) == [
        Entry(folder / "images/a.nii", folder / "labels/a.nii.gz"),
        Entry(folder / "images/b.nii.gz", folder / "labels/b.nii.gz"),
        Entry(folder / "images/c.NII.GZ", None),
    ]


def test_the_folders_of_amos(tmp_path: Path) -> None:
    names = ("imagesVa/amos_2.nii.gz", "imagesTr/amos_1.nii.gz", "labelsTr/amos_1.nii.gz", "labelsVa/amos_2.nii.gz")
    assert entries_in(filled(tmp_path, *names, "imagesTs/amos_3.nii.gz")) == [
        Entry(tmp_path / "imagesTr/amos_1.nii.gz", tmp_path / "labelsTr/amos_1.nii.gz"),
        Entry(tmp_path / "imagesTs/amos_3.nii.gz", None),
        Entry(tmp_path / "imagesVa/amos_2.nii.gz", tmp_path / "labelsVa/amos_2.nii.gz"),
    ]


def test_scans_without_folders_of_their_own(tmp_path: Path) -> None:
    filled(tmp_path, "2.nii", "1.nii.gz", "deeper/3.nii")
    assert entries_in(tmp_path) == [Entry(tmp_path / "1.nii.gz", None), Entry(tmp_path / "2.nii", None)]


@pytest.mark.parametrize(
    ("names", "match"),
    [
        (("readme.txt",), "holds no .nii or .nii.gz file, neither itself nor in images/"),
        (("images/readme.txt",), "holds no .nii"),
        (("images/a.nii", "images/a.nii.gz"), "images holds a.nii and a.nii.gz"),
        (("a.nii", "a.NII.gz"), "holds a.NII.gz and a.nii"),
        (("images/a.nii", "labels/a.nii", "labels/a.nii.gz"), "labels holds a.nii and a.nii.gz"),
        (("images/a.nii", "labels/a.nii", "labels/b.nii"), "b.nii has no scan of this name in .*images"),
        (("a.nii", "labels/a.nii"), "has labels/ without images/ beside it"),
        (("images/a.nii", "labelsTr/a.nii"), "has labelsTr/ without imagesTr/ beside it"),
        (("images/a.nii", "b.nii"), "holds b.nii beside images/"),
    ],
    ids=str,
)
def test_folders_that_are_not_clear(tmp_path: Path, names: tuple[str, ...], match: str) -> None:
    with pytest.raises(RefusedInput, match=match) as error:
        entries_in(filled(tmp_path, *names))
    assert str(tmp_path) in str(error.value)


def test_folders_that_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RefusedInput, match="does not exist"):
        entries_in(tmp_path / "none")
    with pytest.raises(RefusedInput, match="is a file"):
        entries_in(filled(tmp_path, "a.nii") / "a.nii")

    def denied(_: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", denied)
    with pytest.raises(RefusedInput, match=r"cannot read the folder .*Permission denied"):
        entries_in(tmp_path)
