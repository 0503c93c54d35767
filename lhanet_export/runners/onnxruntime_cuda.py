"""ONNX Runtime on an NVIDIA GPU: the graph as it is, in its own precision, where no engine is wanted or fits.

Written against ONNX Runtime 1.31 and tested with a stand-in for its session; it has not been run on a GPU yet.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from typing_extensions import Self

from lhanet_export.engine.backends import is_out_of_memory
from lhanet_export.engine.gpu import Gpu, find_gpus
from lhanet_export.errors import EnvironmentLacks, GpuFailed, OutOfMemory
from lhanet_export.export.artifact import OnnxArtifact
from lhanet_export.runners.base import HostRunner, size_of_volumes
from lhanet_export.runners.onnxruntime_library import load_onnxruntime, open_session

_CUDA = "CUDAExecutionProvider"
#: FP32 graphs are computed in FP32: TF32 has 10 bits of mantissa. Memory is taken as it is asked for: by default the
#: arena grows to the next power of two, and keeps it. https://onnxruntime.ai/docs/execution-providers/CUDA-ExecutionProvider.html
_OPTIONS = {"use_tf32": "0", "arena_extend_strategy": "kSameAsRequested"}
_GIVE_BACK = ("memory.enable_memory_arena_shrinkage", "gpu:0")
_INSTALL = "pip install 'onnxruntime-gpu[cuda,cudnn]'"


class CudaSession:
    """A graph loaded on the first GPU; its input and output stay in the GPU's memory as long as the size does.

    Making it raises `EnvironmentLacks` where there is no GPU or ONNX Runtime cannot use it: it never falls back to the
    CPU in silence. Afterwards a GPU that has no room raises `OutOfMemory`, one that fails `GpuFailed`. `module` and
    `gpus` stand in for library and hardware.
    """

    def __init__(self, path: Path, *, module: Any = None, gpus: tuple[Gpu, ...] | None = None) -> None:
        self._path = path
        self._onnxruntime, self.gpu = _library_and_gpu(module, gpus)
        if hasattr(self._onnxruntime, "preload_dlls"):
            # Finds CUDA and cuDNN where pip puts them.
            self._onnxruntime.preload_dlls()
        options = self._onnxruntime.SessionOptions()
        session = open_session(path, options, str(path), ((_CUDA, _OPTIONS),), self._onnxruntime)
        if _CUDA not in session.get_providers():
            raise EnvironmentLacks(f"ONNX Runtime cannot use the GPU here (CUDA or cuDNN do not load): {_INSTALL}")
        self._session = session
        self._binding: Any = None
        self._image: Any = None
        self._runs = 0

    def bring(self, image: np.ndarray) -> None:
        """Copy volumes (N,1,D,H,W) to the GPU, into the same memory as long as the shape is the same."""
        with self._explained(image.shape):
            if self._image is not None and tuple(self._image.shape()) == image.shape:
                self._image.update_inplace(image)
                return
            self._binding = self._session.io_binding()
            self._image = self._onnxruntime.OrtValue.ortvalue_from_numpy(image, "cuda", 0)
            self._binding.bind_ortvalue_input(self._session.get_inputs()[0].name, self._image)
            self._binding.bind_output(self._session.get_outputs()[0].name, "cuda")
            self._runs = 0

    def run(self) -> None:
        """Compute on what was brought last; returns when the output is there."""
        with self._explained(self._image.shape()):
            options = self._onnxruntime.RunOptions()
            if self._runs == 0:
                # The first run of a size tries all algorithms; what only that needs goes back to the GPU.
                options.add_run_config_entry(*_GIVE_BACK)
            self._session.run_with_iobinding(self._binding, options)
            self._binding.synchronize_outputs()
            self._runs += 1

    def fetch(self) -> np.ndarray:
        """The output of the last run, copied to the host."""
        with self._explained(self._image.shape()):
            output: np.ndarray = self._binding.copy_outputs_to_cpu()[0]
        return output

    @contextmanager
    def _explained(self, shape: Sequence[int]) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            # ONNX Runtime's exceptions have no common base below Exception.
            self._image = None
            if is_out_of_memory(str(error)):
                raise OutOfMemory(f"not enough GPU memory for {tuple(shape)}: {error}") from error
            raise GpuFailed(f"ONNX Runtime failed on the GPU with {self._path}: {error}") from error


class OnnxRuntimeCudaRunner(HostRunner):
    """Runs a checked ONNX file on the first GPU; copies wait for the network's work.

    Making it raises `EnvironmentLacks` where there is no GPU or ONNX Runtime was built without CUDA. `module` and
    `gpus` stand in for library and hardware.
    """

    def __init__(self, artifact: OnnxArtifact, *, module: Any = None, gpus: tuple[Gpu, ...] | None = None) -> None:
        self._artifact = artifact
        self._stand_ins: dict[str, Any] = {"module": module, "gpus": gpus}
        _, gpu = _library_and_gpu(module, gpus)
        self._session: CudaSession | None = None
        self.name = f"onnxruntime {artifact.precision} on {gpu.name}"

    def infer(self, image: np.ndarray) -> np.ndarray:
        """The graph's output for volumes (N,1,D,H,W) float32; what the graph does not serve raises `RefusedInput`."""
        if self._session is None:
            raise ValueError("the runner is closed; use it inside its with block")
        self._artifact.check_size(size_of_volumes(image.shape, image.dtype))
        given = image.astype(np.float16) if self._artifact.facts.get("half_io") else image
        self._session.bring(np.ascontiguousarray(given))
        self._session.run()
        return self._session.fetch()

    def __enter__(self) -> Self:
        self._session = CudaSession(self._artifact.path, **self._stand_ins)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._session = None


def _library_and_gpu(module: Any, gpus: tuple[Gpu, ...] | None) -> tuple[Any, Gpu]:
    """ONNX Runtime with its CUDA provider, and the GPU that it uses; `EnvironmentLacks` without either."""
    onnxruntime = load_onnxruntime() if module is None else module
    gpus = find_gpus() if gpus is None else gpus
    if not gpus:
        raise EnvironmentLacks("ONNX Runtime's CUDA provider needs an NVIDIA GPU, and there is none here")
    if _CUDA not in onnxruntime.get_available_providers():
        raise EnvironmentLacks(
            f"ONNX Runtime {onnxruntime.__version__} was built without CUDA; install another: {_INSTALL}"
        )
    return onnxruntime, gpus[0]
