"""`bench` on a CPU: every candidate in turn, honest numbers, and what was not measured said."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lhanet_export.bench import candidates as candidates_module
from lhanet_export.bench.candidates import REFERENCE, Candidate, candidates_for, flag_of
from lhanet_export.bench.measure import Plan, measure
from lhanet_export.bench.result import Row
from lhanet_export.cli.main import run
from lhanet_export.engine.gpu import find_gpus
from lhanet_export.errors import EnvironmentLacks
from lhanet_export.export.artifact import read_onnx

SHAPE = "32x48x48"


@pytest.fixture(scope="module")
def graphs(narrow_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """Our graph in FP32 and FP16, and one of coarse logits."""
    folder = tmp_path_factory.mktemp("graphs")
    made = []
    for name, options in (
        ("ours", ["--for", "cpu"]),
        ("half", ["--precision", "fp16"]),
        ("coarse", ["--output", "coarse"]),
    ):
        made.append(folder / f"{name}.onnx")
        assert run(["onnx", str(narrow_checkpoint), "-o", str(made[-1]), *options]) == 0
    return made[0], made[1], made[2]


@pytest.fixture(scope="module")
def facts(narrow_checkpoint: Path, graphs: Sequence[Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the command says of all of them."""
    folder = tmp_path_factory.mktemp("bench")
    command = ["bench", *map(str, graphs), "--checkpoint", str(narrow_checkpoint), "--shape", SHAPE, "--rounds", "3"]
    options = ["--volumes", "2", "--threads", "1", "--json", str(folder / "bench.json")]
    assert run([*command, *options, "--report", str(folder / "bench.html")]) == 0
    page = (folder / "bench.html").read_text(encoding="utf-8")
    assert page.startswith("<!doctype html>") and REFERENCE in page
    (found,) = json.loads((folder / "bench.json").read_text())["benches"]
    return found


def row_of(facts: dict[str, Any], name: str) -> dict[str, Any]:
    (row,) = [row for row in facts["rows"] if row["name"] == name]
    return row


def test_rows_hold_every_inference(facts: dict[str, Any]) -> None:
    names = [row["name"] for row in facts["rows"]]
    assert names[:3] == [REFERENCE, "eager PyTorch BF16 autocast", "plain export in ONNX Runtime"]
    assert {"ours.onnx in ONNX Runtime", "ours.onnx in OpenVINO"} <= set(names)
    for row in facts["rows"]:
        assert len(row["seconds"]) == facts["rounds"] == 3
        assert min(row["seconds"]) <= row["median_seconds"] <= max(row["seconds"])
        assert row["p10_seconds"] <= row["median_seconds"] <= row["p90_seconds"]
        assert row["voxels_per_second"] == pytest.approx(32 * 48 * 48 / row["median_seconds"])
        assert row["first_seconds"] > 0 and row["ready_seconds"] > 0
        assert 50e6 < row["peak_bytes"] < 4e9 and row["peak_kind"] == "resident"
    assert row_of(facts, REFERENCE)["speedup"] == row_of(facts, REFERENCE)["share_of_peak_memory"] == 1


def test_errors_are_those_against_fp32(facts: dict[str, Any]) -> None:
    assert row_of(facts, REFERENCE)["relative_l2"] == 0
    assert 1e-4 < row_of(facts, "eager PyTorch BF16 autocast")["relative_l2"] < 0.1
    for name in ("ours.onnx in ONNX Runtime", "ours.onnx in OpenVINO"):
        row = row_of(facts, name)
        assert 0 < row["relative_l2"] < 1e-4 and row["label_agreement"] > 0.999
        assert row["disk_bytes"] > 1e6


def test_what_was_not_measured_is_said(facts: dict[str, Any], graphs: Sequence[Path]) -> None:
    reasons = {one["name"]: one["reason"] for one in facts["not_measured"]}
    assert "rounding written out" in reasons["half.onnx"]
    assert "gives coarse of final" in reasons["coarse.onnx"]
    if not find_gpus():
        assert "no NVIDIA GPU" in reasons["everything on a GPU"]


def test_how_to_repeat_it(facts: dict[str, Any]) -> None:
    assert facts["command"].startswith("lhanet-export")
    assert {"torch", "onnxruntime-gpu", "python"} <= facts["machine"].keys()
    assert facts["device"]["kind"] == "cpu" and facts["device"]["cores"] >= 1
    assert facts["work"]["multiply_adds"] < facts["work"]["multiply_adds_as_trained"]
    assert facts["checkpoint"]["preset"] == "lightweight"


def plan_of(checkpoint: Path) -> Plan:
    return Plan(
        checkpoint=checkpoint, identity={}, shape=(32, 48, 48), threads=1, rounds=1, volumes=1, command="", work={}
    )


def test_a_candidate_that_fails_is_named(narrow_checkpoint: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"no graph")
    reference = Candidate(name=REFERENCE, precision="fp32", kind="eager")
    other = Candidate(name="broken", precision="fp32", kind="plain-onnx", path=broken)
    found = measure([reference, other], [], plan_of(narrow_checkpoint), tmp_path)
    assert [row.name for row in found.rows] == [REFERENCE]
    (skipped,) = found.skipped
    assert skipped.name == "broken" and "it did not run: ONNX Runtime cannot load" in skipped.reason
    with pytest.raises(EnvironmentLacks, match="the reference"):
        measure([replace(other, name=REFERENCE)], [], plan_of(narrow_checkpoint), tmp_path)


def test_without_openvino_or_bf16(graphs: Sequence[Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def missing() -> Any:
        raise EnvironmentLacks("not installed")

    monkeypatch.setattr(candidates_module, "load_openvino", missing)
    found, skipped = candidates_for([graphs[0]], tmp_path / "plain.onnx", ())
    assert not any("OpenVINO" in one.name for one in found)
    assert "pip install 'lhanet-export[openvino]'" in {one.name: one.reason for one in skipped}["OpenVINO"]
    assert read_onnx(graphs[0]).files[0] in found[-1].files


def test_a_broken_baseline_is_flagged() -> None:
    autocast = Candidate(name="a", precision="bf16", kind="autocast-bf16")
    assert "too slow in torch 2.9.1" in str(flag_of(autocast, "2.9.1+cu128"))
    assert flag_of(autocast, "2.13.0+cpu") is None
    assert flag_of(Candidate(name="b", precision="fp32", kind="eager"), "2.9.1") is None


def test_no_inference_is_left_out() -> None:
    row = Row(
        name="a", precision="fp32", seconds=(1.0, 1.0, 1.0, 9.0), ready_seconds=1, first_seconds=1, peak_bytes=1,
        peak_kind="resident", relative_l2=0.0, label_agreement=1.0,
    )  # fmt: skip
    assert row.median_seconds == 1 and row.percentile_seconds(90) > 6
    assert row.as_json((2, 2, 2))["seconds"] == [1.0, 1.0, 1.0, 9.0]
