"""What touches TensorRT, without a GPU: the names it uses exist, and the runner does things in the right order."""

import ast
import inspect
import random
import time
from dataclasses import replace
from itertools import count
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tensorrt_rtx

from lhanet_export.conventions import Preprocessing
from lhanet_export.engine import backends, child
from lhanet_export.engine.backends import BACKENDS, ErrorLog, load_module
from lhanet_export.engine.build import BuiltEngine, TensorFacts
from lhanet_export.engine.gpu import Gpu, find_gpus
from lhanet_export.engine.manifest import Manifest, manifest_of, publish_engine
from lhanet_export.engine.plan import plan_engine
from lhanet_export.engine.recipes import recipe_named
from lhanet_export.errors import EnvironmentLacks, GpuFailed, OutOfMemory, RefusedInput
from lhanet_export.files import sidecar_of
from lhanet_export.runners import kernel_cache, tensorrt_, tensorrt_session
from lhanet_export.runners.tensorrt_ import TensorRTRunner
from lhanet_export.shapes import SpatialRange

#: What the names in our sources hold, as classes of TensorRT's Python module (None: the module itself).
HOLDERS = {
    "trt": None,
    "runtime": "Runtime",
    "engine": "ICudaEngine",
    "_engine": "ICudaEngine",
    "context": "IExecutionContext",
    "_context": "IExecutionContext",
    "config": "IRuntimeConfig",
    "_cache": "IRuntimeCache",
    "network": "INetworkDefinition",
    "tensor": "ITensor",
    "made": "IBuilderConfig",
    "ProfilingVerbosity": "ProfilingVerbosity",
    "BuilderFlag": "BuilderFlag",
    "ILogger": "ILogger",
}

#: The same names as TensorRT 11.1 binds them (github.com/NVIDIA/TensorRT at a892d222, python/src/infer/*.cpp).
TENSORRT_11_1 = {
    "BuilderFlag", "BuilderFlag.TF32", "ICudaEngine.create_execution_context", "ICudaEngine.get_tensor_dtype",
    "ICudaEngine.get_tensor_profile_shape", "ICudaEngine.get_tensor_shape", "IBuilderConfig.clear_flag",
    "IExecutionContext.execute_async_v3",
    "IExecutionContext.get_tensor_shape", "IExecutionContext.set_input_shape",
    "IExecutionContext.set_optimization_profile_async", "IExecutionContext.set_tensor_address", "ILogger",
    "ILogger.ERROR", "ILogger.INTERNAL_ERROR", "INetworkDefinition.get_input", "INetworkDefinition.get_output",
    "INetworkDefinition.num_inputs", "INetworkDefinition.num_outputs", "IProgressMonitor", "ITensor.dtype",
    "ITensor.name", "ITensor.shape", "ProfilingVerbosity", "ProfilingVerbosity.LAYER_NAMES_ONLY", "Runtime",
    "Runtime.deserialize_cuda_engine", "__version__",
}  # fmt: skip
#: Used only where the runtime has `get_engine_validity` (TensorRT-RTX, and TensorRT from 11.4 on), or in TensorRT-RTX.
GUARDED = {
    "EngineInvalidityDiagnostics", "EngineValidity", "Runtime.get_engine_validity", "ICudaEngine.create_runtime_config",
    "CudaGraphStrategy", "IRuntimeConfig.cuda_graph_strategy", "IRuntimeConfig.create_runtime_cache",
    "IRuntimeConfig.set_runtime_cache", "IRuntimeCache.deserialize", "IRuntimeCache.serialize",
    "DynamicShapesKernelSpecializationStrategy", "IRuntimeConfig.dynamic_shapes_kernel_specialization_strategy",
}  # fmt: skip

RTX_3060 = Gpu(name="NVIDIA GeForce RTX 3060", compute_capability="8.6", memory_bytes=12 << 30)
ENGINE = b"engine bytes" * 1000
SHAPE = (1, 1, 16, 24, 32)


