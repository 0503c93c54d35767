"""The GPU as a runner sees it: memory on both sides, three streams, and events between them."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Literal, Protocol

import numpy as np

from lhanet_export.errors import EnvironmentLacks

logger = logging.getLogger(__name__)

#: What runs in order on a stream of its own: copies to the GPU, the network, copies back.
Stream = Literal["in", "compute", "out"]


class Buffer(Protocol):
    """An array in memory of the host that a GPU can copy from and to by itself, or in the GPU's own."""

    def data_ptr(self) -> int:
        """Its address."""

    def numpy(self) -> np.ndarray:
        """The very memory as an array, the host's only."""


class Device(Protocol):
    """Memory, streams and events of one GPU, as much of them as running an engine takes.

    Everything named after a stream is only put in line there and returns at once. Errors are `RuntimeError`, those
    that are about memory say so.
    """

    @property
    def compute_handle(self) -> int:
        """The CUDA stream `compute`."""

    def host(self, shape: tuple[int, ...], dtype: str) -> Buffer:
        """Page-locked memory of the host, which copies need to run beside the network."""

    def allocate(self, shape: tuple[int, ...], dtype: str) -> Buffer:
        """Memory of the GPU."""

    def copy(self, source: Buffer, target: Buffer, stream: Stream) -> None:
        """Copy between buffers of one shape, converting the type on the GPU if they differ."""

    def mark(self, stream: Stream) -> Any:
        """An event: everything on the stream up to now."""

    def after(self, event: Any, stream: Stream) -> None:
        """What follows on the stream waits for an event."""

    def wait(self, event: Any) -> None:
        """Let this thread wait for an event."""

    def seconds(self, enqueue: Callable[[], object], stream: Stream) -> float:
        """Wait until nothing is under way, and say how long what `enqueue` puts on a stream takes there alone."""

    def captured(self, enqueue: Callable[[], bool]) -> Callable[[], None] | None:
        """What `enqueue` puts on `compute`, as one CUDA graph to be put there again; None if it cannot be captured."""


class TorchDevice:
    """The current CUDA device, through torch."""

    def __init__(self) -> None:
        import torch

        if not torch.cuda.is_available():
            raise EnvironmentLacks(
                f"PyTorch {torch.__version__} cannot use the GPU here; install a CUDA build of it (https://pytorch.org)"
            )
        self._torch = torch
        # None of them is the default stream: TensorRT synchronizes the whole device around work on that.
        self._streams = {"in": torch.cuda.Stream(), "compute": torch.cuda.Stream(), "out": torch.cuda.Stream()}

    @property
    def compute_handle(self) -> int:
        return int(self._streams["compute"].cuda_stream)

    def host(self, shape: tuple[int, ...], dtype: str) -> Buffer:
        return self._torch.zeros(shape, dtype=getattr(self._torch, dtype), pin_memory=True)

    def allocate(self, shape: tuple[int, ...], dtype: str) -> Buffer:
        buffer = self._torch.empty(shape, dtype=getattr(self._torch, dtype), device="cuda")
        # torch gives memory to the stream that is current; here it may be used on others that run behind.
        self._torch.cuda.current_stream().synchronize()
        return buffer

    def copy(self, source: Any, target: Any, stream: Stream) -> None:
        with self._torch.cuda.stream(self._streams[stream]):
            target.copy_(source, non_blocking=True)

    def mark(self, stream: Stream) -> Any:
        return self._streams[stream].record_event()

    def after(self, event: Any, stream: Stream) -> None:
        self._streams[stream].wait_event(event)

    def wait(self, event: Any) -> None:
        event.synchronize()

    def seconds(self, enqueue: Callable[[], object], stream: Stream) -> float:
        begin, end = (self._torch.cuda.Event(enable_timing=True) for _ in range(2))
        self._torch.cuda.synchronize()
        begin.record(self._streams[stream])
        enqueue()
        end.record(self._streams[stream])
        end.synchronize()
        return float(begin.elapsed_time(end)) / 1000

    def captured(self, enqueue: Callable[[], bool]) -> Callable[[], None] | None:
        torch, stream = self._torch, self._streams["compute"]
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
                if not enqueue():
                    raise RuntimeError("the engine was not enqueued")
        except RuntimeError as error:
            logger.info("runs without a CUDA graph: %s", error)
            return None

        def replay() -> None:
            with torch.cuda.stream(stream):
                graph.replay()

        return replay
