"""`doctor` says what is there and what is missing, and survives everything that is broken."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from lhanet_export.cli import doctor as doctor_module
from lhanet_export.cli import probe
from lhanet_export.cli.doctor import capabilities, findings
from lhanet_export.cli.main import run

NO_GPU: dict[str, Any] = {"gpus": [], "reason": "no NVIDIA driver is installed here"}
A_GPU: dict[str, Any] = {
    "gpus": [{"name": "NVIDIA GeForce RTX 3060", "memory_bytes": 12_628_000_000, "compute_capability": "8.6"}],
    "driver": "580.65.06",
    "cuda": "13.0",
}
PROVIDERS = ["CUDAExecutionProvider", "CPUExecutionProvider"]


def packages(**different: dict[str, Any]) -> dict[str, dict[str, Any]]:
    names = ("torch", "tensorrt_rtx", "tensorrt", *probe.PLAIN)
    whole: dict[str, dict[str, Any]] = {name: {"state": "ok", "version": "1.0"} for name in names}
    whole["onnxruntime"] = {"state": "ok", "version": "1.0", "providers": PROVIDERS}
    whole["openvino"] = {"state": "ok", "version": "1.0", "bf16": True}
    return whole | different


def missing(packages: dict[str, dict[str, Any]], gpu: dict[str, Any]) -> dict[str, str]:
    return {entry["what"]: entry["missing"] for entry in capabilities(packages, gpu) if not entry["able"]}


def test_this_machine_is_described(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "doctor.json"
    started = time.perf_counter()
    assert run(["doctor", "--json", str(target)]) == 0
    # Measured 2.3 s on 2 idle cores; the limit leaves room for what else runs beside the tests.
    assert time.perf_counter() - started < 20
    facts = json.loads(target.read_text(encoding="utf-8"))
    text = capsys.readouterr().out
    assert facts["packages"]["torch"]["state"] == "ok"
    assert facts["packages"]["torch"]["version"] in text
    assert facts["machine"]["python"] in text
    assert facts["machine"]["cores"] >= 1
    assert {entry["what"] for entry in facts["can"] if entry["able"]} >= {
        "export a checkpoint to ONNX (FP32, FP16)",
        "verify ONNX files on the CPU",
    }
    for entry in facts["can"]:
        assert entry["what"].split(" (")[0] in text
        assert entry["able"] is (entry["missing"] is None)
    assert max(map(len, text.splitlines())) <= 80


def test_with_everything_nothing_is_missing() -> None:
    assert missing(packages(), A_GPU) == {}


def test_without_a_gpu_engines_can_be_built_but_not_run() -> None:
    lacking = missing(packages(), NO_GPU)
    assert lacking.keys() == {
        "build TensorRT engines",
        "run TensorRT-RTX engines",
        "run TensorRT engines",
        "run ONNX files on the GPU",
    }
    assert set(lacking.values()) == {"an NVIDIA GPU (no NVIDIA driver is installed here)"}


@pytest.mark.parametrize(
    ("state", "advice"),
    [
        ({"state": "missing"}, "tensorrt: pip install 'lhanet-export[tensorrt]'"),
        (
            {"state": "broken"},
            "a working tensorrt, this one does not import; pip install 'lhanet-export[tensorrt]' --force",
        ),
    ],
)
def test_a_package_that_is_missing_or_broken_is_said_with_its_remedy(state: dict[str, Any], advice: str) -> None:
    lacking = missing(packages(tensorrt=state), A_GPU)
    assert lacking.keys() == {"build TensorRT engines", "run TensorRT engines"}
    assert all(text.startswith(advice) for text in lacking.values())


def test_openvino_is_optional_and_bf16_a_matter_of_the_cpu() -> None:
    lacking = missing(packages(openvino={"state": "missing"}), A_GPU)
    assert lacking.keys() == {"run ONNX files in OpenVINO", "run ONNX files in OpenVINO, in BF16"}
    assert set(lacking.values()) == {"openvino: pip install 'lhanet-export[openvino]'"}
    lacking = missing(packages(openvino={"state": "ok", "version": "1.0", "bf16": False}), A_GPU)
    assert lacking == {"run ONNX files in OpenVINO, in BF16": "a CPU with BF16 arithmetic (avx512_bf16 or AMX)"}


def test_onnxruntime_without_cuda_is_told_from_a_missing_gpu() -> None:
    cpu_only = {"state": "ok", "version": "1.0", "providers": ["CPUExecutionProvider"]}
    lacking = missing(packages(onnxruntime=cpu_only), A_GPU)
    assert lacking.keys() == {"run ONNX files on the GPU"}
    assert "onnxruntime-gpu" in lacking["run ONNX files on the GPU"]


@pytest.mark.parametrize(
    ("source", "state", "error"),
    [
        ("raise ImportError('libnvinfer.so.10: cannot open shared object file')", "broken", "libnvinfer.so.10"),
        ("raise ModuleNotFoundError(\"No module named 'tensorrt_libs'\")", "broken", "tensorrt_libs"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "broken", "crashed with signal 11"),
        ("import os; os._exit(7)", "broken", "ended with code 7"),
        ("print('a banner'); __version__ = '10.9'", "ok", None),
        ("raise SystemExit('no licence')", "broken", "ended with code 1: no licence"),
    ],
)
def test_a_broken_package_is_a_finding(
    source: str, state: str, error: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tensorrt.py").write_text(source, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    found = doctor_module._state("tensorrt", probe.asked("tensorrt"))
    assert found["state"] == state
    assert error is None or error in found["error"]


def test_a_package_that_hangs_is_a_finding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tensorrt.py").write_text("import time; time.sleep(60)", encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert probe.asked("tensorrt", timeout_seconds=1) == {"error": "no answer within 1 s"}


def test_a_package_that_is_not_there_is_missing_not_broken() -> None:
    assert doctor_module._state("tensorrt", {"error": "ModuleNotFoundError: No module named 'tensorrt'"}) == {
        "state": "missing",
        "version": None,
    }


def test_all_probes_may_fail_at_once(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(doctor_module, "asked", lambda subject: {"error": "crashed with signal 11"})
    facts = findings()
    assert not any(entry["able"] for entry in facts["can"])
    assert run(["doctor"]) == 0
    assert "crashed with signal 11" in capsys.readouterr().out


def test_a_gpu_is_shown_with_memory_capability_and_driver(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    facts = findings() | {"gpu": A_GPU}
    monkeypatch.setattr(doctor_module, "findings", lambda: facts)
    assert run(["doctor"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "NVIDIA GeForce RTX 3060, 12,628 MB, compute capability 8.6" in text
    assert "580.65.06, CUDA 13.0" in text