def names_used(module: ModuleType) -> set[str]:
    """Every attribute that a module of ours takes from TensorRT's objects, as `Class.attribute`."""
    used = set()
    for node in ast.walk(ast.parse(inspect.getsource(module))):
        if not isinstance(node, ast.Attribute):
            continue
        owner = node.value
        if isinstance(owner, ast.Attribute):
            holder = owner.attr
        elif isinstance(owner, ast.Name):
            holder = owner.id
        else:
            continue
        if holder in HOLDERS:
            used.add(f"{HOLDERS[holder]}.{node.attr}" if HOLDERS[holder] else node.attr)
    return used


def test_every_name_is_one_of_tensorrts() -> None:
    used = names_used(child) | names_used(backends) | names_used(tensorrt_)
    used |= names_used(tensorrt_session) | names_used(kernel_cache)
    assert {"Runtime.deserialize_cuda_engine", "IExecutionContext.execute_async_v3", "BuilderFlag.TF32"} <= used
    # The monitor's and the logger's constructors.
    used -= {"ILogger.__init__"}
    for name in used:
        found: Any = tensorrt_rtx
        for part in name.split("."):
            assert hasattr(found, part), f"tensorrt_rtx has no {name}"
            found = getattr(found, part)
    assert used - GUARDED <= TENSORRT_11_1
    assert used >= TENSORRT_11_1, "recorded, but not used any more"


def test_element_types_are_tensorrts() -> None:
    assert set(backends.ELEMENT_TYPES) <= set(tensorrt_rtx.DataType.__members__)
    assert backends.element_type(tensorrt_rtx.DataType.HALF) == "float16"
    assert backends.element_type(tensorrt_rtx.DataType.FP8) == "fp8"


def test_host_code_is_never_allowed() -> None:
    for module in (tensorrt_, tensorrt_session, child, backends):
        tree = ast.parse(inspect.getsource(module))
        assert not any(
            isinstance(node, ast.Attribute) and node.attr == "engine_host_code_allowed" for node in ast.walk(tree)
        )
    assert tensorrt_rtx.Runtime(ErrorLog(tensorrt_rtx).logger).engine_host_code_allowed is False


def test_the_log_keeps_tensorrts_own_words() -> None:
    log = ErrorLog(tensorrt_rtx)
    assert log.last == "TensorRT gave no reason"
    runtime = tensorrt_rtx.Runtime(log.logger)
    assert runtime.deserialize_cuda_engine(b"no engine" * 100) is None
    assert any("deserializeCudaEngine" in line for line in log.all)


def test_a_missing_package_is_named() -> None:
    nowhere = backends.Backend(
        name="x",
        title="X",
        module="no_such_module",
        install="pip install x",
        builds_without_gpu=True,
        compiles_on_the_gpu=False,
        progress_total=None,
    )
    with pytest.raises(EnvironmentLacks, match=r"X is not installed \(Python module 'no_such_module'\).*pip install x"):
        load_module(nowhere)
    assert load_module(BACKENDS["tensorrt-rtx"]) is tensorrt_rtx


class FakeTensorRT:
    """As much of TensorRT's module as the runner uses; it computes 2 * image and writes down every call."""

    __version__ = "1.7.1.116"
    EngineValidity = SimpleNamespace(VALID=0, SUBOPTIMAL=1, INVALID=2)
    EngineInvalidityDiagnostics = SimpleNamespace(__members__={"UNSUPPORTED_CC": 2, "OLD_CUDA_DRIVER": 4})
    CudaGraphStrategy = SimpleNamespace(WHOLE_GRAPH_CAPTURE="whole")
    DynamicShapesKernelSpecializationStrategy = SimpleNamespace(LAZY="lazy", EAGER="eager")

    class ILogger:
        """The base of loggers."""

        INTERNAL_ERROR, ERROR, WARNING = range(3)

    def __init__(self, **faults: Any) -> None:
        self.calls: list[str] = []
        self.faults = faults
        self.batch = (1, 1, 1)
        self.kernels: str | None = None
        self.device = FakeDevice(self)
        self.cache = FakeCache()

    def Runtime(self, logger: Any) -> "FakeRuntime":
        self.calls.append("Runtime")
        return FakeRuntime(self, logger)


