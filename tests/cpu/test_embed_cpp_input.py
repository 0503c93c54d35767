"""The C++ application refuses what Python refuses, in the same words, and leaves no trace of it."""

from __future__ import annotations

import copy
import functools
import gzip
import json
import os
import random
import re
import resource
import socket
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lhanet_export.engine.manifest import read_manifest, verify_engine_bytes
from lhanet_export.errors import RefusedInput
from lhanet_export.files import SIDECAR_LIMIT_BYTES, STAGING_PREFIX, sidecar_of
from lhanet_export.volume.read import read_scan
from tests.cpu.embed import SANITIZER, built, null_engine
from tests.unit import test_manifest as manifests
from tests.unit import test_volume_read as scans
from tests.unit.test_volume_read import ct, nifti, packed, patched, written

OLDER = b"labels of yesterday"


@pytest.fixture(scope="module")
def app() -> Path:
    """The application, which stops at bad memory accesses and undefined behaviour."""
    return built(sanitized=True)


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    """An engine that holds no network, in a folder that nobody else can write to."""
    return null_engine(tmp_path / "engine")


def rows_of(test: Any) -> list[Any]:
    """What a test of the Python side is parametrized by, so that a row that is added there is asked here, too."""
    (mark,) = [mark for mark in test.pytestmark if mark.name == "parametrize"]
    return list(mark.args[1])


def segmented(app: Path, engine: Path, scan: Path, target: Path, *options: str, **more: Any) -> Any:
    """What the application says when it is asked for the labels of a scan."""
    command = [app, "--null", *options, engine, scan, target]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | SANITIZER, timeout=60, **more)


