"""The NVIDIA GPUs of this machine, asked of the driver itself: in milliseconds, and without importing torch."""

from __future__ import annotations

import ctypes
import sys
from dataclasses import dataclass
from typing import Any

_DRIVER = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
_CAPABILITY_MAJOR, _CAPABILITY_MINOR = 75, 76  # CUdevice_attribute
_NAME_BYTES, _BUS_ID_BYTES = 256, 16


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """A GPU as the driver describes it."""

    name: str
    compute_capability: str
    memory_bytes: int


def find_gpus(driver: Any = None) -> tuple[Gpu, ...]:
    """The GPUs that CUDA programs see here, in CUDA's order; empty without a driver or a usable GPU.

    Obeys `CUDA_VISIBLE_DEVICES`. `driver` stands in for the driver's library.
    """
    driver = _started(driver)
    count = ctypes.c_int(0)
    if driver is None or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return ()
    return tuple(_gpu(driver, index) for index in range(count.value))


def bus_id_of_first_gpu(driver: Any = None) -> str | None:
    """Where the first of `find_gpus` is plugged in, `0000:65:00.0`, by which other libraries know it; None without one.

    Other libraries number GPUs in another order than CUDA and do not obey `CUDA_VISIBLE_DEVICES`.
    """
    driver = _started(driver)
    device, text = ctypes.c_int(), ctypes.create_string_buffer(_BUS_ID_BYTES)
    if driver is None or driver.cuDeviceGet(ctypes.byref(device), 0) != 0:
        return None
    if driver.cuDeviceGetPCIBusId(text, _BUS_ID_BYTES, device) != 0:
        return None
    return text.value.decode()


def _started(driver: Any) -> Any:
    """The driver's library, or what stands in for it, ready to be asked; None where there is none."""
    if driver is None:
        try:
            driver = ctypes.CDLL(_DRIVER)
        except OSError:
            return None
    return driver if driver.cuInit(0) == 0 else None


def _gpu(driver: Any, index: int) -> Gpu:
    device, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    memory = ctypes.c_size_t()
    name = ctypes.create_string_buffer(_NAME_BYTES)
    # None of these fails for a device that cuDeviceGetCount counted; a zero would show in the result.
    driver.cuDeviceGet(ctypes.byref(device), index)
    driver.cuDeviceGetName(name, _NAME_BYTES, device)
    driver.cuDeviceGetAttribute(ctypes.byref(major), _CAPABILITY_MAJOR, device)
    driver.cuDeviceGetAttribute(ctypes.byref(minor), _CAPABILITY_MINOR, device)
    driver.cuDeviceTotalMem_v2(ctypes.byref(memory), device)
    return Gpu(
        name=name.value.decode(errors="replace"),
        compute_capability=f"{major.value}.{minor.value}",
        memory_bytes=memory.value,
    )
