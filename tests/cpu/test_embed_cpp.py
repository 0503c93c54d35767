"""The C++ application makes the very files that `lhanet-export predict` makes, and refuses as clearly."""

from __future__ import annotations

import gzip
import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import permutations, product
from pathlib import Path
from typing import TypeVar

import nibabel
import numpy as np
import pytest

from lhanet_export.conventions import Preprocessing
from lhanet_export.engine.manifest import read_manifest
from lhanet_export.errors import RefusedInput
from lhanet_export.predict.run import predict
from lhanet_export.predict.task import Prediction, Task
from lhanet_export.runners.null import NullRunner
from lhanet_export.shapes import Shape, SpatialRange, format_shape
from tests.cpu.embed import SANITIZER, SOURCE, built, configured, null_engine, require_tools, run

T = TypeVar("T")

#: All ways in which a scan's axes can lie along the patient's.
ORIENTATIONS = list(product(permutations(range(3)), product((1, -1), repeat=3)))
SHAPES: list[Shape] = [
    (2, 2, 2), (5, 4, 3), (33, 47, 29), (100, 80, 60), (61, 20, 75), (17, 90, 31), (64, 64, 64), (40, 41, 42),
]  # fmt: skip
#: Sides of voxels in mm: the network's own, its own but for rounding, finer, coarser, and one of each.
SPACINGS = [(1.5, 1.5, 1.5), (1.5005, 1.4995, 1.5), (0.7, 0.9, 1.1), (3.0, 2.2, 5.0), (0.8, 1.5, 2.5)]
KINDS = ["i2", "u1", "i1", "u2", "i4", "u4", "i8", "u8", "f4", "f8"]
PATCHES: list[Shape] = [(32, 40, 48), (16, 16, 16), (24, 48, 33), (48, 32, 20), (1, 7, 64)]
CASES = 40


@dataclass(frozen=True, kw_only=True)
class Case:
    """One scan, and how it is segmented."""

    shape: Shape
    spacing: tuple[float, float, float]
    orientation: tuple[tuple[int, ...], tuple[int, ...]]
    dtype: str
    version: int
    form: str
    slope: float
    intercept: float
    suffix: str
    output: str
    classes: int
    batch: int | None
    patch: Shape
    overlap: float
    blending: str
    largest: bool


