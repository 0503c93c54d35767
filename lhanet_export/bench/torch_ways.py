"""The ways in which PyTorch can run the network, each as well as it can be run in that way; loaded by workers only."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lhanet_export.bench.candidates import Candidate, DeviceKind
from lhanet_export.bench.public import use_torchs_resize
from lhanet_export.errors import EnvironmentLacks
from lhanet_export.inference.network import InferenceNetwork
from lhanet_export.inference.target import Target
from lhanet_export.model.checkpoint import load_checkpoint
from lhanet_export.model.network import LHANet

Forward = Callable[[Tensor], Tensor]
#: Makes what runs a network, which lies on the host, for volumes like one that is given, on that one's device; contexts
#: that have to stay open go to the stack.
MakeForward = Callable[[LHANet, Tensor, ExitStack], Forward]


class TorchWay:
    """A network on a device, and one volume (N,1,D,H,W) there that it is timed on; until `close`."""

    def __init__(self, candidate: Candidate, checkpoint: Path, image: np.ndarray, device: DeviceKind) -> None:
        if device == "cuda" and not torch.cuda.is_available():
            raise EnvironmentLacks(
                f"PyTorch {torch.__version__} cannot use the GPU here; install a CUDA build of it "
                "(https://pytorch.org), or measure on the CPU: --device cpu"
            )
        if candidate.public_resize:
            use_torchs_resize()
        self._kind = candidate.kind
        self._device = torch.device(device)
        self._on_gpu = device == "cuda"
        if self._on_gpu:
            # The best convolutions for the size, found in the first inference, as anybody who cares for time has it.
            torch.backends.cudnn.benchmark = True
            torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = candidate.kind == "tf32"
        self._host = torch.from_numpy(image)
        if self._on_gpu:
            self._host = self._host.pin_memory()
        self._image = self._host.to(self._device)
        self._open = ExitStack()
        self._forward = _WAYS[candidate.kind](load_checkpoint(checkpoint).eval(), self._image, self._open)

    def close(self) -> None:
        """Leave what the way has set for this thread."""
        self._open.close()

    def infer(self, image: np.ndarray) -> np.ndarray:
        """Logits (N,K,D,H,W) float32 of another volume of the same size."""
        with torch.inference_mode():
            return self._forward(torch.from_numpy(image).to(self._device)).float().cpu().numpy()

    def seconds(self) -> float:
        """The time of one inference, volume and logits where the network is; on a GPU by CUDA events."""
        with torch.inference_mode():
            return self._timed(lambda: self._forward(self._image))

    def copy_seconds(self) -> float | None:
        """The time of the volume's way to the GPU and of the logits' back, page-locked; None on a CPU."""
        if not self._on_gpu:
            return None
        with torch.inference_mode():
            logits = self._forward(self._image)
            target = torch.empty(logits.shape, dtype=logits.dtype, pin_memory=True)
            coming = self._timed(lambda: self._image.copy_(self._host, non_blocking=True))
            return coming + self._timed(lambda: target.copy_(logits, non_blocking=True))

    def allocator_bytes(self) -> int | None:
        """The most that torch's allocator held on the GPU; None on a CPU.

        It does not count what a CUDA graph takes when that is replayed. Ours was counted when it was captured; what it
        keeps for one of `torch.compile` is more than the graph needs at once.
        """
        if not self._on_gpu:
            return None
        if self._kind == "graphed-fp16":
            return torch.cuda.max_memory_reserved()
        captured = self._forward.peak_bytes if isinstance(self._forward, _Captured) else 0
        return max(captured, torch.cuda.max_memory_allocated())

    def count_memory_from_here(self) -> None:
        """What was needed until now does not count any more."""
        if self._on_gpu:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def rest(self) -> None:
        """Give memory back that the next inference can ask for again."""
        if self._on_gpu:
            torch.cuda.empty_cache()

    def _timed(self, run: Callable[[], Any]) -> float:
        if not self._on_gpu:
            started = time.perf_counter()
            run()
            return time.perf_counter() - started
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        begin.record()
        run()
        end.record()
        end.synchronize()
        return float(begin.elapsed_time(end)) / 1000


def _as_it_is(network: LHANet, image: Tensor, stack: ExitStack) -> Forward:
    return network.to(image.device)


def _autocast(dtype: torch.dtype) -> MakeForward:
    """Autocast over all inferences, as over the windows of a scan: weights are brought to `dtype` once."""

    def make(network: LHANet, image: Tensor, stack: ExitStack) -> Forward:
        # Not in inference mode: leaving that would leave this, too.
        stack.enter_context(torch.autocast(image.device.type, dtype))
        network.to(image.device)

        def forward(x: Tensor) -> Tensor:
            # In inference mode autocast would not keep what it has brought to `dtype`.
            with torch.inference_mode(False), torch.no_grad():
                return network(x)

        return forward

    return make


def _channels_last(network: LHANet, image: Tensor, stack: ExitStack) -> Forward:
    network.half().to(image.device, memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    return lambda x: network(x.half().contiguous(memory_format=torch.channels_last_3d))


@torch.inference_mode()
def _compiled(network: LHANet, image: Tensor, stack: ExitStack, *, mode: str) -> Forward:
    """`torch.compile` of the network in FP16, channels last; what cannot be compiled is found here."""
    forward: Forward = torch.compile(_channels_last(network, image, stack), dynamic=False, mode=mode)
    # The first run compiles, and where there are CUDA graphs the second one captures.
    for _ in range(3):
        forward(image)
    return forward


@torch.inference_mode()
def _ours(network: LHANet, image: Tensor, stack: ExitStack) -> Forward:
    """The network that is exported, in FP16; on a GPU captured once and replayed."""
    layers = InferenceNetwork(network, Target()).half().to(image.device)

    def inference(x: Tensor) -> Tensor:
        # Matrices of resizes are made in FP32, where a place near 200 is exact; this brings them to FP16 when used.
        with torch.autocast(x.device.type, torch.float16):
            return layers(x)

    if image.device.type == "cuda":
        return _Captured(inference, image.half())
    return lambda x: inference(x.half())


class _Captured:
    """An inference as a CUDA graph. It holds what it was made of: a graph does not keep its weights alive itself."""

    def __init__(self, inference: Forward, image: Tensor) -> None:
        self._inference, self._image = inference, image
        # What is set up in a first run cannot be captured:
        # https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                inference(image)
        torch.cuda.current_stream().wait_stream(stream)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._logits = inference(image)
        #: The most that torch's allocator held, weights included; a replay takes the same memory without telling it.
        self.peak_bytes = torch.cuda.max_memory_allocated()

    def __call__(self, x: Tensor) -> Tensor:
        """The logits, overwritten by the next call."""
        self._image.copy_(x)
        self._graph.replay()
        return self._logits


_WAYS: dict[str, MakeForward] = {
    "eager": _as_it_is,
    "tf32": _as_it_is,
    "autocast-fp16": _autocast(torch.float16),
    "autocast-bf16": _autocast(torch.bfloat16),
    "channels-last-fp16": _channels_last,
    "compiled-fp16": partial(_compiled, mode="default"),
    "graphed-fp16": partial(_compiled, mode="reduce-overhead"),
    "ours": _ours,
}
