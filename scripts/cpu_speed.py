"""How fast the exported graph is on this CPU, and in how much memory, against eager PyTorch.

    python scripts/cpu_speed.py                                    # rewrites docs/measurements/cpu_speed.json
    python scripts/cpu_speed.py best_model.pth --shape 64x128x128 --threads 8 --out mine.json
    python scripts/cpu_speed.py --width 8 --out quick.json         # a narrow network, to try it out

Each runtime has a process of its own, so that its memory is its own. They are asked in turn for one
inference each, round by round, and a runtime that is not asked leaves the cores alone: what else
happens on the machine meets all of them alike. Mixed precision (FP32 and BF16) is measured
where the CPU has BF16. Linux only.
"""

from __future__ import annotations

import datetime
import os
import shlex
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np
from _machine import machine

from lhanet_export.cli.options import ShapeType
from lhanet_export.cli.show import Show, complain, emit_json, format_bytes, format_seconds
from lhanet_export.errors import EnvironmentLacks, LhanetExportError, RefusedInput
from lhanet_export.progress import Progress
from lhanet_export.runners.openvino_library import computes_bf16, load_openvino
from lhanet_export.shapes import Shape, SpatialRange, format_shape
from lhanet_export.verify.inputs import Case, RuleCase
from lhanet_export.verify.metrics import Difference, difference

if TYPE_CHECKING:
    from lhanet_export.runners.openvino_ import Precision

FIGURES = Path(__file__).resolve().parents[1] / "docs" / "measurements" / "cpu_speed.json"
PACKAGES = ("torch", "onnxruntime-gpu", "openvino", "numpy")
PRESET_PREFIX = "preset:"
EAGER, MIXED = "eager FP32", "OpenVINO mixed"
#: Has OpenMP's threads (GNU's and Intel's), which are PyTorch's, sleep between two pieces of work; otherwise they spin
#: on cores that another runtime is being timed on.
_QUIET = {"OMP_WAIT_POLICY": "passive", "KMP_BLOCKTIME": "0"}

Infer = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Task:
    """What every runtime gets: the weights, the graph made of them, the volume, and how many threads to use."""

    checkpoint: Path
    graph: Path
    case: Case
    threads: int


@dataclass(frozen=True, kw_only=True)
class Opening:
    """What it took to be ready: imports, checking and loading the file, and compiling, None where nothing is."""

    ready_seconds: float
    compile_seconds: float | None
    opening_peak_bytes: int


@click.command()
@click.argument("checkpoint", default="preset:lightweight", metavar="[CHECKPOINT]")
@click.option("--width", type=click.IntRange(8, 512), help="Base channels, for a preset; by default its own.")
@click.option("--shape", type=ShapeType(), default="48x96x96", show_default=True, help="The volume's size in voxels.")
@click.option("--threads", type=click.IntRange(1), default=2, show_default=True, help="Threads of each runtime.")
@click.option("--rounds", type=click.IntRange(1), default=5, show_default=True, help="Timed inferences of each.")
@click.option("--volumes", type=click.IntRange(1), default=8, show_default=True, help="Volumes to compare outputs on.")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), default=FIGURES, help="Where the JSON goes.")
def main(
    checkpoint: str, width: int | None, shape: Shape, threads: int, rounds: int, volumes: int, out: Path
) -> None:  # fmt: skip
    """Time eager PyTorch, ONNX Runtime and OpenVINO on CHECKPOINT, a file or preset:NAME (lightweight)."""
    show = Show()
    try:
        facts = measure(checkpoint, width, shape, threads, rounds, volumes, show.progress)
        emit_json(out, facts)
    except LhanetExportError as error:
        complain(str(error))
        sys.exit(error.exit_code)
    show_rows(show, facts)


