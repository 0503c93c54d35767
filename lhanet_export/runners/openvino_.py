"""OpenVINO on the CPU, for FP32 graphs: computed in FP32, or mixed with BF16 where the CPU can.

It is there for speed. Mixed is `openvino_mixed`: BF16 in the nodes where it changes few labels. An FP16
graph is refused, because OpenVINO would compute it in FP32 or BF16; what FP16 does to a network, the
ONNX Runtime runner shows.
"""

from __future__ import annotations

import ctypes
import mmap
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import numpy as np
from typing_extensions import Self

from lhanet_export.engine.backends import is_out_of_memory
from lhanet_export.errors import EnvironmentLacks, RefusedInput
from lhanet_export.export.artifact import OnnxArtifact, external_data_of
from lhanet_export.runners.base import HostRunner
from lhanet_export.runners.openvino_graph import channels_last
from lhanet_export.runners.openvino_library import computes_bf16, load_openvino, load_parts
from lhanet_export.runners.openvino_mixed import check_computed, check_mixed, mixed
from lhanet_export.shapes import format_shape

Precision = Literal["fp32", "mixed"]

#: What OpenVINO calls them.
_HINTS = {"fp32": "f32", "mixed": "bf16"}
#: Between two looks at the mapped file while compiling; weights are copied at about a gigabyte a second.
_RELEASE_SECONDS = 0.05


class OpenVINORunner(HostRunner):
    """Runs a checked FP32 ONNX file; the network is in memory inside the `with` block only.

    Creating one raises `RefusedInput` for an FP16 graph or one that `mixed` was not measured on, and
    `EnvironmentLacks` where OpenVINO is missing or the CPU does not compute in `precision`. `threads` is
    how many it uses; None leaves that to OpenVINO.
    """

    def __init__(self, artifact: OnnxArtifact, *, precision: Precision = "fp32", threads: int | None = None) -> None:
        if artifact.precision != "fp32":
            raise RefusedInput(
                f"{artifact.path} is an {artifact.precision} graph, and OpenVINO would compute it in {precision} on a "
                "CPU; give it the fp32 graph, or run this one in ONNX Runtime"
            )
        if precision == "mixed":
            check_mixed(artifact)
        self._openvino = load_openvino()
        self._core = self._openvino.Core()
        if precision == "mixed" and not computes_bf16(self._core):
            raise EnvironmentLacks(
                "this CPU does not compute in BF16 (that takes avx512_bf16 or AMX), and OpenVINO would run in FP32 "
                "instead; run in fp32"
            )
        self._artifact = artifact
        self._precision = precision
        # Explicitly, FP32 too: left to itself, OpenVINO computes FP32 graphs in BF16 on a CPU that can.
        self._config = {"INFERENCE_PRECISION_HINT": _HINTS[precision], "PERFORMANCE_HINT": "LATENCY"}
        if threads is not None:
            self._config["INFERENCE_NUM_THREADS"] = str(threads)
        self._model: Any = None
        self._compiled: Any = None
        self._shape: tuple[int, ...] = ()
        self.name = "openvino cpu" if precision == "fp32" else f"openvino cpu, {precision}"

    def infer(self, image: np.ndarray) -> np.ndarray:
        """The graph's output for volumes (N,1,D,H,W) float32; what the graph does not serve raises `RefusedInput`.

        The first volume of another size than the one before waits for `prepare`.
        """
        if image.dtype != np.float32:
            raise RefusedInput(f"expected volumes (N,1,D,H,W) of float32, got {image.shape} of {image.dtype}")
        self.prepare(image.shape)
        with self._explained("run"):
            output: np.ndarray = self._compiled(image)[0]
        return output

    def prepare(self, shape: tuple[int, ...]) -> None:
        """Compile for volumes of a shape (N,1,D,H,W), unless that is the shape that was compiled last."""
        if self._model is None:
            raise ValueError("the runner is closed; use it inside its with block")
        if shape == self._shape:
            return
        self._check_shape(shape)
        # The old size goes first: each keeps a copy of the weights in the layout of its kernels.
        self._shape, self._compiled = (), None
        weights = external_data_of(self._artifact.path)
        with self._explained(f"compile for {format_shape((shape[2], shape[3], shape[4]))}"), _pages_released(weights):
            # A compiled graph of one fixed size is faster than one that takes any.
            model = self._model.clone()
            model.reshape({"image": list(shape)})
            passes, ops = load_parts()
            channels_last(model, passes, ops)
            if self._precision == "mixed":
                model = mixed(model, self._openvino, self._core, ops)
            self._compiled = self._core.compile_model(model, "CPU", self._config)
        if self._precision == "mixed":
            check_computed(self._compiled)
        self._shape = shape

    def _check_shape(self, shape: tuple[int, ...]) -> None:
        if len(shape) != 5 or shape[0] < 1 or shape[1] != 1:
            raise RefusedInput(f"expected volumes (N,1,D,H,W), got {shape}")
        self._artifact.check_size((shape[2], shape[3], shape[4]))
        batch = self._artifact.facts["batch"]
        if batch not in (None, shape[0]):
            raise RefusedInput(f"{self._artifact.path} takes a batch of {batch}, got {shape[0]}")

    @contextmanager
    def _explained(self, action: str) -> Iterator[None]:
        """Turn OpenVINO's errors, which are all RuntimeError, into those of this toolkit."""
        try:
            yield
        except RuntimeError as error:
            if is_out_of_memory(str(error)):
                raise EnvironmentLacks(f"not enough memory to {action} ({self._artifact.path}): {error}") from error
            raise RefusedInput(f"OpenVINO could not {action} ({self._artifact.path}): {error}") from error

    def __enter__(self) -> Self:
        with self._explained("load the graph"):
            self._model = self._core.read_model(self._artifact.path)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._shape, self._compiled, self._model = (), None, None


@contextmanager
def _pages_released(path: Path) -> Iterator[None]:
    """Inside, and at the end, what was read of a mapped file does not stay in this process's resident memory.

    OpenVINO maps the weights' file and copies them into the layout of its kernels. Each page is read for one copy;
    kept until the last copy is made, the weights would be resident twice.
    """
    done = threading.Event()

    def release() -> None:
        while not done.wait(_RELEASE_SECONDS):
            _release_pages(path)

    thread = threading.Thread(target=release, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        _release_pages(path)


def _release_pages(path: Path) -> None:
    """Take the pages of a file that is mapped read-only out of this process's resident memory; on Linux only.

    What is read again comes back from the file.
    """
    maps = Path("/proc/self/maps")
    if not maps.exists():
        return
    madvise = ctypes.CDLL(None).madvise
    madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    for line in maps.read_text(encoding="utf-8", errors="replace").splitlines():
        addresses, access, _, _, _, *name = line.split(maxsplit=5)
        if name == [str(path.resolve())] and "w" not in access:
            start, end = (int(address, 16) for address in addresses.split("-"))
            # Advice: where the kernel does not take it, the pages stay.
            madvise(start, end - start, mmap.MADV_DONTNEED)
