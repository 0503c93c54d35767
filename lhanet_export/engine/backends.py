"""The two libraries that build and run engines: what tells them apart, and what both need.

TensorRT-RTX builds for a GPU that is not there; TensorRT builds on the GPU it finds. Their Python
interfaces are the same for everything this toolkit calls. TensorRT's side has been checked against
its published sources (11.1), not run on a GPU.
"""

from __future__ import annotations

import importlib
from collections import deque
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from lhanet_export.errors import EnvironmentLacks


@dataclass(frozen=True, kw_only=True)
class Backend:
    """One of the two libraries: the Python module it comes as, and what it demands of the machine.

    `progress_total` is what the fractions of a build's steps add up to, None where they say little. What
    `compiles_on_the_gpu` finishes its kernels where the engine runs, and has its own CUDA graphs and cache for them.
    """

    name: str
    title: str
    module: str
    install: str
    builds_without_gpu: bool
    compiles_on_the_gpu: bool
    progress_total: float | None


BACKENDS = {
    backend.name: backend
    for backend in (
        Backend(
            name="tensorrt-rtx",
            title="TensorRT-RTX",
            module="tensorrt_rtx",
            install="pip install tensorrt-rtx",
            builds_without_gpu=True,
            compiles_on_the_gpu=True,
            # After 2 of 38 s it says 83 %, and then nothing until it is done (measured at full width).
            progress_total=None,
        ),
        Backend(
            name="tensorrt",
            title="TensorRT",
            module="tensorrt",
            install="pip install 'lhanet-export[tensorrt]'",
            builds_without_gpu=False,
            compiles_on_the_gpu=False,
            progress_total=1.0,
        ),
    )
}

#: TensorRT's element types by the names that NumPy and the manifest use.
ELEMENT_TYPES = {
    "FLOAT": "float32",
    "HALF": "float16",
    "INT8": "int8",
    "UINT8": "uint8",
    "INT32": "int32",
    "INT64": "int64",
    "BOOL": "bool",
}


def load_module(backend: Backend) -> ModuleType:
    """The backend's Python module; `EnvironmentLacks` says how to install it, or why it does not load."""
    try:
        return importlib.import_module(backend.module)
    except ModuleNotFoundError as error:
        if error.name != backend.module:
            raise EnvironmentLacks(f"{backend.title} is installed but incomplete: {error}") from error
        raise EnvironmentLacks(
            f"{backend.title} is not installed (Python module '{backend.module}'); install it with: {backend.install}"
        ) from error
    except (ImportError, OSError, RuntimeError) as error:
        # Libraries that are missing, or from another release than the Python module.
        raise EnvironmentLacks(f"{backend.title} is installed but does not load: {error}") from error


def element_type(data_type: Any) -> str:
    """A TensorRT data type as the manifest writes it; a type this toolkit does not produce keeps its own name."""
    return ELEMENT_TYPES.get(data_type.name, data_type.name.lower())


class ErrorLog:
    """A TensorRT logger that remembers the latest errors, so that a null result can be explained.

    `logger` is what TensorRT's constructors take; it lives as long as this object.
    """

    def __init__(self, trt: Any) -> None:
        lines: deque[str] = deque(maxlen=8)

        class Logger(trt.ILogger):
            def __init__(self) -> None:
                trt.ILogger.__init__(self)

            def log(self, severity: Any, text: str) -> None:
                if severity in (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR):
                    lines.append(text.strip())

        self._lines = lines
        self.logger = Logger()

    @property
    def last(self) -> str:
        """The latest error in TensorRT's own words."""
        return self._lines[-1] if self._lines else "TensorRT gave no reason"

    @property
    def all(self) -> tuple[str, ...]:
        """The errors that are remembered, oldest first."""
        return tuple(self._lines)


def is_out_of_memory(text: str) -> bool:
    """Whether an error of a GPU library says that memory, host's or device's, was not enough."""
    squeezed = text.lower().replace(" ", "").replace("_", "")
    return any(
        word in squeezed
        for word in ("outofmemory", "badalloc", "memoryallocation", "failedallocation", "failedtoallocate")
    )