def case_of(number: int) -> Case:
    """The case of a number: what there are many of takes turns, the rest is drawn."""
    draw = np.random.default_rng([number, 5])

    def one_of(choices: Sequence[T]) -> T:
        return choices[int(draw.integers(len(choices)))]

    kind = KINDS[number % len(KINDS)]
    # 8 bits hold HU by a slope.
    slope, intercept = {"u1": (16.0, -1024.0), "i1": (16.0, 512.0)}.get(kind, (one_of([1, 0.5, 2]), one_of([0, -1024])))
    return Case(
        shape=SHAPES[number % len(SHAPES)],
        spacing=SPACINGS[number % len(SPACINGS)],
        orientation=ORIENTATIONS[(number * 11) % len(ORIENTATIONS)],
        dtype=one_of("<>") + kind,
        version=1 + number // 2 % 2,
        form=one_of(["sform", "qform", "both"]),
        slope=slope,
        intercept=intercept,
        suffix=one_of([".nii", ".nii.gz"]),
        output=["logits", "coarse", "coarse", "probabilities"][number // 3 % 4],
        classes=int(draw.integers(2, 9)),
        batch=one_of([1, 1, 2, 3, None]),
        patch=one_of(PATCHES),
        overlap=one_of([0.0, 0.25, 0.5, 0.7]),
        blending=one_of(["gaussian", "gaussian", "constant"]),
        largest=bool(draw.integers(3) == 0),
    )


def write_scan(case: Case, path: Path, seed: int = 0) -> None:
    """A body with organs of several brightnesses, in air, under noise, as the case's kind of file."""
    draw = np.random.default_rng(seed)
    places = np.stack(np.meshgrid(*(np.linspace(-1, 1, side) for side in case.shape), indexing="ij"))
    hu = np.where((places**2).sum(0) < 1.3, -90.0, -1000.0)
    for _ in range(14):
        away = (places - draw.uniform(-0.8, 0.8, 3)[:, None, None, None]) / draw.uniform(0.1, 0.5)
        hu[(away**2).sum(0) < 1] = draw.uniform(-150, 280)
    hu += draw.normal(0, 12, case.shape)
    if hu.size < 100:
        hu = draw.uniform(-150, 250, case.shape)  # too few for organs
    dtype = np.dtype(case.dtype)
    stored = (hu - case.intercept) / case.slope
    if dtype.kind != "f":
        limits = np.iinfo(dtype)
        low, high = max(limits.min, -(2**40)), min(limits.max, 2**40)
        stored = np.rint(stored).clip(low if case.intercept < 0 or dtype.kind == "i" else 0, high)
    header_kind = {1: nibabel.Nifti1Header, 2: nibabel.Nifti2Header}[case.version]
    header = header_kind(endianness=">" if case.dtype.startswith(">") else "<")
    header.set_data_dtype(dtype)
    header.set_data_shape(case.shape)
    order, signs = case.orientation
    affine = np.zeros((4, 4))
    for axis in range(3):
        affine[order[axis], axis] = signs[axis] * case.spacing[axis]
    affine[:, 3] = (-90.5, 120.25, -300.75, 1)
    header.set_zooms(case.spacing)
    for name in ("sform", "qform"):
        getattr(header, f"set_{name}")(affine, code=int(case.form in (name, "both")))
    header["pixdim"][1:4] = case.spacing
    header["scl_slope"], header["scl_inter"] = case.slope, case.intercept
    header["cal_max"], header["descrip"] = 300, b"a scan of a test"
    header["xyzt_units"] = 2
    start = 352 if case.version == 1 else 544
    header["vox_offset"] = start
    raw = header.binaryblock.ljust(start, b"\0") + stored.astype(dtype).tobytes(order="F")
    path.write_bytes(gzip.compress(raw, 1) if path.name.endswith(".gz") else raw)


def by_python(engine: Path, scan: Path, target: Path, rules: Preprocessing, *, largest: bool = False) -> None:
    """What `lhanet-export predict` makes of a scan with an engine's manifest and no network."""
    manifest = read_manifest(engine)
    batch = manifest.engine.inputs[0].shape[0]
    coarse = manifest.engine.outputs[0].name == "coarse"
    how = Prediction(
        preprocessing=rules, batch=max(batch, 1), fixed_batch=batch > 0, largest=largest, assume_hu=True
    )  # fmt: skip
    with NullRunner(len(manifest.labels), coarse=coarse) as runner:
        (outcome,) = predict(runner, [Task(scan=scan, target=target)], manifest.labels, how)
    if outcome.error is not None:
        raise outcome.error


def segment(*arguments: str | Path, sanitized: bool = False) -> subprocess.CompletedProcess[str]:
    """Run the application."""
    command = [str(built(sanitized)), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | SANITIZER)


def content(path: Path) -> bytes:
    """A file's bytes, unpacked."""
    raw = path.read_bytes()
    return gzip.decompress(raw) if path.name.endswith(".gz") else raw


def check_equal(number: int, folder: Path, *, sanitized: bool) -> bool:
    """Compare both for a case; whether there are labels, for both may refuse."""
    case = case_of(number)
    scan, mine, theirs = (folder / f"{name}{case.suffix}" for name in ("scan", "mine", "theirs"))
    write_scan(case, scan, seed=number)
    options = ["--null", "--assume-hu", *(["--largest-component"] if case.largest else [])]
    engine = null_engine(
        folder, output=case.output, classes=case.classes, batch=case.batch, patch=case.patch, overlap=case.overlap,
        blending=case.blending,
    )  # fmt: skip
    rules = read_manifest(engine).preprocessing
    if number % 2:
        # What the manifest says, said by the command line instead.
        engine = null_engine(folder, output=case.output, classes=case.classes, batch=case.batch)
        options += ["--patch", format_shape(case.patch), "--overlap", str(case.overlap), "--blending", case.blending]
    found = segment(*options, engine, scan, mine, sanitized=sanitized)
    try:
        by_python(engine, scan, theirs, rules, largest=case.largest)
    except RefusedInput as refused:
        assert (found.returncode, found.stderr) == (2, f"error: {refused}\n")
        return False
    assert found.returncode == 0, (case, found.stderr)
    expected, made = content(theirs), content(mine)
    start = 352 if case.version == 1 else 544
    assert made[:start] == expected[:start], case
    differing = np.count_nonzero(np.frombuffer(made[start:], np.uint8) != np.frombuffer(expected[start:], np.uint8))
    assert not differing, (case, differing)
    return True


@pytest.mark.parametrize("number", range(CASES))
def test_the_labels_are_those_of_predict(number: int, tmp_path: Path) -> None:
    # 32 is of 2x2x2 fine voxels, of which the network's grid has a single one: it is constant.
    assert check_equal(number, tmp_path, sanitized=False) or number == 32


@pytest.mark.parametrize("number", [0, 1, 10, 13, 18, 23, 37, 39])
def test_nothing_undefined_happens_on_the_way(number: int, tmp_path: Path) -> None:
    assert check_equal(number, tmp_path, sanitized=True)


def test_the_cases_are_different_enough() -> None:
    cases = [case_of(number) for number in range(CASES)]
    assert len({case.orientation for case in cases}) > 30
    assert {case.dtype for case in cases} >= {f"<{kind}" for kind in ("i2", "f4")} | {">i2"}
    for name in ("output", "batch", "patch", "overlap", "blending", "form", "suffix", "version", "slope", "largest"):
        assert len({getattr(case, name) for case in cases}) >= 2
    assert any(min(case.shape) < min(case.patch) for case in cases)


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    """A scan that nothing is wrong with."""
    write_scan(replace(case_of(0), shape=(30, 28, 26), dtype="<i2", slope=1, intercept=0), tmp_path / "scan.nii")
    return tmp_path / "scan.nii"


def test_help_says_what_there_is() -> None:
    found = segment("--help")
    assert found.returncode == 0 and not found.stderr
    for word in ("--null", "--assume-hu", "--largest-component", "--patch", "--overlap", "--blending", "Exit codes"):
        assert word in found.stdout
    assert max(map(len, found.stdout.splitlines())) <= 120


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--fast"], "there is no option '--fast'"),
        (["--null=1"], "there is no option '--null=1'"),
        (["--patch", "16x16"], "'16x16' is not a size"),
        (["--patch", "16x16x16x16"], "'16x16x16x16' is not a size"),
        (["--patch=0x16x16"], "every side must be 1 to 1024 voxels"),
        (["--patch", "16x16x1025"], "every side must be 1 to 1024 voxels"),
        (["--patch", "9x9x9"], "a volume of 9x9x9 is outside the engine's range 10x10x10:32x40:48"),
        (["--overlap", "0.96"], "'0.96' is no share of a window"),
        (["--overlap", "nan"], "'nan' is no share of a window"),
        (["--overlap", "0.5x"], "'0.5x' is no share of a window"),
        (["--overlap=-0.1"], "'-0.1' is no share of a window"),
        (["--blending", "linear"], "'linear' is not known"),
        (["more"], "found 4 names"),
        (["--overlap"], "error: "),
    ],
)
def test_options_that_are_refused(options: list[str], words: str, tmp_path: Path, scan: Path) -> None:
    engine = null_engine(tmp_path, spatial=SpatialRange((10, 10, 10), (32, 40, 48), (1024, 1024, 1024)))
    words = words.replace("32x40:48", "32x40x48")
    before = sorted(tmp_path.iterdir())
    found = segment("--null", *options, engine, scan, tmp_path / "labels.nii")
    assert found.returncode == 2 and words in found.stderr
    assert found.stderr.startswith("error: ") and found.stderr.count("\n") == 1 and not found.stdout
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("labels.mha", "should be a file that ends in .nii or .nii.gz"),
        ("folder.nii", "should be a file that ends in .nii or .nii.gz"),
        ("scan.nii", "is an input of this command"),
        ("link.nii", "is an input of this command"),
        ("/dev/null", "should be a file that ends in .nii or .nii.gz"),
        ("pipe.nii", "exists and is not a regular file"),
    ],
)
def test_targets_that_are_refused(target: str, words: str, tmp_path: Path, scan: Path) -> None:
    engine = null_engine(tmp_path)
    (tmp_path / "folder.nii").mkdir()
    (tmp_path / "link.nii").hardlink_to(scan)
    os.mkfifo(tmp_path / "pipe.nii")
    raw = scan.read_bytes()
    found = segment("--null", engine, scan, tmp_path / target)
    assert found.returncode == 2 and words in found.stderr
    assert scan.read_bytes() == raw


