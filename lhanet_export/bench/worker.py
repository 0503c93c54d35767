"""One candidate in a process of its own: opened, run, timed and weighed there. Nothing heavy is imported above.

The functions are called one after the other in a child process; `measure` is what calls them.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lhanet_export.bench.candidates import Candidate
from lhanet_export.bench.conditions import peak_resident_bytes, reset_peak_resident
from lhanet_export.verify.inputs import RuleCase

if TYPE_CHECKING:
    from lhanet_export.runners.openvino_ import Precision

Infer = Callable[[np.ndarray], np.ndarray]
#: Has OpenMP's threads (GNU's and Intel's), which are PyTorch's, sleep between two pieces of work; otherwise they spin
#: on cores that another candidate is being timed on.
QUIET = {"OMP_WAIT_POLICY": "passive", "KMP_BLOCKTIME": "0"}


@dataclass(frozen=True, kw_only=True)
class Task:
    """What every candidate gets: the checkpoint's file, the volume, and how many threads."""

    checkpoint: Path
    case: RuleCase
    threads: int


#: The child's candidate and volume, from `open_candidate` on; open until its process ends.
_open = ExitStack()
_infer: Infer
_image: np.ndarray


def open_candidate(candidate: Candidate, task: Task) -> float:
    """Make this process run one candidate; the seconds until it was ready for its first inference."""
    global _infer, _image
    started = time.perf_counter()
    _image = task.case.image
    _infer = _OPENERS[candidate.kind](candidate, task)
    return time.perf_counter() - started


def opening_peak_bytes() -> int:
    """The most resident memory until now; counting starts again after it."""
    peak = peak_resident_bytes()
    reset_peak_resident()
    return peak


def timed_inference() -> float:
    """Seconds of one inference, volume and output in main memory."""
    started = time.perf_counter()
    _infer(_image)
    return time.perf_counter() - started


def save_inference(case: RuleCase, target: Path) -> None:
    """Write the output for another volume of the same size into a file."""
    np.save(target, _infer(case.image))


def running_peak_bytes() -> int:
    """The most resident memory since `opening_peak_bytes`, mapped files included."""
    return peak_resident_bytes()


def _eager(candidate: Candidate, task: Task) -> Infer:
    import torch

    from lhanet_export.model.checkpoint import load_checkpoint
    from lhanet_export.runners.eager import EagerRunner

    torch.set_num_threads(task.threads)
    return _open.enter_context(EagerRunner(load_checkpoint(task.checkpoint))).infer


def _autocast(candidate: Candidate, task: Task) -> Infer:
    import torch

    from lhanet_export.model.checkpoint import load_checkpoint

    torch.set_num_threads(task.threads)
    network = load_checkpoint(task.checkpoint).eval()

    def run(image: np.ndarray) -> np.ndarray:
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
            return network(torch.from_numpy(image)).float().numpy()

    return run


def _plain_onnx(candidate: Candidate, task: Task) -> Infer:
    assert candidate.path is not None
    return _session(candidate.path, task)


def _onnx(candidate: Candidate, task: Task) -> Infer:
    from lhanet_export.export.artifact import read_onnx

    assert candidate.path is not None
    return _session(read_onnx(candidate.path).path, task)


def _session(path: Path, task: Task) -> Infer:
    # Not through its runner, which leaves the threads to ONNX Runtime: how many, and that they spin after an inference.
    from lhanet_export.runners.onnxruntime_library import load_onnxruntime, open_session

    options: Any = load_onnxruntime().SessionOptions()
    options.intra_op_num_threads = task.threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = open_session(path, options, str(path))
    name = session.get_inputs()[0].name
    return lambda image: session.run(None, {name: image})[0]


def _openvino(candidate: Candidate, task: Task, precision: Precision) -> Infer:
    from lhanet_export.export.artifact import read_onnx
    from lhanet_export.runners.openvino_ import OpenVINORunner

    assert candidate.path is not None
    runner = OpenVINORunner(read_onnx(candidate.path), precision=precision, threads=task.threads)
    _open.enter_context(runner)
    runner.prepare(_image.shape)
    return runner.infer


_OPENERS: dict[str, Callable[[Candidate, Task], Infer]] = {
    "eager": _eager,
    "autocast-bf16": _autocast,
    "plain-onnx": _plain_onnx,
    "onnx": _onnx,
    "openvino": partial(_openvino, precision="fp32"),
    "openvino-mixed": partial(_openvino, precision="mixed"),
}


def be_quiet() -> None:
    """Set what children inherit, before they start."""
    os.environ.update(QUIET)
