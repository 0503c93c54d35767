"""What verification, benchmarks and prediction know of a backend."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import numpy as np
from typing_extensions import Self

from lhanet_export.errors import RefusedInput
from lhanet_export.shapes import Shape


class Slot(Protocol):
    """Memory for one batch of windows on its way through a runner, allocated once and used again and again.

    Fill `image`, `start`, and later `wait`. A GPU runner copies and computes in between, so that with two slots one is
    filled and read while the other one is under way.
    """

    #: (N,1,D,H,W) float32; not to be written between `start` and `wait`.
    image: np.ndarray

    def start(self) -> None:
        """Begin with what is in `image`. A GPU that fails raises `GpuFailed`, here or in `wait`."""

    def wait(self) -> np.ndarray:
        """The scores (N,K,d,h,w) in the type that the model gives; valid until the slot is started again."""


class Runner(Protocol):
    """Runs one network on one backend: a context manager that is ready inside its `with` block.

    Opening is where files are checked and devices touched; closing gives the memory back.
    """

    @property
    def name(self) -> str:
        """Backend and device, as reports show it."""

    def infer(self, image: np.ndarray) -> np.ndarray:
        """The output for a volume (N,1,D,H,W) float32; a size out of range raises `RefusedInput`."""

    def slots(self, shape: tuple[int, ...], count: int) -> Sequence[Slot]:
        """Buffers for `count` batches of a shape (N,1,D,H,W) under way at a time, in the order in which they start.

        Those of another shape that were made before are of no use any more. Raises `RefusedInput` for a size out of
        range and `OutOfMemory` where a GPU has no room for the batch; a smaller one may be tried then.
        """

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None: ...


class HostRunner(ABC):
    """What runners share that compute when they are asked to: a CPU's cores have no copies to overlap.

    Those that have nothing to open or to give back need no more than `name` and `infer`.
    """

    @abstractmethod
    def infer(self, image: np.ndarray) -> np.ndarray:
        """As a `Runner` does."""

    def slots(self, shape: tuple[int, ...], count: int) -> Sequence[Slot]:
        """Host memory for batches of a shape (N,1,D,H,W)."""
        return [_HostSlot(self.infer, shape) for _ in range(count)]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        return None


class _HostSlot:
    def __init__(self, infer: Callable[[np.ndarray], np.ndarray], shape: tuple[int, ...]) -> None:
        self._infer = infer
        self.image = np.zeros(shape, np.float32)
        self._scores: np.ndarray | None = None

    def start(self) -> None:
        self._scores = self._infer(self.image)

    def wait(self) -> np.ndarray:
        if self._scores is None:
            raise ValueError("the slot was not started")
        return self._scores


def check_same_checkpoint(path: Path, made_from: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """Refuse to compare a file with a network that it was not made from; both as manifests name checkpoints."""
    if made_from.get("sha256") != given["sha256"]:
        raise RefusedInput(
            f"{path} was made from another checkpoint (sha256 {str(made_from.get('sha256'))[:12]}..., "
            f"{made_from.get('preset')}) than the one given ({given['sha256'][:12]}..., "
            f"{given['preset']}); export it again, or name its own checkpoint"
        )


def size_of_volumes(shape: tuple[int, ...], dtype: Any) -> Shape:
    """The size (D,H,W) of volumes (N,1,D,H,W) of float32; `RefusedInput` for an array that is something else."""
    if len(shape) != 5 or shape[1] != 1 or shape[0] < 1 or dtype != np.float32:
        raise RefusedInput(f"expected volumes (N,1,D,H,W) of float32, got {shape} of {dtype}")
    return shape[2], shape[3], shape[4]
