"""What is asked of NVML and of Linux, with a stand-in that fills memory as the driver's library would."""

import ctypes
import mmap
import os
import platform
import struct
import sys
from pathlib import Path
from typing import Any

import pytest

from lhanet_export.bench import conditions
from lhanet_export.bench.conditions import (
    CpuConditions,
    GpuConditions,
    cpu_conditions,
    cpu_has_bf16,
    cpu_name,
    gpu_conditions,
    peak_resident_bytes,
    reset_peak_resident,
)
from lhanet_export.errors import EnvironmentLacks

NOT_SUPPORTED, INSUFFICIENT_SIZE = 3, 7
HANDLE = 0x1234_5678_9ABC
#: As the C compiler lays out nvmlProcessInfo_t, nvmlMemory_t and nvmlUtilization_t on 64 bits.
PROCESS, MEMORY, UTILIZATION = "<I4xQII", "<QQQ", "<II"
MINE = os.getpid()


def fill(reference: Any, layout: str, *values: int) -> int:
    """Write what the driver would at a pointer; its return code."""
    packed = struct.pack(layout, *values)
    target = reference if isinstance(reference, ctypes.Array) else reference._obj
    assert ctypes.sizeof(target) >= len(packed)
    ctypes.memmove(ctypes.addressof(target), packed, len(packed))
    return 0


class FakeNvml:
    """NVML with one RTX 3060 and processes on it; what is in `silent` answers that it is not supported."""

    def __init__(self, processes: list[tuple[int, int]] | None = None, silent: frozenset[str] = frozenset()) -> None:
        self.processes = [(MINE, 1_500_000_000), (1, 7)] if processes is None else processes
        self.silent = silent
        self.open = 0

    def status(self, name: str, device: ctypes.c_void_p) -> int:
        assert device.value == HANDLE
        assert self.open == 1
        return NOT_SUPPORTED if name in self.silent else 0

    def nvmlInit_v2(self) -> int:
        if "init" in self.silent:
            return NOT_SUPPORTED
        self.open += 1
        return 0

    def nvmlShutdown(self) -> int:
        self.open -= 1
        return 0

    def nvmlDeviceGetHandleByPciBusId_v2(self, bus_id: bytes, device: Any) -> int:
        assert bus_id == b"0000:65:00.0"
        return NOT_SUPPORTED if "handle" in self.silent else fill(device, "<Q", HANDLE)

    def nvmlSystemGetDriverVersion(self, text: Any, size: int) -> int:
        if "driver" in self.silent:
            return NOT_SUPPORTED
        assert size == ctypes.sizeof(text) == 80
        text.value = b"570.86.15"
        return 0

    def nvmlDeviceGetClockInfo(self, device: ctypes.c_void_p, kind: int, megahertz: Any) -> int:
        return self.status("clock", device) or fill(megahertz, "<I", {1: 1777, 2: 7501}[kind])

    def nvmlDeviceGetTemperature(self, device: ctypes.c_void_p, sensor: int, celsius: Any) -> int:
        assert sensor == 0
        return self.status("temperature", device) or fill(celsius, "<I", 64)

    def nvmlDeviceGetPowerUsage(self, device: ctypes.c_void_p, milliwatts: Any) -> int:
        return self.status("power", device) or fill(milliwatts, "<I", 168_250)

    def nvmlDeviceGetUtilizationRates(self, device: ctypes.c_void_p, percent: Any) -> int:
        return self.status("utilization", device) or fill(percent, UTILIZATION, 97, 41)

    def nvmlDeviceGetMemoryInfo(self, device: ctypes.c_void_p, info: Any) -> int:
        return self.status("memory", device) or fill(info, MEMORY, 12 << 30, 10 << 30, 2 << 30)

    def nvmlDeviceGetComputeRunningProcesses_v3(self, device: ctypes.c_void_p, count: Any, found: Any) -> int:
        room, count._obj.value = count._obj.value, len(self.processes)
        if room < len(self.processes):
            return INSUFFICIENT_SIZE
        layout = "<" + PROCESS[1:] * len(self.processes)
        flat = [value for pid, used in self.processes for value in (pid, used, 0xFFFFFFFF, 0xFFFFFFFF)]
        return self.status("processes", device) or fill(found, layout, *flat)


