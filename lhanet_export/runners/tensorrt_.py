"""Engines of TensorRT-RTX and TensorRT on an NVIDIA GPU.

Written against the published interfaces (TensorRT-RTX 1.7, TensorRT 11.1) and tested with stand-ins
for library and GPU; it has not been run on a GPU yet.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from typing_extensions import Self

from lhanet_export.engine.backends import BACKENDS, load_module
from lhanet_export.engine.gpu import Gpu, find_gpus
from lhanet_export.engine.manifest import read_manifest
from lhanet_export.errors import EnvironmentLacks, RefusedInput
from lhanet_export.runners.base import size_of_volumes
from lhanet_export.runners.device import Device, TorchDevice
from lhanet_export.runners.tensorrt_session import EngineSlot, Session


class TensorRTRunner:
    """Runs an engine that its manifest vouches for; GPU memory is held inside the `with` block only.

    Opening raises `RefusedInput` for an engine without a matching manifest, or built for another
    GPU or release, and `EnvironmentLacks` where the GPU, a package or memory is missing; nothing is
    deserialized in either case. With `final_kernels` the first inference of a size takes as long as compiling for it
    does, and all that follow are equally fast; otherwise they become so after a while. `module`, `gpus` and `device`
    stand in for library and hardware.
    """

    def __init__(
        self,
        engine_path: Path,
        *,
        final_kernels: bool = False,
        module: Any = None,
        gpus: tuple[Gpu, ...] | None = None,
        device: Callable[[], Device] = TorchDevice,
    ) -> None:
        self._path = engine_path
        self._facts = read_manifest(engine_path).engine
        if len(self._facts.outputs) != 1:
            raise RefusedInput(f"{engine_path} has {len(self._facts.outputs)} outputs; a runner returns one")
        self._backend = BACKENDS[self._facts.backend]
        self._final_kernels = final_kernels
        self._module = module
        self._gpus = gpus
        self._new_device = device
        self._session: Session | None = None
        self.name = f"{self._backend.name} {self._facts.precision}"

    def infer(self, image: np.ndarray) -> np.ndarray:
        """The engine's output for volumes (N,1,D,H,W) float32; a size or batch out of range raises `RefusedInput`.

        A batch larger than the engine's is run in parts. The result is the caller's own copy.
        """
        session, profile = self._opened_for(image.shape, image.dtype)
        smallest, largest = session.batches(profile)
        parts = []
        for start in range(0, image.shape[0], largest):
            part = image[start : start + largest]
            if part.shape[0] < smallest:
                raise RefusedInput(
                    f"{self._path} takes {smallest} to {largest} volumes at a time; {image.shape[0]} leave "
                    f"a rest of {part.shape[0]}"
                )
            (slot,) = session.slots(part.shape, profile, 1)
            slot.image[...] = part
            slot.start()
            parts.append(slot.wait().copy())
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def slots(self, shape: tuple[int, ...], count: int) -> list[EngineSlot]:
        """Buffers for `count` batches of a shape (N,1,D,H,W): page-locked memory, and copies beside the engine's work.

        `infer` uses the first of them, and makes others for another shape; then these cannot be started any more.
        """
        session, profile = self._opened_for(shape, np.dtype(np.float32))
        smallest, largest = session.batches(profile)
        if not smallest <= shape[0] <= largest:
            raise RefusedInput(f"{self._path} takes {smallest} to {largest} volumes at a time, not {shape[0]}")
        return session.slots(shape, profile, count)

    def _opened_for(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> tuple[Session, int]:
        """The session, and the profile that serves a shape."""
        if self._session is None:
            raise ValueError("the runner is closed; use it inside its with block")
        return self._session, self._facts.profile_of(size_of_volumes(shape, dtype))

    def __enter__(self) -> Self:
        gpu = self.matching_gpu()
        trt = load_module(self._backend) if self._module is None else self._module
        if trt.__version__ != self._facts.backend_version:
            raise RefusedInput(
                f"{self._path} was built with {self._backend.title} {self._facts.backend_version}, installed is "
                f"{trt.__version__}, and engines do not carry over between releases; build it again with: "
                "lhanet-export trt"
            )
        device, final = self._new_device(), self._final_kernels
        self._session = Session(trt, self._path, self._facts, self._backend, device, final_kernels=final)
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
        session, self._session = self._session, None
        if session is not None:
            session.close()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