class FakeRuntime:
    def __init__(self, trt: FakeTensorRT, logger: Any) -> None:
        self._trt, self._logger = trt, logger

    def get_engine_validity(self, raw: bytes) -> tuple[int, int]:
        assert raw == ENGINE
        self._trt.calls.append("get_engine_validity")
        return self._trt.faults.get("validity", (0, 0))

    def deserialize_cuda_engine(self, raw: bytes) -> "FakeEngine | None":
        assert raw == ENGINE
        self._trt.calls.append("deserialize")
        if "deserialize" in self._trt.faults:
            self._logger.log(self._trt.ILogger.ERROR, self._trt.faults["deserialize"])
            return None
        return FakeEngine(self._trt, self._logger)


class FakeCache:
    """Kernels, as bytes; those that begin with "ours" fit."""

    def __init__(self) -> None:
        self.kernels = b""

    def deserialize(self, kernels: bytes) -> bool:
        self.kernels = kernels if kernels.startswith(b"ours") else b""
        return bool(self.kernels)

    def serialize(self) -> memoryview:
        return memoryview(self.kernels)


class FakeConfig:
    def __init__(self, trt: FakeTensorRT) -> None:
        self._trt = trt
        self.cuda_graph_strategy = ""
        self.dynamic_shapes_kernel_specialization_strategy = "lazy"

    def create_runtime_cache(self) -> FakeCache:
        return self._trt.cache

    def set_runtime_cache(self, cache: FakeCache) -> bool:
        self._trt.calls.append("cache")
        return cache is self._trt.cache


class FakeEngine:
    def __init__(self, trt: FakeTensorRT, logger: Any) -> None:
        self._trt, self._logger = trt, logger

    def create_runtime_config(self) -> FakeConfig:
        return FakeConfig(self._trt)

    def create_execution_context(self, config: FakeConfig | None = None) -> "FakeContext | None":
        assert config is None or config.cuda_graph_strategy == "whole"
        self._trt.kernels = config and config.dynamic_shapes_kernel_specialization_strategy
        self._trt.calls.append("context")
        if "context" in self._trt.faults:
            self._logger.log(self._trt.ILogger.ERROR, self._trt.faults["context"])
            return None
        return FakeContext(self._trt, self._logger)

    def get_tensor_dtype(self, name: str) -> Any:
        return SimpleNamespace(name="HALF" if name == "image" else self._trt.faults.get("dtype", "FLOAT"))

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        channels = 1 if name == "image" else self._trt.faults.get("classes", 2)
        return (-1, channels, -1, -1, -1)

    def get_tensor_profile_shape(self, name: str, profile: int) -> list[tuple[int, ...]]:
        return [(batch, 1, 16, 16, 16) for batch in self._trt.batch]


class FakeContext:
    def __init__(self, trt: FakeTensorRT, logger: Any) -> None:
        self._trt, self._logger = trt, logger
        self._shape: tuple[int, ...] = ()
        self._addresses: dict[str, int] = {}

    def set_optimization_profile_async(self, profile: int, stream: int) -> bool:
        self._trt.calls.append(f"profile {profile}")
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self._trt.calls.append(f"shape {shape}")
        self._shape = shape
        return "shape" not in self._trt.faults

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self._trt.faults.get("output_shape", self._shape)

    def set_tensor_address(self, name: str, address: int) -> bool:
        self._trt.calls.append(f"address {name}")
        self._addresses[name] = address
        return True

    def execute_async_v3(self, stream: int) -> bool:
        assert stream == FakeDevice.compute_handle
        self._trt.calls.append("execute")
        if "execute" in self._trt.faults:
            self._logger.log(self._trt.ILogger.ERROR, self._trt.faults["execute"])
            return False
        device = self._trt.device
        image, logits = (device.buffers[self._addresses[name]] for name in ("image", "logits"))
        device.put("compute", lambda: np.multiply(image.array, 2.0, out=logits.array, casting="unsafe"))
        return True


class FakeBuffer:
    def __init__(self, array: np.ndarray) -> None:
        self.array = array

    def data_ptr(self) -> int:
        return id(self)

    def numpy(self) -> np.ndarray:
        return self.array


