"""Engines of TensorRT-RTX and TensorRT on an NVIDIA GPU.

Written against the published interfaces (TensorRT-RTX 1.7, TensorRT 11.1) and tested with stand-ins
for library and GPU; it has not been run on a GPU yet.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import numpy as np
from typing_extensions import Self

from lhanet_export.engine.backends import BACKENDS, ErrorLog, element_type, is_out_of_memory, load_module
from lhanet_export.engine.gpu import Gpu, find_gpus
from lhanet_export.engine.manifest import read_manifest, verify_engine_bytes
from lhanet_export.engine.plan import INPUT_NAME
from lhanet_export.errors import EnvironmentLacks, RefusedInput

logger = logging.getLogger(__name__)

#: Reasons of `get_engine_validity` that lie in the machine, not in the engine.
_LACKING = {"OLD_CUDA_DRIVER", "OLD_CUDA_RUNTIME", "INSUFFICIENT_GPU_MEMORY", "CUDA_ERROR"}


class Device(Protocol):
    """Memory and a stream of the GPU, as much of them as running an engine takes."""

    @property
    def stream_handle(self) -> int:
        """The CUDA stream on which copies and engine run in order."""

    def allocate(self, shape: tuple[int, ...], dtype: str) -> Any:
        """An array in GPU memory; its address is `data_ptr()`."""

    def upload(self, array: np.ndarray, buffer: Any) -> None:
        """Copy an array into a buffer of the same shape, converting its type."""

    def download(self, buffer: Any) -> np.ndarray:
        """A copy of a buffer, after everything on the stream is done."""


class TorchDevice:
    """The current CUDA device, through torch."""

    def __init__(self) -> None:
        import torch

        if not torch.cuda.is_available():
            raise EnvironmentLacks(
                f"PyTorch {torch.__version__} cannot use the GPU here; install a CUDA build of it (https://pytorch.org)"
            )
        self._torch = torch
        # TensorRT synchronizes the whole device around work on the default stream.
        self._stream = torch.cuda.Stream()

    @property
    def stream_handle(self) -> int:
        return int(self._stream.cuda_stream)

    def allocate(self, shape: tuple[int, ...], dtype: str) -> Any:
        return self._torch.empty(shape, dtype=getattr(self._torch, dtype), device="cuda")

    def upload(self, array: np.ndarray, buffer: Any) -> None:
        with self._torch.cuda.stream(self._stream):
            buffer.copy_(self._torch.from_numpy(np.ascontiguousarray(array)))

    def download(self, buffer: Any) -> np.ndarray:
        with self._torch.cuda.stream(self._stream):
            result: np.ndarray = buffer.cpu().numpy()
        self._stream.synchronize()
        return result


class TensorRTRunner:
    """Runs an engine that its manifest vouches for; GPU memory is held inside the `with` block only.

    Opening raises `RefusedInput` for an engine without a matching manifest, or built for another
    GPU or release, and `EnvironmentLacks` where the GPU, a package or memory is missing; nothing is
    deserialized in either case. `module`, `gpus` and `device` stand in for library and hardware.
    """

    def __init__(
        self,
        engine_path: Path,
        *,
        module: Any = None,
        gpus: tuple[Gpu, ...] | None = None,
        device: Callable[[], Device] = TorchDevice,
    ) -> None:
        self._path = engine_path
        self._facts = read_manifest(engine_path).engine
        if len(self._facts.outputs) != 1:
            raise RefusedInput(f"{engine_path} has {len(self._facts.outputs)} outputs; a runner returns one")
        self._backend = BACKENDS[self._facts.backend]
        self._module = module
        self._gpus = gpus
        self._new_device = device
        self._session: _Session | None = None
        self.name = f"{self._backend.name} {self._facts.precision}"

    def infer(self, image: np.ndarray) -> np.ndarray:
        """The engine's output for volumes (N,1,D,H,W) float32; a size or batch out of range raises `RefusedInput`.

        A batch larger than the engine's is run in parts. The result is the caller's own copy.
        """
        if self._session is None:
            raise ValueError("the runner is closed; use it inside its with block")
        if image.ndim != 5 or image.shape[1] != 1 or image.shape[0] < 1 or image.dtype != np.float32:
            raise RefusedInput(f"expected volumes (N,1,D,H,W) of float32, got {image.shape} of {image.dtype}")
        depth, height, width = image.shape[2:]
        profile = self._facts.profile_of((depth, height, width))
        return self._session.infer(image, profile)

    def __enter__(self) -> Self:
        gpu = self.matching_gpu()
        trt = load_module(self._backend) if self._module is None else self._module
        if trt.__version__ != self._facts.backend_version:
            raise RefusedInput(
                f"{self._path} was built with {self._backend.title} {self._facts.backend_version}, installed is "
                f"{trt.__version__}, and engines do not carry over between releases; build it again with: "
                "lhanet-export trt"
            )
        self._session = _Session(trt, self._path, self._facts.outputs[0].name, self._new_device())
        self.name = f"{self._backend.name} {self._facts.precision} on {gpu.name}"
        return self

    def matching_gpu(self) -> Gpu:
        """The GPU that the engine would run on; `EnvironmentLacks` without one, `RefusedInput` for another kind."""
        gpus = find_gpus() if self._gpus is None else self._gpus
        if not gpus:
            raise EnvironmentLacks(
                f"{self._path} needs an NVIDIA GPU of compute capability "
                f"{' or '.join(self._facts.compute_capabilities)}, and there is none here, or no driver for it"
            )
        if gpus[0].compute_capability not in self._facts.compute_capabilities:
            raise RefusedInput(
                f"{self._path} was built for compute capability {' and '.join(self._facts.compute_capabilities)}; "
                f"this GPU, {gpus[0].name}, has {gpus[0].compute_capability}. Build it again for this GPU"
            )
        return gpus[0]

    def close(self) -> None:
        """Give the GPU memory back; the runner can be opened again."""
        self._session = None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class _Session:
    """A deserialized engine with a context, and buffers for the shape that was run last."""

    def __init__(self, trt: Any, path: Path, output_name: str, device: Device) -> None:
        self._path = path
        self._output_name = output_name
        self._device = device
        self._log = ErrorLog(trt)
        # The bytes that were hashed are the bytes that are deserialized.
        raw = verify_engine_bytes(path)
        # `engine_host_code_allowed` stays off, as it is by default: no code of the plan's own runs on the host.
        runtime = trt.Runtime(self._log.logger)
        self._check_validity(trt, runtime, raw)
        engine = runtime.deserialize_cuda_engine(raw)
        if engine is None:
            raise self._failure("deserialize the engine")
        context = engine.create_execution_context()
        if context is None:
            raise self._failure("create an execution context")
        # A context keeps its engine alive, and an engine its runtime.
        self._context, self._engine = context, engine
        self._profile = 0
        self._shape: tuple[int, ...] = ()
        self._image: Any = None
        self._output: Any = None

    def _check_validity(self, trt: Any, runtime: Any, raw: bytes) -> None:
        """Ask TensorRT whether this engine can run here. It reads the header only: no substitute for the hash."""
        if not hasattr(runtime, "get_engine_validity"):
            return  # TensorRT before 11.4
        validity, diagnostics = runtime.get_engine_validity(raw)
        members = trt.EngineInvalidityDiagnostics.__members__
        reasons = [name for name, bit in members.items() if int(diagnostics) & int(bit)]
        if validity == trt.EngineValidity.SUBOPTIMAL:
            logger.warning("%s runs here, but slower than one built for this GPU", self._path)
        if validity != trt.EngineValidity.INVALID:
            return
        words = ", ".join(reasons) or self._log.last
        if _LACKING.intersection(reasons):
            raise EnvironmentLacks(f"{self._path} cannot run on this machine as it is: {words}")
        raise RefusedInput(f"{self._path} is not an engine for this machine: {words}; build it again")

    def infer(self, image: np.ndarray, profile: int) -> np.ndarray:
        smallest, _, largest = self._engine.get_tensor_profile_shape(INPUT_NAME, profile)
        parts = []
        for start in range(0, image.shape[0], largest[0]):
            part = image[start : start + largest[0]]
            if part.shape[0] < smallest[0]:
                raise RefusedInput(
                    f"{self._path} takes {smallest[0]} to {largest[0]} volumes at a time; {image.shape[0]} leave "
                    f"a rest of {part.shape[0]}"
                )
            parts.append(self._run(part, profile))
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _run(self, image: np.ndarray, profile: int) -> np.ndarray:
        try:
            self._prepare(image.shape, profile)
            self._device.upload(image, self._image)
            if not self._context.execute_async_v3(self._device.stream_handle):
                raise self._failure("run")
            return self._device.download(self._output)
        except RuntimeError as error:
            # torch's out-of-memory and CUDA errors. After a CUDA error the process cannot use the GPU any more.
            self._shape = ()
            if is_out_of_memory(str(error)):
                raise EnvironmentLacks(f"not enough GPU memory for {image.shape} with {self._path}: {error}") from error
            raise EnvironmentLacks(f"the GPU failed while running {self._path}: {error}") from error

    def _prepare(self, shape: tuple[int, ...], profile: int) -> None:
        """Set the context up for an input shape and allocate its buffers, unless that is how it stands."""
        if shape == self._shape:
            return
        self._shape = ()
        self._image = self._output = None
        if profile != self._profile:
            self._must(
                self._context.set_optimization_profile_async(profile, self._device.stream_handle), "switch profiles"
            )
            self._profile = profile
        self._must(self._context.set_input_shape(INPUT_NAME, shape), f"take the shape {shape}")
        output_shape = tuple(self._context.get_tensor_shape(self._output_name))
        self._must(all(side > 0 for side in output_shape), f"say what it returns for {shape}")
        self._image = self._device.allocate(shape, self._dtype(INPUT_NAME))
        self._output = self._device.allocate(output_shape, self._dtype(self._output_name))
        for name, buffer in ((INPUT_NAME, self._image), (self._output_name, self._output)):
            self._must(self._context.set_tensor_address(name, buffer.data_ptr()), f"use the buffer for '{name}'")
        self._shape = shape

    def _dtype(self, name: str) -> str:
        return element_type(self._engine.get_tensor_dtype(name))

    def _must(self, done: bool, action: str) -> None:
        if not done:
            raise self._failure(action)

    def _failure(self, action: str) -> EnvironmentLacks | RefusedInput:
        """The error for a null or false result, with TensorRT's own last error."""
        if is_out_of_memory(" ".join(self._log.all)):
            return EnvironmentLacks(f"not enough GPU memory to {action} ({self._path}): {self._log.last}")
        return RefusedInput(f"TensorRT could not {action} ({self._path}): {self._log.last}")
