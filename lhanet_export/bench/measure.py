"""Candidates in turn, round by round, each in a process of its own; what came of it, as data."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from lhanet_export.bench import worker
from lhanet_export.bench.candidates import Candidate, DeviceKind, cudnn_text, flag_of
from lhanet_export.bench.conditions import available_bytes, cpu_name, gpu_conditions
from lhanet_export.bench.result import Bench, Device, Row, Skipped
from lhanet_export.engine.gpu import find_gpus
from lhanet_export.errors import EnvironmentLacks, OutOfMemory, RefusedInput
from lhanet_export.progress import SILENT, Progress
from lhanet_export.shapes import Shape, format_shape
from lhanet_export.verify.inputs import RuleCase
from lhanet_export.verify.metrics import difference

_PACKAGES = ("torch", "onnxruntime-gpu", "openvino", "tensorrt-rtx", "tensorrt", "numpy")
#: What a candidate may end with that says something about it or the machine, not about us.
_FAILURES = (RefusedInput, EnvironmentLacks, BrokenProcessPool, RuntimeError)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How a benchmark is made: `rounds` timed inferences of each candidate, outputs compared on `volumes` volumes."""

    checkpoint: Path
    identity: Mapping[str, Any]
    shape: Shape
    device: DeviceKind
    threads: int
    rounds: int
    volumes: int
    command: str
    work: Mapping[str, int]


@dataclass(kw_only=True)
class _Running:
    """A candidate whose process is up."""

    candidate: Candidate
    process: ProcessPoolExecutor
    ready_seconds: float
    first_seconds: float
    opening_peak: worker.Memory
    #: PyTorch's cuDNN, where the candidate has loaded PyTorch and there is a GPU.
    cudnn: int | None
    seconds: list[float] = field(default_factory=list)
    copies: list[float] = field(default_factory=list)
    conditions: dict[str, Mapping[str, float]] = field(default_factory=dict)
    #: The most memory of the rounds, once they are over.
    peak: worker.Memory | None = None
    relative_l2: float = 0.0
    label_agreement: float = 1.0


def measure(
    candidates: Sequence[Candidate], skipped: Sequence[Skipped], plan: Plan, folder: Path, progress: Progress = SILENT
) -> Bench:
    """Measure candidates, the reference first, and say of every one that fails why it was not measured.

    Each has a process of its own, so that its memory is its own. They are asked in turn for one inference each, round
    by round, and one that is not asked leaves the cores alone: what else happens on the machine meets all of them
    alike. No inference is left out. Those that have no room beside the others are measured after them, again in turn
    with the reference. Raises `EnvironmentLacks` where peak memory cannot be read, and if the reference itself fails.
    """
    if not Path("/proc/self/clear_refs").exists():
        raise EnvironmentLacks("peak memory is read from Linux's /proc, which is not here")
    worker.be_quiet()
    reference, *waiting = candidates
    rows: list[Row] = []
    failed: list[Skipped] = []
    while waiting or not rows:
        with ExitStack() as stack:
            group = _Group(plan, stack, failed, progress)
            later = group.open(reference, waiting)
            group.take_turns()
            for one in group.running:
                one.peak = one.process.submit(worker.running_peak).result()
            group.compare(folder)
            found = [_row(one, group.running[0]) for one in group.running]
            cudnn = group.running[0].cudnn
        rows += found[1:] if rows else found
        waiting = [*later, *group.without_room]
    return Bench(
        date=date.today().isoformat(),
        command=plan.command,
        machine=dict(_versions()) | ({"cudnn": cudnn_text(cudnn)} if cudnn else {}),
        device=device_of(plan.device),
        checkpoint=plan.identity,
        shape=plan.shape,
        threads=plan.threads,
        rounds=plan.rounds,
        volumes=plan.volumes,
        rows=rows,
        skipped=[*skipped, *failed],
        work=plan.work,
    )


