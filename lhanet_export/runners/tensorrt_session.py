"""A deserialized engine at work: windows go in and scores come out while the next ones are under way.

    host --in--> staging --compute--> input, engine, output --compute--> staging --out--> host

The engine's own input and output stay where they are as long as the shape does, which is what CUDA graphs need. Copies
to and from the host use staging buffers on streams of their own, so that those of one batch run beside the network's
work on another.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from lhanet_export.engine.backends import Backend, ErrorLog, element_type, is_out_of_memory
from lhanet_export.engine.manifest import EngineFacts, verify_engine_bytes
from lhanet_export.engine.plan import INPUT_NAME
from lhanet_export.errors import EnvironmentLacks, GpuFailed, OutOfMemory, RefusedInput
from lhanet_export.runners.device import Buffer, Device, Stream
from lhanet_export.runners.kernel_cache import KernelCache

logger = logging.getLogger(__name__)

#: Reasons of `get_engine_validity` that lie in the machine, not in the engine.
_LACKING = {"OLD_CUDA_DRIVER", "OLD_CUDA_RUNTIME", "INSUFFICIENT_GPU_MEMORY", "CUDA_ERROR"}


class Session:
    """An engine with a context; its errors are those of the toolkit, with TensorRT's own words.

    With `final_kernels` the first run waits until TensorRT-RTX has compiled for its size. Otherwise kernels for any
    size compute at once, and those for this one take their place when they are there.
    """

    def __init__(
        self, trt: Any, path: Path, facts: EngineFacts, backend: Backend, device: Device, *, final_kernels: bool = False
    ) -> None:
        self._path, self._facts, self._device = path, facts, device
        self._log = ErrorLog(trt)
        # The bytes that were hashed are the bytes that are deserialized.
        raw = verify_engine_bytes(path)
        # `engine_host_code_allowed` stays off, as it is by default: no code of the plan's own runs on the host.
        runtime = trt.Runtime(self._log.logger)
        self._check_validity(trt, runtime, raw)
        engine = runtime.deserialize_cuda_engine(raw)
        if engine is None:
            raise self._failure("deserialize the engine")
        self._check_tensors(engine)
        self._kernels: KernelCache | None = None
        if backend.compiles_on_the_gpu:
            config = engine.create_runtime_config()
            # TensorRT-RTX knows itself when its kernels are final, so that capturing them is worth while.
            config.cuda_graph_strategy = trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
            if final_kernels:
                strategies = trt.DynamicShapesKernelSpecializationStrategy
                config.dynamic_shapes_kernel_specialization_strategy = strategies.EAGER
            self._kernels = KernelCache(path, config)
            context = engine.create_execution_context(config)
        else:
            context = engine.create_execution_context()
        if context is None:
            raise self._failure("create an execution context")
        # A context keeps its engine alive, and an engine its runtime.
        self._context, self._engine = context, engine
        self._captures = not backend.compiles_on_the_gpu
        self._profile = 0
        self._lane: _Lane | None = None

    def close(self) -> None:
        """Wait for what is under way, and keep the kernels that were compiled for the next time."""
        self._leave_lane()
        if self._kernels is not None:
            self._kernels.save()

    def batches(self, profile: int) -> tuple[int, int]:
        """The smallest and the largest batch that a profile serves."""
        smallest, _, largest = self._engine.get_tensor_profile_shape(INPUT_NAME, profile)
        return int(smallest[0]), int(largest[0])

    def slots(self, shape: tuple[int, ...], profile: int, count: int) -> list[EngineSlot]:
        """Slots for batches of a shape (N,1,D,H,W), the same ones as long as the shape is the same.

        Those of another shape cannot be started any more.
        """
        try:
            if self._lane is None or self._lane.shape != shape:
                self._leave_lane()  # its memory goes before the new one's comes
                self._lane = self._lane_for(shape, profile)
            slots = self._lane.slots
            while len(slots) < count:
                slots.append(EngineSlot(self, self._lane, self._device))
            return slots[:count]
        except RuntimeError as error:
            raise self._explained(error, shape) from error

    def _leave_lane(self) -> None:
        """Let the buffers go; nothing may be under way in them, or in the context, when they do."""
        lane, self._lane = self._lane, None
        if lane is not None:
            with suppress(RuntimeError):  # said by the slot that met it
                for slot in lane.slots:
                    if slot.done is not None:
                        self._device.wait(slot.done)

    def _lane_for(self, shape: tuple[int, ...], profile: int) -> _Lane:
        context, device = self._context, self._device
        (output,) = self._facts.outputs
        if profile != self._profile:
            self._must(context.set_optimization_profile_async(profile, device.compute_handle), "switch profiles")
            self._profile = profile
        self._must(context.set_input_shape(INPUT_NAME, shape), f"take the shape {shape}")
        output_shape = tuple(context.get_tensor_shape(output.name))
        self._must(all(side > 0 for side in output_shape), f"say what it returns for {shape}")
        lane = _Lane(device, shape, self._facts.inputs[0].dtype, output_shape, output.dtype)
        for name, buffer in ((INPUT_NAME, lane.input), (output.name, lane.output)):
            self._must(context.set_tensor_address(name, buffer.data_ptr()), f"use the buffer for '{name}'")
        return lane

    def start(self, slot: EngineSlot) -> None:
        """Put a slot's windows, the engine's work on them and the scores' way back in line."""
        lane = self._lane_of(slot)
        try:
            lane.bring(slot.windows)
            self._run(lane)
            slot.done = lane.fetch(slot.scores)
        except RuntimeError as error:
            raise self._explained(error, lane.shape) from error

    def _run(self, lane: _Lane) -> None:
        handle = self._device.compute_handle
        if lane.replay is not None:
            lane.replay()
            return
        # The first run of a shape sets things up that a graph cannot hold.
        if self._captures and lane.runs == 1:
            lane.replay = self._device.captured(lambda: self._context.execute_async_v3(handle))
            if lane.replay is not None:
                lane.replay()
                return
        if not self._context.execute_async_v3(handle):
            raise self._failure("run")
        lane.runs += 1

    def wait(self, slot: EngineSlot) -> np.ndarray:
        """The scores of a slot that was started."""
        try:
            self._device.wait(slot.done)
        except RuntimeError as error:
            raise self._explained(error, slot.lane.shape) from error
        return slot.scores.numpy()

    def network_seconds(self, slot: EngineSlot) -> float:
        """How long the engine takes for the windows that were brought last, once more, without any copy."""
        lane = self._lane_of(slot)
        return self._timed(lambda: self._run(lane), "compute", lane)

    def copy_seconds(self, slot: EngineSlot) -> float:
        """How long a slot's windows take to the engine, and its scores back, all copies one after the other."""
        lane = self._lane_of(slot)
        copies: tuple[tuple[Buffer, Buffer, Stream], ...] = (
            (slot.windows, lane.arriving, "in"), (lane.arriving, lane.input, "compute"),
            (lane.output, lane.leaving, "compute"), (lane.leaving, slot.scores, "out"),
        )  # fmt: skip
        return sum(self._timed(partial(self._device.copy, *copy), copy[2], lane) for copy in copies)

    def _timed(self, enqueue: Callable[[], None], stream: Stream, lane: _Lane) -> float:
        try:
            return self._device.seconds(enqueue, stream)
        except RuntimeError as error:
            raise self._explained(error, lane.shape) from error

    def _lane_of(self, slot: EngineSlot) -> _Lane:
        if slot.lane is not self._lane:
            raise ValueError("slots of another shape were made after this one")
        return slot.lane

    def _check_validity(self, trt: Any, runtime: Any, raw: bytes) -> None:
        """Ask TensorRT whether this engine can run here. It reads the header only: no substitute for the hash."""
        if not hasattr(runtime, "get_engine_validity"):
            return  # TensorRT before 11.4
        validity, diagnostics = runtime.get_engine_validity(raw)
        members = trt.EngineInvalidityDiagnostics.__members__
        reasons = [name for name, bit in members.items() if int(diagnostics) & int(bit)]
        if validity == trt.EngineValidity.SUBOPTIMAL:
            logger.warning("%s runs here, but slower than one built for this GPU", self._path)
        if validity != trt.EngineValidity.INVALID:
            return
        words = ", ".join(reasons) or self._log.last
        if _LACKING.intersection(reasons):
            raise EnvironmentLacks(f"{self._path} cannot run on this machine as it is: {words}")
        raise RefusedInput(f"{self._path} is not an engine for this machine: {words}; build it again")

    def _check_tensors(self, engine: Any) -> None:
        """Refuse an engine whose tensors are not those of its manifest, by which buffers are made."""
        for tensor in (*self._facts.inputs, *self._facts.outputs):
            dtype = element_type(engine.get_tensor_dtype(tensor.name))
            shape = tuple(engine.get_tensor_shape(tensor.name))
            same = len(shape) == len(tensor.shape) and all(
                -1 in sides or sides[0] == sides[1] for sides in zip(shape, tensor.shape, strict=True)
            )
            if dtype != tensor.dtype or not same:
                raise RefusedInput(
                    f"{self._path}: its manifest says that '{tensor.name}' is {tensor.dtype} {tensor.shape}, the "
                    f"engine has {dtype} {shape}; the manifest is of another engine, build both again"
                )

    def _must(self, done: bool, action: str) -> None:
        if not done:
            raise self._failure(action)

    def _failure(self, action: str) -> EnvironmentLacks | RefusedInput:
        """The error for a null or false result, with TensorRT's own last error."""
        if is_out_of_memory(" ".join(self._log.all)):
            return OutOfMemory(f"not enough GPU memory to {action} ({self._path}): {self._log.last}")
        return RefusedInput(f"TensorRT could not {action} ({self._path}): {self._log.last}")

    def _explained(self, error: RuntimeError, shape: tuple[int, ...]) -> EnvironmentLacks:
        """torch's out-of-memory and CUDA errors. After a CUDA error the process cannot use the GPU any more."""
        self._lane = None
        if is_out_of_memory(str(error)):
            return OutOfMemory(f"not enough GPU memory for {shape} with {self._path}: {error}")
        return GpuFailed(f"the GPU failed while running {self._path}: {error}")


