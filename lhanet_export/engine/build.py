"""From a plan to an engine file, in a child process that is watched."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lhanet_export.engine.backends import BACKENDS, load_module
from lhanet_export.engine.gpu import find_gpus
from lhanet_export.engine.plan import EnginePlan
from lhanet_export.errors import EnvironmentLacks, LhanetExportError, RefusedInput
from lhanet_export.files import write_json
from lhanet_export.progress import SILENT, Progress

logger = logging.getLogger(__name__)

#: What runs in the child; it gets the plan's path and the engine's.
CHILD = ("-m", "lhanet_export.engine.child")
_LOG_TAIL_LINES = 50


@dataclass(frozen=True, kw_only=True)
class TensorFacts:
    """An input or output of an engine; -1 in `shape` is an axis that the profiles bound."""

    name: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class BuiltEngine:
    """A built engine and what its builder said about it; bytes and seconds.

    `weights_bytes` and `activation_bytes` are the device memory that the builder planned for the
    largest profile; None where the backend does not say. `log_tail` is the end of the builder's log.
    """

    path: Path
    seconds: float
    peak_rss_bytes: int
    backend_version: str
    compute_capabilities: tuple[str, ...]
    weights_bytes: int | None
    activation_bytes: int | None
    inputs: tuple[TensorFacts, ...]
    outputs: tuple[TensorFacts, ...]
    log_tail: tuple[str, ...]

    @property
    def planned_bytes(self) -> int:
        """Weights and activations together, as far as they are known."""
        return (self.weights_bytes or 0) + (self.activation_bytes or 0)


def check_machine(backend: str) -> None:
    """Raise `EnvironmentLacks` at once where the backend's package is missing, or the GPU that it builds on."""
    facts = BACKENDS[backend]
    if find_spec(facts.module) is None:
        load_module(facts)  # raises, in words that say what to install
    if not facts.builds_without_gpu and not find_gpus():
        raise EnvironmentLacks(
            f"{facts.title} builds on the GPU that the engine is for, and there is none here, or no driver for it; "
            "tensorrt-rtx builds without one"
        )


def engine_from_onnx(plan: EnginePlan, folder: Path, *, progress: Progress = SILENT) -> BuiltEngine:
    """Build the planned engine as a file in `folder`, a temporary folder of the caller's.

    Raises `RefusedInput` with TensorRT's own words where it does not build the graph or the engine
    would not fit on the card, and `EnvironmentLacks` where the backend, a GPU, memory or disk is
    missing. Whatever happens, interruption and SIGTERM included, no child process is left, and after
    a failure no engine file.
    """
    engine_path = folder / "built.engine"
    plan_path = folder / "plan.json"
    try:
        write_json(plan_path, plan.as_json())
    except OSError as error:
        raise EnvironmentLacks(f"cannot write to {folder}: {error.strerror}") from error
    backend = BACKENDS[plan.backend]
    started = time.monotonic()
    try:
        with (
            _sigterm_raises(),
            progress.step(f"build the engine with {backend.title}", total=backend.progress_total) as advance,
            _child(plan_path, engine_path, folder) as process,
        ):
            end = _Listener(advance).listen(process)
        built = _built(plan, end, engine_path, time.monotonic() - started)
        _check_fits(plan, built)
    except BaseException:
        engine_path.unlink(missing_ok=True)
        raise
    return built


def _built(plan: EnginePlan, end: _End, engine_path: Path, seconds: float) -> BuiltEngine:
    if end.error:
        raise end.error
    facts = end.built
    if facts is None or end.exit_code != 0 or not engine_path.is_file():
        raise _death(plan, end)
    return BuiltEngine(
        path=engine_path,
        seconds=seconds,
        peak_rss_bytes=facts["peak_rss_bytes"],
        backend_version=facts["backend_version"],
        compute_capabilities=tuple(facts["compute_capabilities"]),
        weights_bytes=facts["weights_bytes"],
        activation_bytes=facts["activation_bytes"],
        inputs=_tensors(facts["inputs"]),
        outputs=_tensors(facts["outputs"]),
        log_tail=end.log_tail,
    )


def _tensors(facts: list[dict[str, Any]]) -> tuple[TensorFacts, ...]:
    return tuple(TensorFacts(name=one["name"], dtype=one["dtype"], shape=tuple(one["shape"])) for one in facts)


def _check_fits(plan: EnginePlan, built: BuiltEngine) -> None:
    if built.planned_bytes > plan.memory_bytes:
        needed, there = built.planned_bytes / 2**30, plan.memory_bytes / 2**30
        raise RefusedInput(
            f"the engine needs {needed:.1f} GiB on the GPU, which has {there:.1f}; "
            f"give a smaller MAX than in --spatial {plan.profiles[-1]}"
        )


