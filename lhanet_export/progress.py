"""How long work says how far it is, without knowing who listens.

Library functions take a `Progress` and open a step for each piece of work of more than a second;
the command line shows the steps as bars, and everybody else gets `SILENT`.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol


class Progress(Protocol):
    """Receives the steps of long work."""

    def step(
        self, text: str, total: float | None = None, unit: str = ""
    ) -> AbstractContextManager[Callable[[float], None]]:
        """Open a step; the function it yields is called with each amount done, out of `total` if that is known.

        With a `unit`, such as "windows", the reader is told how many of them a second are done.
        """


class _Silent:
    @contextmanager
    def step(self, text: str, total: float | None = None, unit: str = "") -> Iterator[Callable[[float], None]]:
        yield lambda amount: None


SILENT: Progress = _Silent()
