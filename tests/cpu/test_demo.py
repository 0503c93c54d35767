"""The trained reference network: it is there, it knows the organs, and FP16 keeps them."""

import json
from pathlib import Path

import pytest

from lhanet_export.cli.main import run
from lhanet_export.conventions import AMOS_LABELS
from lhanet_export.files import sha256_of
from lhanet_export.model.checkpoint import open_checkpoint
from lhanet_export.model.demo import demo_file
from lhanet_export.verify.organs import KNOWS_ORGANS
from lhanet_export.volume.nifti import write_phantom
from lhanet_export.volume.phantom import anatomy_from_seed, render

WINDOW = "48x96x96"


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its FP16 graph."""
    path = tmp_path_factory.mktemp("demo") / "demo.fp16.onnx"
    assert run(["onnx", "demo", "-o", str(path), "--precision", "fp16"]) == 0
    return path


def test_it_comes_with_the_package_and_is_small() -> None:
    network, identity = open_checkpoint("demo")

    assert identity.source == "demo" and identity.num_classes == network.num_classes == len(AMOS_LABELS)
    with demo_file() as path:
        assert identity.sha256 == sha256_of(path)
        assert path.stat().st_size <= 12e6


def test_fp16_keeps_its_organs(half: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = tmp_path / "report.json"
    command = ["verify", str(half), "--checkpoint", "demo", "--shape", WINDOW, "--windows", "15", "--json", str(report)]
    assert run(command) == 0

    organs = json.loads(report.read_text())["organs"]
    assert len(organs["organs"]) == len(AMOS_LABELS) - 1
    assert organs["truth_counts"] and organs["reference_to_truth"] >= KNOWS_ORGANS
    assert organs["mean_dice"] >= 0.999 and organs["label_agreement"] >= 0.999 and abs(organs["loss"]) <= 0.001
    table = capsys.readouterr().out
    assert "Dice over all scans" in table and "gall bladder" in table


def test_scans_of_ones_own_take_the_place_of_phantoms(half: Path, tmp_path: Path) -> None:
    data, report = tmp_path / "scans", tmp_path / "report.json"
    (data / "images").mkdir(parents=True)
    (data / "labels").mkdir()
    phantom = render(anatomy_from_seed(7), (3.0, 3.0, 3.0))
    write_phantom(phantom, data / "images" / "patient.nii.gz", data / "labels" / "patient.nii.gz")
    command = [
        "verify",
        str(half),
        "--checkpoint",
        "demo",
        "--shape",
        "33x33x33",
        "--windows",
        "2",
        "--data",
        str(data),
    ]
    assert run([*command, "--json", str(report)]) == 0

    cases = json.loads(report.read_text())["cases"]
    assert [case["kind"] for case in cases] == ["bodies", "texture", "patient.nii.gz", "patient.nii.gz"]


def test_a_folder_without_scans_is_refused(half: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["verify", str(half), "--checkpoint", "demo", "--data", str(tmp_path)]) == 2
    assert f"{tmp_path} holds no .nii or .nii.gz file" in capsys.readouterr().err
