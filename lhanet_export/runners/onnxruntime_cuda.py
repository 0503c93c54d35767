"""ONNX Runtime on an NVIDIA GPU: the graph as it is, in its own precision, where no engine is wanted or fits.

Written against ONNX Runtime 1.31 and tested with a stand-in for its session; it has not been run on a GPU yet.
"""

from __future__ import annotations

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
_INSTALL = "pip install 'onnxruntime-gpu[cuda,cudnn]'"


class OnnxRuntimeCudaRunner(HostRunner):
    """Runs a checked ONNX file on the first GPU; input and output stay in its memory as long as the size does.

    Making it raises `EnvironmentLacks` where there is no GPU or ONNX Runtime cannot use it: it never falls back to the
    CPU in silence. Copies wait for the network's work. `module` and `gpus` stand in for library and hardware.
    """

    def __init__(self, artifact: OnnxArtifact, *, module: Any = None, gpus: tuple[Gpu, ...] | None = None) -> None:
        self._artifact = artifact
        self._onnxruntime = load_onnxruntime() if module is None else module
        gpus = find_gpus() if gpus is None else gpus
        if not gpus:
            raise EnvironmentLacks("ONNX Runtime's CUDA provider needs an NVIDIA GPU, and there is none here")
        if _CUDA not in self._onnxruntime.get_available_providers():
            raise EnvironmentLacks(
                f"ONNX Runtime {self._onnxruntime.__version__} was built without CUDA; install another: {_INSTALL}"
            )
        self._session: Any = None
        self._binding: Any = None
        self._image: Any = None
        self.name = f"onnxruntime {artifact.precision} on {gpus[0].name}"

    def infer(self, image: np.ndarray) -> np.ndarray:
        """The graph's output for volumes (N,1,D,H,W) float32; what the graph does not serve raises `RefusedInput`."""
        if self._session is None:
            raise ValueError("the runner is closed; use it inside its with block")
        self._artifact.check_size(size_of_volumes(image.shape, image.dtype))
        given = image.astype(np.float16) if self._artifact.facts.get("half_io") else image
        try:
            self._bring(np.ascontiguousarray(given))
            self._session.run_with_iobinding(self._binding)
            output: np.ndarray = self._binding.copy_outputs_to_cpu()[0]
        except Exception as error:
            # ONNX Runtime's exceptions have no common base below Exception.
            self._image = None
            if is_out_of_memory(str(error)):
                raise OutOfMemory(f"not enough GPU memory for {image.shape}: {error}") from error
            raise GpuFailed(f"ONNX Runtime failed on the GPU with {self._artifact.path}: {error}") from error
        return output

    def _bring(self, image: np.ndarray) -> None:
        """Copy to the GPU, into the same memory as long as the shape is the same."""
        if self._image is not None and tuple(self._image.shape()) == image.shape:
            self._image.update_inplace(image)
            return
        self._binding = self._session.io_binding()
        self._image = self._onnxruntime.OrtValue.ortvalue_from_numpy(image, "cuda", 0)
        self._binding.bind_ortvalue_input("image", self._image)
        self._binding.bind_output(self._session.get_outputs()[0].name, "cuda")

    def __enter__(self) -> Self:
        if hasattr(self._onnxruntime, "preload_dlls"):
            # Finds CUDA and cuDNN where pip puts them.
            self._onnxruntime.preload_dlls()
        options = self._onnxruntime.SessionOptions()
        # FP32 graphs are computed in FP32: TF32 has 10 bits of mantissa.
        session = open_session(
            self._artifact.path, options, str(self._artifact.path), ((_CUDA, {"use_tf32": "0"}),), self._onnxruntime
        )
        if _CUDA not in session.get_providers():
            raise EnvironmentLacks(f"ONNX Runtime cannot use the GPU here (CUDA or cuDNN do not load): {_INSTALL}")
        self._session = session
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._session = self._binding = self._image = None
