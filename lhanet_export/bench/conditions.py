"""What a measurement was taken under: clocks, temperature, load, and memory of this process, on a GPU and on a CPU.

GPUs are asked of NVML, the library that NVIDIA's driver comes with:
https://docs.nvidia.com/deploy/nvml-api/group__nvmlDeviceQueries.html. CPUs are asked of Linux's /proc and /sys.
"""

from __future__ import annotations

import ctypes
import os
import platform
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lhanet_export.engine.gpu import bus_id_of_first_gpu
from lhanet_export.errors import EnvironmentLacks

_LIBRARY = "nvml.dll" if sys.platform == "win32" else "libnvidia-ml.so.1"
_SM_CLOCK, _MEMORY_CLOCK = 1, 2  # nvmlClockType_t
_GPU_SENSOR = 0  # nvmlTemperatureSensors_t
_NOT_AVAILABLE = 2**64 - 1  # NVML_VALUE_NOT_AVAILABLE, as Windows answers
_VERSION_BYTES = 80  # NVML_SYSTEM_DRIVER_VERSION_BUFFER_SIZE
#: One question with room for more processes than a GPU has contexts for saves asking how many there are.
_MOST_PROCESSES = 1024

#: Flags in /proc/cpuinfo, and what everybody else calls them.
_INSTRUCTIONS = {"avx2": "AVX2", "avx512f": "AVX-512", "avx512_bf16": "BF16", "amx_bf16": "AMX"}
_ROOT = Path("/")


