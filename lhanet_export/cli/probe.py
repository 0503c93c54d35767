"""Asks one library what it can do here, in a process of its own: a library that crashes takes only that process.

`doctor` starts it; the last line on stdout is the answer as JSON.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from lhanet_export.engine.gpu import find_gpus
from lhanet_export.runners.onnxruntime_library import load_onnxruntime
from lhanet_export.runners.openvino_library import computes_bf16, keep_openvino_quiet

#: Modules that only need to import; more than a version is asked of the others.
PLAIN = ("numpy", "onnx", "onnx_ir", "polygraphy", "safetensors")
_DRIVER_LIBRARIES = ("libcuda.so.1", "nvcuda.dll")
_MANAGEMENT_LIBRARIES = ("libnvidia-ml.so.1", "nvml.dll")


def asked(subject: str, timeout_seconds: float = 60) -> dict[str, Any]:
    """The answer of a probe in a new process: its facts, or `{"error": why there is none}`."""
    code = f"import sys; sys.path[:] = {sys.path!r}; from lhanet_export.cli.probe import main; main({subject!r})"
    try:
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, errors="replace", timeout=timeout_seconds
        )
    except subprocess.TimeoutExpired:
        return {"error": f"no answer within {timeout_seconds:.0f} s"}
    if done.returncode < 0:
        return {"error": f"crashed with signal {-done.returncode}"}
    try:
        answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return answer
    except (ValueError, IndexError):
        return {"error": f"ended with code {done.returncode}: {(done.stderr.splitlines() or ['no message'])[-1][:200]}"}


def main(subject: str) -> None:
    try:
        answer = SUBJECTS[subject]()
    except Exception as error:  # A broken package raises whatever it likes; that is the answer.
        answer = {"error": f"{type(error).__name__}: {str(error).strip() or 'no message'}".splitlines()[0][:300]}
    sys.stdout.write("\n" + json.dumps(answer) + "\n")


def _plain() -> dict[str, Any]:
    answers = {}
    for name in PLAIN:
        try:
            answers[name] = {"version": getattr(importlib.import_module(name), "__version__", None)}
        except Exception as error:  # As above, one package at a time.
            answers[name] = {"error": f"{type(error).__name__}: {error}".splitlines()[0][:300]}
    return answers


def _torch() -> dict[str, Any]:
    import torch

    return {"version": torch.__version__, "cuda": torch.version.cuda, "cuda_available": torch.cuda.is_available()}


def _onnxruntime() -> dict[str, Any]:
    onnxruntime = load_onnxruntime()
    return {"version": onnxruntime.__version__, "providers": onnxruntime.get_available_providers()}


def _openvino() -> dict[str, Any]:
    keep_openvino_quiet()
    import openvino

    # Its version has the build's name behind a dash.
    return {"version": openvino.__version__.partition("-")[0], "bf16": computes_bf16(openvino.Core())}


def _tensorrt_rtx() -> dict[str, Any]:
    import tensorrt_rtx

    return {"version": tensorrt_rtx.__version__}


def _tensorrt() -> dict[str, Any]:
    import tensorrt

    return {"version": tensorrt.__version__}


def _driver() -> dict[str, Any]:
    """GPUs as CUDA's driver lists them to this process, so that CUDA_VISIBLE_DEVICES counts."""
    gpus = [asdict(gpu) for gpu in find_gpus()]
    cuda = _library(_DRIVER_LIBRARIES)
    if cuda is None:
        return {"gpus": gpus, "reason": "no NVIDIA driver is installed here"}
    if not gpus:
        return {"gpus": gpus, "reason": f"the NVIDIA driver shows none to this process (cuInit: {cuda.cuInit(0)})"}
    version = ctypes.c_int()
    cuda.cuDriverGetVersion(ctypes.byref(version))
    return {
        "gpus": gpus,
        "driver": _driver_version(),
        "cuda": f"{version.value // 1000}.{version.value % 1000 // 10}",
    }


def _driver_version() -> str | None:
    management = _library(_MANAGEMENT_LIBRARIES)
    text = ctypes.create_string_buffer(96)
    if management is None or management.nvmlInit_v2() != 0:
        return None
    return text.value.decode() if management.nvmlSystemGetDriverVersion(text, len(text)) == 0 else None


def _library(names: tuple[str, ...]) -> ctypes.CDLL | None:
    for name in names:
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    return None


SUBJECTS: dict[str, Callable[[], dict[str, Any]]] = {
    "plain": _plain,
    "torch": _torch,
    "onnxruntime": _onnxruntime,
    "openvino": _openvino,
    "tensorrt_rtx": _tensorrt_rtx,
    "tensorrt": _tensorrt,
    "driver": _driver,
}