class FakeCuda:
    """CUDA's driver, whose first GPU is not the one with the lowest bus id."""

    count = 1

    def cuInit(self, flags: int) -> int:
        return 0

    def cuDeviceGet(self, device: Any, ordinal: int) -> int:
        assert ordinal == 0
        return 101 if self.count == 0 else fill(device, "<i", 3)

    def cuDeviceGetPCIBusId(self, text: Any, size: int, device: ctypes.c_int) -> int:
        assert device.value == 3 and size == ctypes.sizeof(text) >= len("0000:65:00.0") + 1
        text.value = b"0000:65:00.0"
        return 0


def asked(library: Any) -> GpuConditions:
    found = gpu_conditions(library, FakeCuda())
    assert found is not None
    return found


def test_the_gpu_as_the_driver_tells() -> None:
    library = FakeNvml()
    assert asked(library) == GpuConditions(
        driver="570.86.15",
        sm_mhz=1777,
        memory_mhz=7501,
        celsius=64,
        watts=168.25,
        busy_percent=97,
        process_bytes=1_500_000_000,
        used_bytes=2 << 30,
        total_bytes=12 << 30,
    )
    assert library.open == 0


def test_what_the_driver_does_not_tell_is_none() -> None:
    everything = {"driver", "clock", "temperature", "power", "utilization", "memory", "processes"}
    assert set(vars(asked(FakeNvml(silent=frozenset(everything)))).values()) == {None}
    found = asked(FakeNvml(silent=frozenset({"power"})))
    assert found.watts is None
    assert found.celsius == 64


def test_a_driver_without_the_newer_functions_is_asked_for_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(FakeNvml, "nvmlDeviceGetComputeRunningProcesses_v3")
    monkeypatch.delattr(FakeNvml, "nvmlDeviceGetTemperature")
    found = asked(FakeNvml())
    assert (found.process_bytes, found.celsius, found.sm_mhz) == (None, None, 1777)


@pytest.mark.parametrize("what", ["init", "handle"])
def test_without_a_gpu_there_is_nothing_to_tell(what: str) -> None:
    library = FakeNvml(silent=frozenset({what}))
    assert gpu_conditions(library, FakeCuda()) is None
    assert library.open == 0


def test_a_gpu_that_cuda_does_not_see_is_not_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeCuda, "count", 0)
    library = FakeNvml()
    assert gpu_conditions(library, FakeCuda()) is None
    assert library.open == 0


def test_without_nvml_there_is_nothing_to_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conditions, "_LIBRARY", "libno-such-library.so.1")
    assert gpu_conditions() is None


@pytest.mark.parametrize(
    ("processes", "expected"),
    [
        ([], None),
        ([(MINE + 1, 5)], None),
        ([(MINE, 0)], None),  # some containers
        ([(MINE, 2**64 - 1)], None),  # Windows
        ([(MINE, 3), (1, 9), (MINE, 4)], 7),  # two instances of MIG
        ([(1, 9)] * 500 + [(MINE, 6 << 30)], 6 << 30),
        ([(1, 9)] * 5000 + [(MINE, 6 << 30)], None),
    ],
)
def test_the_memory_of_this_process_alone(processes: list[tuple[int, int]], expected: int | None) -> None:
    assert asked(FakeNvml(processes)).process_bytes == expected


def test_numbers_are_those_that_are_known() -> None:
    found = asked(FakeNvml(silent=frozenset({"memory", "processes", "utilization"})))
    assert found.numbers() == {"sm_mhz": 1777, "memory_mhz": 7501, "celsius": 64, "watts": 168.25}


# The CPU


def write(root: Path, name: str, text: str) -> None:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(text, encoding="utf-8")


@pytest.mark.parametrize(
    ("flags", "name"),
    [
        ("fpu avx2 fma", "A CPU (AVX2)"),
        ("avx2 avx512f avx512_bf16", "A CPU (AVX2, AVX-512, BF16)"),
        ("avx512f amx_bf16 avx2", "A CPU (AVX2, AVX-512, AMX)"),
        ("fpu", "A CPU"),
    ],
)
def test_a_processor_is_named_with_what_makes_it_fast(flags: str, name: str, tmp_path: Path) -> None:
    core = f"processor\t: 0\nmodel name\t: A CPU\nflags\t\t: {flags}\n"
    write(tmp_path, "proc/cpuinfo", f"{core}\n{core.replace(flags, 'other')}")
    assert cpu_name(tmp_path) == name


