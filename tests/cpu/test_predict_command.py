"""`predict` as a user calls it: with every kind of model, for a scan and for folders, and its refusals."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import nibabel
import numpy as np
import pytest

from lhanet_export.cli.main import run
from lhanet_export.errors import EnvironmentLacks, GpuFailed
from lhanet_export.runners.eager import EagerRunner
from lhanet_export.volume.nifti import write_phantom
from lhanet_export.volume.phantom import Phantom, anatomy_from_seed, render

SMALL = ["--patch", "48x64x64", "--overlap", "0.25"]


@pytest.fixture(scope="module")
def phantom() -> Phantom:
    """A part of an abdomen around the liver, of other voxels than the network's."""
    return render(anatomy_from_seed(2001), (2.0, 2.2, 2.5), (70, 60, 60), (40.0, 0.0, 110.0))


@pytest.fixture(scope="module")
def scan(phantom: Phantom, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scan")
    write_phantom(phantom, folder / "scan.nii.gz", folder / "truth.nii.gz")
    return folder / "scan.nii.gz"


@pytest.fixture(scope="module")
def demo_labels(scan: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[np.ndarray, dict]:
    """What demo's own network says of the scan, and the report."""
    folder = tmp_path_factory.mktemp("demo")
    target, report = folder / "labels.nii.gz", folder / "report.json"
    command = ["predict", "demo", str(scan), "-o", str(target), "--json", str(report), "--report", str(folder / "look")]
    assert run([*command, *SMALL]) == 0
    assert (folder / "look" / "labels.png").read_bytes().startswith(b"\x89PNG")
    return labels_in(target), json.loads(report.read_text())


def copies_of(scan: Path, folder: Path, names: Iterable[str]) -> tuple[Path, Path, Path]:
    """A folder with a scan under these names, one for labels, and a file for a report."""
    scans = folder / "scans"
    scans.mkdir()
    for name in names:
        (scans / f"{name}.nii.gz").write_bytes(scan.read_bytes())
    return scans, folder / "labels", folder / "report.json"


def failing(runner: EagerRunner, image: np.ndarray) -> np.ndarray:
    """In place of `infer`: a GPU that fails."""
    raise GpuFailed("the GPU failed: CUDA error 719")


def labels_in(path: Path) -> np.ndarray:
    return np.asarray(nibabel.load(path).dataobj)  # type: ignore[attr-defined]


def test_the_demo_finds_the_organs_where_they_are(phantom: Phantom, demo_labels: tuple[np.ndarray, dict]) -> None:
    labels, report = demo_labels
    assert labels.shape == phantom.labels.shape
    for organ, least in ((2, 0.5), (6, 0.7)):  # right kidney and liver, cut off by the scan's edges
        found, truth = labels == organ, phantom.labels == organ
        assert 2 * (found & truth).sum() / (found.sum() + truth.sum()) > least
    (facts,) = report["scans"]
    liver = (labels == 6).sum() * 2.0 * 2.2 * 2.5 / 1000
    assert facts["volumes_ml"]["liver"] == pytest.approx(liver, abs=1e-3)
    assert facts["seconds"]["network"] < facts["seconds"]["windows"]
    assert facts["windows"] > 4


@pytest.mark.parametrize("output", ["coarse", "logits"])
def test_every_kind_of_model_says_the_same(
    output: str, scan: Path, demo_labels: tuple[np.ndarray, dict], tmp_path: Path
) -> None:
    model = tmp_path / "demo.onnx"
    assert run(["onnx", "demo", "-o", str(model), "--output", output]) == 0
    assert run(["predict", str(model), str(scan), "-o", str(tmp_path / "labels.nii"), *SMALL]) == 0
    assert np.mean(labels_in(tmp_path / "labels.nii") == demo_labels[0]) > 0.99999


def test_a_folder_with_a_bad_scan(
    scan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # The reason names the whole path; in a narrow table its words would be broken.
    monkeypatch.setenv("COLUMNS", "400")
    folder, target, report = copies_of(scan, tmp_path, ["good"])
    (folder / "worse.nii.gz").write_bytes(scan.read_bytes()[:-9])
    options = ["--organs", "liver,right kidney", "--largest-component", "--json", str(report), *SMALL]
    assert run(["predict", "demo", str(folder), "-o", str(target), *options]) == 2
    assert [path.name for path in target.iterdir()] == ["good.nii.gz"]
    assert set(np.unique(labels_in(target / "good.nii.gz"))) == {0, 2, 6}
    said = capsys.readouterr()
    assert "1 of 2 scans were not segmented" in said.err and "damaged or cut off" in said.out
    good, worse = json.loads(report.read_text())["scans"]
    assert good["volumes_ml"]["liver"] > 0 and "damaged" in worse["error"]


def test_an_engine_without_its_gpu_is_the_environment(tmp_path: Path, scan: Path) -> None:
    assert run(["predict", str(tmp_path / "none.engine"), str(scan), "-o", str(tmp_path / "a.nii")]) == 2
    (tmp_path / "some.engine").write_bytes(b"engine")
    assert run(["predict", str(tmp_path / "some.engine"), str(scan), "-o", str(tmp_path / "a.nii")]) == 2
    assert not (tmp_path / "a.nii").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["-o", "labels.mha"], "should be a file that ends in .nii or .nii.gz"),
        (["-o", "a.nii", "--organs", "liver,heart"], "the model has no organ 'heart'"),
        (["-o", "a.nii", "--patch", "16x16x16"], "16x16x16 lies outside the range"),
        (["-o", "a.nii", "--overlap", "1.5"], "1.5 is not in the range"),
        (["-o", "a.nii", "--mirror", "xq"], "does not name axes"),
        (["-o", "SCAN"], "is an input of this command"),
    ],
)
def test_refused_before_anything_runs(
    arguments: list[str], words: str, scan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    arguments = [str(scan) if argument == "SCAN" else argument for argument in arguments]
    assert run(["predict", "demo", str(scan), *arguments]) == 2
    assert words in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("report", ["model.onnx", "a.nii", "scan.nii.gz"])
def test_no_file_is_written_that_is_read_or_written_already(
    report: str, scan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("model.onnx").write_bytes(b"a model")
    Path("scan.nii.gz").write_bytes(scan.read_bytes())
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    assert run(["predict", "model.onnx", "scan.nii.gz", "-o", "a.nii", "--json", report]) == 2
    said = capsys.readouterr().err
    assert "is an input of this command" in said or "is named for two results of this command" in said
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_labels_cannot_be_blended(scan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = tmp_path / "labels.onnx"
    assert run(["onnx", "demo", "-o", str(model), "--output", "labels"]) == 0
    assert run(["predict", str(model), str(scan), "-o", str(tmp_path / "labels.nii")]) == 2
    assert "export it with --output coarse" in capsys.readouterr().err


def test_a_folder_needs_a_folder(scan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    assert run(["predict", "demo", str(scan.parent), "-o", str(tmp_path / "file")]) == 2
    assert "has to be one, too" in capsys.readouterr().err
    for folder in ("images", "imagesTr"):
        (tmp_path / "scans" / folder).mkdir(parents=True)
        (tmp_path / "scans" / folder / "a.nii").write_bytes(b"")
    assert run(["predict", "demo", str(tmp_path / "scans"), "-o", str(tmp_path / "out")]) == 2
    assert "would be written to" in capsys.readouterr().err


def test_a_gpu_that_fails_costs_one_scan(scan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The stand-in fails in this process only; the others are segmented in a fresh one."""
    folder, target, report = copies_of(scan, tmp_path, "abc")

    monkeypatch.setattr(EagerRunner, "infer", failing)
    assert run(["predict", "demo", str(folder), "-o", str(target), "--json", str(report), *SMALL]) == 3
    assert sorted(path.name for path in target.iterdir()) == ["b.nii.gz", "c.nii.gz"]
    first, *others = json.loads(report.read_text())["scans"]
    assert "CUDA error 719" in first["error"]
    assert all(other["volumes_ml"]["liver"] > 0 for other in others)


def test_a_gpu_that_is_gone_ends_it(scan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, target, report = copies_of(scan, tmp_path, "ab")

    class Nothing:
        def __enter__(self) -> Nothing:
            raise EnvironmentLacks("there is no NVIDIA GPU here")

        def __exit__(self, *_: object) -> None:
            pass

    monkeypatch.setattr(EagerRunner, "infer", failing)
    monkeypatch.setattr("concurrent.futures.ProcessPoolExecutor", lambda *_: Nothing())
    assert run(["predict", "demo", str(folder), "-o", str(target), "--json", str(report), *SMALL]) == 3
    assert not target.exists()
    errors = [one["error"] for one in json.loads(report.read_text())["scans"]]
    assert "CUDA error 719" in errors[0] and "no NVIDIA GPU" in errors[1]
