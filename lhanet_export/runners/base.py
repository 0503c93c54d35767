"""What verification, benchmarks and prediction know of a backend."""

from types import TracebackType
from typing import Protocol

import numpy as np
from typing_extensions import Self


class Runner(Protocol):
    """Runs one network on one backend: a context manager that is ready inside its `with` block.

    Opening is where files are checked and devices touched; closing gives the memory back.
    """

    @property
    def name(self) -> str:
        """Backend and device, as reports show it."""

    def infer(self, image: np.ndarray) -> np.ndarray:
        """The output for a volume (N,1,D,H,W) float32; a size out of range raises `RefusedInput`."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None: ...
