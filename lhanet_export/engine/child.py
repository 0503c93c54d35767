"""The process in which an engine is built: `python -m lhanet_export.engine.child PLAN.json ENGINE`.

Building has a process of its own because TensorRT and Polygraphy settle process-wide which of their
two forms they are, because a crash of a native library must not take the command along, and because
gigabytes go back to the system when it ends. `engine.build` starts it and reads its messages, one
JSON object a line on standard output:

    {"log": [level, text]}                          TensorRT's and Polygraphy's lines; level as in `logging`
    {"phase": name, "parent": name, "steps": n}     a phase of the build begins
    {"step": name}  {"finish": name}                a step of it is done; the phase is
    {"built": {...}}  {"refused": text}  {"lacks": text}    how it ended

It lives no longer than whoever holds the other end of its standard input.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import resource
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from lhanet_export.engine.backends import BACKENDS, Backend, element_type, is_out_of_memory, load_module
from lhanet_export.engine.gpu import Gpu, find_gpus
from lhanet_export.engine.plan import INPUT_NAME, EnginePlan
from lhanet_export.errors import EnvironmentLacks, LhanetExportError, RefusedInput
from lhanet_export.files import read_json, sha256_of

Send = Callable[[dict[str, Any]], None]

#: Exit code of a child whose parent is gone.
ORPHANED = 75


def main(plan_path: Path, engine_path: Path) -> int:
    """Build and report; 0 when the engine was written, 2 or 3 when a message says why not."""
    _die_with_parent(engine_path)
    with _messages() as send:
        try:
            send({"built": engine_from_plan(EnginePlan.from_json(read_json(plan_path)), engine_path, send)})
        except LhanetExportError as error:
            engine_path.unlink(missing_ok=True)
            send({"refused" if error.exit_code == RefusedInput.exit_code else "lacks": str(error)})
            return error.exit_code
    return 0


def engine_from_plan(plan: EnginePlan, engine_path: Path, send: Send) -> dict[str, Any]:
    """Build the planned engine into `engine_path` and return what the builder said about it."""
    backend = BACKENDS[plan.backend]
    gpu = None if backend.builds_without_gpu else _gpu_for(plan, backend)
    _check_onnx(plan)
    # Polygraphy reads these when it is imported: which library it drives, and that it installs nothing by itself.
    os.environ["POLYGRAPHY_USE_TENSORRT_RTX"] = str(int(backend.name == "tensorrt-rtx"))
    os.environ["POLYGRAPHY_AUTOINSTALL_DEPS"] = "0"
    trt = load_module(backend)
    log = _forward_log(send)
    from polygraphy.backend.trt import EngineBytesFromNetwork, NetworkFromOnnxPath
    from polygraphy.exception import PolygraphyException

    try:
        # From the path, not from bytes: the parser has to find the external weights beside the file.
        builder, network, parser = NetworkFromOnnxPath(str(plan.onnx), strongly_typed=True)()
        _check_network(plan, network)
        monitor = _monitor(trt, send)
        serialized = EngineBytesFromNetwork((builder, network, parser), config=_config(plan, trt, monitor))()
    except PolygraphyException as error:
        reason = log.last_error or str(error)
        if is_out_of_memory(reason):
            raise EnvironmentLacks(f"{backend.title} ran out of memory: {reason}") from error
        raise RefusedInput(f"{backend.title} cannot build {plan.onnx}: {reason}") from error
    except TypeError as error:
        # "pybind11::init(): factory function returned nullptr" is what a TensorRT that cannot start CUDA raises.
        if "nullptr" not in str(error):
            raise
        raise EnvironmentLacks(f"{backend.title} does not start here: {log.last_error or error}") from error
    _write(engine_path, serialized)
    return {
        "backend_version": trt.__version__,
        "gpu": gpu.name if gpu else None,
        "compute_capabilities": [gpu.compute_capability] if gpu else list(plan.compute_capabilities),
        "peak_rss_bytes": peak_rss_bytes(),
        "weights_bytes": log.memory.get("Weights"),
        "activation_bytes": log.memory.get("Activation"),
        "inputs": [_tensor_facts(network.get_input(index)) for index in range(network.num_inputs)],
        "outputs": [_tensor_facts(network.get_output(index)) for index in range(network.num_outputs)],
    }


def _gpu_for(plan: EnginePlan, backend: Backend) -> Gpu:
    """The GPU that the backend will build on, which must be one that the plan is for."""
    gpus = find_gpus()
    if not gpus:
        raise EnvironmentLacks(
            f"{backend.title} builds on the GPU it builds for, and there is no NVIDIA GPU here; "
            "--backend tensorrt-rtx builds without one"
        )
    if gpus[0].compute_capability not in plan.compute_capabilities:
        raise EnvironmentLacks(
            f"{backend.title} builds for the GPU that is here, {gpus[0].name} ({gpus[0].compute_capability}), not for "
            f"{' or '.join(plan.compute_capabilities)}; take the recipe of this GPU, or --backend tensorrt-rtx"
        )
    return gpus[0]


def _check_onnx(plan: EnginePlan) -> None:
    """TensorRT's parser opens the file and its external weights itself, so what it may open is settled first."""
    import onnx

    if not plan.onnx.is_file():
        raise RefusedInput(f"there is no file {plan.onnx}")
    if sha256_of(plan.onnx) != plan.onnx_sha256:
        raise RefusedInput(f"{plan.onnx} changed since it was checked; start again")
    try:
        # Given a path, the checker refuses weights outside the folder and behind symbolic or hard links.
        onnx.checker.check_model(str(plan.onnx))
    except onnx.checker.ValidationError as error:
        raise RefusedInput(f"{plan.onnx} is not a valid ONNX file: {' '.join(str(error).split())}") from error