def measure(
    checkpoint: str, width: int | None, shape: Shape, threads: int, rounds: int, volumes: int, progress: Progress
) -> dict[str, Any]:
    """All figures, as they are written."""
    if not Path("/proc/self/clear_refs").exists():
        raise EnvironmentLacks("peak memory is read from Linux's /proc, which is not here")
    names = runtimes()
    os.environ.update(_QUIET)
    context = get_context("spawn")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        # In a process of its own, too, so that this one stays small.
        with ProcessPoolExecutor(1, context) as pool, progress.step(f"export {checkpoint}"):
            weights, identity = pool.submit(export, checkpoint, width, shape, folder).result()
        cases = [RuleCase(shape=shape, kind="bodies", seed=seed) for seed in range(volumes)]
        task = Task(checkpoint=weights, graph=folder / "model.onnx", case=cases[0], threads=threads)
        children = {name: stack.enter_context(ProcessPoolExecutor(1, context)) for name in names}
        rows: dict[str, dict[str, Any]] = {}
        for name, child in children.items():
            with progress.step(f"open {name}, first inference"):
                opening = child.submit(open_runtime, name, task).result()
                first = child.submit(first_inference).result()
            rows[name] = {"runtime": name, **asdict(opening), "first_seconds": first}
        timed: dict[str, list[float]] = {name: [] for name in names}
        with progress.step(f"{rounds} rounds", total=rounds) as advance:
            for _ in range(rounds):
                for name, child in children.items():
                    timed[name].append(child.submit(timed_inference).result())
                advance(1)
        for name, child in children.items():
            rows[name] |= _speed(timed[name], timed[EAGER])
            rows[name] |= child.submit(memory).result() | {"relative_l2": 0.0, "label_agreement": 1.0}
        with progress.step(f"compare on {volumes} volumes", total=volumes) as advance:
            for case in cases:
                for name, child in children.items():
                    child.submit(save_inference, case, folder / f"{name}.npy").result()
                    found = _difference(case, folder / f"{EAGER}.npy", folder / f"{name}.npy")
                    worst = rows[name]
                    worst["relative_l2"] = max(worst["relative_l2"], found.relative_l2)
                    worst["label_agreement"] = min(worst["label_agreement"], found.label_agreement)
                advance(1)
    return {
        "date": str(datetime.date.today()),
        "machine": machine(*PACKAGES),
        "command": shlex.join(["python", "scripts/cpu_speed.py", *sys.argv[1:]]),
        "checkpoint": identity,
        "shape": list(shape),
        "threads": threads,
        "rounds": rounds,
        "volumes": volumes,
        "rows": list(rows.values()),
    }


def runtimes() -> list[str]:
    """What can be measured here; `EnvironmentLacks` without OpenVINO."""
    has_bf16 = computes_bf16(load_openvino().Core())
    return [name for name in _OPENERS if name != MIXED or has_bf16]


def _speed(seconds: list[float], eager: list[float]) -> dict[str, Any]:
    median = float(np.median(seconds))
    return {
        "seconds": seconds,
        "median_seconds": median,
        "p10_seconds": float(np.percentile(seconds, 10)),
        "p90_seconds": float(np.percentile(seconds, 90)),
        "speedup": float(np.median(eager)) / median,
    }


def _difference(case: Case, reference: Path, candidate: Path) -> Difference:
    return difference(case, np.load(reference), np.load(candidate), "logits", 0.0)


def show_rows(show: Show, facts: dict[str, Any]) -> None:
    """The figures as tables."""
    where = f"{format_shape(tuple(facts['shape']))}, {facts['threads']} threads, {facts['machine']['cpu']}"
    show.table(
        f"One inference at {where}; median of {facts['rounds']}, the worst of {facts['volumes']} volumes",
        [
            (row["runtime"], *(f"{row[f'{key}_seconds']:.2f} s" for key in ("median", "p10", "p90")),
             f"{row['speedup']:.2f}x", f"{row['relative_l2']:.1e}", f"{row['label_agreement']:.3%}")
            for row in facts["rows"]
        ],
        ("runtime", "time", "p10", "p90", "speed-up", "relative L2", "labels equal"),
    )  # fmt: skip
    show.table(
        "Time until ready, and resident memory (mapped: the part of files in it)",
        [
            (row["runtime"], format_seconds(row["ready_seconds"]),
             "-" if row["compile_seconds"] is None else format_seconds(row["compile_seconds"]),
             format_bytes(row["opening_peak_bytes"]), format_bytes(row["inference_peak_bytes"]),
             format_bytes(row["mapped_bytes"]))
            for row in facts["rows"]
        ],
        ("runtime", "ready in", "compiling", "opening peak", "running peak", "mapped"),
    )  # fmt: skip


