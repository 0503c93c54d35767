"""As much of the CUDA driver as running an engine takes: memory, copies, streams and events of the first GPU.

The driver's own library is enough, through ctypes: no CUDA toolkit, no torch. What its functions do:
https://docs.nvidia.com/cuda/cuda-driver-api.
"""

from __future__ import annotations

import ctypes
import math
import sys
from collections.abc import Callable
from contextlib import ExitStack
from ctypes import POINTER, c_char_p, c_int, c_size_t, c_uint, c_uint64, c_void_p
from typing import Any

import numpy as np
from base import Lacks

_LIBRARY = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
_CAPABILITY_MAJOR, _CAPABILITY_MINOR = 75, 76  # CUdevice_attribute
_NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING: such a stream does not wait for the default one
_SLEEP, _NO_TIMING = 1, 2  # CU_EVENT_BLOCKING_SYNC and CU_EVENT_DISABLE_TIMING: who waits leaves the core to others
_OUT_OF_MEMORY = 2  # CUDA_ERROR_OUT_OF_MEMORY
_NAME_BYTES = 256

#: The functions that are called and what they take. Without it ctypes would cut addresses to 32 bits.
FUNCTIONS: dict[str, tuple[Any, ...]] = {
    "cuInit": (c_uint,),
    "cuGetErrorName": (c_int, POINTER(c_char_p)),
    "cuDeviceGet": (POINTER(c_int), c_int),
    "cuDeviceGetName": (c_char_p, c_int, c_int),
    "cuDeviceGetAttribute": (POINTER(c_int), c_int, c_int),
    "cuDevicePrimaryCtxRetain": (POINTER(c_void_p), c_int),
    "cuDevicePrimaryCtxRelease_v2": (c_int,),
    "cuCtxSetCurrent": (c_void_p,),
    "cuCtxSynchronize": (),
    "cuMemAlloc_v2": (POINTER(c_uint64), c_size_t),
    "cuMemFree_v2": (c_uint64,),
    "cuMemHostAlloc": (POINTER(c_void_p), c_size_t, c_uint),
    "cuMemFreeHost": (c_void_p,),
    "cuMemcpyHtoDAsync_v2": (c_uint64, c_void_p, c_size_t, c_void_p),
    "cuMemcpyDtoDAsync_v2": (c_uint64, c_uint64, c_size_t, c_void_p),
    "cuMemcpyDtoHAsync_v2": (c_void_p, c_uint64, c_size_t, c_void_p),
    "cuStreamCreate": (POINTER(c_void_p), c_uint),
    "cuStreamDestroy_v2": (c_void_p,),
    "cuStreamWaitEvent": (c_void_p, c_void_p, c_uint),
    "cuEventCreate": (POINTER(c_void_p), c_uint),
    "cuEventDestroy_v2": (c_void_p,),
    "cuEventRecord": (c_void_p, c_void_p),
    "cuEventSynchronize": (c_void_p,),
}


class Cuda:
    """The first GPU that CUDA programs see here, for the thread that opens it; a `with` block gives all back.

    Streams, events and addresses are whole numbers. Every call that fails raises `Lacks` with the driver's own word
    for it. `driver` stands in for the driver's library.
    """

    def __init__(self, driver: Any = None) -> None:
        try:
            self._driver = ctypes.CDLL(_LIBRARY) if driver is None else driver
        except OSError as error:
            raise Lacks(f"an NVIDIA GPU is needed, and there is no driver for one here ({error})") from error
        for name, types in FUNCTIONS.items():
            function = getattr(self._driver, name)
            function.argtypes, function.restype = types, c_int
        self.name = "the GPU"
        self.call("cuInit", 0)
        device = self._made("cuDeviceGet", c_int(), 0)
        title = ctypes.create_string_buffer(_NAME_BYTES)
        self.call("cuDeviceGetName", title, _NAME_BYTES, device)
        self.name = title.value.decode(errors="replace")
        major, minor = (
            self._made("cuDeviceGetAttribute", c_int(), attribute, device)
            for attribute in (_CAPABILITY_MAJOR, _CAPABILITY_MINOR)
        )
        self.capability = f"{major}.{minor}"
        self._open = ExitStack()
        # The primary context is the one that TensorRT uses, too.
        context = self._made("cuDevicePrimaryCtxRetain", c_void_p(), device)
        self._later("cuDevicePrimaryCtxRelease_v2", device)
        self.call("cuCtxSetCurrent", context)

    def __enter__(self) -> Cuda:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def call(self, function: str, *arguments: Any) -> None:
        """Call a function of the driver that gives nothing but whether it failed."""
        code = getattr(self._driver, function)(*arguments)
        if code == 0:
            return
        name = c_char_p()
        self._driver.cuGetErrorName(code, ctypes.byref(name))
        word = (name.value or b"an unknown error").decode()
        if code == _OUT_OF_MEMORY:
            raise Lacks(f"not enough memory on {self.name} ({function}: {word}); take a smaller patch")
        raise Lacks(f"the GPU cannot be used: {function} says {word}")

    def device_memory(self, count: int) -> int:
        """The address of `count` bytes on the GPU."""
        address = self._made("cuMemAlloc_v2", c_uint64(), count)
        self._later("cuMemFree_v2", address)
        return address

    def host_array(self, shape: tuple[int, ...], dtype: str) -> np.ndarray:
        """An array in host memory that is never paged out: only from and to such can copies go on by themselves."""
        count = math.prod(shape) * np.dtype(dtype).itemsize
        address = self._made("cuMemHostAlloc", c_void_p(), count, 0)
        self._later("cuMemFreeHost", address)
        memory = (ctypes.c_char * count).from_address(address)
        return np.frombuffer(memoryview(memory).cast("B"), dtype).reshape(shape)

    def stream(self) -> int:
        """A queue of work; work in different ones goes on side by side."""
        stream = self._made("cuStreamCreate", c_void_p(), _NON_BLOCKING)
        self._later("cuStreamDestroy_v2", stream)
        return stream

    def event(self) -> int:
        """A mark that is put into a stream, for another stream or the host to wait for."""
        event = self._made("cuEventCreate", c_void_p(), _SLEEP | _NO_TIMING)
        self._later("cuEventDestroy_v2", event)
        return event

    def mark(self, event: int, stream: int) -> None:
        """Move an event to where a stream is now."""
        self.call("cuEventRecord", event, stream)

    def follow(self, event: int, stream: int) -> None:
        """Let a stream's next work wait for where an event is now; one that was never marked waits for nothing."""
        self.call("cuStreamWaitEvent", stream, event, 0)

    def _made(self, function: str, kind: Any, *arguments: Any) -> int:
        """What a function of the driver puts into its first argument."""
        self.call(function, ctypes.byref(kind), *arguments)
        return int(kind.value or 0)

    def _later(self, function: str, handle: int) -> None:
        """Give something back at the end. That a GPU which failed can do no more has been said by then."""
        give_back: Callable[[int], int] = getattr(self._driver, function)
        self._open.callback(give_back, handle)
