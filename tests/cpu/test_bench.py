"""`bench` on a CPU: every candidate in turn, honest numbers, and what was not measured said."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lhanet_export.bench import candidates as candidates_module
from lhanet_export.bench.candidates import REFERENCE, Candidate, DeviceKind, TorchKind, candidates_for, flag_of
from lhanet_export.bench.conditions import cpu_has_bf16
from lhanet_export.bench.result import Row
from lhanet_export.cli.main import run
from lhanet_export.engine.gpu import Gpu, find_gpus
from lhanet_export.errors import EnvironmentLacks
from lhanet_export.export.artifact import read_onnx
from lhanet_export.precision.convert import fp16_from_fp32
from lhanet_export.shapes import Shape
from tests.cpu.embed import null_engine

SHAPE, SIZE = "32x48x64", (32, 48, 64)
OTHER_RESIZE = "eager PyTorch FP32, PyTorch's own resize"
BF16 = "eager PyTorch BF16 autocast"
RTX_3060 = Gpu(name="NVIDIA GeForce RTX 3060", compute_capability="8.6", memory_bytes=12 << 30)


@pytest.fixture(scope="module")
def graphs(narrow_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Our graph in FP32 and FP16."""
    folder = tmp_path_factory.mktemp("graphs")
    assert run(["onnx", str(narrow_checkpoint), "-o", str(folder / "ours.onnx"), "--for", "cpu"]) == 0
    half, _ = fp16_from_fp32(read_onnx(folder / "ours.onnx"), folder / "half.onnx")
    return folder / "ours.onnx", half.path


