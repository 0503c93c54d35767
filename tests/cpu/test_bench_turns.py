"""How candidates take turns, each in its process: what one that fails leaves behind, and whose memory is whose."""

from __future__ import annotations

import inspect
from collections import Counter
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest

from lhanet_export.bench import measure as measure_module
from lhanet_export.bench import worker
from lhanet_export.bench.candidates import REFERENCE, Candidate
from lhanet_export.bench.conditions import reset_peak_resident
from lhanet_export.bench.measure import Plan, measure
from lhanet_export.bench.result import Bench
from lhanet_export.errors import EnvironmentLacks
from lhanet_export.verify.inputs import RuleCase


def plan_of(checkpoint: Path) -> Plan:
    return Plan(
        checkpoint=checkpoint, identity={}, shape=(32, 48, 64), device="cpu", threads=1, rounds=1, volumes=1,
        command="", work={},
    )  # fmt: skip


def test_a_candidate_that_fails_is_named(narrow_checkpoint: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"no graph")
    reference = Candidate(name=REFERENCE, precision="fp32", kind="eager")
    other = Candidate(name="broken", precision="fp32", kind="plain-onnx", path=broken)
    found = measure([reference, other], [], plan_of(narrow_checkpoint), tmp_path)
    assert [row.name for row in found.rows] == [REFERENCE]
    (skipped,) = found.skipped
    assert skipped.name == "broken" and "it did not run: ONNX Runtime cannot load" in skipped.reason
    with pytest.raises(EnvironmentLacks, match="the reference"):
        measure([replace(other, name=REFERENCE)], [], plan_of(narrow_checkpoint), tmp_path)


def test_what_only_a_first_inference_needs_is_no_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    class Greedy:
        million_numbers = 60

        def seconds(self) -> float:
            assert np.ones(self.million_numbers * 1_000_000).all()
            self.million_numbers = 5
            return 1.0

        def allocator_bytes(self) -> int | None:
            return None

        def count_memory_from_here(self) -> None: ...

        def rest(self) -> None: ...

    monkeypatch.setattr(worker._Opened, "way", Greedy(), raising=False)
    reset_peak_resident()
    worker.timed_inference()
    opening = worker.opening_peak()
    worker.timed_inference()
    assert opening.bytes - worker.running_peak().bytes > 300e6


def test_memory_of_a_gpu_counts_before_the_hosts() -> None:
    assert (worker.Memory(resident=3).kind, worker.Memory(resident=3).bytes) == ("resident", 3)
    torchs = worker.Memory(resident=3, allocator=2)
    assert (torchs.kind, torchs.bytes) == ("allocator", 2)
    drivers = worker.Memory(resident=3, allocator=2, process=4)
    assert (drivers.kind, drivers.bytes) == ("process", 4)


class _Unsendable(RuntimeError):
    """Holds a frame, as errors of PyTorch's compiler do; no process can send it to another."""

    def __init__(self) -> None:
        super().__init__("the compiler failed\nat length")
        self.frame = inspect.currentframe()


def _fails(*given: Any) -> Any:
    raise _Unsendable


def _open_what_fails(task: worker.Task) -> float:
    worker._OPENERS["eager"] = _fails
    return worker.open_candidate(Candidate(name="", precision="fp32", kind="eager"), task)


def test_an_error_that_cannot_be_sent_keeps_its_words() -> None:
    case = RuleCase(shape=(8, 8, 8), kind="bodies", seed=0)
    task = worker.Task(checkpoint=Path("none"), case=case, device="cpu", threads=1)
    with (
        ProcessPoolExecutor(1, get_context("spawn")) as process,
        pytest.raises(RuntimeError, match="the compiler failed"),
    ):
        process.submit(_open_what_fails, task).result()


class _Child:
    """A candidate's process that is none: what is asked of it by name, and what fails in it at which call."""

    alive: ClassVar[list[_Child]] = []

    def __init__(self, failing: dict[str, dict[str, int]]) -> None:
        self._failing, self._name, self._calls = failing, "", Counter[str]()
        self.alive.append(self)

    def __enter__(self) -> _Child:
        return self

    def __exit__(self, *error: object) -> None:
        self.shutdown()

    def shutdown(self) -> None:
        if self in self.alive:
            self.alive.remove(self)

    def submit(self, function: Any, *arguments: Any) -> Future[Any]:
        if function is worker.open_candidate:
            self._name = arguments[0].name
        if function is worker.opening_peak:
            assert self._calls["timed_inference"] == 1, "the first inference belongs to it, and no other"
        self._calls[function.__name__] += 1
        if self._calls[function.__name__] == self._failing.get(self._name, {}).get(function.__name__):
            failed: Future[Any] = Future()
            failed.set_exception(RuntimeError("the GPU fell off the bus\nfor ever"))
            return failed
        if function is worker.save_inference:
            np.save(arguments[1], np.arange(16.0).reshape(1, 2, 2, 2, 2))
        memory = worker.Memory(resident=1000 * len(self.alive))
        answers = {
            worker.opening_peak: memory, worker.running_peak: memory, worker.conditions: {}, worker.cudnn_version: None
        }  # fmt: skip
        done: Future[Any] = Future()
        done.set_result(answers.get(function, 1.0))
        return done


