"""The Python application of `engines/embed/python`: the labels of `predict` without any of the toolkit, or one line."""

from __future__ import annotations

import contextlib
import ctypes
import gzip
import importlib
import importlib.util
import json
import mmap
import random
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import nibabel
import numpy as np
import pytest
import tensorrt_rtx

from lhanet_export.engine.manifest import read_manifest
from lhanet_export.errors import RefusedInput
from lhanet_export.files import sidecar_of
from lhanet_export.predict.run import predict
from lhanet_export.predict.task import Prediction, Task
from lhanet_export.runners.base import Runner
from lhanet_export.runners.null import NullRunner
from lhanet_export.volume.clean import keep_largest
from lhanet_export.volume.read import read_scan
from tests.cpu.embed import null_engine
from tests.unit import test_manifest, test_volume_read
from tests.unit.test_predict import body, saved
from tests.unit.test_volume_read import NOT_HOUNSFIELD, ct, nifti, packed, patched, phantom, rotated, written

FOLDER = Path(__file__).parents[2] / "engines" / "embed" / "python"
ENGINE = b"no engine" * 100


@pytest.fixture(scope="module")
def segment() -> Iterator[ModuleType]:
    """`segment.py` as the module that it is for a program in its own folder; the names of its neighbours go again."""
    ours = {path.stem for path in FOLDER.glob("*.py")}
    assert not ours & set(sys.modules)
    sys.path.insert(0, str(FOLDER))
    try:
        spec = importlib.util.spec_from_file_location("segment", FOLDER / "segment.py")
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        yield module
    finally:
        sys.path.remove(str(FOLDER))
        for name in ours:
            sys.modules.pop(name, None)


def ran(segment: ModuleType, *arguments: object) -> int:
    return int(segment.main([str(argument) for argument in arguments]))


def refusal(segment: ModuleType, capsys: pytest.CaptureFixture[str], *arguments: object, code: int = 2) -> str:
    """What a command line that fails says on stderr: one line."""
    capsys.readouterr()
    assert ran(segment, *arguments) == code
    said = capsys.readouterr()
    assert said.out == "" and said.err.startswith("error: ") and said.err.count("\n") == 1
    return said.err


def expected(engine: Path, scan: Path, target: Path, runner: Runner | None = None, **options: Any) -> bytes:
    """The bytes of the file that `lhanet-export predict` writes."""
    manifest = read_manifest(engine)
    rules = {key: options.pop(key) for key in ("patch", "overlap", "blending") if key in options}
    (output,), batch = manifest.engine.outputs, manifest.engine.inputs[0].shape[0]
    how = Prediction(
        preprocessing=replace(manifest.preprocessing, **rules), batch=max(1, batch), fixed_batch=batch > 0, **options
    )
    with runner or NullRunner(len(manifest.labels), coarse=output.name == "coarse") as opened:
        (outcome,) = predict(opened, [Task(scan=scan, target=target)], manifest.labels, how)
    assert outcome.error is None, outcome.error
    return target.read_bytes()