def test_an_older_result_is_replaced_when_the_new_one_is_whole(tmp_path: Path, scan: Path) -> None:
    engine, target = null_engine(tmp_path), tmp_path / "labels.nii"
    target.write_bytes(b"older")
    broken = tmp_path / "broken.nii"
    broken.write_bytes(scan.read_bytes()[:-1])
    assert segment("--null", engine, broken, target).returncode == 2
    assert target.read_bytes() == b"older"
    assert segment("--null", engine, scan, target).returncode == 0
    assert target.stat().st_size == 352 + 30 * 28 * 26


def test_what_cannot_be_blended_is_refused(tmp_path: Path, scan: Path) -> None:
    engine = null_engine(tmp_path, output="labels")
    found = segment("--null", engine, scan, tmp_path / "labels.nii")
    assert found.returncode == 2 and "export it with --output coarse" in found.stderr


def test_a_scan_of_one_value_within_the_window_is_refused_alike(tmp_path: Path) -> None:
    case = replace(case_of(0), shape=(12, 13, 14), dtype="<i2", slope=1, intercept=0)
    write_scan(case, tmp_path / "scan.nii")
    raw = bytearray((tmp_path / "scan.nii").read_bytes())
    values = np.full(12 * 13 * 14, 400, "<i2")
    values[0] = 500
    raw[352:] = values.tobytes()
    (tmp_path / "scan.nii").write_bytes(raw)
    engine = null_engine(tmp_path)
    found = segment("--null", "--assume-hu", engine, tmp_path / "scan.nii", tmp_path / "labels.nii")
    with pytest.raises(RefusedInput) as refused:
        by_python(engine, tmp_path / "scan.nii", tmp_path / "theirs.nii", read_manifest(engine).preprocessing)
    assert "there is nothing to segment" in str(refused.value)
    assert found.stderr == f"error: {refused.value}\n"


