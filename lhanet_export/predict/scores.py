"""The network's part of a prediction: windows go through the runner, the next ones while it works on the last."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import NamedTuple

import numpy as np

from lhanet_export.errors import OutOfMemory, RefusedInput
from lhanet_export.predict.task import Prediction
from lhanet_export.runners.base import Runner
from lhanet_export.volume.windows import Tiling, Window, window_of

logger = logging.getLogger(__name__)

#: Batches under way: one that the network works on, and one that is copied, read or filled.
_SLOTS = 2


class _Job(NamedTuple):
    """Windows that are run at a time, mirrored along axes of (N,1,D,H,W)."""

    windows: Sequence[Window]
    axes: tuple[int, ...]


class WindowScores:
    """The scores of all windows of an image, in the order of the tiling; `seconds` counts the time the runner took.

    Iterating gives pairs of a window and its scores (K,d,h,w) float32, averaged over the window's mirror images, valid
    until the next pair is asked for. Where a GPU has no room for the batch, half of it is tried, down to one window.
    Raises `RefusedInput` for scores that are not finite, and, at the end, for those that are the same everywhere.
    """

    def __init__(self, runner: Runner, image: np.ndarray, tiling: Tiling, how: Prediction) -> None:
        self._runner, self._image, self._tiling, self._how = runner, image, tiling, how
        self._air = float(image.min())
        self.seconds = 0.0

    def __iter__(self) -> Iterator[tuple[Window, np.ndarray]]:
        waiting = [window for number in range(self._tiling.rows) for window in self._tiling.row(number)]
        batch, seen = self._how.batch, _Seen()
        while waiting:
            try:
                for windows, scores in self._run(waiting, batch):
                    for window, one in zip(windows, scores, strict=True):
                        seen.add(window, one)
                        yield window, one
                    waiting = waiting[len(windows) :]
            except OutOfMemory as error:
                if batch == 1 or self._how.fixed_batch:
                    raise
                batch //= 2
                logger.warning("%s; going on with %d windows at a time", error, batch)
        seen.check()

    def _run(self, waiting: Sequence[Window], batch: int) -> Iterator[tuple[Sequence[Window], np.ndarray]]:
        """Groups of windows of one row, and their scores (N,K,d,h,w)."""
        axes = _subsets(self._how.mirrored)
        total: np.ndarray | None = None
        for job, found in self._results([_Job(group, one) for group in _groups(waiting, batch) for one in axes], batch):
            # A sum outlives the memory that its first part came in.
            scores = np.flip(found.astype(np.float32, copy=len(axes) > 1), job.axes)[: len(job.windows)]
            total = scores if total is None else total + scores
            if job.axes == axes[-1]:
                yield job.windows, total / np.float32(len(axes)) if len(axes) > 1 else total
                total = None

    def _results(self, jobs: Sequence[_Job], batch: int) -> Iterator[tuple[_Job, np.ndarray]]:
        """What the runner gives for each job; while one is asked for, the next one is under way."""
        start = time.perf_counter()
        slots = self._runner.slots((batch, 1, *self._tiling.patch), _SLOTS)
        self.seconds += time.perf_counter() - start
        for number in range(len(jobs) + 1):
            if number < len(jobs):
                slot = slots[number % _SLOTS]
                self._fill(slot.image, jobs[number])
                start = time.perf_counter()
                slot.start()
                self.seconds += time.perf_counter() - start
            if number:
                start = time.perf_counter()
                found = slots[(number - 1) % _SLOTS].wait()
                self.seconds += time.perf_counter() - start
                yield jobs[number - 1], found

    def _fill(self, image: np.ndarray, job: _Job) -> None:
        """Put a job's windows into (N,1,D,H,W); where there are fewer than N, the last one comes more than once."""
        for index in range(len(image)):
            window = job.windows[min(index, len(job.windows) - 1)]
            image[index, 0] = window_of(self._image, window, self._tiling.patch, self._air)
        if job.axes:
            image[:] = np.flip(image, job.axes).copy()


class _Seen:
    """The range of each class's scores over all windows."""

    def __init__(self) -> None:
        self._low = self._high = np.empty(0)
        self._cells = 0

    def add(self, window: Window, scores: np.ndarray) -> None:
        # NaN wins in both.
        low, high = scores.min((1, 2, 3)), scores.max((1, 2, 3))
        if not (np.isfinite(low).all() and np.isfinite(high).all()):
            raise RefusedInput(
                f"the network gives NaN or infinity in the window at {window.start}; no labels are made of that. Does "
                "the model pass lhanet-export verify on such scans?"
            )
        self._low, self._high = (
            (np.minimum(self._low, low), np.maximum(self._high, high)) if self._cells else (low, high)
        )
        self._cells += scores[0].size

    def check(self) -> None:
        if self._cells > 1 and np.array_equal(self._low, self._high):
            raise RefusedInput(
                "the network gives the same scores everywhere; no labels are made of that. Does the model pass "
                "lhanet-export verify?"
            )


def _groups(windows: Sequence[Window], batch: int) -> list[list[Window]]:
    """As many windows of a row at a time as make a batch, or the rest of the row."""
    groups = []
    for _, row in groupby(windows, key=lambda window: window.index[2]):
        rest = list(row)
        groups += [rest[first : first + batch] for first in range(0, len(rest), batch)]
    return groups


def _subsets(axes: tuple[int, ...]) -> list[tuple[int, ...]]:
    """All sets of the volume's axes, as axes of (N,1,D,H,W): none of them first."""
    found: list[tuple[int, ...]] = [()]
    for axis in axes:
        found += [(*one, axis + 2) for one in found]
    return found