def measured(monkeypatch: pytest.MonkeyPatch, folder: Path, failing: dict[str, dict[str, int]]) -> Bench:
    _Child.alive.clear()
    monkeypatch.setattr(measure_module, "ProcessPoolExecutor", lambda *given: _Child(failing))
    names = [Candidate(name=name, precision="fp32", kind="eager") for name in (REFERENCE, *"bc")]
    plan = replace(plan_of(Path("none.pth")), shape=(2, 2, 2), rounds=3, volumes=2)
    found = measure(names, [], plan, folder)
    assert not _Child.alive
    return found


@pytest.mark.parametrize(
    "failing", [{"open_candidate": 1}, {"timed_inference": 1}, {"timed_inference": 3}, {"save_inference": 2}]
)
def test_one_that_fails_at_any_time_leaves_and_the_others_go_on(
    failing: dict[str, int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    found = measured(monkeypatch, tmp_path, {"b": failing})
    assert [row.name for row in found.rows] == [REFERENCE, "c"]
    (skipped,) = found.skipped
    assert (skipped.name, skipped.reason) == ("b", "it did not run: the GPU fell off the bus")
    if "open_candidate" in failing or failing == {"timed_inference": 1}:
        # Gone before the next one was opened.
        assert found.rows[1].opening_peak_bytes == 2000


@pytest.mark.parametrize(
    "failing", [{"open_candidate": 1}, {"timed_inference": 1}, {"timed_inference": 3}, {"save_inference": 2}]
)
def test_without_its_reference_a_benchmark_says_nothing(
    failing: dict[str, int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with pytest.raises(EnvironmentLacks, match=f"the reference, {REFERENCE}, did not run: the GPU fell off the bus"):
        measured(monkeypatch, tmp_path, {REFERENCE: failing})


class _Driver:
    """A GPU's memory in use by everybody, as far as the driver tells."""

    def __init__(self) -> None:
        self.used, self.process = 5_000, None

    def __call__(self) -> Any:
        return SimpleNamespace(used_bytes=self.used, process_bytes=self.process)


def test_memory_of_a_process_that_the_driver_does_not_know(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container: it is what came and went in its own turns, whatever others have taken between them."""
    driver = _Driver()

    class Way:
        def seconds(self) -> float:
            driver.used += 700
            return 1.0

        def rest(self) -> None:
            driver.used -= 600 + self.trial
            self.trial = 0

        trial = 40

        def allocator_bytes(self) -> int | None:
            return None

        def count_memory_from_here(self) -> None:
            driver.used -= 60

    def opened(*given: Any) -> Any:
        driver.used += 1_000
        return Way()

    monkeypatch.setattr(worker, "gpu_conditions", driver)
    state = {"on_gpu": False, "own_before": 0, "used_before": 0, "process_peak": None, "way": None}
    for name, value in state.items():
        monkeypatch.setattr(worker._Opened, name, value, raising=False)
    monkeypatch.setitem(worker._OPENERS, "eager", opened)
    case = RuleCase(shape=(8, 8, 8), kind="bodies", seed=0)
    task = worker.Task(checkpoint=Path("none"), case=case, device="cuda", threads=1)
    worker.open_candidate(Candidate(name="", precision="fp32", kind="eager"), task)
    worker.timed_inference()
    assert worker.opening_peak().process == 1_700
    # 1,000 + 700 - 640 - 60 of its own are left. Others come, three times as large as it is.
    driver.used += 3_000
    worker.timed_inference()
    assert worker.running_peak().process == 1_000 + 700
    driver.used -= 2_000
    # A hundred more are held each time.
    worker.timed_inference()
    assert worker.running_peak().process == 1_100 + 700
    # One that it does know is asked for.
    driver.process = 123_456
    worker.timed_inference()
    assert worker.running_peak().process == 123_456


def test_those_without_room_are_measured_later_beside_the_reference(
    narrow_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(measure_module, "available_bytes", lambda device: 1)
    candidates = [
        Candidate(name=name, precision="fp32", kind="eager", public_resize=name == "c") for name in (REFERENCE, *"bc")
    ]
    found = measure(candidates, [], plan_of(narrow_checkpoint), tmp_path)
    assert [row.name for row in found.rows] == [REFERENCE, "b", "c"]
    first, beside, later = (row.reference_seconds for row in found.rows)
    assert first == beside == found.rows[0].median_seconds != later