TILT = np.array([[0, 0, -1.2, 90], [1.4, 0, 0, -120], [0, -2.5, 0, 33], [0, 0, 0, 1.0]])
CASES: list[tuple[str, dict[str, Any], dict[str, Any], Callable[[Path], Path]]] = [
    ("spacing kept", {}, {}, lambda folder: saved(folder / "scan.nii.gz", body((50, 41, 62)))),
    ("resampled, rotated", {}, {}, lambda folder: saved(folder / "scan.nii.gz", body((40, 60, 30)), rotated())),
    ("other order of axes", {"output": "coarse"}, {}, lambda folder: saved(folder / "s.nii", body((30, 40, 50)), TILT)),
    (
        "NIfTI-2, coarse", {"output": "coarse"}, {},
        lambda folder: saved(folder / "scan.nii.gz", body((61, 33, 80)), kind=nibabel.Nifti2Image),
    ),
    (
        "big-endian bytes with a slope", {}, {"overlap": 0.3},
        lambda folder: written(
            folder, nifti((body((33, 35, 37)) // 16).astype("i1"), order=">", slope=16, affine=rotated(3)), "scan.nii"
        ),
    ),
    (
        "floats, finer than the network", {"output": "coarse"}, {"overlap": 0.75},
        lambda folder: saved(folder / "scan.nii", body((70, 64, 50)) + np.float32(0.3), np.diag([-0.8, 0.9, 1.1, 1])),
    ),
    ("smaller than a window", {}, {"assume_hu": True}, lambda folder: saved(folder / "scan.nii.gz", body((9, 12, 2)))),
    (
        "one axis smaller, coarse", {"output": "coarse"}, {},
        lambda folder: saved(folder / "scan.nii.gz", body((20, 80, 90)), np.diag([2.5, 1.5, 0.9, 1])),
    ),
    (
        "batch 2, constant", {"batch": 2, "classes": 16}, {"blending": "constant"},
        lambda folder: saved(folder / "scan.nii.gz", body((50, 100, 52))),
    ),
    (
        "batch 3, coarse", {"batch": 3, "output": "coarse", "overlap": 0.25}, {"largest": True},
        lambda folder: saved(folder / "scan.nii", body((70, 70, 70)), np.diag([1.0, 1.0, 2.0, 1])),
    ),
    (
        "any batch, another patch", {"batch": None, "classes": 2}, {"patch": (17, 30, 21), "overlap": 0.0},
        lambda folder: saved(folder / "scan.nii.gz", body((45, 45, 45))),
    ),
    (
        "largest pieces of odd windows", {"patch": (19, 23, 31), "blending": "constant"}, {"largest": True},
        lambda folder: saved(folder / "scan.nii.gz", body((40, 50, 60)), np.diag([1.5, 1.2, 1.9, 1])),
    ),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "options", "scan"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_labels_are_those_of_predict_to_the_last_byte(
    segment: ModuleType, tmp_path: Path, kind: dict[str, Any], options: dict[str, Any], scan: Callable[[Path], Path]
) -> None:
    engine, source = null_engine(tmp_path / "engine", **kind), scan(tmp_path)
    target = tmp_path / f"labels{''.join(source.suffixes)}"
    flags = [f"--{'largest-component' if key == 'largest' else key.replace('_', '-')}" + (
        "" if value is True else "=" + ("x".join(map(str, value)) if isinstance(value, tuple) else str(value))
    ) for key, value in options.items()]  # fmt: skip
    assert ran(segment, "--null", *flags, engine, source, target) == 0
    found = target.read_bytes()
    assert found == expected(engine, source, target.with_name(f"expected {target.name}"), **options)
    labels = np.asarray(nibabel.load(target).dataobj)  # type: ignore[attr-defined]
    assert labels.shape == nibabel.load(source).shape and len(np.unique(labels)) > 1  # type: ignore[attr-defined]
    assert {path.name for path in tmp_path.iterdir()} == {source.name, "engine", target.name, f"expected {target.name}"}


def test_memory_holds_slices_of_scores_and_not_all(segment: ModuleType) -> None:
    how = {"overlap": 0.5, "blending": "gaussian", "blending_sigma_divisor": 4.0}
    for coarse in (False, True):
        axes = [segment.Axis(side, side, 16, 1 if coarse else 16, coarse, how) for side in (16, 16, 400)]
        blend, slices = segment.Blend(axes, 2), 0
        for row in range(len(axes[2].starts)):
            blend.add((0, 0, row), np.ones((2, 1, 1, 1) if coarse else (2, 16, 16, 16), np.float32))
            slices += sum(1 for _ in blend.finish(row))
            assert blend.sums.shape[-1] + len(blend.planes) <= 16 + 3
            assert slices == 400 if row == len(axes[2].starts) - 1 else slices <= 8 * (row + 1) + 8


def test_pieces_are_those_of_scipy(segment: ModuleType) -> None:
    dice = np.random.default_rng(0)
    for _ in range(60):
        shape = dice.integers(1, 12, 3)
        labels = ((dice.random(shape) < dice.choice([0.02, 0.1, 0.3])) * dice.integers(1, 4, shape)).astype(np.uint8)
        ours, theirs = labels.copy(), labels.T.copy(order="F")
        segment.keep_largest(ours)
        keep_largest(theirs)
        assert np.array_equal(ours, theirs.T)


def test_it_runs_without_the_toolkit_torch_and_scipy(tmp_path: Path) -> None:
    engine, scan = null_engine(tmp_path), saved(tmp_path / "scan.nii.gz", body((40, 40, 40)))
    # nibabel imports scipy where it finds it, so here nothing is found.
    code = (
        "import sys\nfor name in ('scipy', 'torch', 'lhanet_export', 'click', 'cuda'): sys.modules[name] = None\n"
        f"sys.path.insert(0, {str(FOLDER)!r})\nimport segment\n"
        f"assert segment.main(['--null', {str(engine)!r}, {str(scan)!r}, {str(tmp_path / 'labels.nii')!r}]) == 0\n"
        "assert 'tensorrt_rtx' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "labels.nii").exists()


# Scans


def judged(segment: ModuleType, path: Path, assume_hu: bool = False) -> str | None:
    """Why a scan is refused, None if it is not; the answer has to be the one of `read_scan`."""
    try:
        read_scan(path, assume_hu=assume_hu)
        refused = False
    except RefusedInput:
        refused = True
    try:
        with segment.opened(path) as stream:
            header = segment.read_header(path, stream)
            planes = np.stack(list(segment.planes_of(path, header, stream, assume_hu)))
    except segment.Refused as error:
        assert refused, f"{error}, but read_scan takes it"
        assert str(path) in str(error) and "\n" not in str(error) and len(str(error)) < 400
        return str(error)
    assert not refused, "read_scan refuses it"
    assert np.array_equal(planes.T, read_scan(path, assume_hu=assume_hu).hu)
    assert header.spacing == read_scan(path, assume_hu=assume_hu).spacing_mm
    return None


def rows_of(test: Any) -> Any:
    """The rows that a parametrized test of another file is run with."""
    return test.pytestmark[0].args[1]


def test_files_that_are_something_else(segment: ModuleType, tmp_path: Path) -> None:
    said = set()
    for name, content, _ in rows_of(test_volume_read.test_files_that_are_something_else):
        path = tmp_path / name
        path.write_bytes(content)
        said.add(str(judged(segment, path)).replace(name, ""))
        path.unlink()
    said |= {judged(segment, tmp_path / "none.nii.gz"), judged(segment, tmp_path)}
    assert None not in said and len(said) >= 10


@pytest.mark.parametrize("name", ["scan.nii", "scan.nii.gz"])
def test_headers_that_say_what_cannot_be(segment: ModuleType, tmp_path: Path, name: str) -> None:
    for fields, _ in rows_of(test_volume_read.test_headers_that_say_what_cannot_be):
        assert judged(segment, written(tmp_path, nifti(ct(), **fields), name)) is not None, fields


def test_any_byte_of_a_header_gets_the_same_answer(segment: ModuleType, tmp_path: Path) -> None:
    data, dice = nifti(ct()), random.Random(3)
    answers = [
        judged(segment, written(tmp_path, patched(data, position, "<B", dice.randrange(256))))
        for position in range(352)
    ]
    assert 50 < answers.count(None) < 300


def test_what_is_damaged_cut_off_or_too_long(segment: ModuleType, tmp_path: Path) -> None:
    data, path = nifti(ct()), tmp_path / "scan.nii.gz"
    for content in (data[:-1], data[:352], data[:400], data + b"\0", patched(data, 46, "<h", 15)):
        assert judged(segment, written(tmp_path, content)) and judged(segment, written(tmp_path, content, path.name))
    whole = packed(data)
    for content in (whole[:-1], whole[:-8], whole[: len(whole) // 2], whole + b"x", whole + whole):
        path.write_bytes(content)
        assert judged(segment, path)
    dice = random.Random(0)
    for _ in range(40):
        damaged = bytearray(whole)
        damaged[dice.randrange(10, len(whole))] ^= 1 << dice.randrange(8)
        path.write_bytes(damaged)
        assert judged(segment, path)
    path.write_bytes(packed(data[:1000]) + packed(data[1000:]) + bytes(8))
    assert judged(segment, path) is None


@pytest.mark.parametrize("version", [1, 2])
def test_what_is_taken(segment: ModuleType, tmp_path: Path, version: int) -> None:
    longer = nifti(ct(), vox_offset=416)
    for data in (
        nifti(ct(), version=version, order=">", qform_code=0), nifti(ct(), version=version, sform_code=0),
        nifti(ct()[..., None, None], version=version), nifti(ct(), version=version, slope=0, xyzt_units=0),
        patched(nifti(ct(), sform_code=0), 76, "<f", 0), longer[:352] + bytes(64) + longer[352:],
    ):  # fmt: skip
        assert judged(segment, written(tmp_path, data)) is None
    for dtype in ("i4", "i8", "f4", "f8"):
        assert judged(segment, written(tmp_path, nifti(ct().astype(dtype), version=version), "scan.nii.gz")) is None


def test_values_that_are_no_hounsfield_units(segment: ModuleType, tmp_path: Path) -> None:
    for make in NOT_HOUNSFIELD.values():
        path = written(tmp_path, nifti(make(phantom().hu)))
        assert "does not look like CT" in str(judged(segment, path))
        assert judged(segment, path, assume_hu=True) is None
    for value in (float("nan"), float("inf"), 1e300):
        volume = ct().astype(np.float64)
        volume[3, 4, 5] = value
        assert "NaN or infinity in 1 voxels" in str(judged(segment, written(tmp_path, nifti(volume)), assume_hu=True))
    flat = written(tmp_path, nifti(np.full((5, 5, 5), 40, np.int16)))
    assert "holds 40 in every voxel" in str(judged(segment, flat, assume_hu=True))


def test_a_gzip_bomb_is_not_unpacked(
    segment: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = null_engine(tmp_path / "engine")
    bomb = written(tmp_path, nifti(ct()) + bytes(1 << 24), "bomb.nii.gz")
    taken = []
    whole = gzip.GzipFile.read
    monkeypatch.setattr(gzip.GzipFile, "read", lambda self, size: taken.append(size) or whole(self, size))
    assert "longer than its header" in refusal(segment, capsys, "--null", engine, bomb, tmp_path / "labels.nii")
    assert sum(taken) < 2 * len(nifti(ct())) + 1000
    monkeypatch.undo()
    large = written(tmp_path, nifti(ct(), dim=[3, 32767, 32767, 32767, 1, 1, 1, 1]))
    assert "35,181,150,961,663 voxels" in refusal(segment, capsys, "--null", engine, large, tmp_path / "labels.nii")


# Manifests and engines


#: Rows that read_manifest refuses and this program does not: it passes over what it has no use for.
PASSED_OVER = ("extra", "engine.profiles.0.extra", "engine.file", "engine.device_memory.weights_bytes", "onnx.opset",
    "checkpoint.sha256", "checkpoint.preset", "checkpoint.num_classes", "verification", "build.seconds")  # fmt: skip


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    return null_engine(tmp_path / "engine")


def test_manifests_that_are_refused(segment: ModuleType, engine: Path) -> None:
    facts, answers = json.loads(sidecar_of(engine).read_bytes()), []
    for path, value, _ in rows_of(test_manifest.test_manifests_that_are_refused):
        if path in PASSED_OVER or value in ("../liver", "/liver", "-rf"):
            continue
        changed = json.loads(json.dumps(facts))
        test_manifest.change(path, value)(changed)
        sidecar_of(engine).write_text(json.dumps(changed))
        try:
            pytest.fail(f"{path} = {value!r} is taken: {len(segment.read_manifest(engine))}")
        except segment.Refused as error:
            answers.append(str(error))
    assert len(answers) > 25 and max(map(len, answers)) < 400 + len(str(engine))
    for raw in (
        b"",
        b"{",
        b"[]",
        b"\xff",
        b'{"schema": 1, "schema": 1}',
        b'{"schema": NaN}',
        b"[" * 9999,
        bytes(1 << 21),
    ):
        sidecar_of(engine).write_bytes(raw)
        with pytest.raises(segment.Refused, match=r"null\.engine\.json"):
            segment.read_manifest(engine)
    sidecar_of(engine).unlink()
    with pytest.raises(segment.Refused, match=r"no file .*null\.engine\.json"):
        segment.read_manifest(engine)


def test_what_this_program_needs_of_a_manifest(segment: ModuleType, engine: Path) -> None:
    facts = json.loads(sidecar_of(engine).read_bytes())
    for path, value in [
        ("preprocessing.normalization", "min-max"), ("preprocessing.orientation", "RAS"),
        ("engine.outputs.0.shape", [1, 4]),
        ("engine.outputs", facts["engine"]["outputs"] * 2), ("engine.outputs.0.name", "labels"), ("labels", ["a"]),
        ("labels", [f"class {index}" for index in range(257)]), ("preprocessing.overlap", 0.96), ("engine.bytes", True),
        ("preprocessing.blending", "mean"), ("preprocessing.patch", [0, 1, 1]), ("preprocessing.spacing_mm", [1, 1]),
    ]:  # fmt: skip
        changed = json.loads(json.dumps(facts))
        test_manifest.change(path, value)(changed)
        sidecar_of(engine).write_text(json.dumps(changed))
        with pytest.raises(segment.Refused):
            segment.read_manifest(engine)


def test_engines_that_are_refused(segment: ModuleType, engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(match: str) -> None:
        with pytest.raises(segment.Refused, match=match):
            segment.engine_bytes(engine, segment.read_manifest(engine))

    assert segment.engine_bytes(engine, segment.read_manifest(engine)) == ENGINE
    for raw in (b"", ENGINE[:-1], ENGINE + b"\0", ENGINE[:-1] + b"\0"):
        engine.write_bytes(raw)
        answer("not the file that its manifest describes")
    engine.write_bytes(ENGINE)
    for path in (engine, sidecar_of(engine), engine.parent):
        mode = path.stat().st_mode
        path.chmod(mode | 0o002)
        answer("everybody on this machine can write")
        path.chmod(mode)
    engine.parent.chmod(0o1777)
    assert segment.engine_bytes(engine, segment.read_manifest(engine)) == ENGINE
    owner = engine.stat().st_uid
    monkeypatch.setattr("os.geteuid", lambda: owner + 1)
    if owner:
        answer("belongs to another user")


def test_windows_that_no_profile_serves(segment: ModuleType, engine: Path) -> None:
    facts = segment.read_manifest(engine)
    one = {"min": [8, 8, 8], "opt": [8, 8, 8], "max": [16, 16, 16]}
    facts["engine"]["profiles"] = [one, one | {"max": [32, 16, 64]}, one | {"max": [64, 64, 64]}]
    assert [segment.profile_of(engine, facts, size) for size in ((16, 16, 16), (17, 16, 64), (17, 17, 8))] == [0, 1, 2]
    with pytest.raises(segment.Refused, match="8x8x65 are outside"):
        segment.profile_of(engine, facts, (8, 8, 65))


# Exit codes


def test_command_lines_that_are_refused(
    segment: ModuleType, engine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scan, target = saved(tmp_path / "scan.nii.gz", body((20, 20, 20))), tmp_path / "labels.nii.gz"
    before = scan.read_bytes()
    (tmp_path / "folder.nii").mkdir()
    for arguments, word in [
        ([engine, scan], "required"), ([engine, scan, target, "more"], "unrecognized"), (["--largest"], "required"),
        (["--patch=64", engine, scan, target], "not a size"), (["--patch=0x1x1", engine, scan, target], "0x1x1"),
        (["--overlap=nan", engine, scan, target], "nan"), (["--overlap=1", engine, scan, target], "no share"),
        (["--blending=mean", engine, scan, target], "mean"), ([engine, scan, tmp_path / "labels.mha"], "ends in .nii"),
        ([engine, scan, tmp_path / "folder.nii"], "not a regular file"), ([engine, scan, scan], "is an input"),
        ([engine, tmp_path / "none.nii", target], "does not exist"), ([scan, scan, target], "no file"),
        ([engine, "two\nlines.nii", target], "two?lines"),
    ]:  # fmt: skip
        assert word in refusal(segment, capsys, "--null", *arguments)
    assert scan.read_bytes() == before and not target.exists()
    sidecar = json.loads(sidecar_of(engine).read_bytes())
    sidecar["engine"]["outputs"][0]["name"] = "labels"
    sidecar_of(engine).write_text(json.dumps(sidecar))
    assert "export it with --output coarse" in refusal(segment, capsys, "--null", engine, scan, target)


class Odd:
    """An engine whose scores are what `make` says of windows."""

    batch, scores_shape = 1, (2, 8, 8, 8)

    def __init__(self, make: Callable[[np.ndarray], Any]) -> None:
        self._make, self._windows = make, np.zeros((2, 1, 1, 8, 8, 8), np.float32)

    def windows(self, slot: int) -> np.ndarray:
        return self._windows[slot]

    def start(self, slot: int) -> None:
        pass

    def wait(self, slot: int) -> np.ndarray:
        return np.full((1, 2, 8, 8, 8), self._make(self._windows[slot]), np.float32)


@pytest.mark.parametrize(
    "value", [0.0, 3.5, float("nan"), float("inf"), lambda windows: np.where(windows > 2, -np.inf, 0)]
)
def test_scores_that_no_labels_are_made_of(segment: ModuleType, tmp_path: Path, value: Any) -> None:
    scan = saved(tmp_path / "scan.nii.gz", body((20, 20, 20)))
    how = {
        "spacing_mm": [1.5, 1.5, 1.5], "clip_hu": [-200, 300], "patch": [8, 8, 8], "overlap": 0.5,
        "blending": "constant", "blending_sigma_divisor": 4,
    }  # fmt: skip
    made = value if callable(value) else lambda windows: value
    match = (
        "same scores everywhere in .*scan.nii.gz; the engine is broken" if value in (0.0, 3.5) else "NaN or infinity"
    )
    with pytest.raises(segment.Refused, match=match):
        segment.segment(scan, Odd(made), how, False, lambda *_: None)
    # Classes that differ are enough, and so is one window of one voxel.
    segment.segment(scan, Odd(lambda windows: windows), how, False, lambda *_: None)


def test_nothing_half_written_is_left(
    segment: ModuleType,
    engine: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    scan, target = saved(tmp_path / "scan.nii.gz", body((40, 40, 40))), folder / "labels.nii.gz"
    target.write_bytes(b"what was there")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    for name in ("os.fsync", "os.replace"):
        monkeypatch.setattr(name, full)
        assert "No space left" in refusal(segment, capsys, "--null", engine, scan, target, code=3)
        monkeypatch.undo()
        assert [path.name for path in folder.iterdir()] == [target.name] and target.read_bytes() == b"what was there"
    assert "cannot write" in refusal(segment, capsys, "--null", engine, scan, scan / "none" / "l.nii", code=3)
    assert ran(segment, "--null", engine, scan, tmp_path / "new" / "labels.nii") == 0


def test_exit_codes_of_the_command_line(engine: Path, tmp_path: Path) -> None:
    scan = saved(tmp_path / "scan.nii.gz", body((20, 20, 20)))

    def run(*arguments: object) -> tuple[int, str]:
        command = [sys.executable, FOLDER / "segment.py", *arguments]
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
        return done.returncode, done.stderr

    assert run("--null", engine, scan, tmp_path / "labels.nii.gz") == (0, "")
    code, said = run("--null", engine, tmp_path / "no.nii", tmp_path / "other.nii")
    assert code == 2 and said == f"error: {tmp_path / 'no.nii'} does not exist\n"
    start = time.perf_counter()
    code, said = run(engine, scan, tmp_path / "other.nii")
    assert time.perf_counter() - start < 2
    assert code == 3 if "NVIDIA GPU is needed" in said else code in (2, 3)
    assert said.startswith("error: ") and said.count("\n") == 1 and not (tmp_path / "other.nii").exists()


# The GPU, as stand-ins for the driver and for TensorRT


class Driver:
    """A CUDA driver whose streams do nothing before somebody waits, and then what they may, in an order by chance.

    A missing wait between streams shows as a wrong result for some `seed`. Its functions are C functions, so that what
    ctypes makes of their arguments is part of the test. Memory of the GPU is the host's.
    """

    def __init__(self, calls: list[str], seed: int = 0, capability: tuple[int, int] = (8, 6)) -> None:
        self.calls, self.chance = calls, random.Random(seed)
        self.faults: dict[str, int] = {}
        self.capability = capability
        self.memory: dict[int, Any] = {}
        self._handles = count(0x7FFF_0000_1000)
        self.lines: dict[int, list[Callable[[], bool]]] = {}
        self._marks: dict[int, int] = {}
        self._happened: set[int] = set()
        self._numbers = count(1)

    def function(self, name: str, types: tuple[Any, ...]) -> None:
        """Make a function of the driver; pointers arrive as addresses."""
        plain = {ctypes.c_int, ctypes.c_uint, ctypes.c_uint64, ctypes.c_size_t, ctypes.c_void_p}
        kinds = [kind if kind in plain else ctypes.c_void_p for kind in types]

        def called(*arguments: Any) -> int:
            self.calls.append(name)
            return self.faults.get(name) or getattr(self, f"_{name}", lambda *_: 0)(*arguments) or 0

        setattr(self, name, ctypes.CFUNCTYPE(ctypes.c_int, *kinds)(called))

    @staticmethod
    def _put(address: int, kind: Any, value: int) -> None:
        ctypes.cast(address, ctypes.POINTER(kind))[0] = value

    def _cuGetErrorName(self, code: int, name: int) -> None:
        word = {2: b"CUDA_ERROR_OUT_OF_MEMORY", 700: b"CUDA_ERROR_ILLEGAL_ADDRESS"}[code]
        ctypes.cast(name, ctypes.POINTER(ctypes.c_char_p))[0] = word

    def _cuDeviceGetName(self, name: int, size: int, device: int) -> None:
        ctypes.memmove(name, b"Stand-in\0", 9)

    def _cuDeviceGetAttribute(self, value: int, attribute: int, device: int) -> None:
        self._put(value, ctypes.c_int, self.capability[attribute - 75])

    def _new(self, address: int, *_: int) -> None:
        self._put(address, ctypes.c_void_p, next(self._handles))

    _cuDevicePrimaryCtxRetain = _cuEventCreate = _new

    def _cuStreamCreate(self, address: int, flags: int) -> None:
        assert flags == 1
        self._new(address)
        self.lines[ctypes.cast(address, ctypes.POINTER(ctypes.c_void_p))[0]] = []

    def _cuMemAlloc_v2(self, address: int, size: int, *_: int) -> None:
        memory = (ctypes.c_char * size)(*([b"\xff"] * 0))
        self.memory[ctypes.addressof(memory)] = memory
        self._put(address, ctypes.c_uint64, ctypes.addressof(memory))

    _cuMemHostAlloc = _cuMemAlloc_v2

    def _free(self, address: int) -> int:
        return 0 if self.memory.pop(address, None) is not None else 1

    _cuMemFree_v2 = _cuMemFreeHost = _free

    def _copy(self, target: int, source: int, size: int, stream: int) -> None:
        assert len(self.memory[target]) == len(self.memory[source]) == size
        self.put(stream, lambda: bool(ctypes.memmove(target, source, size)))

    _cuMemcpyHtoDAsync_v2 = _cuMemcpyDtoDAsync_v2 = _cuMemcpyDtoHAsync_v2 = _copy

    def put(self, stream: int, work: Callable[[], bool]) -> None:
        """Put work in line; what it gives says whether it is done."""
        self.lines[stream].append(work)

    def _cuEventRecord(self, event: int, stream: int) -> None:
        number = self._marks[event] = next(self._numbers)
        self.put(stream, lambda: self._happened.add(number) is None)

    def _cuStreamWaitEvent(self, stream: int, event: int, flags: int) -> None:
        if (number := self._marks.get(event)) is not None:
            self.put(stream, lambda: number in self._happened)

    def _cuEventSynchronize(self, event: int) -> None:
        while self._marks[event] not in self._happened:
            line = self.chance.choice([line for line in self.lines.values() if line])
            if line[0]():
                line.pop(0)

    def _cuCtxSynchronize(self) -> None:
        while any(self.lines.values()):
            line = self.chance.choice([line for line in self.lines.values() if line])
            if line[0]():
                line.pop(0)


class FakeTensorRT(ModuleType):
    """As much of TensorRT-RTX as the application uses; the engine computes `rule` of float32 windows (N,1,D,H,W)."""

    __version__ = "1.7.1.116"
    CudaGraphStrategy = SimpleNamespace(WHOLE_GRAPH_CAPTURE="whole")

    class ILogger:
        """The base of loggers."""

        INTERNAL_ERROR, ERROR, WARNING = range(3)

    def __init__(self, driver: Driver, rule: Callable[[np.ndarray], np.ndarray], **faults: Any) -> None:
        super().__init__("tensorrt_rtx")
        self.driver, self.rule, self.calls, self.faults = driver, rule, driver.calls, faults
        self.types = {"image": "FLOAT", "logits": "FLOAT"} | faults.get("types", {})
        self.addresses: dict[str, int] = {}
        self.shape: tuple[int, ...] = ()
        self.cached = b""

    def said(self, name: str, found: Any) -> Any:
        self.calls.append(name)
        if name in self.faults:
            self.logger.log(self.ILogger.ERROR, self.faults[name])
            return False if found is True else None
        return found

    def Runtime(self, logger: Any) -> Any:
        self.logger = logger
        return SimpleNamespace(deserialize_cuda_engine=self._deserialize)

    def _deserialize(self, raw: bytes) -> Any:
        assert raw == ENGINE
        config = SimpleNamespace(
            create_runtime_cache=lambda: SimpleNamespace(
                deserialize=self._take, serialize=lambda: memoryview(b"kernels" + b"+" * self.calls.count("execute"))
            ),
            set_runtime_cache=lambda cache: True,
        )

        def context(given: Any) -> Any:
            assert given is config and config.cuda_graph_strategy == "whole"
            return self.said("context", SimpleNamespace(
                set_optimization_profile_async=lambda profile, stream: self.said(f"profile {profile}", True),
                set_input_shape=lambda name, shape: self.said("shape", setattr(self, "shape", shape) is None),
                get_tensor_shape=lambda name: self.rule(np.zeros(self.shape, np.float32)).shape,
                set_tensor_address=lambda name, at: self.said("address", not self.addresses.update({name: at})),
                execute_async_v3=self._execute,
            ))  # fmt: skip

        return self.said("deserialize", SimpleNamespace(
            create_runtime_config=lambda: config, create_execution_context=context,
            get_tensor_dtype=lambda name: SimpleNamespace(name=self.types[name]),
        ))  # fmt: skip

    def _take(self, kernels: bytes) -> bool:
        self.cached = kernels
        return False

    def _execute(self, stream: int) -> bool:
        if not self.said("execute", True):
            return False
        image, logits = (self.driver.memory[self.addresses[name]] for name in ("image", "logits"))
        kinds = {"FLOAT": np.float32, "HALF": np.float16}

        def work() -> bool:
            windows = np.frombuffer(image, kinds[self.types["image"]]).reshape(self.shape).astype(np.float32)
            logits[:] = self.rule(windows).astype(kinds[self.types["logits"]]).tobytes()
            return True

        self.driver.put(stream, work)
        return True


@pytest.fixture
def gpu(segment: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Callable[..., FakeTensorRT]:
    """Puts a stand-in GPU and TensorRT into this process; what is called is written down in `calls`."""

    def make(seed: int = 0, rule: Any = None, capability: tuple[int, int] = (8, 6), **faults: Any) -> FakeTensorRT:
        driver_module = sys.modules["cuda_driver"]
        driver = Driver([], seed, capability)
        for name, types in driver_module.FUNCTIONS.items():  # type: ignore[attr-defined]
            driver.function(name, types)
        trt = FakeTensorRT(driver, rule or NullRunner(4, coarse=False).infer, **faults)
        monkeypatch.setattr(driver_module.ctypes, "CDLL", lambda name: driver)  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "tensorrt_rtx", trt)
        return trt

    return make


@pytest.mark.parametrize("seed", range(8))
def test_a_scan_through_the_gpu(
    segment: ModuleType, tmp_path: Path, gpu: Callable[..., FakeTensorRT], seed: int
) -> None:
    engine = null_engine(tmp_path / "engine", batch=1 + seed % 2, patch=(16, 16, 16))
    scan, trt = saved(tmp_path / "scan.nii.gz", body((33, 35, 40))), gpu(seed)
    assert ran(segment, engine, scan, tmp_path / "labels.nii") == 0
    assert (tmp_path / "labels.nii").read_bytes() == expected(engine, scan, tmp_path / "expected.nii")
    calls = trt.calls
    assert calls.index("deserialize") < calls.index("context") < calls.index("shape") < calls.index("execute")
    assert calls.count("execute") > 30
    first = calls.index("execute")
    assert not any("Alloc" in call or "Create" in call or call in ("address", "shape") for call in calls[first:])
    assert (calls.count("cuMemAlloc_v2"), calls.count("cuMemHostAlloc"), calls.count("cuStreamCreate")) == (4, 4, 3)
    assert trt.driver.memory == {} and calls[-1] == "cuDevicePrimaryCtxRelease_v2"
    assert calls.count("cuEventCreate") == calls.count("cuEventDestroy_v2") == 5


def test_the_order_in_which_a_batch_passes(segment: ModuleType, engine: Path, gpu: Callable[..., FakeTensorRT]) -> None:
    trt = gpu(rule=lambda windows: np.concatenate([2 * windows] * 4, 1), types={"image": "HALF", "logits": "HALF"})
    facts = json.loads(sidecar_of(engine).read_bytes())
    for tensor in (*facts["engine"]["inputs"], *facts["engine"]["outputs"]):
        tensor["dtype"] = "float16"
    sidecar_of(engine).write_text(json.dumps(facts))
    image = np.random.default_rng(0).integers(-8, 8, (3, 1, 1, 8, 8, 8)).astype(np.float32)
    with segment.open_engine(engine, segment.read_manifest(engine), (8, 8, 8), False) as opened:
        assert opened.windows(0).dtype == np.float16 and opened.scores_shape == (4, 8, 8, 8)
        trt.calls.clear()
        opened.windows(0)[:] = image[0]
        opened.start(0)
        assert trt.calls == [
            "cuStreamWaitEvent", "cuMemcpyHtoDAsync_v2", "cuEventRecord",
            "cuStreamWaitEvent", "cuMemcpyDtoDAsync_v2", "cuEventRecord", "execute",
            "cuStreamWaitEvent", "cuMemcpyDtoDAsync_v2", "cuEventRecord",
            "cuStreamWaitEvent", "cuMemcpyDtoHAsync_v2", "cuEventRecord",
        ]  # fmt: skip
        opened.windows(1)[:] = image[1]
        opened.start(1)
        assert np.array_equal(opened.wait(0)[:, :1], 2 * image[0])
        opened.windows(0)[:] = image[2]
        opened.start(0)
        assert np.array_equal(opened.wait(1)[:, 3:], 2 * image[1])
        assert np.array_equal(opened.wait(0)[:, :1], 2 * image[2])


def test_kernels_are_kept_beside_the_engine(
    segment: ModuleType, engine: Path, gpu: Callable[..., FakeTensorRT]
) -> None:
    cache = engine.with_name("null.engine.cache")
    facts = segment.read_manifest(engine)

    def opened() -> bytes:
        trt = gpu()
        with segment.open_engine(engine, facts, (8, 8, 8), False) as one:
            one.start(0)
        return trt.cached

    assert opened() == b"" and cache.read_bytes() == b"kernels+"
    assert opened() == b"kernels+"
    cache.chmod(0o666)
    assert opened() == b""
    cache.unlink()
    with pytest.raises(segment.Lacks), segment.open_engine(engine, facts, (8, 8, 8), False):
        raise segment.Lacks("a failure in between")
    assert not cache.exists()
    cache.mkdir()
    assert opened() == b""
    assert sorted(path.name for path in engine.parent.iterdir()) == [
        "null.engine",
        "null.engine.cache",
        "null.engine.json",
    ]


def test_engines_that_the_gpu_cannot_run(
    segment: ModuleType, engine: Path, tmp_path: Path, gpu: Callable[..., FakeTensorRT],
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    scan, target = saved(tmp_path / "scan.nii.gz", body((20, 20, 20))), tmp_path / "labels.nii"

    def answer(code: int) -> str:
        said = refusal(segment, capsys, engine, scan, target, code=code)
        assert not target.exists()
        return said

    trt = gpu(capability=(9, 0))
    assert "built for compute capability 8.6; this GPU, Stand-in, has 9.0. Build it again" in answer(2)
    assert "deserialize" not in trt.calls
    trt = gpu()
    trt.__version__ = "1.8.0"
    assert "built with tensorrt-rtx 1.7.1.116, installed is 1.8.0" in answer(2)
    assert "deserialize" not in trt.calls
    for faults, code, words in [
        ({"deserialize": "bad magic"}, 2, "could not deserialize the engine .*: bad magic"),
        ({"context": "CUDA out of memory"}, 3, "could not create an execution context .*: CUDA out of memory"),
        ({"shape": "outside"}, 2, "could not take the shape .*: outside"),
        ({"execute": "launch failed"}, 3, "could not run .*: launch failed"),
        ({"types": {"image": "HALF"}}, 2, "'image' is HALF, not what its manifest says"),
        ({"rule": lambda windows: windows}, 2, "gives 1 classes"),
        ({"rule": lambda windows: windows[0]}, 2, "gives scores of shape"),
    ]:
        gpu(**faults)
        said = answer(code)
        assert re.search(words, said), said
    for name, number, words in [
        ("cuMemAlloc_v2", 2, "not enough memory on Stand-in.*cuMemAlloc_v2: CUDA_ERROR_OUT_OF_MEMORY"),
        ("cuMemHostAlloc", 2, "not enough memory"),
        ("cuEventSynchronize", 700, "cuEventSynchronize says CUDA_ERROR_ILLEGAL_ADDRESS"),
    ]:
        gpu().driver.faults[name] = number
        said = answer(3)
        assert re.search(words, said), said
    # An engine that was damaged does not get as far as the driver.
    trt = gpu()
    engine.write_bytes(ENGINE[:-1] + b"\0")
    assert "damaged or replaced" in answer(2) and trt.calls == []
    engine.write_bytes(ENGINE)
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    assert "pip install tensorrt-rtx==1.7.1.116" in answer(3)


def test_the_second_profile_is_switched_to(segment: ModuleType, engine: Path, gpu: Callable[..., FakeTensorRT]) -> None:
    facts = segment.read_manifest(engine)
    facts["engine"]["profiles"].insert(0, {"min": [9, 9, 9], "opt": [9, 9, 9], "max": [9, 9, 9]})
    trt = gpu()
    with segment.open_engine(engine, facts, (8, 8, 8), False):
        assert "profile 1" in trt.calls


def test_no_driver_is_said(segment: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    driver_module: Any = sys.modules["cuda_driver"]
    monkeypatch.setattr(driver_module.ctypes, "CDLL", missing)
    with pytest.raises(segment.Lacks, match="an NVIDIA GPU is needed, and there is no driver"):
        segment.Cuda()


def test_every_function_of_the_driver_is_one() -> None:
    """TensorRT-RTX asks the driver for its functions by name, versions apart, so its library holds their names."""
    text = (FOLDER / "cuda_driver.py").read_text()
    names = {line.split('"')[1] for line in text.splitlines() if line.startswith('    "cu')}
    called = set(re.findall(r'"(cu[A-Z]\w+)"', text + (FOLDER / "tensorrt_engine.py").read_text()))
    called.add("cuGetErrorName")
    assert names == called and len(names) == 23
    spec = importlib.util.find_spec("tensorrt_rtx_libs")
    assert spec is not None and spec.submodule_search_locations
    (library,) = Path(next(iter(spec.submodule_search_locations))).glob("libtensorrt_rtx.so*")
    with (
        library.open("rb") as file,
        contextlib.closing(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)) as content,
    ):
        for name in names:
            assert content.find(name.removesuffix("_v2").encode() + b"\0") >= 0, name


def test_every_name_is_one_of_tensorrts() -> None:
    engine, context, config = tensorrt_rtx.ICudaEngine, tensorrt_rtx.IExecutionContext, tensorrt_rtx.IRuntimeConfig
    text = (FOLDER / "tensorrt_engine.py").read_text()
    for holder, names in [
        (tensorrt_rtx.Runtime, ["deserialize_cuda_engine"]),
        (engine, ["create_runtime_config", "create_execution_context", "get_tensor_dtype"]),
        (config, ["cuda_graph_strategy", "create_runtime_cache", "set_runtime_cache"]),
        (tensorrt_rtx.IRuntimeCache, ["serialize", "deserialize"]),
        (context, ["set_optimization_profile_async", "set_input_shape", "get_tensor_shape", "set_tensor_address",
                   "execute_async_v3"]),
        (tensorrt_rtx.CudaGraphStrategy, ["WHOLE_GRAPH_CAPTURE"]), (tensorrt_rtx.ILogger, ["ERROR", "INTERNAL_ERROR"]),
    ]:  # fmt: skip
        for name in names:
            assert hasattr(holder, name) and f".{name}" in text, name
    assert ".engine_host_code_allowed" not in text
