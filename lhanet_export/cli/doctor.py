"""`lhanet-export doctor`: what this machine can do with the toolkit, and what is missing for the rest."""

from __future__ import annotations

import os
import platform
import shutil
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path
from typing import Any

from lhanet_export import __version__
from lhanet_export.cli.options import command, json_option
from lhanet_export.cli.probe import PLAIN, SUBJECTS, asked
from lhanet_export.cli.show import Show, format_bytes

_PROBED = ("torch", "onnxruntime", "openvino", "tensorrt_rtx", "tensorrt")
#: Distributions whose version says enough.
_UNPROBED = ("onnxscript", "click", "rich", "PyYAML")
_HOW_TO_GET = {
    "torch": "pip install 'torch>=2.10'",
    "onnxruntime": "pip install onnxruntime-gpu",
    "openvino": "pip install 'lhanet-export[openvino]'",
    "tensorrt_rtx": "pip install 'tensorrt-rtx>=1.7,<1.8'",
    "tensorrt": "pip install 'lhanet-export[tensorrt]'",
}
#: Measured with the full-width network: export, FP16 and verification on a CPU.
_MEMORY_FOR_DEPLOY_BYTES = 12 * 2**30


@command("doctor")
@json_option
def doctor(show: Show) -> None:
    """Say what this machine can do, what is missing for the rest, and how to get it."""
    facts = findings()
    show.table("Machine", _machine_rows(facts["machine"], facts["gpu"]))
    show.table("Packages", [(name, _package_text(package)) for name, package in facts["packages"].items()])
    rows = [(entry["what"], "yes" if entry["able"] else "no", entry["missing"] or "") for entry in facts["can"]]
    show.table("What can be done here", rows, columns=("", "", "what is missing"))
    show.facts(facts)


def findings() -> dict[str, Any]:
    """Everything that `doctor` reports, as JSON values; a broken package is a finding, never an error."""
    with ThreadPoolExecutor(len(SUBJECTS)) as pool:
        answers = dict(zip(SUBJECTS, pool.map(asked, SUBJECTS), strict=True))
    packages = _packages(answers)
    gpu = answers["driver"] if "gpus" in answers["driver"] else {"gpus": [], "reason": answers["driver"]["error"]}
    return {
        "lhanet_export": __version__,
        "machine": _machine(),
        "gpu": gpu,
        "packages": packages,
        "can": capabilities(packages, gpu),
    }


def capabilities(packages: dict[str, dict[str, Any]], gpu: dict[str, Any]) -> list[dict[str, Any]]:
    """What the toolkit can do with these packages and GPUs: `what`, `able`, and the first thing that is `missing`."""
    no_gpu = None if gpu["gpus"] else f"an NVIDIA GPU ({gpu.get('reason') or 'none is visible'})"
    no_provider = None
    if "CUDAExecutionProvider" not in packages["onnxruntime"].get("providers", []):
        no_provider = "CUDA in ONNX Runtime: pip uninstall onnxruntime; pip install --force-reinstall onnxruntime-gpu"
    no_bf16 = None if packages["openvino"].get("bf16") else "a CPU with BF16 arithmetic (avx512_bf16 or AMX)"
    needs = {
        "export a checkpoint to ONNX (FP32, FP16)": _lacking(packages, "torch", "numpy", "onnx", "onnx_ir"),
        "verify ONNX files on the CPU": _lacking(packages, "torch", "onnx_ir", "onnxruntime"),
        "run ONNX files in OpenVINO": _lacking(packages, "onnx_ir", "openvino"),
        "run ONNX files in OpenVINO, in BF16": _lacking(packages, "onnx_ir", "openvino") or no_bf16,
        "build TensorRT-RTX engines (no GPU needed)": _lacking(packages, "tensorrt_rtx", "onnx", "polygraphy"),
        "build TensorRT engines": _lacking(packages, "tensorrt", "onnx", "polygraphy") or no_gpu,
        "run TensorRT-RTX engines": _lacking(packages, "tensorrt_rtx") or no_gpu,
        "run TensorRT engines": _lacking(packages, "tensorrt") or no_gpu,
        "run ONNX files on the GPU": _lacking(packages, "onnxruntime") or no_provider or no_gpu,
    }
    return [{"what": what, "able": missing is None, "missing": missing} for what, missing in needs.items()]