class _Lane:
    """The GPU's buffers for one shape, and the order in which batches pass through them."""

    def __init__(
        self, device: Device, shape: tuple[int, ...], dtype: str, output_shape: tuple[int, ...], output_dtype: str
    ) -> None:
        self._device = device
        self.shape, self.output_shape, self.output_dtype = shape, output_shape, output_dtype
        self.input = device.allocate(shape, dtype)
        self.output = device.allocate(output_shape, output_dtype)
        self.arriving = device.allocate(shape, "float32")
        self.leaving = device.allocate(output_shape, output_dtype)
        self._taken: Any = None
        self._left: Any = None
        self.runs = 0
        self.replay: Callable[[], None] | None = None
        self.slots: list[EngineSlot] = []

    def bring(self, windows: Any) -> None:
        """Put windows of the host into the engine's input, once the batch before has left the staging buffer."""
        device = self._device
        if self._taken is not None:
            device.after(self._taken, "in")
        device.copy(windows, self.arriving, "in")
        device.after(device.mark("in"), "compute")
        device.copy(self.arriving, self.input, "compute")
        self._taken = device.mark("compute")

    def fetch(self, scores: Any) -> Any:
        """Put the engine's output on its way to the host; the event that it has arrived."""
        device = self._device
        if self._left is not None:
            device.after(self._left, "compute")
        device.copy(self.output, self.leaving, "compute")
        device.after(device.mark("compute"), "out")
        device.copy(self.leaving, scores, "out")
        self._left = device.mark("out")
        return self._left


class EngineSlot:
    """A batch's memory on the host, page-locked."""

    def __init__(self, session: Session, lane: _Lane, device: Device) -> None:
        self._session = session
        self.lane = lane
        self.windows = device.host(lane.shape, "float32")
        self.scores = device.host(lane.output_shape, lane.output_dtype)
        self.image = self.windows.numpy()
        self.done: Any = None

    def start(self) -> None:
        """Begin with what is in `image`."""
        self._session.start(self)

    def wait(self) -> np.ndarray:
        """The scores in the engine's type; valid until the slot is started again."""
        if self.done is None:
            raise ValueError("the slot was not started")
        return self._session.wait(self)

    def network_seconds(self) -> float:
        """How long the engine takes for the windows that were started last, once more, without any copy."""
        return self._session.network_seconds(self)

    def copy_seconds(self) -> float:
        """How long `image` takes to the GPU and the scores back, one after the other."""
        return self._session.copy_seconds(self)