class FakeDevice:
    """A GPU whose streams do nothing before somebody waits, and then as much as they may in an order by chance.

    What is missing of the waiting between streams shows as a wrong result for some `seed`.
    """

    compute_handle = 7

    def __init__(self, trt: FakeTensorRT) -> None:
        self._trt = trt
        self.buffers: dict[int, FakeBuffer] = {}
        self.chance = random.Random(0)
        self._lines: dict[str, list[Any]] = {"in": [], "compute": [], "out": []}
        self._happened: set[int] = set()
        self._events = count()
        self._capture: list[Any] | None = None

    def _buffer(self, kind: str, shape: tuple[int, ...], dtype: str) -> FakeBuffer:
        if "allocate" in self._trt.faults:
            raise RuntimeError(self._trt.faults["allocate"])
        self._trt.calls.append(f"{kind} {dtype}")
        buffer = FakeBuffer(np.full(shape, np.nan, dtype))
        self.buffers[buffer.data_ptr()] = buffer
        return buffer

    def host(self, shape: tuple[int, ...], dtype: str) -> FakeBuffer:
        return self._buffer("host", shape, dtype)

    def allocate(self, shape: tuple[int, ...], dtype: str) -> FakeBuffer:
        return self._buffer("allocate", shape, dtype)

    def put(self, stream: str, work: Any) -> None:
        (self._lines[stream] if self._capture is None else self._capture).append(work)

    def copy(self, source: FakeBuffer, target: FakeBuffer, stream: str) -> None:
        assert source.array.shape == target.array.shape
        self._trt.calls.append(f"copy {stream}")
        self.put(stream, lambda: np.copyto(target.array, source.array, casting="unsafe"))

    def mark(self, stream: str) -> int:
        event = next(self._events)
        self.put(stream, lambda: self._happened.add(event))
        return event

    def after(self, event: int, stream: str) -> None:
        self.put(stream, event)

    def wait(self, event: int) -> None:
        if "wait" in self._trt.faults:
            raise RuntimeError(self._trt.faults["wait"])
        while event not in self._happened:
            ready = [
                line for line in self._lines.values()
                if line and (not isinstance(line[0], int) or line[0] in self._happened)
            ]  # fmt: skip
            work = self.chance.choice(ready).pop(0)
            if not isinstance(work, int):
                work()

    def seconds(self, enqueue: Any, stream: str) -> float:
        """What was put on the stream, a second each; nothing else may be under way."""
        assert all(isinstance(work, int) for line in self._lines.values() for work in line)
        enqueue()
        taken = float(len([work for work in self._lines[stream] if not isinstance(work, int)]))
        self.wait(self.mark(stream))
        return taken

    def captured(self, enqueue: Any) -> Any:
        self._trt.calls.append("capture")
        if "capture" in self._trt.faults:
            return None
        self._capture = captured = []
        assert enqueue()
        self._capture = None

        def replay() -> None:
            self._trt.calls.append("replay")
            self._lines["compute"] += captured

        return replay


def manifest_for(path: Path) -> Manifest:
    onnx = {
        "sha256": "a" * 64,
        "opset": 18,
        "head": "final",
        "precision": "fp16",
        "checkpoint": {"sha256": "b" * 64, "preset": "lightweight", "num_classes": 2, "base_channels": 32},
        "labels": ["background", "liver"],
        "preprocessing": Preprocessing().as_json(),
    }
    sizes = SpatialRange.parse("16x16x16:32x32x32:32x64x64")
    plan = plan_engine(path, onnx, recipe=recipe_named("rtx3060"), spatial=sizes)
    built = BuiltEngine(
        path=path,
        seconds=1,
        peak_rss_bytes=1,
        backend_version="1.7.1.116",
        compute_capabilities=("8.6",),
        weights_bytes=1,
        activation_bytes=1,
        inputs=(TensorFacts(name="image", dtype="float16", shape=(1, 1, -1, -1, -1)),),
        outputs=(TensorFacts(name="logits", dtype="float32", shape=(1, 2, -1, -1, -1)),),
        log_tail=(),
    )
    return manifest_of(plan, built, onnx, verification={})


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    source = tmp_path / "built"
    source.write_bytes(ENGINE)
    target = tmp_path / "out" / "model.engine"
    publish_engine(source, manifest_for(source), target)
    return target


def runner_of(engine: Path, trt: FakeTensorRT, gpus: tuple[Gpu, ...] = (RTX_3060,)) -> TensorRTRunner:
    return TensorRTRunner(engine, module=trt, gpus=gpus, device=lambda: trt.device)