@pytest.fixture(scope="module")
def facts(narrow_checkpoint: Path, graphs: Sequence[Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the command says of all of them."""
    folder = tmp_path_factory.mktemp("bench")
    command = ["bench", *map(str, graphs), "--checkpoint", str(narrow_checkpoint), "--shape", SHAPE, "--rounds", "2"]
    options = ["--volumes", "1", "--threads", "2", "--json", str(folder / "bench.json")]
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
    assert names[:2] == [REFERENCE, OTHER_RESIZE]
    assert (BF16 in names) == cpu_has_bf16()
    assert "plain export in ONNX Runtime" in names
    assert {"ours.onnx in ONNX Runtime", "ours.onnx in OpenVINO"} <= set(names)
    for row in facts["rows"]:
        assert len(row["seconds"]) == facts["rounds"] == 2
        assert min(row["seconds"]) <= row["median_seconds"] <= max(row["seconds"])
        assert row["p10_seconds"] <= row["median_seconds"] <= row["p90_seconds"]
        assert row["voxels_per_second"] == pytest.approx(32 * 48 * 64 / row["median_seconds"])
        assert row["first_seconds"] > 0 and row["ready_seconds"] > 0
        assert 50e6 < row["peak_bytes"] < 4e9 and row["peak_kind"] == "resident"
    assert row_of(facts, REFERENCE)["speedup"] == row_of(facts, REFERENCE)["share_of_peak_memory"] == 1


def test_errors_are_those_against_fp32(facts: dict[str, Any]) -> None:
    assert row_of(facts, REFERENCE)["relative_l2"] == 0
    if cpu_has_bf16():
        assert 1e-4 < row_of(facts, BF16)["relative_l2"] < 0.1
    # Floor(2 * 1.25) is 2 at the coarsest level: there, on a CPU, PyTorch's own resize means something else than where
    # networks are trained. What PyTorch exports does not.
    assert row_of(facts, OTHER_RESIZE)["relative_l2"] > 1e-2
    assert row_of(facts, "plain export in ONNX Runtime")["relative_l2"] < 1e-5
    for name in ("ours.onnx in ONNX Runtime", "ours.onnx in OpenVINO"):
        row = row_of(facts, name)
        assert 0 < row["relative_l2"] < 1e-4 and row["label_agreement"] > 0.999
        assert row["disk_bytes"] > 1e6


def test_what_was_not_measured_is_said(facts: dict[str, Any], graphs: Sequence[Path]) -> None:
    reasons = {one["name"]: one["reason"] for one in facts["not_measured"]}
    assert "rounding written out" in reasons["half.onnx"]
    if not find_gpus():
        assert "no NVIDIA GPU" in reasons["everything on a GPU"]


def test_how_to_repeat_it(facts: dict[str, Any]) -> None:
    assert facts["command"].startswith("lhanet-export")
    assert {"torch", "onnxruntime-gpu", "python"} <= facts["machine"].keys()
    assert facts["device"]["kind"] == "cpu" and facts["device"]["cores"] >= 1
    assert [one["name"] for one in facts["roofline"]] == [row["name"] for row in facts["rows"]]
    assert {one["card"] for one in facts["floors"]} == {"GeForce RTX 3060"}
    for row in facts["rows"]:
        assert row["network"] == ("ours" if row["name"].startswith("ours") else "as-trained")
        assert row["reference_seconds"] == row_of(facts, REFERENCE)["median_seconds"]
        assert {"first", "last"} == row["conditions"].keys()
    assert facts["work"]["multiply_adds"] < facts["work"]["multiply_adds_as_trained"]
    assert facts["checkpoint"]["preset"] == "lightweight"


@pytest.mark.parametrize("has_bf16", [True, False])
def test_bf16_is_measured_where_a_cpu_has_it(has_bf16: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(candidates_module, "cpu_has_bf16", lambda: has_bf16)
    found, skipped = candidates_for([], Path("plain.onnx"), SIZE, "cpu", ())
    assert (BF16 in [one.name for one in found]) == has_bf16
    assert ("no BF16" in {one.name: one.reason for one in skipped}.get(BF16, "")) == (not has_bf16)


def test_without_openvino(graphs: Sequence[Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def missing() -> Any:
        raise EnvironmentLacks("not installed")

    monkeypatch.setattr(candidates_module, "load_openvino", missing)
    found, skipped = candidates_for([graphs[0]], tmp_path / "plain.onnx", SIZE, "cpu", ())
    assert not any("OpenVINO" in one.name for one in found)
    assert "pip install 'lhanet-export[openvino]'" in {one.name: one.reason for one in skipped}["OpenVINO"]
    assert read_onnx(graphs[0]).files[0] in found[-1].files


def test_a_broken_baseline_is_flagged() -> None:
    kinds: tuple[TorchKind, ...] = ("autocast-fp16", "autocast-bf16", "ours")
    for kind in kinds:
        one = Candidate(name="a", precision="fp16", kind=kind)
        assert "torch 2.9.0+cu128 does without cuDNN" in str(flag_of(one, "2.9.0+cu128", 92100))
        assert "slow or wrong with cuDNN 9.10.2; install 9.15" in str(flag_of(one, "2.9.1", 91002))
        assert "cuDNN 9.8.0" in str(flag_of(one, "2.13.0", 90800))
        for version in (None, 90799, 91500):
            assert flag_of(one, "2.13.0", version) is None
    # FP32, and channels last, which cuDNN computes well.
    sound: tuple[TorchKind, ...] = ("eager", "tf32", "channels-last-fp16", "compiled-fp16", "graphed-fp16")
    for kind in sound:
        assert flag_of(Candidate(name="b", precision="fp16", kind=kind), "2.9.0", 91002) is None
    assert flag_of(Candidate(name="c", precision="fp16", kind="onnx", path=Path("x.onnx")), "2.9.0", 91002) is None


def test_no_inference_is_left_out() -> None:
    row = Row(
        name="a", precision="fp32", network="ours", seconds=(1.0, 1.0, 1.0, 9.0), reference_seconds=1, ready_seconds=1,
        first_seconds=1, peak_bytes=1,
        peak_kind="resident", relative_l2=0.0, label_agreement=1.0,
    )  # fmt: skip
    assert row.median_seconds == 1 and row.percentile_seconds(90) > 6
    assert row.as_json((2, 2, 2))["seconds"] == [1.0, 1.0, 1.0, 9.0]


def test_what_overflowed_is_no_number_in_json() -> None:
    row = Row(
        name="a", precision="fp16", network="ours", seconds=(1.0,), reference_seconds=1, ready_seconds=1,
        first_seconds=1, peak_bytes=1, peak_kind="resident", relative_l2=float("nan"), label_agreement=0.1,
    )  # fmt: skip
    assert row.as_json((2, 2, 2))["relative_l2"] is None


# On a GPU: who is measured, and what the ways of PyTorch compute


def on_gpu(graphs: Sequence[Path]) -> list[Candidate]:
    found, skipped = candidates_for(graphs, Path("plain.onnx"), SIZE, "cuda", (RTX_3060,))
    assert not skipped
    return found


def test_every_fair_baseline_is_measured_on_a_gpu(graphs: Sequence[Path]) -> None:
    found = on_gpu(graphs)
    assert found[0].name == REFERENCE and found[0].public_resize
    assert [(one.kind, one.precision) for one in found] == [
        ("eager", "fp32"), ("eager", "fp32"), ("tf32", "tf32"), ("autocast-fp16", "fp16"), ("autocast-bf16", "bf16"),
        ("channels-last-fp16", "fp16"), ("compiled-fp16", "fp16"), ("graphed-fp16", "fp16"), ("ours", "fp16"),
        ("plain-onnx", "fp32"), ("onnx", "fp32"), ("onnx", "fp16"),
    ]  # fmt: skip


def test_an_engine_is_measured_where_its_gpu_is(tmp_path: Path) -> None:
    engine = null_engine(tmp_path)
    found, skipped = candidates_for([engine], Path("plain.onnx"), SIZE, "cuda", (RTX_3060,))
    assert found[-1] == Candidate(name=engine.name, precision="fp16", kind="engine", path=engine)
    assert found[-1].files == (engine,) and found[-1].network == "ours" and not skipped
    other = replace(RTX_3060, compute_capability="8.9")
    for device, gpus in (("cpu", ()), ("cpu", (RTX_3060,)), ("cuda", (other,))):
        assert "needs a GPU of compute capability 8.6" in reason_for(engine, SIZE, device, gpus)
    assert "not 2x2048x2" in reason_for(engine, (2, 2048, 2), "cuda", (RTX_3060,))
    coarse = null_engine(tmp_path, output="coarse", name="coarse.engine")
    assert "gives coarse of final" in reason_for(coarse, SIZE, "cuda", (RTX_3060,))


def reason_for(engine: Path, shape: Shape, device: DeviceKind, gpus: tuple[Gpu, ...]) -> str:
    """Why an engine is not measured."""
    found, skipped = candidates_for([engine], Path("plain.onnx"), shape, device, gpus)
    assert not [one for one in found if one.kind == "engine"]
    return {one.name: one.reason for one in skipped}[engine.name]


def test_a_model_of_another_checkpoint_is_refused(
    graphs: Sequence[Path], narrow_resnet_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["bench", str(graphs[0]), "--checkpoint", str(narrow_resnet_checkpoint), "--shape", "48x64x64"]) == 2
    assert "made from another checkpoint" in capsys.readouterr().err


def test_a_model_is_not_overwritten_by_the_report(graphs: Sequence[Path], narrow_checkpoint: Path) -> None:
    before = graphs[0].read_bytes()
    assert run(["bench", str(graphs[0]), "--checkpoint", str(narrow_checkpoint), "--report", str(graphs[0])]) == 2
    assert graphs[0].read_bytes() == before