def export(checkpoint: str, width: int | None, shape: Shape, folder: Path) -> tuple[Path, dict[str, Any]]:
    """Write `model.onnx` into a folder; the checkpoint's file, and what it is. A preset becomes a file there, too.

    So eager PyTorch loads weights by rule in the way, the time and the memory in which it loads a user's.
    """
    import torch

    from lhanet_export.export.onnx_from_network import ExportOptions, onnx_from_network
    from lhanet_export.model.checkpoint import open_checkpoint
    from lhanet_export.model.rule import rule_network

    weights = Path(checkpoint)
    if checkpoint.startswith(PRESET_PREFIX):
        weights = folder / "weights.pth"
        network = rule_network(checkpoint.removeprefix(PRESET_PREFIX), base_channels=width)
        torch.save(network.state_dict(), weights)
        del network
    elif width is not None:
        raise RefusedInput(f"--width is for presets; {checkpoint} has a width of its own")
    network, identity = open_checkpoint(str(weights))
    options = ExportOptions(spatial=SpatialRange(shape, shape, shape), purpose="cpu")
    onnx_from_network(network, identity.as_json(), folder / "model.onnx", options)
    facts = {key: getattr(identity, key) for key in ("preset", "num_classes", "base_channels")}
    return weights, {"source": checkpoint, **facts}


# The rest runs in the children. Nothing heavy is imported above: each imports what its runtime takes and no more.

#: A child's runtime and volume, from its first call on; open until its process ends.
_stack = ExitStack()
_infer: Infer
_image: np.ndarray


def open_runtime(name: str, task: Task) -> Opening:
    """Make this process run one runtime, ready for its first inference."""
    global _infer, _image
    started = time.perf_counter()
    _infer, prepare = _OPENERS[name](task)
    loaded = time.perf_counter()
    _image = task.case.image
    compile_seconds = None
    if prepare is not None:
        compiling = time.perf_counter()
        prepare(_image.shape)
        compile_seconds = time.perf_counter() - compiling
    return Opening(
        ready_seconds=loaded - started + (compile_seconds or 0.0),
        compile_seconds=compile_seconds,
        opening_peak_bytes=_status("VmHWM"),
    )


def first_inference() -> float:
    """Seconds of the first inference; peak memory counts from here on."""
    # Sets the peak back to what is resident now: proc(5), clear_refs.
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return timed_inference()


def timed_inference() -> float:
    """Seconds of one inference, volume and output in main memory."""
    started = time.perf_counter()
    _infer(_image)
    return time.perf_counter() - started


def save_inference(case: Case, target: Path) -> None:
    """Write the output for another volume of the same size into a file."""
    np.save(target, _infer(case.image))


def memory() -> dict[str, int]:
    """Peak resident memory since the first inference, and how much of files is mapped into it.

    Mapped files count as resident, but the system can take their memory at any time.
    """
    return {"inference_peak_bytes": _status("VmHWM"), "mapped_bytes": _status("RssFile")}


def _status(key: str) -> int:
    """Bytes that Linux counts for this process."""
    lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:"))


Prepare = Callable[[tuple[int, ...]], None]


def _eager(task: Task) -> tuple[Infer, Prepare | None]:
    import torch

    from lhanet_export.model.checkpoint import load_checkpoint
    from lhanet_export.runners.eager import EagerRunner

    torch.set_num_threads(task.threads)
    return _stack.enter_context(EagerRunner(load_checkpoint(task.checkpoint))).infer, None


def _onnxruntime(task: Task) -> tuple[Infer, Prepare | None]:
    # Not through its runner, which leaves the threads to ONNX Runtime: how many, and that they spin after an inference.
    from lhanet_export.export.artifact import read_onnx
    from lhanet_export.runners.onnxruntime_library import load_onnxruntime

    onnxruntime = load_onnxruntime()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = task.threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    path = str(read_onnx(task.graph).path)
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda image: session.run(None, {"image": image})[0], None


def _openvino(task: Task, precision: Precision) -> tuple[Infer, Prepare | None]:
    from lhanet_export.export.artifact import read_onnx
    from lhanet_export.runners.openvino_ import OpenVINORunner

    runner = OpenVINORunner(read_onnx(task.graph), precision=precision, threads=task.threads)
    _stack.enter_context(runner)
    return runner.infer, runner.prepare


_OPENERS: dict[str, Callable[[Task], tuple[Infer, Prepare | None]]] = {
    EAGER: _eager,
    "ONNX Runtime FP32": _onnxruntime,
    "OpenVINO FP32": partial(_openvino, precision="fp32"),
    MIXED: partial(_openvino, precision="mixed"),
}


if __name__ == "__main__":
    main()
