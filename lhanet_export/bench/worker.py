"""One candidate in a process of its own: opened, run, timed and weighed there. Nothing heavy is imported above.

The functions are called one after the other in a child process; `measure` is what calls them.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, get_args

import numpy as np

from lhanet_export.bench.candidates import Candidate, DeviceKind, TorchKind
from lhanet_export.bench.conditions import cpu_conditions, gpu_conditions, peak_resident_bytes, reset_peak_resident
from lhanet_export.engine.backends import is_out_of_memory
from lhanet_export.errors import OutOfMemory
from lhanet_export.verify.inputs import RuleCase

if TYPE_CHECKING:
    from lhanet_export.runners.openvino_ import Precision
    from lhanet_export.runners.tensorrt_session import EngineSlot

#: Has OpenMP's threads (GNU's and Intel's), which are PyTorch's, sleep between two pieces of work; otherwise they spin
#: on cores that another candidate is being timed on.
QUIET = {"OMP_WAIT_POLICY": "passive", "KMP_BLOCKTIME": "0"}


@dataclass(frozen=True, kw_only=True)
class Task:
    """What every candidate gets: the checkpoint's file, the volume, where it runs, and how many threads of the CPU."""

    checkpoint: Path
    case: RuleCase
    device: DeviceKind
    threads: int


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Peak bytes of a candidate's process; None where nobody tells, or where there is no GPU.

    `process` is the GPU's memory of the whole process as the driver counts it, `allocator` that of torch's allocator.
    """

    resident: int
    process: int | None = None
    allocator: int | None = None

    @property
    def kind(self) -> Literal["resident", "process", "allocator"]:
        """Which of them counts: of what is known, what says most of a GPU."""
        return "process" if self.process else "allocator" if self.allocator else "resident"

    @property
    def bytes(self) -> int:
        """The one that counts."""
        return self.process or self.allocator or self.resident


class Way(Protocol):
    """A candidate that is ready to run, and one volume (N,1,D,H,W) that it is timed on."""

    def infer(self, image: np.ndarray) -> np.ndarray:
        """The logits (N,K,D,H,W) of another volume of the same size."""

    def seconds(self) -> float:
        """The time of one inference; on a GPU of the network alone, without copies."""

    def copy_seconds(self) -> float | None:
        """The time of the copies to a GPU and back; None on a CPU."""

    def allocator_bytes(self) -> int | None:
        """The most that torch's allocator held on a GPU; None on a CPU, and for what does not use it."""

    def count_memory_from_here(self) -> None:
        """What was needed until now does not count any more."""

    def rest(self) -> None:
        """Give memory back that the next inference can ask for again."""


class _Opened:
    """The child's candidate, from `open_candidate` on; open until its process ends."""

    way: Way
    on_gpu = False
    #: The GPU's memory in use when this turn began, and how much of that was this process's own.
    used_before, own_before = 0, 0
    process_peak: int | None = None
    stack = ExitStack()


def open_candidate(candidate: Candidate, task: Task) -> float:
    """Make this process run one candidate; the seconds until it was ready for its first inference."""
    _Opened.on_gpu = task.device == "cuda"
    image = task.case.image
    with _turn():
        started = time.perf_counter()
        _Opened.way = _OPENERS[candidate.kind](candidate, task, image)
        return time.perf_counter() - started


def opening_peak() -> Memory:
    """The most memory until now, as far as it was looked at; counting starts again after it.

    Asked after a first inference, which may try several algorithms and need memory for each: one that is asked for its
    thousandth scan does not. So a row's peak is that of any inference but the first.
    """
    peak = running_peak()
    reset_peak_resident()
    _Opened.process_peak = None
    with _turn():
        _Opened.way.count_memory_from_here()
    return peak


def timed_inference(warm_up: bool = False) -> float:
    """Seconds of one inference, after an untimed one if the others' turns have left clocks or memory behind."""
    with _turn():
        if warm_up:
            _Opened.way.seconds()
        seconds = _Opened.way.seconds()
        _look_at_memory()
        _Opened.way.rest()
    return seconds


def copy_seconds() -> float | None:
    """Seconds of the copies between host and GPU; None on a CPU."""
    with _turn():
        seconds = _Opened.way.copy_seconds()
        _Opened.way.rest()
    return seconds


def save_inference(case: RuleCase, target: Path) -> None:
    """Write the output for another volume of the same size into a file."""
    with _turn():
        np.save(target, _Opened.way.infer(case.image))
        _Opened.way.rest()


def cudnn_version() -> int | None:
    """The version of cuDNN that PyTorch uses on a GPU, 91501 for 9.15.1; None where it uses none."""
    torch = sys.modules.get("torch")
    return torch.backends.cudnn.version() if torch is not None and _Opened.on_gpu else None


def running_peak() -> Memory:
    """The most memory since `opening_peak`, or since the process began; mapped files included."""
    return Memory(resident=peak_resident_bytes(), process=_Opened.process_peak, allocator=_Opened.way.allocator_bytes())


def conditions() -> Mapping[str, float]:
    """Clocks, temperature and load now, as far as they are known."""
    if not _Opened.on_gpu:
        return {name: value for name, value in asdict(cpu_conditions()).items() if value is not None}
    found = gpu_conditions()
    return found.numbers() if found else {}


def be_quiet() -> None:
    """Set what children inherit, before they start."""
    os.environ.update(QUIET)


def _used_bytes() -> int:
    """The GPU's memory in use by everybody; 0 where the driver does not tell."""
    found = gpu_conditions() if _Opened.on_gpu else None
    return (found.used_bytes or 0) if found else 0


