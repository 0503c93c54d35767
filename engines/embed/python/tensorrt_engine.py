"""An engine of TensorRT-RTX or TensorRT at work on the GPU: the next windows arrive while it works on the last ones.

    host --arrive--> staging --compute--> input, engine, output --compute--> staging --leave--> host

The engine's own input and output stay where they are, which is what the CUDA graphs of TensorRT-RTX need. Copies from
and to the host use staging buffers on streams of their own, so that those of one slot run beside the work on the other.
"""

from __future__ import annotations

import importlib
from collections import deque
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from base import Lacks, Refused, need, read_own, written
from cuda_driver import Cuda

_TYPES = {"FLOAT": "float32", "HALF": "float16"}
#: Kernels of one network are some MB.
_MOST_CACHE_BYTES = 1 << 30


def tensorrt_for(path: Path, facts: dict[str, Any], cuda: Cuda) -> Any:
    """The Python module that runs an engine here; `facts` is the manifest's `engine`."""
    known, backend, version = facts["compute_capabilities"], facts["backend"], facts["backend_version"]
    need(
        cuda.capability in known,
        f"{path} was built for compute capability {' and '.join(known)}; this GPU, "
        f"{cuda.name}, has {cuda.capability}. Build it again for this GPU",
    )
    try:
        trt = importlib.import_module(backend.replace("-", "_"))
    except (ImportError, OSError, RuntimeError) as error:
        raise Lacks(
            f"{path} needs {backend}, and it does not load ({error}): pip install {backend}=={version}"
        ) from error
    need(
        trt.__version__ == version,
        f"{path} was built with {backend} {version}, installed is {trt.__version__}, and "
        "engines do not carry over between releases; install the one, or build it again",
    )
    return trt