def _check_network(plan: EnginePlan, network: Any) -> None:
    """The parsed graph takes what this toolkit feeds: one image (N,1,D,H,W), of the planned batch and sizes."""
    inputs = [network.get_input(index) for index in range(network.num_inputs)]
    if [tensor.name for tensor in inputs] != [INPUT_NAME]:
        found = ", ".join(repr(tensor.name) for tensor in inputs)
        raise RefusedInput(f"{plan.onnx} should have one input '{INPUT_NAME}', it has {found}")
    shape = tuple(inputs[0].shape)
    for planned in (shape for profile in plan.profiles for shape in plan.shapes(profile)):
        # -1 is TensorRT's dynamic axis.
        if len(shape) != 5 or any(side not in (-1, want) for side, want in zip(shape, planned, strict=True)):
            raise RefusedInput(f"{plan.onnx} takes {INPUT_NAME} {shape}; the plan asks for {planned} (N,1,D,H,W)")


def _config(plan: EnginePlan, trt: Any, monitor: Any) -> Any:
    """How to build. Options of the builder that change neither memory nor speed of this network are left alone.

    Measured at full width with TensorRT-RTX 1.7: builder_optimization_level 0 and 5, FULL tiling,
    max_aux_streams 0 and DETAILED verbosity plan the same memory to the byte, in the same time.
    """
    from polygraphy.backend.tensorrt_rtx.config import CreateConfigRTX
    from polygraphy.backend.trt import CreateConfig, PostprocessConfig, Profile

    common = {
        "profiles": [Profile().add(INPUT_NAME, *plan.shapes(profile)) for profile in plan.profiles],
        # Polygraphy would choose DETAILED, which puts every layer's parameters into an engine that is to be given away.
        "profiling_verbosity": trt.ProfilingVerbosity.LAYER_NAMES_ONLY,
        "progress_monitor": monitor,
    }
    if plan.backend == "tensorrt-rtx":
        capabilities = [tuple(map(int, text.split("."))) for text in plan.compute_capabilities]
        config = CreateConfigRTX(compute_capabilities=capabilities, **common)
    else:
        config = CreateConfig(**common)
    # On by default in both: FP32 would be computed with TF32's 10-bit mantissa. The manifest's fp32 is FP32.
    return PostprocessConfig(config, lambda builder, network, made: made.clear_flag(trt.BuilderFlag.TF32))


def _monitor(trt: Any, send: Send) -> Any:
    class Monitor(trt.IProgressMonitor):
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            send({"phase": phase_name, "parent": parent_phase, "steps": num_steps})

        def step_complete(self, phase_name: str, step: int) -> bool:
            send({"step": phase_name})
            return True

        def phase_finish(self, phase_name: str) -> None:
            send({"finish": phase_name})

    return Monitor()


class _Forward(logging.Handler):
    """Sends every line on, and remembers the last error and the planned memory."""

    def __init__(self, send: Send) -> None:
        super().__init__()
        self._send = send
        self.last_error = ""
        self.memory: dict[str, int] = {}

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        # Polygraphy's own closing line is critical and says less than TensorRT's error before it.
        if record.levelno == logging.ERROR:
            self.last_error = " ".join(text.split())
        for kind in ("Activation", "Weights"):
            # The only place where a builder without a GPU says what the engine will need.
            count = text.partition(f"Total {kind} Memory: ")[2].partition(" bytes")[0]
            if count.isdigit():
                self.memory[kind] = max(int(count), self.memory.get(kind, 0))
        self._send({"log": [record.levelno, text[:2000]]})


def _forward_log(send: Send) -> _Forward:
    from polygraphy.logger import G_LOGGER

    handler = _Forward(send)
    G_LOGGER.use_python_logging_system = True
    # TensorRT's INFO, where the planned memory is, is Polygraphy's VERBOSE.
    G_LOGGER.module_severity = G_LOGGER.VERBOSE
    G_LOGGER.letter = False
    G_LOGGER.colors = False
    logger = logging.getLogger("Polygraphy")
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
    logger.addHandler(handler)
    return handler


def _tensor_facts(tensor: Any) -> dict[str, Any]:
    return {"name": tensor.name, "dtype": element_type(tensor.dtype), "shape": list(tensor.shape)}


def _write(path: Path, serialized: Any) -> None:
    try:
        with path.open("wb") as stream:
            stream.write(memoryview(serialized))
    except OSError as error:
        raise EnvironmentLacks(f"cannot write the engine to {path.parent}: {error.strerror}") from error


def peak_rss_bytes() -> int:
    """The largest resident memory that this process had."""
    # Where Linux offers it, from /proc: getrusage also counts the parent's memory from before exec.
    with contextlib.suppress(OSError), open("/proc/self/status", encoding="ascii") as stream:
        for line in stream:
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


@contextlib.contextmanager
def _messages() -> Iterator[Send]:
    """Standard output for messages alone: whatever native code prints there goes to standard error."""
    lock = threading.Lock()
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as stream:
        os.dup2(2, 1)

        def send(message: dict[str, Any]) -> None:
            with lock:
                stream.write(json.dumps(message) + "\n")
                stream.flush()

        yield send


def _die_with_parent(engine_path: Path) -> None:
    """End this process when standard input closes: the parent is gone, even if it was killed outright."""

    def wait() -> None:
        # Not sys.stdin: a thread blocked in it makes the interpreter abort at its end.
        while os.read(0, 4096):
            pass
        engine_path.unlink(missing_ok=True)
        os._exit(ORPHANED)

    threading.Thread(target=wait, daemon=True).start()


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