def _look_at_memory() -> None:
    """Note what the driver counts for this process; it does not keep a peak, but nothing was given back yet."""
    found = gpu_conditions() if _Opened.on_gpu else None
    if found is None:
        return
    # In containers the driver may not know processes by their number.
    now = found.process_bytes
    if now is None and found.used_bytes is not None:
        now = _Opened.own_before + found.used_bytes - _Opened.used_before
    if now is not None:
        _Opened.process_peak = max(now, _Opened.process_peak or 0)


@contextmanager
def _turn() -> Iterator[None]:
    """While a candidate is asked for something, nobody else changes the GPU's memory; what it holds then is noted.

    An error about memory becomes ours, which the parent process knows without torch. Of another one only the words go
    there: some of PyTorch's compiler hold what no process can send.
    """
    _Opened.used_before = _used_bytes()
    try:
        yield
    except RuntimeError as error:
        if is_out_of_memory(str(error)):
            raise OutOfMemory(str(error).partition("\n")[0]) from error
        raise RuntimeError(str(error)) from error
    finally:
        _Opened.own_before += _used_bytes() - _Opened.used_before


class _OnHost:
    """What computes on the CPU when it is called."""

    def __init__(self, infer: Callable[[np.ndarray], np.ndarray], image: np.ndarray) -> None:
        self.infer = infer
        self._image = image

    def seconds(self) -> float:
        started = time.perf_counter()
        self.infer(self._image)
        return time.perf_counter() - started

    def copy_seconds(self) -> float | None:
        return None

    def allocator_bytes(self) -> int | None:
        return None

    def count_memory_from_here(self) -> None:
        """Nothing but resident memory is counted."""

    def rest(self) -> None:
        """Nothing is held that another inference would not need."""


class _InEngine(_OnHost):
    """An engine; its memory is what the driver counts for the process."""

    def __init__(self, slot: EngineSlot, image: np.ndarray) -> None:
        super().__init__(self._infer, image)
        self._slot = slot
        self._infer(image)

    def _infer(self, image: np.ndarray) -> np.ndarray:
        self._slot.image[...] = image
        self._slot.start()
        return self._slot.wait().astype(np.float32)

    def seconds(self) -> float:
        return self._slot.network_seconds()

    def copy_seconds(self) -> float | None:
        return self._slot.copy_seconds()


class _InOnnxRuntimeCuda(_OnHost):
    """ONNX Runtime on a GPU, timed by the host's clock around calls that return when the GPU is done."""

    def __init__(self, path: Path, image: np.ndarray, half_io: bool) -> None:
        from lhanet_export.runners.onnxruntime_cuda import CudaSession

        self._dtype = np.float16 if half_io else np.float32
        # What is timed is copies, not the host's way from one type to the other.
        super().__init__(self._infer, image.astype(self._dtype))
        self._session = CudaSession(path)
        self._session.bring(self._image)

    def _infer(self, image: np.ndarray) -> np.ndarray:
        self._session.bring(image.astype(self._dtype))
        self._session.run()
        return self._session.fetch().astype(np.float32)

    def seconds(self) -> float:
        return _seconds_of(self._session.run)

    def copy_seconds(self) -> float | None:
        self._session.run()
        return _seconds_of(lambda: self._session.bring(self._image)) + _seconds_of(self._session.fetch)


def _seconds_of(run: Callable[[], object]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def _torch(candidate: Candidate, task: Task, image: np.ndarray) -> Way:
    import torch

    from lhanet_export.bench.torch_ways import TorchWay

    torch.set_num_threads(task.threads)
    way = TorchWay(candidate, task.checkpoint, image, task.device)
    _Opened.stack.callback(way.close)
    return way


def _onnx(candidate: Candidate, task: Task, image: np.ndarray) -> Way:
    from lhanet_export.export.artifact import read_onnx

    assert candidate.path is not None
    half_io = candidate.kind == "onnx" and bool(read_onnx(candidate.path).facts.get("half_io"))
    if task.device == "cuda":
        return _InOnnxRuntimeCuda(candidate.path, image, half_io)
    # Not through its runner, which leaves the threads to ONNX Runtime: how many, and that they spin after an inference.
    from lhanet_export.runners.onnxruntime_library import load_onnxruntime, open_session

    options: Any = load_onnxruntime().SessionOptions()
    options.intra_op_num_threads = task.threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = open_session(candidate.path, options, str(candidate.path))
    name = session.get_inputs()[0].name
    return _OnHost(lambda image: session.run(None, {name: image})[0], image)


def _openvino(candidate: Candidate, task: Task, image: np.ndarray, precision: Precision) -> Way:
    from lhanet_export.export.artifact import read_onnx
    from lhanet_export.runners.openvino_ import OpenVINORunner

    assert candidate.path is not None
    runner = OpenVINORunner(read_onnx(candidate.path), precision=precision, threads=task.threads)
    _Opened.stack.enter_context(runner)
    runner.prepare(image.shape)
    return _OnHost(runner.infer, image)


def _engine(candidate: Candidate, task: Task, image: np.ndarray) -> Way:
    from lhanet_export.runners.tensorrt_ import TensorRTRunner

    assert candidate.path is not None
    runner = _Opened.stack.enter_context(TensorRTRunner(candidate.path, final_kernels=True))
    (slot,) = runner.slots(image.shape, 1)
    return _InEngine(slot, image)


_OPENERS: dict[str, Callable[[Candidate, Task, np.ndarray], Way]] = {
    **dict.fromkeys(get_args(TorchKind), _torch),
    "plain-onnx": _onnx,
    "onnx": _onnx,
    "openvino": partial(_openvino, precision="fp32"),
    "openvino-mixed": partial(_openvino, precision="mixed"),
    "engine": _engine,
}