class TensorRTEngine:
    """An engine for batches of one shape (N,1,D,H,W) in two slots; everything is allocated once, when it is opened.

    Leaving its `with` block waits for what is under way and keeps the kernels that were compiled. Raises `Refused` for
    an engine that is not what its manifest says, and `Lacks` for what the GPU lacks, with TensorRT's own words.
    """

    def __init__(
        self, trt: Any, path: Path, facts: dict[str, Any], raw: bytes, shape: tuple[int, ...], profile: int, cuda: Cuda
    ) -> None:
        self._path, self._cuda, self._errors = path, cuda, deque[str](maxlen=8)
        (image,), (output,) = facts["inputs"], facts["outputs"]
        # Streams: copies to the GPU, the engine, copies back.
        self._arrive, self._compute, self._leave = (cuda.stream() for _ in range(3))
        self._runtime = trt.Runtime(_logger(trt, self._errors))
        # `engine_host_code_allowed` stays off, as it is by default: no code of the file's own runs on the host.
        self._engine = self._made(self._runtime.deserialize_cuda_engine(raw), "deserialize the engine")
        self._cache: Any = None
        self._context = self._made(self._new_context(trt, facts["backend"]), "create an execution context")
        for tensor in (image, output):
            found = self._engine.get_tensor_dtype(tensor["name"]).name
            need(tensor["dtype"] in _TYPES.values(), f"{path}: '{tensor['name']}' is {tensor['dtype']}, not a float")
            need(
                _TYPES.get(found) == tensor["dtype"],
                f"{path}: '{tensor['name']}' is {found}, not what its manifest says",
            )
        if profile:
            self._must(self._context.set_optimization_profile_async(profile, self._compute), "switch profiles")
        self._must(self._context.set_input_shape(image["name"], shape), f"take the shape {shape}")
        scores = tuple(int(side) for side in self._context.get_tensor_shape(output["name"]))
        fits = len(scores) == 5 and scores[0] == shape[0] and min(scores) > 0
        need(fits, f"{path} gives scores of shape {scores} for windows {shape}; build it again")
        self.batch, self.scores_shape = shape[0], scores[1:]

        self._given = [cuda.host_array(shape, image["dtype"]) for _ in range(2)]
        self._found = [cuda.host_array(scores, output["dtype"]) for _ in range(2)]
        self._bytes_in, self._bytes_out = self._given[0].nbytes, self._found[0].nbytes
        self._input, self._arriving = (cuda.device_memory(self._bytes_in) for _ in range(2))
        self._output, self._leaving = (cuda.device_memory(self._bytes_out) for _ in range(2))
        self._must(self._context.set_tensor_address(image["name"], self._input), "use the input's buffer")
        self._must(self._context.set_tensor_address(output["name"], self._output), "use the output's buffer")
        self._arrived, self._taken, self._computed = (cuda.event() for _ in range(3))
        self._done = [cuda.event() for _ in range(2)]
        self._left = self._done[0]

    def _new_context(self, trt: Any, backend: str) -> Any:
        if backend != "tensorrt-rtx":
            return self._engine.create_execution_context()
        # TensorRT-RTX compiles kernels for the GPU that is here, captures them as CUDA graphs when they are final, and
        # can keep them. What it kept for another GPU, driver or release it does not take.
        config = self._engine.create_runtime_config()
        config.cuda_graph_strategy = trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        self._cache, self._kept = config.create_runtime_cache(), b""
        with suppress(Refused):
            self._kept = read_own(self._cache_path, _MOST_CACHE_BYTES)
            self._cache.deserialize(self._kept)
        config.set_runtime_cache(self._cache)
        return self._engine.create_execution_context(config)

    @property
    def _cache_path(self) -> Path:
        return self._path.with_name(self._path.name + ".cache")

    def windows(self, slot: int) -> np.ndarray:
        """Where the windows (N,1,D,H,W) of a slot are to be put, in the engine's own type."""
        return self._given[slot]

    def start(self, slot: int) -> None:
        """Put a slot's windows, the engine's work on them and the scores' way back in line; nothing is waited for.

        A staging buffer is one for both slots. So what arrives waits until the windows before were taken out of it, and
        the scores that leave wait until those before have left. Input and output need no events: only the stream
        `compute` touches them, in order. Who waits for an event waits for its last mark at that moment, so that
        one event serves all batches.
        """
        cuda = self._cuda
        cuda.follow(self._taken, self._arrive)
        cuda.call("cuMemcpyHtoDAsync_v2", self._arriving, self._given[slot].ctypes.data, self._bytes_in, self._arrive)
        cuda.mark(self._arrived, self._arrive)

        cuda.follow(self._arrived, self._compute)
        cuda.call("cuMemcpyDtoDAsync_v2", self._input, self._arriving, self._bytes_in, self._compute)
        cuda.mark(self._taken, self._compute)
        if not self._context.execute_async_v3(self._compute):
            raise Lacks(f"TensorRT could not run {self._path}: {self._words()}")
        cuda.follow(self._left, self._compute)
        cuda.call("cuMemcpyDtoDAsync_v2", self._leaving, self._output, self._bytes_out, self._compute)
        cuda.mark(self._computed, self._compute)

        cuda.follow(self._computed, self._leave)
        cuda.call("cuMemcpyDtoHAsync_v2", self._found[slot].ctypes.data, self._leaving, self._bytes_out, self._leave)
        cuda.mark(self._done[slot], self._leave)
        self._left = self._done[slot]

    def wait(self, slot: int) -> np.ndarray:
        """The scores (N,K,d,h,w) of a slot that was started, valid until it is started again."""
        self._cuda.call("cuEventSynchronize", self._done[slot])
        return self._found[slot]

    def __enter__(self) -> TensorRTEngine:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        # The context works in memory that goes when `Cuda` is left, so it goes first.
        with suppress(Lacks):  # said where it happened
            self._cuda.call("cuCtxSynchronize")
        if kind is None and self._cache is not None:
            with suppress(Lacks):  # without its file the next start takes longer, no more
                kernels = bytes(self._cache.serialize() or b"")
                if kernels and kernels != self._kept:
                    with written(self._cache_path) as file:
                        file.write(kernels)
        del self._context, self._cache, self._engine, self._runtime

    def _made(self, found: Any, action: str) -> Any:
        self._must(found is not None, action)
        return found

    def _must(self, done: bool, action: str) -> None:
        if not done:
            squeezed = self._words().lower().replace(" ", "").replace("_", "")
            memory = any(
                word in squeezed for word in ("outofmemory", "badalloc", "memoryallocation", "failedtoallocate")
            )
            raise (Lacks if memory else Refused)(f"TensorRT could not {action} ({self._path}): {self._words()}")

    def _words(self) -> str:
        return "; ".join(self._errors) or "it gave no reason"


def _logger(trt: Any, lines: deque[str]) -> Any:
    """A logger that remembers the latest errors, so that a null result can be explained."""

    class Logger(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, words: str) -> None:
            if severity in (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR):
                lines.append(words.strip())

    return Logger()