@pytest.mark.parametrize("backend", ["tensorrt-rtx", "tensorrt"])
def test_without_tensorrt_there_is_the_null_engine_only(backend: str, tmp_path: Path, scan: Path) -> None:
    engine = null_engine(tmp_path, backend=backend)
    found = segment(engine, scan, tmp_path / "labels.nii")
    assert found.returncode == 3 and "was compiled without it" in found.stderr
    assert not (tmp_path / "labels.nii").exists()


EMBEDDING = Path(__file__).parent.parent / "data" / "embedding.cpp"


@pytest.fixture(scope="module")
def embedding(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An application that brings its own engine, linked to the sanitized library."""
    built(sanitized=True)
    folder = tmp_path_factory.mktemp("embedding")
    flags = ["-std=c++17", "-Wall", "-Wextra", "-Werror", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    includes = [f"-I{SOURCE / 'include'}", f"-I{SOURCE / 'src'}"]
    library = configured(sanitized=True) / "liblhanet.a"
    run(["g++", *flags, *includes, str(EMBEDDING), str(library), "-lz", "-o", str(folder / "embedding")])
    return folder / "embedding"


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("nan", "{scan}: the network gives NaN or infinity in the window at (0, 0, 0)"),
        ("infinity", "{scan}: the network gives NaN or infinity in the window at (0, 0, 0)"),
        ("last", "{scan}: the network gives NaN or infinity in the window at (7, 0, 0)"),
        ("constant", "{scan}: the network gives the same scores everywhere"),
    ],
)
def test_no_labels_are_made_of_nonsense(kind: str, words: str, embedding: Path, scan: Path) -> None:
    found = subprocess.run([embedding, kind, scan], capture_output=True, text=True, env=os.environ | SANITIZER)
    assert found.returncode == 2 and words.format(scan=scan) in found.stderr, found.stderr


def test_an_engine_of_ones_own(embedding: Path, scan: Path) -> None:
    # It gives the sign of each voxel, two windows at a time, and checks the order in which its slots are used.
    found = subprocess.run([embedding, "sign", scan], capture_output=True, text=True, env=os.environ | SANITIZER)
    assert found.returncode == 0, found.stderr
    assert found.stdout.splitlines()[0] == "2 of 2 windows"


def test_numbers_of_16_bits(embedding: Path) -> None:
    halves = np.arange(1 << 16, dtype=np.uint16)
    exact = halves.view(np.float16).astype(np.float32)
    draw = np.random.default_rng(3)
    with np.errstate(invalid="ignore"):
        between = (exact[:-1] + exact[1:]) / 2
    some = np.concatenate([
        exact, between, np.nextafter(between, np.float32(np.inf)), np.nextafter(between, np.float32(-np.inf)),
        draw.integers(0, 1 << 32, 100_000, dtype=np.uint32).view(np.float32),
    ]).astype(np.float32)  # fmt: skip
    given = halves.tobytes() + some.tobytes()
    command = [str(embedding), "half"]
    found = subprocess.run(command, input=given, capture_output=True, check=True, env=os.environ | SANITIZER)
    values = np.frombuffer(found.stdout[: 4 << 16], np.float32)
    rounded = np.frombuffer(found.stdout[4 << 16 :], np.float16)
    assert np.array_equal(values, exact, equal_nan=True)
    assert np.array_equal(np.signbit(values), np.signbit(exact))
    with np.errstate(over="ignore", invalid="ignore"):
        expected = some.astype(np.float16)
    assert np.array_equal(rounded, expected, equal_nan=True)
    assert np.array_equal(np.signbit(rounded), np.signbit(expected))


def test_one_library_of_engines_at_most(tmp_path: Path) -> None:
    require_tools()
    roots = [f"-DTensorRT_ROOT={tmp_path}", f"-DTENSORRT_RTX_ROOT={tmp_path}"]
    found = subprocess.run(["cmake", "-S", SOURCE, "-B", tmp_path / "build", *roots], capture_output=True, text=True)
    assert found.returncode != 0 and "are both set" in " ".join(found.stderr.split())


@pytest.mark.parametrize("root", ["TensorRT_ROOT", "TENSORRT_RTX_ROOT"])
def test_a_folder_without_the_library_is_named(root: str, tmp_path: Path) -> None:
    require_tools()
    command = ["cmake", "-S", str(SOURCE), "-B", str(tmp_path / "build"), f"-D{root}={tmp_path}"]
    found = subprocess.run(command, capture_output=True, text=True)
    assert found.returncode != 0 and "holds no NvInferRuntime.h" in " ".join(found.stderr.split())


def test_the_engines_source_compiles(tmp_path: Path) -> None:
    folders = os.environ.get("LHANET_CHECK_HEADERS", "")
    if not folders:
        pytest.skip("LHANET_CHECK_HEADERS does not name the folders of TensorRT's and CUDA's headers")
    require_tools()
    run(["cmake", "-S", SOURCE, "-B", tmp_path, f"-DLHANET_CHECK_HEADERS={folders}"])
    run(["cmake", "--build", tmp_path, "--target", "lhanet-check"])