class _Group:
    """Candidates whose processes are up at the same time, the reference first."""

    def __init__(self, plan: Plan, stack: ExitStack, failed: list[Skipped], progress: Progress) -> None:
        self._plan, self._stack, self._failed, self._progress = plan, stack, failed, progress
        self._cases = [RuleCase(shape=plan.shape, kind="bodies", seed=seed) for seed in range(plan.volumes)]
        self.running: list[_Running] = []
        #: Those that ran out of memory beside others, and may have room without them.
        self.without_room: list[Candidate] = []

    def open(self, reference: Candidate, waiting: Sequence[Candidate]) -> list[Candidate]:
        """Start the reference and as many others as there is room for; the rest of them is returned."""
        try:
            self.running.append(self._started(reference))
        except _FAILURES as error:
            raise EnvironmentLacks(f"the reference, {reference.name}, did not run: {_first_line(error)}") from error
        for index, candidate in enumerate(waiting):
            if len(self.running) > 1 and not self._has_room():
                return list(waiting[index:])
            try:
                self.running.append(self._started(candidate))
            except _FAILURES as error:
                self._give_up(candidate, error)
        return []

    def take_turns(self) -> None:
        """All rounds; one that fails leaves."""
        plan, on_gpu = self._plan, self._plan.device == "cuda"
        with self._progress.step(f"{plan.rounds} rounds at {format_shape(plan.shape)}", total=plan.rounds) as advance:
            for turn in range(plan.rounds):
                for one in list(self.running):
                    try:
                        one.seconds.append(one.process.submit(worker.timed_inference, on_gpu).result())
                        copies = one.process.submit(worker.copy_seconds).result() if on_gpu else None
                        if copies is not None:
                            one.copies.append(copies)
                        if turn in (0, plan.rounds - 1):
                            when = "last" if turn else "first"
                            one.conditions[when] = one.process.submit(worker.conditions).result()
                    except _FAILURES as error:
                        self._leave(one, error)
                advance(1)

    def compare(self, folder: Path) -> None:
        """The worst errors of all candidates against the reference, over all volumes."""
        with self._progress.step(f"compare on {len(self._cases)} volumes", total=len(self._cases)) as advance:
            for case in self._cases:
                reference: np.ndarray | None = None
                for one in list(self.running):
                    path = folder / "output.npy"
                    try:
                        one.process.submit(worker.save_inference, case, path).result()
                    except _FAILURES as error:
                        self._leave(one, error)
                        continue
                    output = np.load(path)
                    if reference is None:
                        reference = output
                        continue
                    found = difference(case, reference, output, "logits", 0.0)
                    assert found.relative_l2 is not None, "logits have a norm"
                    one.relative_l2 = _worse(one.relative_l2, found.relative_l2)
                    one.label_agreement = min(one.label_agreement, found.label_agreement)
                advance(1)

    def _started(self, candidate: Candidate) -> _Running:
        plan = self._plan
        task = worker.Task(
            checkpoint=plan.checkpoint, case=self._cases[0], device=plan.device, threads=plan.threads
        )  # fmt: skip
        with self._progress.step(f"open {candidate.name}"):
            process = self._stack.enter_context(ProcessPoolExecutor(1, get_context("spawn")))
            try:
                return _Running(
                    candidate=candidate,
                    process=process,
                    ready_seconds=process.submit(worker.open_candidate, candidate, task).result(),
                    first_seconds=process.submit(worker.timed_inference).result(),
                    opening_peak=process.submit(worker.opening_peak).result(),
                    cudnn=process.submit(worker.cudnn_version).result(),
                )
            except _FAILURES:
                # Its memory is for the others.
                process.shutdown()
                raise

    def _has_room(self) -> bool:
        """Whether one more is likely to find the memory that it needs, and the others theirs when it is their turn."""
        available = available_bytes(self._plan.device)
        peaks = [one.opening_peak for one in self.running]
        largest = max(peak.resident if self._plan.device == "cpu" else peak.process or 0 for peak in peaks)
        return available is None or available > 2 * largest

    def _leave(self, one: _Running, error: BaseException) -> None:
        if one is self.running[0]:
            raise EnvironmentLacks(f"the reference, {one.candidate.name}, did not run: {_first_line(error)}") from error
        self.running.remove(one)
        one.process.shutdown()
        self._give_up(one.candidate, error)

    def _give_up(self, candidate: Candidate, error: BaseException) -> None:
        """For now, where there may be room without the others, or for good."""
        if isinstance(error, OutOfMemory) and len(self.running) > 1:
            self.without_room.append(candidate)
        else:
            self._failed.append(Skipped(name=candidate.name, reason=f"it did not run: {_first_line(error)}"))


def _row(one: _Running, reference: _Running) -> Row:
    assert one.peak is not None, "rows are made after the rounds"
    return Row(
        name=one.candidate.name,
        precision=one.candidate.precision,
        network=one.candidate.network,
        seconds=tuple(one.seconds),
        reference_seconds=float(np.median(reference.seconds)),
        ready_seconds=one.ready_seconds,
        first_seconds=one.first_seconds,
        opening_peak_bytes=one.opening_peak.bytes,
        peak_bytes=one.peak.bytes,
        peak_kind=one.peak.kind,
        allocator_bytes=one.peak.allocator,
        copy_seconds=float(np.median(one.copies)) if one.copies else None,
        disk_bytes=sum(path.stat().st_size for path in one.candidate.files) or None,
        relative_l2=one.relative_l2,
        label_agreement=one.label_agreement,
        flag=flag_of(one.candidate, version("torch"), one.cudnn),
        conditions=one.conditions,
    )


def device_of(kind: DeviceKind) -> Device:
    """This machine's CPU, or its first GPU."""
    cores = os.cpu_count() or 1
    if kind == "cuda":
        gpu, found = find_gpus()[0], gpu_conditions()
        return Device(
            kind="cuda", name=gpu.name, cores=cores, memory_bytes=gpu.memory_bytes,
            driver=found.driver if found else None, compute_capability=gpu.compute_capability,
        )  # fmt: skip
    return Device(
        kind="cpu",
        name=cpu_name(),
        cores=cores,
        memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
    )


def _versions() -> Iterator[tuple[str, str]]:
    yield "python", platform.python_version()
    yield "platform", f"{platform.system()} {platform.machine()}"
    for name in _PACKAGES:
        try:
            yield name, version(name)
        except PackageNotFoundError:
            continue


def _worse(one: float, other: float) -> float:
    """The larger error; what is not a number is worst of all."""
    return float(np.maximum(one, other))


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
