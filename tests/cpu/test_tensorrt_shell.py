"""What touches TensorRT, without a GPU: the names it uses exist, and the runner does things in the right order."""

import ast
import inspect
import time
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
from lhanet_export.errors import EnvironmentLacks, RefusedInput
from lhanet_export.files import sidecar_of
from lhanet_export.runners import tensorrt_
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
    "ICudaEngine.get_tensor_profile_shape", "IBuilderConfig.clear_flag", "IExecutionContext.execute_async_v3",
    "IExecutionContext.get_tensor_shape", "IExecutionContext.set_input_shape",
    "IExecutionContext.set_optimization_profile_async", "IExecutionContext.set_tensor_address", "ILogger",
    "ILogger.ERROR", "ILogger.INTERNAL_ERROR", "INetworkDefinition.get_input", "INetworkDefinition.get_output",
    "INetworkDefinition.num_inputs", "INetworkDefinition.num_outputs", "IProgressMonitor", "ITensor.dtype",
    "ITensor.name", "ITensor.shape", "ProfilingVerbosity", "ProfilingVerbosity.LAYER_NAMES_ONLY", "Runtime",
    "Runtime.deserialize_cuda_engine", "__version__",
}  # fmt: skip
#: Used only where the runtime has `get_engine_validity`: TensorRT-RTX, and TensorRT from 11.4 on.
GUARDED = {"EngineInvalidityDiagnostics", "EngineValidity", "Runtime.get_engine_validity"}

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
    for module in (tensorrt_, child, backends):
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

    class ILogger:
        """The base of loggers."""

        INTERNAL_ERROR, ERROR, WARNING = range(3)

    def __init__(self, **faults: Any) -> None:
        self.calls: list[str] = []
        self.faults = faults
        self.batch = (1, 1, 1)
        self.device = FakeDevice(self)

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


class FakeEngine:
    def __init__(self, trt: FakeTensorRT, logger: Any) -> None:
        self._trt, self._logger = trt, logger

    def create_execution_context(self) -> "FakeContext | None":
        self._trt.calls.append("context")
        if "context" in self._trt.faults:
            self._logger.log(self._trt.ILogger.ERROR, self._trt.faults["context"])
            return None
        return FakeContext(self._trt, self._logger)

    def get_tensor_dtype(self, name: str) -> Any:
        return SimpleNamespace(name="HALF" if name == "image" else "FLOAT")

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
        self._trt.calls.append("execute")
        if "execute" in self._trt.faults:
            self._logger.log(self._trt.ILogger.ERROR, self._trt.faults["execute"])
            return False
        buffers = self._trt.device.buffers
        buffers[self._addresses["logits"]].array[...] = 2.0 * buffers[self._addresses["image"]].array
        return True


class FakeBuffer:
    def __init__(self, array: np.ndarray) -> None:
        self.array = array

    def data_ptr(self) -> int:
        return id(self)


class FakeDevice:
    """GPU memory that is the host's."""

    stream_handle = 7

    def __init__(self, trt: FakeTensorRT) -> None:
        self._trt = trt
        self.buffers: dict[int, FakeBuffer] = {}

    def allocate(self, shape: tuple[int, ...], dtype: str) -> FakeBuffer:
        if "allocate" in self._trt.faults:
            raise RuntimeError(self._trt.faults["allocate"])
        self._trt.calls.append(f"allocate {dtype}")
        buffer = FakeBuffer(np.full(shape, np.nan, dtype))
        self.buffers[buffer.data_ptr()] = buffer
        return buffer

    def upload(self, array: np.ndarray, buffer: FakeBuffer) -> None:
        self._trt.calls.append("upload")
        buffer.array[...] = array

    def download(self, buffer: FakeBuffer) -> np.ndarray:
        self._trt.calls.append("download")
        return buffer.array.copy()


def manifest_for(path: Path, **options: Any) -> Manifest:
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


def test_the_order_of_things(engine: Path) -> None:
    trt = FakeTensorRT()
    image = image_of()
    with runner_of(engine, trt) as runner:
        assert runner.name == "tensorrt-rtx fp16 on NVIDIA GeForce RTX 3060"
        assert np.array_equal(runner.infer(image), 2 * image)
        assert trt.calls == [
            "Runtime", "get_engine_validity", "deserialize", "context", f"shape {SHAPE}", "allocate float16",
            "allocate float32", "address image", "address logits", "upload", "execute", "download",
        ]  # fmt: skip
        trt.calls.clear()
        assert np.array_equal(runner.infer(image + 1), 2 * image + 2)
        assert trt.calls == ["upload", "execute", "download"]  # buffers are kept for a shape
        runner.infer(image_of((1, 1, 16, 16, 16)))
        assert trt.calls[3] == "shape (1, 1, 16, 16, 16)"
    with pytest.raises(ValueError, match="closed"):
        runner.infer(image)
    with runner:
        assert np.array_equal(runner.infer(image), 2 * image)


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
        ({"context": "Error Code 2: OutOfMemory"}, EnvironmentLacks, "not enough GPU memory to create an execution"),
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
        ({"allocate": "CUDA out of memory."}, EnvironmentLacks, "not enough GPU memory for"),
        ({"allocate": "CUDA error: unspecified launch failure"}, EnvironmentLacks, "the GPU failed"),
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