@pytest.mark.parametrize(
    ("line", "has_it"),
    [
        ("flags : fpu avx2 avx512f", False),
        ("flags : fpu avx512_bf16", True),
        ("flags : amx_bf16 amx_tile", True),
        ("Features : fp asimd i8mm bf16", True),
        ("", False),
    ],
)
def test_bf16_is_a_matter_of_the_processor(line: str, has_it: bool, tmp_path: Path) -> None:
    write(tmp_path, "proc/cpuinfo", f"processor : 0\n{line}\n")
    assert cpu_has_bf16(tmp_path) == has_it


def test_a_processor_without_a_name_has_a_kind(tmp_path: Path) -> None:
    assert cpu_name(tmp_path) == platform.machine()


def test_the_frequency_is_the_mean_of_the_cores(tmp_path: Path) -> None:
    write(tmp_path, "proc/cpuinfo", "cpu MHz\t\t: 1.0\n")
    write(tmp_path, "proc/loadavg", "2.83 2.59 1.93 1/234 5678\n")
    for core, kilohertz in enumerate((2_000_000, 3_000_000)):
        write(tmp_path, f"sys/devices/system/cpu/cpu{core}/cpufreq/scaling_cur_freq", f"{kilohertz}\n")
    assert cpu_conditions(tmp_path) == CpuConditions(mhz=2500.0, load=2.83)


def test_a_virtual_machine_has_its_frequency_elsewhere(tmp_path: Path) -> None:
    write(tmp_path, "proc/cpuinfo", "model name\t: A CPU\ncpu MHz\t\t: 2400.5\n\ncpu MHz\t\t: 2401.5\n")
    assert cpu_conditions(tmp_path) == CpuConditions(mhz=2401.0, load=None)


def test_other_systems_tell_nothing_of_the_cpu(tmp_path: Path) -> None:
    assert cpu_conditions(tmp_path) == CpuConditions(mhz=None, load=None)


# Peak memory


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux's /proc")
def test_a_peak_is_seen_and_forgotten() -> None:
    reset_peak_resident()
    before = peak_resident_bytes()
    # Pages of its own: what Python allocates may lie in memory that was resident before.
    large = mmap.mmap(-1, 64 << 20)
    for page in range(0, len(large), mmap.PAGESIZE):
        large[page] = 1
    # Linux counts in steps of some dozen pages for each thread, so the peak may look a little lower later.
    with_it = peak_resident_bytes()
    assert with_it >= before + (56 << 20)
    del large
    assert peak_resident_bytes() >= with_it - (4 << 20)
    reset_peak_resident()
    assert peak_resident_bytes() < with_it - (56 << 20)


def test_the_peak_is_read_in_kibibytes(tmp_path: Path) -> None:
    write(tmp_path, "proc/self/status", "Name:\tpython\nVmPeak:\t  900 kB\nVmHWM:\t  512 kB\nVmRSS:\t  100 kB\n")
    assert peak_resident_bytes(tmp_path) == 524_288


def test_a_reset_writes_five_into_the_file_that_is_there(tmp_path: Path) -> None:
    write(tmp_path, "proc/self/clear_refs", "")
    reset_peak_resident(tmp_path)
    assert (tmp_path / "proc/self/clear_refs").read_bytes() == b"5"


def test_systems_without_proc_are_told_so(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentLacks, match="peak memory is read from Linux"):
        peak_resident_bytes(tmp_path)
    write(tmp_path, "proc/self/status", "Name:\tpython\n")
    with pytest.raises(EnvironmentLacks, match="does not tell it"):
        peak_resident_bytes(tmp_path)
    with pytest.raises(EnvironmentLacks, match="cannot be reset"):
        reset_peak_resident(tmp_path)
    assert not (tmp_path / "proc/self/clear_refs").exists()