def contents(folder: Path) -> dict[str, bytes | None]:
    """Everything below a folder; of what is no file only that it is there."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")
    }  # fmt: skip


def refused(app: Path, engine: Path, scan: Path, *options: str) -> str:
    """The words with which the application refuses; what was there before is there after it, and nothing else."""
    output = scan.parent / "output"
    output.mkdir(exist_ok=True)
    target = output / "labels.nii.gz"
    target.write_bytes(OLDER)
    found = segmented(app, engine, scan, target, *options)
    assert found.returncode == 2, (found.returncode, found.stderr)
    assert not found.stdout and found.stderr.startswith("error: ") and found.stderr.count("\n") == 1
    assert contents(output) == {"labels.nii.gz": OLDER}
    return found.stderr.removeprefix("error: ").rstrip("\n")


def words_of(read: Callable[[], Any]) -> str | None:
    """The words with which the Python side refuses, None where it takes what it is given."""
    try:
        read()
    except RefusedInput as error:
        return str(error)
    return None


def check_scan_refused(app: Path, engine: Path, scan: Path, match: str, *options: str) -> None:
    """Both refuse a scan, in the same words."""
    words = words_of(lambda: read_scan(scan, assume_hu="--assume-hu" in options))
    assert words is not None and re.search(match, words)
    assert refused(app, engine, scan, *options) == words


# Scans


@pytest.mark.parametrize(
    ("name", "content", "match"),
    rows_of(scans.test_files_that_are_something_else),
    ids=lambda value: str(value)[:20],
)
def test_files_that_are_something_else(
    app: Path, engine: Path, tmp_path: Path, name: str, content: bytes, match: str
) -> None:
    (tmp_path / name).write_bytes(content)
    check_scan_refused(app, engine, tmp_path / name, match)


def test_missing_files_folders_and_pairs(app: Path, engine: Path, tmp_path: Path) -> None:
    check_scan_refused(app, engine, tmp_path / "none.nii.gz", "does not exist")
    (tmp_path / "folder.nii").mkdir()
    check_scan_refused(app, engine, tmp_path / "folder.nii", "folder or a device")
    os.mkfifo(tmp_path / "pipe.nii")
    check_scan_refused(app, engine, tmp_path / "pipe.nii", "folder or a device")
    (tmp_path / "link.nii").symlink_to(tmp_path / "none.nii")
    check_scan_refused(app, engine, tmp_path / "link.nii", "does not exist")
    for name in ("pair.hdr", "pair.img"):
        (tmp_path / name).write_bytes(bytes(348))
    check_scan_refused(app, engine, tmp_path / "pair.img", "img; convert the pair")


@pytest.mark.parametrize(("fields", "match"), rows_of(scans.test_headers_that_say_what_cannot_be), ids=str)
def test_headers_that_say_what_cannot_be(
    app: Path, engine: Path, tmp_path: Path, fields: dict[str, Any], match: str
) -> None:
    name = ("scan.nii", "scan.nii.gz")[len(match) % 2]
    check_scan_refused(app, engine, written(tmp_path, nifti(ct(), **fields), name), match)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"dim": [3, 20, 0, 16, 1, 1, 1, 1]}, "no side can be below 1"),
        ({"dim": [3, 20, -(2**62), 16, 1, 1, 1, 1]}, "no side can be below 1"),
        ({"dim": [3, 2048, 2048, 2048, 1, 1, 1, 1]}, "has 8,589,934,592 voxels"),
        ({"vox_offset": -1}, "vox_offset -1"),
        ({"vox_offset": 2**62}, "vox_offset 4.61169e"),
        ({"slope": 1e300}, "scl_slope 1e.300"),
        ({"xyzt_units": -1}, "in unit 7"),
        ({"quatern_b": 1 - 1e-9, "quatern_c": 1e-4, "sform_code": 0}, "no rotation"),
        ({"pixdim": [-1, 1.5, 0.75, 2.5, 0, 0, 0, 0]}, "sform and qform put a corner"),
    ],
    ids=str,
)
def test_headers_of_the_second_version(
    app: Path, engine: Path, tmp_path: Path, fields: dict[str, Any], match: str, order: str
) -> None:
    check_scan_refused(app, engine, written(tmp_path, nifti(ct(), version=2, order=order, **fields)), match)


@pytest.mark.parametrize("version", [1, 2])
def test_a_wrong_header_size(app: Path, engine: Path, tmp_path: Path, version: int) -> None:
    data = patched(nifti(ct(), version=version), 0, "<i", 349)
    check_scan_refused(app, engine, written(tmp_path, data), "neither 348 nor 540")


def test_sides_whose_product_no_number_holds(app: Path, engine: Path, tmp_path: Path) -> None:
    path = written(tmp_path, nifti(ct(), version=2, dim=[3, 2**62, 2**62, 2**62, 1, 1, 1, 1]))
    assert "more than the 536,870,912 that are taken" in refused(app, engine, path)


DATA = nifti(ct())


@pytest.mark.parametrize(
    ("raw", "match"),
    [
        (packed(DATA)[: len(packed(DATA)) // 2], "damaged or cut off"),
        (packed(DATA)[:-1], "damaged or cut off"),
        (packed(DATA)[:-8], "damaged or cut off"),
        (packed(DATA)[:30], "damaged or cut off"),
        (packed(DATA)[:-8] + b"abcd" + packed(DATA)[-4:], "CRC check failed"),
        (packed(DATA)[:-4] + b"abcd", "Incorrect length"),
        (packed(DATA) + b"x", "Not a gzipped file"),
        (packed(DATA) + bytes(3) + b"junk", "Not a gzipped file"),
        (packed(DATA) + b"\x1f\x8b", "damaged or cut off"),
        (packed(DATA) + packed(b"")[:-1], "damaged or cut off"),
        (packed(DATA) + b"\x1f\x8b\x07" + bytes(20), "Unknown compression method"),
        (packed(DATA) + packed(b"more"), "longer than its header"),
        (packed(DATA[:-1]), "ends before the 11,872 bytes"),
        (packed(DATA[:352]), "ends before the 11,872 bytes"),
        (packed(DATA[:348]), "ends before the 11,872 bytes"),
        (packed(DATA + b"\0"), "longer than its header"),
        (DATA[:-1], "ends before the 11,872 bytes"),
        (DATA[:352], "ends before the 11,872 bytes"),
        (DATA + b"\0", "longer than its header"),
        (patched(DATA, 46, "<h", 15), r"longer than its header \(20, 18, 15\)"),
        (patched(DATA, 46, "<h", 17), r"ends before the 12,592 bytes that its header \(20, 18, 17\)"),
    ],
    ids=range(21),
)
def test_damage(app: Path, engine: Path, tmp_path: Path, raw: bytes, match: str) -> None:
    path = tmp_path / ("scan.nii.gz" if raw[:2] == b"\x1f\x8b" else "scan.nii")
    path.write_bytes(raw)
    check_scan_refused(app, engine, path, match)


def test_a_gzip_bomb_is_not_inflated(engine: Path, tmp_path: Path) -> None:
    path = tmp_path / "scan.nii.gz"
    with gzip.open(path, "wb", compresslevel=1) as packer:
        packer.write(DATA)
        for _ in range(96):
            packer.write(bytes(1 << 20))

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (64 << 20, 64 << 20))

    # Sanitizers reserve more memory than this.
    found = segmented(built(sanitized=False), engine, path, tmp_path / "labels.nii", preexec_fn=limit)
    assert found.returncode == 2 and "longer than its header" in found.stderr


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e300])
@pytest.mark.parametrize("options", [(), ("--assume-hu",)], ids=str)
def test_values_that_are_no_numbers(
    app: Path, engine: Path, tmp_path: Path, value: float, options: tuple[str, ...]
) -> None:
    volume = ct().astype(np.float64)
    volume[3, 4, 5] = value
    check_scan_refused(app, engine, written(tmp_path, nifti(volume)), "NaN or infinity in 1 of 5,760", *options)


@pytest.mark.parametrize("value", [0, -1024, 40])
def test_a_constant_volume(app: Path, engine: Path, tmp_path: Path, value: int) -> None:
    path = written(tmp_path, nifti(np.full(scans.SHAPE, value, np.int16)))
    check_scan_refused(app, engine, path, f"holds {value} in every voxel")
    check_scan_refused(app, engine, path, f"holds {value} in every voxel", "--assume-hu")


@pytest.mark.parametrize("kind", scans.NOT_HOUNSFIELD)
def test_values_that_are_not_hounsfield_units(app: Path, engine: Path, tmp_path: Path, kind: str) -> None:
    path = written(tmp_path, nifti(scans.NOT_HOUNSFIELD[kind](scans.phantom().hu)))
    check_scan_refused(app, engine, path, "does not look like CT in HU")


def test_values_of_any_range_are_taken_on_request(app: Path, engine: Path, tmp_path: Path) -> None:
    path = written(tmp_path, nifti(scans.NOT_HOUNSFIELD["0 to 255"](scans.phantom().hu)))
    assert segmented(app, engine, path, tmp_path / "labels.nii", "--assume-hu").returncode == 0


def with_gzip_header(raw: bytes) -> bytes:
    """A gzip file with all that a header can hold, and flags that mean nothing, before what was packed."""
    extra = b"\5\0extra" + b"name\0" + b"comment\0" + b"??"
    return raw[:3] + b"\xff" + raw[4:10] + extra + raw[10:]


@pytest.mark.parametrize(
    ("name", "raw"),
    [
        ("scan.nii", nifti(ct()[..., None, None])),
        ("scan.nii", nifti(ct(), slope=0)),
        ("scan.nii", patched(nifti(ct(), sform_code=0), 76, "<f", 0)),
        ("scan.nii", nifti(ct(), xyzt_units=8)),
        ("scan.nii", patched(nifti(ct(), vox_offset=416)[:352], 348, "<i", 1) + bytes(64) + DATA[352:]),
        ("SCAN.NII.GZ", packed(DATA)),
        ("scan.nii.gz", packed(DATA[:1000]) + packed(b"") + packed(DATA[1000:]) + packed(b"")),
        ("scan.nii.gz", packed(DATA[:100]) + bytes(1000) + packed(DATA[100:]) + bytes(5)),
        ("scan.nii.gz", with_gzip_header(packed(DATA))),
    ],
    ids=range(9),
)
def test_what_is_unusual_and_right(app: Path, engine: Path, tmp_path: Path, name: str, raw: bytes) -> None:
    (tmp_path / name).write_bytes(raw)
    assert np.array_equal(read_scan(tmp_path / name).hu, ct())
    found = segmented(app, engine, tmp_path / name, tmp_path / "labels.nii")
    assert found.returncode == 0, found.stderr


# Any damage


def check_agreement(app: Path, engine: Path, scan: Path) -> bool:
    """Whether both take a scan, after it is clear that both do or neither."""
    words = words_of(lambda: read_scan(scan))
    if words is not None:
        assert refused(app, engine, scan).startswith(f"{scan}"), words
        return False
    found = segmented(app, engine, scan, scan.parent / "taken.nii")
    assert found.returncode == 0, found.stderr
    return True


@functools.cache
def headers() -> list[bytes]:
    """Scans of both versions and byte orders, whose affine is in one form or in two."""
    forms: list[dict[str, Any]] = [{}, {"sform_code": 0}, {"qform_code": 0}]
    return [
        nifti(ct(), version=version, order=order, **form) for version in (1, 2) for order in "<>" for form in forms
    ]  # fmt: skip


@pytest.mark.parametrize("seed", range(4))
def test_any_damage_of_a_header_is_answered_alike(app: Path, engine: Path, tmp_path: Path, seed: int) -> None:
    dice, taken = random.Random(seed), 0
    for _ in range(35):
        data = bytearray(dice.choice(headers()))
        size = 348 if data[:4] in (nifti(ct())[:4], nifti(ct(), order=">")[:4]) else 540
        for _ in range(dice.choice((1, 1, 2))):
            position = dice.randrange(size + 4)
            data[position] = data[position] ^ 1 << dice.randrange(8) if dice.random() < 0.5 else dice.randrange(256)
        taken += check_agreement(app, engine, written(tmp_path, bytes(data)))
    assert 5 <= taken <= 30


@pytest.mark.parametrize("seed", range(2))
def test_any_damage_of_a_packed_file_is_answered_alike(app: Path, engine: Path, tmp_path: Path, seed: int) -> None:
    dice, taken, path = random.Random(seed), 0, tmp_path / "scan.nii.gz"
    for _ in range(45):
        data = bytearray(packed(dice.choice(headers())))
        # The first bytes are gzip's header, where a flag that is set changes how the rest is read.
        data[dice.choice((dice.randrange(10), dice.randrange(len(data)), -1 - dice.randrange(8)))] ^= (
            1 << dice.randrange(8)
        )
        path.write_bytes(data)
        taken += check_agreement(app, engine, path)
    assert 2 <= taken <= 25


# Manifests


def check_manifest_refused(app: Path, engine: Path, folder: Path, match: str) -> None:
    """Both refuse an engine; of the words, those about the fact are the same."""
    words = words_of(lambda: verify_engine_bytes(engine))
    assert words is not None and re.search(match, words)
    found = refused(app, engine, written(folder, DATA))
    # What to do about a newer schema is another thing for an application.
    assert re.search(match.partition(".*")[0], found), found
    assert found.startswith(words.partition(": ")[0].partition(" ")[0]), (words, found)


@pytest.mark.parametrize(("path", "value", "reason"), rows_of(manifests.test_manifests_that_are_refused))
def test_manifests_that_are_refused(
    app: Path, engine: Path, tmp_path: Path, path: str, value: Any, reason: str
) -> None:
    facts = json.loads(sidecar_of(engine).read_text())
    facts["labels"], facts["checkpoint"]["num_classes"] = ["background", "liver", "prostate/uterus"], 3
    facts["engine"]["outputs"][0]["shape"][1] = 3
    facts["engine"]["profiles"] = [copy.deepcopy(manifests.ONNX["spatial"])]
    manifests.change(path, value)(facts)
    sidecar_of(engine).write_text(json.dumps(facts))
    check_manifest_refused(app, engine, tmp_path, reason)


@pytest.mark.parametrize(
    "raw",
    [
        *rows_of(manifests.test_files_that_are_no_manifests),
        b"{}" + b" " * SIDECAR_LIMIT_BYTES,
        b"\xef\xbb\xbf{}",
        b"{} {}",
        b'{"schema": 1,}',
        b'{"schema": -Infinity}',
        b'{"schema": 1e999}',
        b'{"schema": 01}',
        b'{"schema": ' + b"9" * 5000 + b"}",
        b'{"a": {"\\u00e9": 1, "\xc3\xa9": 2}}',
        b'{"schema": "\xed\xa0\x80"}',
        b'{"schema": "\n"}',
        b'{"schema": 1',
        b'{"schema": "\\ud8',
        b'{"schema": 1}\0',
    ],
)
def test_files_that_are_no_manifests(app: Path, engine: Path, tmp_path: Path, raw: bytes) -> None:
    sidecar_of(engine).write_bytes(raw)
    check_manifest_refused(app, engine, tmp_path, r"null\.engine\.json")


@pytest.mark.parametrize("key", ["normalization", "orientation"])
def test_rules_that_are_not_known(app: Path, engine: Path, tmp_path: Path, key: str) -> None:
    facts = json.loads(sidecar_of(engine).read_text())
    facts["preprocessing"][key] = "another"
    sidecar_of(engine).write_text(json.dumps(facts))
    assert f"preprocessing.{key}: 'another' is not known" in refused(app, engine, written(tmp_path, DATA))


def test_names_in_any_script(app: Path, engine: Path, tmp_path: Path) -> None:
    facts = json.loads(sidecar_of(engine).read_text())
    for name in ("Magen", "胃", "желудок", "e\u0301", "\N{STETHOSCOPE}", "m" * 400):
        facts["labels"][1] = name
        for ascii_only in (False, True):
            sidecar_of(engine).write_text(json.dumps(facts, ensure_ascii=ascii_only), encoding="utf-8")
            assert read_manifest(engine).labels[1] == name
            assert segmented(app, engine, written(tmp_path, DATA), tmp_path / "labels.nii").returncode == 0
    for name in ("a\u00a0b", "a\u200bb", "\ud800", "\u2028", "\ue000", "胃" * 401):
        facts["labels"][1] = name
        sidecar_of(engine).write_text(json.dumps(facts))
        check_manifest_refused(app, engine, tmp_path, r"labels\[1\]: expected a text of 1 to 400 printable characters")


@pytest.mark.parametrize("seed", range(2))
def test_any_damage_of_a_manifest_is_answered_alike(app: Path, engine: Path, tmp_path: Path, seed: int) -> None:
    dice, raw, scan = random.Random(seed), sidecar_of(engine).read_bytes(), written(tmp_path, DATA)
    inserted = [b"0", b"-", b".", b"e1", b'"', b",", b"\\", b"\xc3", b"[", b"{", b"null", b"\0", b" ", b"NaN"]
    for _ in range(40):
        data, position = bytearray(raw), dice.randrange(len(raw))
        if dice.random() < 0.5:
            data[position] ^= 1 << dice.randrange(8)
        else:
            data[position : position + dice.randrange(2)] = dice.choice(inserted)
        sidecar_of(engine).write_bytes(data)
        words = words_of(lambda: verify_engine_bytes(engine))
        found = segmented(app, engine, scan, tmp_path / "labels.nii")
        # Other rules and another output are valid, and refused later on.
        late = any(word in found.stderr for word in ("preprocessing.", "output", "outside the engine's range"))
        assert found.returncode == (2 if words is not None or late else 0), (bytes(data), words, found.stderr)


# Engines


@pytest.mark.parametrize("missing", ["engine", "manifest"])
def test_an_engine_without_manifest_and_a_manifest_without_engine(
    app: Path, engine: Path, tmp_path: Path, missing: str
) -> None:
    (engine if missing == "engine" else sidecar_of(engine)).unlink()
    check_manifest_refused(app, engine, tmp_path, "there is no engine file" if missing == "engine" else "no manifest")


@pytest.mark.parametrize("damage", ["flipped", "shorter", "longer", "empty"])
def test_damaged_engines(app: Path, engine: Path, tmp_path: Path, damage: str) -> None:
    raw = engine.read_bytes()
    changed = {"flipped": bytes([raw[0] ^ 1]) + raw[1:], "shorter": raw[:-1], "longer": raw + b"\0", "empty": b""}
    engine.write_bytes(changed[damage])
    match = "damaged or replaced" if damage == "flipped" else "cut off or another one"
    check_manifest_refused(app, engine, tmp_path, match)


@pytest.mark.parametrize("which", ["engine", "manifest", "folder"])
def test_what_everybody_can_write_is_refused(app: Path, engine: Path, tmp_path: Path, which: str) -> None:
    path = {"engine": engine, "manifest": sidecar_of(engine), "folder": engine.parent}[which]
    path.chmod(path.stat().st_mode | 0o002)
    words = words_of(lambda: verify_engine_bytes(engine))
    assert refused(app, engine, written(tmp_path, DATA)) == words


def test_a_shared_folder_with_the_sticky_bit_is_fine(app: Path, engine: Path, tmp_path: Path) -> None:
    engine.parent.chmod(0o1777)
    assert segmented(app, engine, written(tmp_path, DATA), tmp_path / "labels.nii").returncode == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
@pytest.mark.parametrize("which", ["engine", "manifest", "folder"])
def test_an_engine_of_another_user_is_refused(app: Path, engine: Path, tmp_path: Path, which: str) -> None:
    os.chown({"engine": engine, "manifest": sidecar_of(engine), "folder": engine.parent}[which], 12345, -1)
    words = words_of(lambda: verify_engine_bytes(engine))
    assert words is not None and "belongs to another user (uid 12345)" in words
    assert refused(app, engine, written(tmp_path, DATA)) == words


# Results


def test_a_disk_that_takes_no_more(app: Path, engine: Path, tmp_path: Path) -> None:
    scan, output = written(tmp_path, DATA), tmp_path / "output"
    output.mkdir()
    for target, before in ((output / "labels.nii", OLDER), (output / "new" / "folder" / "labels.nii", None)):
        if before is not None:
            target.write_bytes(before)

        def limit() -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))

        # Python ignores SIGXFSZ; a program that does gets an error instead of the signal.
        found = segmented(app, engine, scan, target, preexec_fn=limit, restore_signals=False)
        assert found.returncode == 3, found.stderr
        assert found.stderr == f"error: cannot write into {target.parent}: File too large\n"
        assert contents(output) == {"labels.nii": OLDER}


def test_a_folder_that_is_none(app: Path, engine: Path, tmp_path: Path) -> None:
    scan = written(tmp_path, DATA)
    found = segmented(app, engine, scan, scan / "labels.nii")
    assert found.returncode == 3 and f"cannot write into {scan}: " in found.stderr
    assert scan.read_bytes() == DATA


def test_a_folder_is_made_and_what_the_dead_left_is_swept(app: Path, engine: Path, tmp_path: Path) -> None:
    scan, output = written(tmp_path, DATA), tmp_path / "output"
    process = subprocess.Popen(["true"])
    process.wait()
    mine = f"{STAGING_PREFIX}{socket.gethostname()}-"
    stale = [output / f"{mine}{process.pid}-abc", output / f"{mine}{os.getpid()}-abc", output / f"{mine}x-abc"]
    for folder in stale:
        folder.mkdir(parents=True)
        (folder / "labels.nii").write_bytes(b"half")
    for target in (output / "labels.nii.gz", output / "new" / "labels.nii"):
        assert segmented(app, engine, scan, target, umask=0o027).returncode == 0
        assert stat.S_IMODE(target.stat().st_mode) == 0o640
    assert sorted(path.name for path in output.iterdir()) == sorted(
        [stale[1].name, stale[2].name, "labels.nii.gz", "new"]
    )


def test_the_same_labels_give_the_same_bytes(app: Path, engine: Path, tmp_path: Path) -> None:
    scan = written(tmp_path, DATA)
    first, second = tmp_path / "first.nii.gz", tmp_path / "second.NII.GZ"
    for target in (first, second, tmp_path / "plain.nii"):
        assert segmented(app, engine, scan, target).returncode == 0
    assert first.read_bytes() == second.read_bytes()
    assert gzip.decompress(first.read_bytes()) == (tmp_path / "plain.nii").read_bytes()
