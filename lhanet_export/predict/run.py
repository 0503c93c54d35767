"""Scans become segmentations: read, preprocess, run the network window by window, blend, write.

Three things run side by side: while the network works on a row of windows, the slices that the row before completed
become labels; and while it works on a scan, the next one is read and the last one written. What the network itself
does is the runner's business.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np

from lhanet_export.errors import EnvironmentLacks, GpuFailed, RefusedInput
from lhanet_export.predict.labels import LabelsOfScan
from lhanet_export.predict.scores import WindowScores
from lhanet_export.predict.task import Outcome, Prediction, Task
from lhanet_export.progress import SILENT, Progress
from lhanet_export.runners.base import Runner
from lhanet_export.shapes import Shape
from lhanet_export.volume.blend import Blend, blend_of
from lhanet_export.volume.header import Header, spacing_of
from lhanet_export.volume.preprocess import preprocess_slabs, shape_of
from lhanet_export.volume.read import VoxelFile, hu_slabs
from lhanet_export.volume.windows import Tiling, tiling_of


def predict(
    runner: Runner, tasks: Sequence[Task], names: Sequence[str], how: Prediction, *, progress: Progress = SILENT
) -> list[Outcome]:
    """Segment scans, one after the other, with a runner inside its `with` block; `names` are those of the classes.

    A scan that is refused (`RefusedInput`) does not stop the others: its outcome says why, and nothing is written of
    it. What the machine lacks (`EnvironmentLacks`) stops; finished scans stay. Where a GPU fails, the outcomes end with
    the scan that it failed at (`GpuFailed`): the others are left to another process.
    """
    outcomes: list[Future[Outcome]] = []
    with ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(1) as finisher:
        coming = [reader.submit(_prepared, tasks[0], how)]
        for number, task in enumerate(tasks, start=1):
            where = f" ({number} of {len(tasks)})" if len(tasks) > 1 else ""
            with progress.step(f"read {task.scan.name}{where}"):
                prepared = coming.pop().result()
            if number < len(tasks):
                coming.append(reader.submit(_prepared, tasks[number], how))
            try:
                outcomes.append(_segmented(runner, task, prepared, names, how, finisher, progress))
            except GpuFailed as error:
                outcomes.append(finisher.submit(Outcome, task=task, error=GpuFailed(f"{task.scan}: {error}")))
                break
            del prepared
            for outcome in outcomes:
                if outcome.done():
                    outcome.result()  # a full disk is noticed now, not after the last scan
        if not outcomes[-1].done():
            with progress.step("write"):
                outcomes[-1].result()
        return [outcome.result() for outcome in outcomes]


@dataclass(frozen=True, kw_only=True)
class _Prepared:
    header: Header
    sha256: str
    image: np.ndarray
    seconds: float


def _prepared(task: Task, how: Prediction) -> _Prepared | RefusedInput:
    """The network's input, or why there is none: what is raised in another thread would wait until it is asked for."""
    start = time.perf_counter()
    try:
        with _enough_memory(task), VoxelFile(task.scan) as file:
            slabs = hu_slabs(file, assume_hu=how.assume_hu)
            spacing = spacing_of(file.header.affine)
            image = preprocess_slabs(slabs, file.header.shape, spacing, how.preprocessing)
            seconds = time.perf_counter() - start
            return _Prepared(header=file.header, sha256=file.sha256, image=image, seconds=seconds)
    except RefusedInput as error:
        # What is wrong with values rather than with a file does not name it.
        return error if str(task.scan) in str(error) else RefusedInput(f"{task.scan}: {error}")


def _segmented(
    runner: Runner,
    task: Task,
    prepared: _Prepared | RefusedInput,
    names: Sequence[str],
    how: Prediction,
    finisher: ThreadPoolExecutor,
    progress: Progress,
) -> Future[Outcome]:
    """Run the windows of a scan; its files are written in the background."""
    if isinstance(prepared, RefusedInput):
        return finisher.submit(Outcome, task=task, error=prepared)
    tiling = tiling_of(shape_of(prepared.image), how.preprocessing)
    with _enough_memory(task):
        labels = LabelsOfScan(prepared.header, names, how, task)
    start = time.perf_counter()
    scored = WindowScores(runner, prepared.image, tiling, how)
    pending: Future[None] | None = None
    try:
        with _enough_memory(task), progress.step(task.scan.name, total=len(tiling), unit="windows") as advance:
            for blend in _rows(scored, tiling, prepared.header.shape, advance):
                if pending is not None:
                    pending.result()
                pending = finisher.submit(labels.take, blend, blend.finish_row())
            assert pending is not None
            pending.result()
    except BaseException as error:
        if pending is not None:
            wait([pending])
        labels.discard()
        if not isinstance(error, RefusedInput):
            raise
        return finisher.submit(Outcome, task=task, error=RefusedInput(f"{task.scan}: {error}"))
    facts = {
        "sha256": prepared.sha256,
        "shape": list(prepared.header.shape),
        "spacing_mm": list(spacing_of(prepared.header.affine)),
        "network_shape": list(prepared.image.shape),
        "windows": len(tiling),
        "seconds": {"read": prepared.seconds, "windows": time.perf_counter() - start, "network": scored.seconds},
    }
    return finisher.submit(_written, task, labels, prepared.image, facts)


def _written(task: Task, labels: LabelsOfScan, image: np.ndarray, facts: dict[str, Any]) -> Outcome:
    with _enough_memory(task):
        start = time.perf_counter()
        facts |= labels.finish(image)
        facts["seconds"]["write"] = time.perf_counter() - start
        return Outcome(task=task, facts=facts)


def _rows(scored: WindowScores, tiling: Tiling, shape: Shape, advance: Callable[[float], None]) -> Iterator[Blend]:
    """Run the windows row by row; after each row the blend onto the scan (X,Y,Z), with all windows of it added."""
    blend: Blend | None = None
    for _, row in groupby(scored, key=lambda pair: pair[0].index[2]):
        for window, scores in row:
            if blend is None:
                blend = blend_of(tiling, shape, scores.shape)
            blend.add(window, scores)
            advance(1)
        assert blend is not None
        yield blend


@contextmanager
def _enough_memory(task: Task) -> Iterator[None]:
    try:
        yield
    except MemoryError as error:
        raise EnvironmentLacks(
            f"{task.scan} needs more memory than there is; crop it, or give the model's coarse logits (--output coarse)"
        ) from error