def image_of(shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    return np.random.default_rng(0).integers(-8, 8, shape).astype(np.float32)


def test_the_network_and_the_copies_are_timed_apart(engine: Path) -> None:
    trt = FakeTensorRT()
    with runner_of(engine, trt) as runner:
        (slot,) = runner.slots(SHAPE, 1)
        slot.image[...] = image_of()
        slot.start()
        assert np.array_equal(slot.wait(), 2 * image_of())
        trt.calls.clear()
        assert slot.network_seconds() == 1 and trt.calls == ["execute"]
        trt.calls.clear()
        # By way of the staging buffers, from which those of other batches go on meanwhile.
        assert slot.copy_seconds() == 4
        assert trt.calls == ["copy in", "copy compute", "copy compute", "copy out"]
        runner.slots((1, 1, 16, 16, 16), 1)
        for timed in (slot.network_seconds, slot.copy_seconds):
            with pytest.raises(ValueError, match="another shape"):
                timed()


def test_kernels_are_final_at_once_where_that_is_asked_for(engine: Path) -> None:
    trt = FakeTensorRT()
    for final, strategy in ((False, "lazy"), (True, "eager")):
        with TensorRTRunner(engine, module=trt, gpus=(RTX_3060,), device=lambda: trt.device, final_kernels=final):
            assert trt.kernels == strategy


def test_the_order_of_things(engine: Path) -> None:
    trt = FakeTensorRT()
    image = image_of()
    with runner_of(engine, trt) as runner:
        assert runner.name == "tensorrt-rtx fp16 on NVIDIA GeForce RTX 3060"
        assert np.array_equal(runner.infer(image), 2 * image)
        assert trt.calls == [
            "Runtime", "get_engine_validity", "deserialize", "cache", "context", f"shape {SHAPE}",
            "allocate float16", "allocate float32", "allocate float32", "allocate float32",
            "address image", "address logits", "host float32", "host float32",
            "copy in", "copy compute", "execute", "copy compute", "copy out",
        ]  # fmt: skip
        trt.calls.clear()
        assert np.array_equal(runner.infer(image + 1), 2 * image + 2)
        # Buffers are kept for a shape.
        assert trt.calls == ["copy in", "copy compute", "execute", "copy compute", "copy out"]
        runner.infer(image_of((1, 1, 16, 16, 16)))
        assert trt.calls[5] == "shape (1, 1, 16, 16, 16)"
    with pytest.raises(ValueError, match="closed"):
        runner.infer(image)
    with runner:
        assert np.array_equal(runner.infer(image), 2 * image)


@pytest.mark.parametrize("seed", range(20))
def test_batches_under_way_do_not_disturb_each_other(engine: Path, seed: int) -> None:
    trt = FakeTensorRT()
    trt.device.chance.seed(seed)
    images = [image_of() + number for number in range(6)]
    with runner_of(engine, trt) as runner:
        slots = runner.slots(SHAPE, 2)
        allocated = len(trt.device.buffers)
        for number, image in enumerate(images):
            slot = slots[number % 2]
            slot.image[...] = image
            slot.start()
            if number:
                assert np.array_equal(slots[(number - 1) % 2].wait(), 2 * images[number - 1])
        assert np.array_equal(slots[1].wait(), 2 * images[-1])
        assert len(trt.device.buffers) == allocated


def test_slots_of_another_shape_are_over(engine: Path) -> None:
    trt = FakeTensorRT()
    with runner_of(engine, trt) as runner:
        (slot,) = runner.slots(SHAPE, 1)
        with pytest.raises(ValueError, match="not started"):
            slot.wait()
        runner.infer(image_of((1, 1, 16, 16, 16)))
        with pytest.raises(ValueError, match="another shape"):
            slot.start()
        with pytest.raises(RefusedInput, match="takes 1 to 1 volumes at a time, not 2"):
            runner.slots((2, *SHAPE[1:]), 1)


@pytest.mark.parametrize(
    ("faults", "runs"),
    [
        ({}, ["execute", "capture", "execute", "replay", "replay"]),
        ({"capture": True}, ["execute", "capture", "execute", "execute"]),
    ],
)
def test_tensorrt_repeats_a_shape_as_a_cuda_graph(
    tmp_path: Path, faults: dict[str, Any], runs: list[str]
) -> None:  # fmt: skip
    source, target = tmp_path / "built", tmp_path / "model.engine"
    source.write_bytes(ENGINE)
    made = manifest_for(source)
    publish_engine(source, replace(made, engine=replace(made.engine, backend="tensorrt")), target)
    trt, image = FakeTensorRT(**faults), image_of()
    with runner_of(target, trt) as runner:
        for number in range(3):
            assert np.array_equal(runner.infer(image + number), 2 * image + 2 * number)
    assert [call for call in trt.calls if call in {"execute", "capture", "replay"}][: len(runs)] == runs
    assert "cache" not in trt.calls and not target.with_name("model.engine.cache").exists()


def test_compiled_kernels_are_kept_beside_the_engine(engine: Path) -> None:
    kept = engine.with_name("model.engine.cache")
    first = FakeTensorRT()
    with runner_of(engine, first):
        first.cache.kernels = b"ours, of an RTX 3060"
    assert kept.read_bytes() == b"ours, of an RTX 3060"
    second = FakeTensorRT()
    with runner_of(engine, second):
        assert second.cache.kernels == b"ours, of an RTX 3060"
    kept.write_bytes(b"of another GPU")
    third = FakeTensorRT()
    with runner_of(engine, third):
        assert third.cache.kernels == b""
        third.cache.kernels = b"ours, compiled anew"
    assert kept.read_bytes() == b"ours, compiled anew"


def test_kernels_that_others_could_have_written_are_not_loaded(engine: Path) -> None:
    kept = engine.with_name("model.engine.cache")
    kept.write_bytes(b"ours, says an attacker")
    kept.chmod(0o666)
    trt = FakeTensorRT()
    with runner_of(engine, trt) as runner:
        assert trt.cache.kernels == b""
        assert np.array_equal(runner.infer(image_of()), 2 * image_of())


def test_kernels_that_cannot_be_kept_are_no_error(engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trt = FakeTensorRT()

    def full(*targets: Path) -> Any:
        raise EnvironmentLacks("no space left")

    monkeypatch.setattr("lhanet_export.runners.kernel_cache.staged", full)
    with runner_of(engine, trt) as runner:
        trt.cache.kernels = b"ours"
        runner.infer(image_of())
    assert not engine.with_name("model.engine.cache").exists()


@pytest.mark.parametrize("faults", [{"dtype": "HALF"}, {"classes": 3}])
def test_an_engine_of_another_manifest_is_refused(engine: Path, faults: dict[str, Any]) -> None:
    with pytest.raises(RefusedInput, match="its manifest says that 'logits' is float32"):
        runner_of(engine, FakeTensorRT(**faults)).__enter__()


def test_results_are_the_callers_own(engine: Path) -> None:
    image = image_of()
    with runner_of(engine, FakeTensorRT()) as runner:
        first = runner.infer(image)
        runner.infer(image + 1)
    assert np.array_equal(first, 2 * image)


def test_batches_are_run_in_parts(engine: Path) -> None:
    trt = FakeTensorRT()
    trt.batch = (1, 2, 2)
    image = image_of((5, 1, 16, 16, 16))
    with runner_of(engine, trt) as runner:
        assert np.array_equal(runner.infer(image), 2 * image)
        assert trt.calls.count("execute") == 3
        trt.batch = (2, 2, 2)
        with pytest.raises(RefusedInput, match="takes 2 to 2 volumes at a time; 5 leave a rest of 1"):
            runner.infer(image)


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((1, 1, 16, 16), np.float32),
        np.zeros((1, 2, 16, 16, 16), np.float32),
        np.zeros((0, 1, 16, 16, 16), np.float32),
        np.zeros((1, 1, 16, 16, 16), np.float64),
    ],
)
def test_what_is_not_a_volume_is_refused(engine: Path, image: np.ndarray) -> None:
    trt = FakeTensorRT()
    with runner_of(engine, trt) as runner, pytest.raises(RefusedInput, match=r"expected volumes \(N,1,D,H,W\)"):
        runner.infer(image)