class _Memory(ctypes.Structure):
    """nvmlMemory_t, in bytes."""

    _fields_ = [("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong)]


class _Utilization(ctypes.Structure):
    """nvmlUtilization_t, in percent of the last sample period, a sixth of a second to a second."""

    _fields_ = [("gpu", ctypes.c_uint), ("memory", ctypes.c_uint)]


class _Process(ctypes.Structure):
    """nvmlProcessInfo_t of the functions that end in _v3, 24 bytes with the gap after the first field."""

    _fields_ = [
        ("pid", ctypes.c_uint),
        ("used_bytes", ctypes.c_ulonglong),
        ("gpu_instance", ctypes.c_uint),
        ("compute_instance", ctypes.c_uint),
    ]


@dataclass(frozen=True, kw_only=True)
class GpuConditions:
    """A GPU at one moment: MHz, degrees Celsius, watts, percent of time busy, bytes; None where the driver is silent.

    `process_bytes` is this process's memory, contexts and libraries included; None where the driver does not list
    it, which on Windows and in some containers, whose process numbers the driver does not know, is always.
    `used_bytes` is that of everybody, and what the driver keeps for itself.
    """

    driver: str | None
    sm_mhz: int | None
    memory_mhz: int | None
    celsius: int | None
    watts: float | None
    busy_percent: int | None
    process_bytes: int | None
    used_bytes: int | None
    total_bytes: int | None

    def numbers(self) -> dict[str, float]:
        """The numbers that are known, by name."""
        return {name: value for name, value in asdict(self).items() if name != "driver" and value is not None}


@dataclass(frozen=True, kw_only=True)
class CpuConditions:
    """A CPU at one moment: the cores' mean frequency in MHz and the load average of the last minute, None if unknown.

    The load counts processes that run or wait to, this one included.
    """

    mhz: float | None
    load: float | None


def gpu_conditions(library: Any = None, driver: Any = None) -> GpuConditions | None:
    """What the driver says of the GPU that CUDA programs see first here; None without NVML or without a GPU.

    Takes a while, so it is nothing to ask while something is timed. `library` stands in for NVML, `driver` for CUDA's.
    """
    if library is None:
        try:
            library = ctypes.CDLL(_LIBRARY)
        except OSError:
            return None
    if library.nvmlInit_v2() != 0:
        return None
    try:
        device, bus_id = ctypes.c_void_p(), bus_id_of_first_gpu(driver)
        if bus_id is None or library.nvmlDeviceGetHandleByPciBusId_v2(bus_id.encode(), ctypes.byref(device)) != 0:
            return None
        return _conditions(library, device)
    finally:
        library.nvmlShutdown()


def cpu_name(root: Path = _ROOT) -> str:
    """What Linux calls the processor, and the instructions that decide how fast a network is on it; else its kind.

    Processors of one name differ in them: `AMD EPYC (AVX2)`, `AMD EPYC (AVX2, AVX-512, BF16)`.
    """
    facts = _first_core(root)
    flags = facts.get("flags", "").split()
    known = ", ".join(name for flag, name in _INSTRUCTIONS.items() if flag in flags)
    return facts.get("model name", platform.machine()) + (f" ({known})" if known else "")


def cpu_has_bf16(root: Path = _ROOT) -> bool:
    """Whether the processor has arithmetic for BF16, as far as Linux tells; without, a network takes minutes in it."""
    facts = _first_core(root)
    # ARM has them in a line of another name.
    flags = facts.get("flags", facts.get("Features", "")).split()
    return not {"avx512_bf16", "amx_bf16", "bf16"}.isdisjoint(flags)


def _first_core(root: Path) -> dict[str, str]:
    lines = _text(root / "proc/cpuinfo").split("\n\n")[0].splitlines()
    return {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}


def cpu_conditions(root: Path = _ROOT) -> CpuConditions:
    """What Linux says of the CPU now; `root` stands in for the root of its file system."""
    kilohertz = [_number(path) for path in root.glob("sys/devices/system/cpu/cpu[0-9]*/cpufreq/scaling_cur_freq")]
    megahertz = [value / 1000 for value in kilohertz if value is not None]
    if not megahertz:
        # Virtual machines have no cpufreq; what they have here may be the frequency on paper.
        lines = _text(root / "proc/cpuinfo").splitlines()
        megahertz = [float(line.partition(":")[2]) for line in lines if line.startswith("cpu MHz")]
    return CpuConditions(
        mhz=sum(megahertz) / len(megahertz) if megahertz else None,
        load=_number(root / "proc/loadavg"),
    )


def peak_resident_bytes(root: Path = _ROOT) -> int:
    """The most memory of this process that was resident at once, mapped files included, since it began or the reset.

    `EnvironmentLacks` anywhere but on Linux.
    """
    for line in _text(root / "proc/self/status").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024  # proc(5) calls them kB, but they are KiB.
    raise EnvironmentLacks("peak memory is read from Linux's /proc/self/status, which is not here or does not tell it")


def reset_peak_resident(root: Path = _ROOT) -> None:
    """Set the peak back to what is resident now; `EnvironmentLacks` anywhere but on Linux."""
    path = root / "proc/self/clear_refs"
    try:
        # Write-only as the file is, and without making one where there is none. What 5 means: proc(5).
        file = os.open(path, os.O_WRONLY)
        try:
            os.write(file, b"5")
        finally:
            os.close(file)
    except OSError as error:
        raise EnvironmentLacks(f"peak memory cannot be reset through {path}: {error}") from error


def available_bytes(device: str, root: Path = _ROOT) -> int | None:
    """Memory that a new process could have on `cpu` or `cuda` (the first GPU); None where nobody tells."""
    if device == "cuda":
        found = gpu_conditions()
        if found is None or found.total_bytes is None or found.used_bytes is None:
            return None
        return found.total_bytes - found.used_bytes
    for line in _text(root / "proc/meminfo").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None


def _conditions(library: Any, device: ctypes.c_void_p) -> GpuConditions:
    memory = _asked(library, "nvmlDeviceGetMemoryInfo", _Memory(), device)
    busy = _asked(library, "nvmlDeviceGetUtilizationRates", _Utilization(), device)
    milliwatts = _value(library, "nvmlDeviceGetPowerUsage", device)
    return GpuConditions(
        driver=_driver_version(library),
        sm_mhz=_value(library, "nvmlDeviceGetClockInfo", device, _SM_CLOCK),
        memory_mhz=_value(library, "nvmlDeviceGetClockInfo", device, _MEMORY_CLOCK),
        celsius=_value(library, "nvmlDeviceGetTemperature", device, _GPU_SENSOR),
        watts=None if milliwatts is None else milliwatts / 1000,
        busy_percent=None if busy is None else busy.gpu,
        process_bytes=_process_bytes(library, device),
        used_bytes=None if memory is None else memory.used,
        total_bytes=None if memory is None else memory.total,
    )


def _driver_version(library: Any) -> str | None:
    text = ctypes.create_string_buffer(_VERSION_BYTES)
    if library.nvmlSystemGetDriverVersion(text, _VERSION_BYTES) != 0:
        return None
    return text.value.decode(errors="replace")


def _value(library: Any, name: str, *arguments: Any) -> int | None:
    answer = _asked(library, name, ctypes.c_uint(), *arguments)
    return None if answer is None else answer.value


def _asked(library: Any, name: str, answer: Any, *arguments: Any) -> Any:
    """`answer`, filled in by an NVML function; None if the driver has no such function or no answer for this GPU."""
    function = _function(library, name)
    return answer if function is not None and function(*arguments, ctypes.byref(answer)) == 0 else None


def _function(library: Any, name: str) -> Callable[..., int] | None:
    found: Callable[..., int] | None = getattr(library, name, None)
    return found


def _process_bytes(library: Any, device: ctypes.c_void_p) -> int | None:
    function = _function(library, "nvmlDeviceGetComputeRunningProcesses_v3")
    if function is None:
        return None
    count, found = ctypes.c_uint(_MOST_PROCESSES), (_Process * _MOST_PROCESSES)()
    if function(device, ctypes.byref(count), found) != 0:
        return None
    # With MIG a process has an entry in each instance that it uses. In some containers there is one that says 0.
    own = [entry.used_bytes for entry in found[: count.value] if entry.pid == os.getpid()]
    return None if _NOT_AVAILABLE in own else sum(own) or None


def _text(path: Path) -> str:
    """What a file of the kernel's says; nothing where it is not."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _number(path: Path) -> float | None:
    """The first number in such a file."""
    words = _text(path).split()
    return float(words[0]) if words else None
