"""ONNX Runtime on a GPU, without one: a stand-in for its session, and the refusals."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest

from lhanet_export.cli.main import run
from lhanet_export.engine.gpu import Gpu, find_gpus
from lhanet_export.errors import EnvironmentLacks, GpuFailed, OutOfMemory, RefusedInput
from lhanet_export.export.artifact import read_onnx
from lhanet_export.runners.onnxruntime_cuda import OnnxRuntimeCudaRunner

CUDA = "CUDAExecutionProvider"
OPTIONS = {"use_tf32": "0", "arena_extend_strategy": "kSameAsRequested"}
RTX_3060 = (Gpu(name="NVIDIA GeForce RTX 3060", compute_capability="8.6", memory_bytes=12 << 30),)


class FakeOnnxRuntime:
    """As much of ONNX Runtime as the runner uses; it computes 2 * image."""

    __version__ = "1.31.1"
    SessionOptions = SimpleNamespace

    def __init__(self, *, built: bool = True, loads: bool = True, fault: str = "") -> None:
        self._built, self._loads, self._fault = built, loads, fault
        self.calls: list[Any] = []
        self.given_back: list[bool] = []
        self.OrtValue = SimpleNamespace(ortvalue_from_numpy=self._value)

    def get_available_providers(self) -> list[str]:
        return [CUDA, "CPUExecutionProvider"] if self._built else ["CPUExecutionProvider"]

    def preload_dlls(self) -> None:
        self.calls.append("preload")

    def InferenceSession(self, path: str, options: Any, *, providers: list[Any]) -> Any:
        self.calls.append(providers)
        return SimpleNamespace(
            get_providers=lambda: [CUDA] if self._loads else ["CPUExecutionProvider"],
            get_inputs=lambda: [SimpleNamespace(name="image")],
            get_outputs=lambda: [SimpleNamespace(name="logits")],
            io_binding=lambda: _Binding(self),
            run_with_iobinding=self._run,
        )

    def _value(self, array: np.ndarray, device: str, number: int) -> Any:
        self.calls.append(f"allocate {array.dtype} {device} {number}")
        value = SimpleNamespace(array=array.copy(), shape=lambda: list(array.shape))
        value.update_inplace = lambda other: np.copyto(value.array, other)
        return value

    class RunOptions(dict[str, str]):
        """What a run is asked for, by name."""

        add_run_config_entry = dict.__setitem__

    def _run(self, binding: Any, options: dict[str, str]) -> None:
        self.given_back.append(options == {"memory.enable_memory_arena_shrinkage": "gpu:0"})
        assert self.given_back[-1] or not options
        if self._fault:
            raise RuntimeError(self._fault)
        binding.result, binding.finished = 2 * binding.image.array, False


class _Binding:
    def __init__(self, module: FakeOnnxRuntime) -> None:
        self.image: Any = None
        self.result = np.empty(0)
        self.finished = False

    def bind_ortvalue_input(self, name: str, value: Any) -> None:
        assert name == "image"
        self.image = value

    def bind_output(self, name: str, device: str) -> None:
        assert (name, device) == ("logits", "cuda")

    def synchronize_outputs(self) -> None:
        self.finished = True

    def copy_outputs_to_cpu(self) -> list[np.ndarray]:
        assert self.finished
        return [self.result]


@pytest.fixture(scope="module")
def graph(narrow_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("graph") / "model.onnx"
    assert run(["onnx", str(narrow_checkpoint), "-o", str(path)]) == 0
    return path


def image_of(side: int = 48) -> np.ndarray:
    return np.random.default_rng(side).normal(size=(1, 1, side, 64, 64)).astype(np.float32)


def test_the_library_knows_what_a_run_is_asked_for() -> None:
    onnxruntime.RunOptions().add_run_config_entry("memory.enable_memory_arena_shrinkage", "gpu:0")


def test_input_and_output_stay_on_the_gpu(graph: Path) -> None:
    module = FakeOnnxRuntime()
    with OnnxRuntimeCudaRunner(read_onnx(graph), module=module, gpus=RTX_3060) as runner:
        assert runner.name == "onnxruntime fp32 on NVIDIA GeForce RTX 3060"
        for image in (image_of(), image_of() + 1, image_of(64)):
            assert np.array_equal(runner.infer(image), 2 * image)
        (slot,) = runner.slots((1, 1, 48, 64, 64), 1)
        slot.image[:] = image_of()
        slot.start()
        assert np.array_equal(slot.wait(), 2 * image_of())
        with pytest.raises(RefusedInput, match="expected volumes"):
            runner.infer(image_of()[0])
        with pytest.raises(RefusedInput):
            runner.infer(np.zeros((1, 1, 8, 8, 8), np.float32))
    # FP32 is not computed in TF32, and memory is asked for once for a size.
    assert module.calls == ["preload", [(CUDA, OPTIONS)], *["allocate float32 cuda 0"] * 3]
    # What trying algorithms takes is given back after the first run of a size.
    assert module.given_back == [True, False, True, True]
    with pytest.raises(ValueError, match="closed"):
        runner.infer(image_of())


def test_it_never_falls_back_to_the_cpu(graph: Path) -> None:
    artifact = read_onnx(graph)
    with pytest.raises(EnvironmentLacks, match="needs an NVIDIA GPU"):
        OnnxRuntimeCudaRunner(artifact, module=FakeOnnxRuntime(), gpus=())
    with pytest.raises(EnvironmentLacks, match="built without CUDA"):
        OnnxRuntimeCudaRunner(artifact, module=FakeOnnxRuntime(built=False), gpus=RTX_3060)
    with pytest.raises(EnvironmentLacks, match="cannot use the GPU here"):
        OnnxRuntimeCudaRunner(artifact, module=FakeOnnxRuntime(loads=False), gpus=RTX_3060).__enter__()


@pytest.mark.parametrize(
    ("fault", "error"),
    [("Failed to allocate memory for requested buffer", OutOfMemory), ("CUDA failure 700", GpuFailed)],
)
def test_faults_of_the_gpu_are_the_environment(graph: Path, fault: str, error: type[Exception]) -> None:
    module = FakeOnnxRuntime(fault=fault)
    with OnnxRuntimeCudaRunner(read_onnx(graph), module=module, gpus=RTX_3060) as runner:
        with pytest.raises(error) as raised:
            runner.infer(image_of())
        assert raised.type is error


@pytest.mark.skipif(bool(find_gpus()), reason="a GPU is here")
def test_the_commands_say_that_there_is_no_gpu(
    graph: Path, narrow_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["verify", str(graph), "--checkpoint", str(narrow_checkpoint), "--runtime", "onnxruntime-cuda"]
    assert run(command) == 3
    assert "needs an NVIDIA GPU" in capsys.readouterr().err