def test_sizes_out_of_range_are_refused(engine: Path) -> None:
    trt = FakeTensorRT()
    with runner_of(engine, trt) as runner, pytest.raises(RefusedInput, match="15x16x16 is outside"):
        runner.infer(image_of((1, 1, 15, 16, 16)))
    assert "execute" not in trt.calls


def test_damaged_bytes_do_not_reach_tensorrt(engine: Path) -> None:
    trt = FakeTensorRT()
    engine.write_bytes(ENGINE[:-1] + b"\0")
    with pytest.raises(RefusedInput, match="damaged or replaced"), runner_of(engine, trt):
        pass
    assert trt.calls == []


def test_a_manifest_is_needed(engine: Path) -> None:
    sidecar_of(engine).unlink()
    with pytest.raises(RefusedInput, match="no manifest"):
        TensorRTRunner(engine)


def test_other_releases_and_other_gpus_are_refused(engine: Path) -> None:
    trt = FakeTensorRT()
    h200 = Gpu(name="NVIDIA H200", compute_capability="9.0", memory_bytes=1)
    with pytest.raises(RefusedInput, match=r"built for compute capability 8\.6; this GPU, NVIDIA H200, has 9\.0"):
        runner_of(engine, trt, (h200,)).__enter__()
    trt.__version__ = "1.8.0.1"
    with pytest.raises(RefusedInput, match=r"built with TensorRT-RTX 1\.7\.1\.116, installed is 1\.8\.0\.1"):
        runner_of(engine, trt).__enter__()
    assert trt.calls == []