def _lacking(packages: dict[str, dict[str, Any]], *names: str) -> str | None:
    """The first of the packages that is not there or does not import, with what helps."""
    for name in names:
        package = packages[name]
        install = _HOW_TO_GET.get(name, f"pip install {name.replace('_', '-')}")
        if package["state"] == "missing":
            return f"{name}: {install}"
        if package["state"] == "broken":
            return f"a working {name}, this one does not import; {install} --force-reinstall"
    return None


def _packages(answers: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    plain = answers["plain"]
    found = {name: _state(name, answers[name]) for name in _PROBED}
    found |= {name: _state(name, plain.get(name, plain)) for name in PLAIN}
    for name in _UNPROBED:
        version = _version(name)
        found[name] = {"state": "missing" if version is None else "ok", "version": version}
    if len({"onnxruntime", "onnxruntime-gpu"} & {_normalized(name) for name in _distributions()}) == 2:
        found["onnxruntime"]["note"] = (
            "onnxruntime and onnxruntime-gpu are both installed and overwrite each other's files"
        )
    return found


def _state(name: str, answer: dict[str, Any]) -> dict[str, Any]:
    """Missing if nothing of that name is installed, broken if it is there and does not import."""
    error = answer.get("error")
    if error is None:
        return {"state": "ok", **answer, "version": answer.get("version") or _version(name)}
    if error.startswith(("ModuleNotFoundError: No module named '" + name + "'",)):
        return {"state": "missing", "version": None}
    return {"state": "broken", "version": _version(name), "error": error}


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _distributions() -> list[str]:
    # The name of a damaged installation is None.
    return [name for entry in metadata.distributions() if (name := entry.metadata["Name"])]


def _normalized(name: str) -> str:
    return name.lower().replace("_", "-")


def _machine() -> dict[str, Any]:
    folder = Path.cwd()
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "python": platform.python_version(),
        "platform": platform.platform(terse=True),
        "cpu": _cpu_name(),
        "cores": usable,
        "memory_bytes": _memory_bytes(),
        "folder": str(folder),
        "disk_free_bytes": shutil.disk_usage(folder).free,
    }


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _memory_bytes() -> int | None:
    """What this process may use: the machine's memory, or less where a container limits it."""
    if not hasattr(os, "sysconf") or "SC_PHYS_PAGES" not in os.sysconf_names:
        return None
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for name in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            total = min(total, int(Path(name).read_text(encoding="ascii")))
        except (OSError, ValueError):
            # Not in this version of cgroups, or the word "max".
            continue
    return total


def _machine_rows(machine: dict[str, Any], gpu: dict[str, Any]) -> list[tuple[str, str]]:
    memory = machine["memory_bytes"]
    memory_text = "unknown" if memory is None else format_bytes(memory)
    if memory is not None and memory < _MEMORY_FOR_DEPLOY_BYTES:
        memory_text += f" (the full-width network needs up to {format_bytes(_MEMORY_FOR_DEPLOY_BYTES)})"
    cards = [
        f"{card['name']}, {format_bytes(card['memory_bytes'])}, compute capability {card['compute_capability']}"
        for card in gpu["gpus"]
    ]
    driver = [("driver", f"{gpu.get('driver') or 'unknown'}, CUDA {gpu.get('cuda')}")] if cards else []
    return [
        ("lhanet-export", __version__),
        ("Python", machine["python"]),
        ("platform", machine["platform"]),
        ("processor", f"{machine['cpu']}, {machine['cores']} cores"),
        ("memory", memory_text),
        ("disk", f"{format_bytes(machine['disk_free_bytes'])} free in {machine['folder']}"),
        *[("GPU", card) for card in cards or [f"none: {gpu.get('reason') or 'none is visible'}"]],
        *driver,
    ]


def _package_text(package: dict[str, Any]) -> str:
    text = {"ok": package["version"] or "installed", "missing": "not installed"}.get(package["state"])
    text = text or f"{package['version']}, does not import: {package['error']}"
    if "cuda" in package:
        text += f" (for CUDA {package['cuda']})" if package["cuda"] else " (without CUDA)"
    if "bf16" in package:
        text += f" ({'with' if package['bf16'] else 'without'} BF16 on this CPU)"
    if package.get("providers"):
        text += f" ({', '.join(name.removesuffix('ExecutionProvider') for name in package['providers'])})"
    return f"{text}; {package['note']}" if "note" in package else str(text)
