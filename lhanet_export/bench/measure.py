"""Candidates in turn, round by round, each in a process of its own; what came of it, as data."""

from __future__ import annotations

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
from lhanet_export.bench.candidates import REFERENCE, Candidate, flag_of
from lhanet_export.bench.result import Bench, Device, Row, Skipped
from lhanet_export.errors import EnvironmentLacks, RefusedInput
from lhanet_export.progress import SILENT, Progress
from lhanet_export.shapes import Shape, format_shape
from lhanet_export.verify.inputs import RuleCase
from lhanet_export.verify.metrics import difference

_PACKAGES = ("torch", "onnxruntime-gpu", "openvino", "numpy")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How a benchmark is made: `rounds` timed inferences of each candidate, outputs compared on `volumes` volumes."""

    checkpoint: Path
    identity: Mapping[str, Any]
    shape: Shape
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
    opening_peak_bytes: int
    first_seconds: float
    seconds: list[float] = field(default_factory=list)
    relative_l2: float = 0.0
    label_agreement: float = 1.0


def measure(
    candidates: Sequence[Candidate], skipped: Sequence[Skipped], plan: Plan, folder: Path, progress: Progress = SILENT
) -> Bench:
    """Measure candidates, the reference first, and say of every one that fails why it was not measured.

    Each has a process of its own, so that its memory is its own. They are asked in turn for one inference each, round
    by round, and one that is not asked leaves the cores alone: what else happens on the machine meets all of them
    alike. No inference is left out. Raises `EnvironmentLacks` where peak memory cannot be read, and if the reference
    itself fails.
    """
    if not Path("/proc/self/clear_refs").exists():
        raise EnvironmentLacks("peak memory is read from Linux's /proc, which is not here")
    worker.be_quiet()
    failed: list[Skipped] = []
    cases = [RuleCase(shape=plan.shape, kind="bodies", seed=seed) for seed in range(plan.volumes)]
    task = worker.Task(checkpoint=plan.checkpoint, case=cases[0], threads=plan.threads)
    with ExitStack() as stack:
        running: list[_Running] = []
        for candidate in candidates:
            with progress.step(f"open {candidate.name}"):
                try:
                    running.append(_started(candidate, task, stack))
                except (RefusedInput, EnvironmentLacks, BrokenProcessPool, RuntimeError) as error:
                    if candidate.name == REFERENCE:
                        raise EnvironmentLacks(f"the reference, {REFERENCE}, did not run: {error}") from error
                    failed.append(Skipped(name=candidate.name, reason=f"it did not run: {_first_line(error)}"))
        with progress.step(f"{plan.rounds} rounds at {format_shape(plan.shape)}", total=plan.rounds) as advance:
            for _ in range(plan.rounds):
                for one in running:
                    one.seconds.append(one.process.submit(worker.timed_inference).result())
                advance(1)
        peaks = [one.process.submit(worker.running_peak_bytes).result() for one in running]
        with progress.step(f"compare on {plan.volumes} volumes", total=plan.volumes) as advance:
            for case in cases:
                _compare(case, running, folder)
                advance(1)
    return Bench(
        date=date.today().isoformat(),
        command=plan.command,
        machine=dict(_versions()),
        device=cpu(),
        checkpoint=plan.identity,
        shape=plan.shape,
        threads=plan.threads,
        rounds=plan.rounds,
        rows=[_row(one, peak) for one, peak in zip(running, peaks, strict=True)],
        skipped=[*skipped, *failed],
        work=plan.work,
    )


def _started(candidate: Candidate, task: worker.Task, stack: ExitStack) -> _Running:
    process = stack.enter_context(ProcessPoolExecutor(1, get_context("spawn")))
    ready = process.submit(worker.open_candidate, candidate, task).result()
    return _Running(
        candidate=candidate,
        process=process,
        ready_seconds=ready,
        opening_peak_bytes=process.submit(worker.opening_peak_bytes).result(),
        first_seconds=process.submit(worker.timed_inference).result(),
    )


def _compare(case: RuleCase, running: Sequence[_Running], folder: Path) -> None:
    """The errors of all candidates for one volume, against the first one's output."""
    reference: np.ndarray | None = None
    for one in running:
        path = folder / "output.npy"
        one.process.submit(worker.save_inference, case, path).result()
        output = np.load(path)
        if reference is None:
            reference = output
            continue
        found = difference(case, reference, output, "logits", 0.0)
        assert found.relative_l2 is not None, "logits have a norm"
        one.relative_l2 = max(one.relative_l2, found.relative_l2)
        one.label_agreement = min(one.label_agreement, found.label_agreement)


def _row(one: _Running, peak: int) -> Row:
    return Row(
        name=one.candidate.name,
        precision=one.candidate.precision,
        seconds=tuple(one.seconds),
        ready_seconds=one.ready_seconds,
        first_seconds=one.first_seconds,
        opening_peak_bytes=one.opening_peak_bytes,
        peak_bytes=peak,
        peak_kind="resident",
        disk_bytes=sum(path.stat().st_size for path in one.candidate.files) or None,
        relative_l2=one.relative_l2,
        label_agreement=one.label_agreement,
        flag=flag_of(one.candidate, version("torch")),
    )


def cpu() -> Device:
    """This machine's CPU."""
    import os

    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return Device(
        kind="cpu",
        name=names[0] if names else platform.machine(),
        cores=os.cpu_count() or 1,
        memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
    )


def _versions() -> Iterator[tuple[str, str]]:
    yield "python", platform.python_version()
    yield "platform", platform.platform()
    for name in _PACKAGES:
        try:
            yield name, version(name)
        except PackageNotFoundError:
            continue


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