@pytest.mark.parametrize(
    ("faults", "error", "reason"),
    [
        ({"validity": (2, 2)}, RefusedInput, "not an engine for this machine: UNSUPPORTED_CC"),
        ({"validity": (2, 4)}, EnvironmentLacks, "cannot run on this machine as it is: OLD_CUDA_DRIVER"),
        ({"deserialize": "bad magic"}, RefusedInput, "could not deserialize the engine.*bad magic"),
        ({"context": "Error Code 2: OutOfMemory"}, OutOfMemory, "not enough GPU memory to create an execution"),
        ({"context": "no kernel"}, RefusedInput, "could not create an execution context.*no kernel"),
    ],
)
def test_null_results_are_explained(engine: Path, faults: dict[str, Any], error: type[Exception], reason: str) -> None:
    with pytest.raises(error, match=reason):
        runner_of(engine, FakeTensorRT(**faults)).__enter__()


@pytest.mark.parametrize(
    ("faults", "error", "reason"),
    [
        ({"shape": True}, RefusedInput, "could not take the shape"),
        ({"output_shape": (1, 2, -1, -1, -1)}, RefusedInput, "could not say what it returns"),
        ({"execute": "illegal address"}, RefusedInput, "could not run.*illegal address"),
        ({"allocate": "CUDA out of memory."}, OutOfMemory, "not enough GPU memory for"),
        ({"allocate": "CUDA error: unspecified launch failure"}, GpuFailed, "the GPU failed"),
        ({"wait": "CUDA error: an illegal memory access was encountered"}, GpuFailed, "the GPU failed"),
    ],
)
def test_failures_while_running(engine: Path, faults: dict[str, Any], error: type[Exception], reason: str) -> None:
    with runner_of(engine, FakeTensorRT(**faults)) as runner, pytest.raises(error, match=reason):
        runner.infer(image_of())


@pytest.mark.skipif(bool(find_gpus()), reason="a GPU is here")
def test_without_a_gpu_it_says_so_at_once(engine: Path) -> None:
    started = time.monotonic()
    with pytest.raises(EnvironmentLacks, match=r"needs an NVIDIA GPU of compute capability 8\.6"):
        TensorRTRunner(engine).__enter__()
    assert time.monotonic() - started < 2


@pytest.mark.skipif(bool(find_gpus()), reason="a GPU is here")
def test_torch_without_cuda_is_named(engine: Path) -> None:
    with pytest.raises(EnvironmentLacks, match=r"PyTorch .* cannot use the GPU here"):
        TensorRTRunner(engine, module=FakeTensorRT(), gpus=(RTX_3060,)).__enter__()