def _death(plan: EnginePlan, end: _End) -> LhanetExportError:
    """The error for a child that ended without saying why."""
    title = BACKENDS[plan.backend].title
    words = " | ".join(end.errors[-3:]) or end.stderr_tail or "it left no message"
    if end.exit_code == -signal.SIGKILL:
        return EnvironmentLacks(
            "the build was killed from outside, most likely because this machine ran out of memory; "
            f"{title} said: {words}"
        )
    if end.exit_code < 0:
        return RefusedInput(
            f"{title} crashed ({signal.Signals(-end.exit_code).name}) while building {plan.onnx}; it said: {words}"
        )
    # A fault of this toolkit in the child: its traceback is what helps.
    return LhanetExportError(f"the build process ended with exit code {end.exit_code}: {words}")


@contextlib.contextmanager
def _child(plan_path: Path, engine_path: Path, folder: Path) -> Iterator[subprocess.Popen[str]]:
    """The running child; killed when the block is left early, however that happens."""
    # The package that runs here also runs there. The child's folder is the caller's own, because `python -m` imports
    # from the current folder first, and that may be anybody's.
    package_root = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join(filter(None, (package_root, os.environ.get("PYTHONPATH"))))
    command = [sys.executable, *CHILD, str(plan_path.resolve()), str(engine_path.resolve())]
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,  # held open: the child ends when it closes
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        errors="replace",
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path},
        start_new_session=True,  # ctrl-C in a terminal reaches this process only, which ends the child
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()


@contextlib.contextmanager
def _sigterm_raises() -> Iterator[None]:
    """Turn SIGTERM into an exception inside the block, so that the child is ended; a handler of the caller's stays."""
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield
        return

    def leave(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


@dataclass(frozen=True, kw_only=True)
class _End:
    """How a child ended, and what it had said until then."""

    exit_code: int
    built: dict[str, Any] | None
    error: LhanetExportError | None
    errors: tuple[str, ...]
    log_tail: tuple[str, ...]
    stderr_tail: str


class _Listener:
    """Reads a child's messages to their end."""

    def __init__(self, advance: Callable[[float], None]) -> None:
        self._advance = advance
        self._phases = Phases()
        self._log: deque[str] = deque(maxlen=_LOG_TAIL_LINES)
        self._errors: deque[str] = deque(maxlen=8)
        self._stderr: deque[str] = deque(maxlen=20)
        self._built: dict[str, Any] | None = None
        self._error: LhanetExportError | None = None

    def listen(self, process: subprocess.Popen[str]) -> _End:
        """Until the child closes its output; then how it ended."""
        assert process.stdout is not None and process.stderr is not None
        # Both pipes have to be drained, or a talkative library would block the child.
        drain = threading.Thread(target=self._stderr.extend, args=(process.stderr,), daemon=True)
        drain.start()
        for line in process.stdout:
            self._take(line)
        exit_code = process.wait()
        drain.join()
        return _End(
            exit_code=exit_code,
            built=self._built,
            error=self._error,
            errors=tuple(self._errors),
            log_tail=tuple(self._log),
            stderr_tail=" ".join(" ".join(self._stderr).split())[-1500:],
        )

    def _take(self, line: str) -> None:
        try:
            message = json.loads(line)
        except ValueError:
            # The last line of a child that died while writing it.
            self._log.append(line.strip())
            return
        match message:
            case {"log": [int(level), str(text)]}:
                self._log.append(text)
                logger.debug("%s", text)
                if level >= logging.ERROR:
                    self._errors.append(" ".join(text.split()))
            case {"phase": str(name), "parent": parent, "steps": int(steps)}:
                self._phases.start(name, parent, steps)
            case {"step": str(name)}:
                self._advance(self._phases.step(name))
            case {"finish": str(name)}:
                self._advance(self._phases.finish(name))
            case {"built": dict(facts)}:
                self._built = facts
            case {"refused": str(text)}:
                self._error = RefusedInput(text)
            case {"lacks": str(text)}:
                self._error = EnvironmentLacks(text)


class Phases:
    """Nested phases with a number of steps each, as one fraction that only grows."""

    def __init__(self) -> None:
        self._open: dict[str, _Phase] = {}
        self._reached = 0.0

    def start(self, name: str, parent: str | None, steps: int) -> None:
        """A phase begins, as a part of its parent's current step."""
        self._open[name] = _Phase(parent, max(steps, 1))

    def step(self, name: str) -> float:
        """One step of a phase is done; returns by how much the whole has grown."""
        if name in self._open:
            self._open[name].done += 1
        return self._grown()

    def finish(self, name: str) -> float:
        """A phase is over; returns by how much the whole has grown."""
        phase = self._open.get(name)
        if phase is None:
            return 0.0
        phase.done = phase.steps
        grown = self._grown()
        del self._open[name]
        return grown

    def _grown(self) -> float:
        before, self._reached = self._reached, max(self._reached, self._furthest(None))
        return self._reached - before

    def _furthest(self, parent: str | None) -> float:
        """How far the phases of one parent are."""
        return max((self._fraction(name) for name, phase in self._open.items() if phase.parent == parent), default=0.0)

    def _fraction(self, name: str) -> float:
        phase = self._open[name]
        return min((phase.done + self._furthest(name)) / phase.steps, 1.0)


@dataclass
class _Phase:
    parent: str | None
    steps: int
    done: int = 0
