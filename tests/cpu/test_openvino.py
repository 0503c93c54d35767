"""OpenVINO runs FP32 graphs as the gate demands, says what it cannot do, and never computes in another precision."""

from __future__ import annotations

import json
import mmap
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lhanet_export.cli.main import run
from lhanet_export.errors import EnvironmentLacks, RefusedInput
from lhanet_export.export.artifact import OnnxArtifact
from lhanet_export.export.onnx_from_network import ExportOptions, onnx_from_network
from lhanet_export.model.checkpoint import open_checkpoint
from lhanet_export.model.network import LHANet
from lhanet_export.model.resize import interpolation_matrix
from lhanet_export.runners import openvino_, openvino_compose
from lhanet_export.runners.eager import EagerRunner
from lhanet_export.runners.openvino_ import OpenVINORunner
from lhanet_export.runners.openvino_graph import channels_last
from lhanet_export.runners.openvino_library import computes_bf16, load_openvino, load_parts
from lhanet_export.runners.openvino_mixed import _nearest, in_bf16, rounded
from lhanet_export.verify.gate import TOLERANCES, Reference, reference_for, verify
from lhanet_export.verify.inputs import cases_for, texture

openvino = load_openvino()

SMALL, PATCH = (33, 50, 71), (48, 96, 96)
#: For everything but the comparison with the eager network.
TINY, OTHER = texture((32, 32, 32), seed=0), texture((32, 32, 40), seed=1)


@pytest.fixture(scope="module")
def graph(narrow_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> OnnxArtifact:
    """The narrow network as an FP32 graph that knows its checkpoint, as `verify` wants it."""
    network, identity = open_checkpoint(str(narrow_checkpoint))
    return onnx_from_network(network, identity.as_json(), tmp_path_factory.mktemp("openvino") / "narrow.onnx")


@pytest.fixture(scope="module")
def reference(narrow_network: LHANet) -> Reference:
    return reference_for(EagerRunner(narrow_network), cases_for([SMALL, PATCH]))


class WatchedCore:
    """OpenVINO as on a CPU with the given precisions; keeps the shapes that it was asked to compile for."""

    def __init__(self, *precisions: str) -> None:
        self.precisions = precisions
        self.compiled: list[tuple[int, ...]] = []
        self._core = openvino.Core()

    def get_property(self, device: str, name: str) -> list[str]:
        assert (device, name) == ("CPU", "OPTIMIZATION_CAPABILITIES")
        return list(self.precisions)

    def read_model(self, *model: Any) -> Any:
        return self._core.read_model(*model)

    def compile_model(self, model: Any, device: str, config: dict[str, str]) -> Any:
        self.compiled.append(tuple(model.input("image").shape))
        return self._core.compile_model(model, device, config)


def watch(monkeypatch: pytest.MonkeyPatch, *precisions: str) -> WatchedCore:
    core = WatchedCore(*precisions)
    monkeypatch.setattr(openvino, "Core", lambda: core)
    return core


def test_the_right_graph_passes(graph: OnnxArtifact, reference: Reference) -> None:
    verification = verify(OpenVINORunner(graph), reference, TOLERANCES["fp32"])
    assert verification.passed, verification.failures
    assert verification.runner == "openvino cpu"
    assert {case.shape for case in verification.differences} == {SMALL, PATCH}


def mixed_runner(graph: OnnxArtifact) -> OpenVINORunner:
    """A runner in mixed precision, or a skipped test."""
    if not computes_bf16(openvino.Core()):
        pytest.skip("this CPU does not compute in BF16")
    return OpenVINORunner(graph, precision="mixed", threads=2)


def test_mixed_is_near_fp32_but_not_fp32(graph: OnnxArtifact, reference: Reference) -> None:
    with mixed_runner(graph) as runner:
        logits = runner.infer(reference.cases[0].image)
    error = np.linalg.norm(logits - reference.logits[0]) / np.linalg.norm(reference.logits[0])
    # Measured 1.4e-3 at this width, and 7.6e-3 where all of it is BF16.
    assert 1e-4 < error < 3e-3
    assert (logits.argmax(1) == reference.logits[0].argmax(1)).mean() > 0.995


def test_nodes_are_chosen_by_name_with_and_without_the_rewrites() -> None:
    """Names from graphs of the public width; without rewrites an organ convolution is one node and its bias."""
    branch = "/pmsa.{}/scale_attentions.{}/{}".format
    for level, at, node in (
        (0, 0, "context_conv/context_conv.0/Conv/WithoutBiases"), (1, 3, "context_conv/context_conv.2/Relu"),
        (0, 4, "short_conv/Conv"), (1, 4, "short_conv/Conv_13"), (0, 1, "organ_conv/Conv/WithoutBiases"),
        (1, 4, "organ_conv/Conv"), (2, 4, "organ_conv/Conv/WithoutBiases"), (3, 4, "short_conv/Conv_2"),
    ):  # fmt: skip
        assert in_bf16(branch(level, at, node)), node
    for level, at, node in (
        (0, 4, "short_conv/MatMul_3"), (0, 4, "short_conv/Concat"), (0, 4, "channel_attention/conv/Conv"),
        (2, 3, "organ_conv/Conv"), (2, 4, "context_conv/context_conv.0/Conv"), (0, 2, "Mul_1"),
    ):  # fmt: skip
        assert not in_bf16(branch(level, at, node)), node
    for name in ("/pmsa.0/final_fusion.0/Conv", "/backbone/encoder_blocks.0/Conv", "/classifier/Conv"):
        assert not in_bf16(name), name


def test_what_mixed_was_not_measured_on_is_refused(graph: OnnxArtifact) -> None:
    for facts in ({"checkpoint": {"preset": "standard"}}, {"head": "deep0"}):
        other = replace(graph, facts={**graph.facts, **facts})
        with pytest.raises(RefusedInput, match="lightweight with its final head only; run in fp32"):
            OpenVINORunner(other, precision="mixed")


def test_an_openvino_that_ignores_the_marks_is_refused(graph: OnnxArtifact, monkeypatch: pytest.MonkeyPatch) -> None:
    """The attribute is read from a file format that may change; then everything would be BF16."""
    runner = mixed_runner(graph)
    monkeypatch.setattr(openvino_, "mixed", lambda model, *others: model)
    with runner, pytest.raises(EnvironmentLacks, match="in BF16, too; run in fp32"):
        runner.prepare(TINY.shape)


def test_rounded_kernels_are_bf16_and_keep_their_sum() -> None:
    weights = np.random.default_rng(0).standard_normal((8, 5, 3, 3, 3)).astype(np.float32)
    result = rounded(weights)
    assert not (result.view(np.uint32) & 0xFFFF).any()
    np.testing.assert_allclose(result, weights, atol=2**-6)
    nearest = (_nearest(weights) - weights).sum((2, 3, 4))
    lost = (result - weights).sum((2, 3, 4))
    # Half a step of the last tap, where rounding to nearest leaves a step times the root of the taps.
    assert np.abs(lost).max() < 2**-7 and np.abs(lost).mean() < np.abs(nearest).mean() / 2
    values = np.array([1.0, 1 + 2**-9, 1 + 2**-8, 1 + 3 * 2**-8, -1 - 3 * 2**-9], np.float32)
    np.testing.assert_array_equal(_nearest(values), [1, 1, 1, 1 + 2**-6, -1 - 2**-7])


def test_the_graph_is_computed_with_channels_last(graph: OnnxArtifact) -> None:
    """No product with a matrix is left that reads its tensor in the order (N,C,...)."""
    model = openvino.Core().read_model(graph.path)
    model.reshape({"image": list(TINY.shape)})
    assert channels_last(model, *load_parts()) > 100
    products = [node for node in model.get_ordered_ops() if node.get_type_name() == "MatMul"]
    ranks = {tuple(len(each.get_shape()) for each in node.inputs()) for node in products}
    # From the left, on rows (N,D,H,W*C) or (N,D,H*W*C), or on each row's (W,C); and matrix times matrix.
    assert ranks <= {(2, 2), (2, 3), (2, 4), (2, 5)}, ranks


@pytest.fixture(scope="module")
def cpu_graph(narrow_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> OnnxArtifact:
    """The same with the rewrites for a CPU."""
    network, identity = open_checkpoint(str(narrow_checkpoint))
    path = tmp_path_factory.mktemp("openvino") / "cpu.onnx"
    return onnx_from_network(network, identity.as_json(), path, ExportOptions(purpose="cpu"))


def strided_convolutions(graph: OnnxArtifact, shape: tuple[int, int, int]) -> int:
    """How many convolutions of stride 1x3x3 OpenVINO gets for volumes of a size."""
    model = openvino.Core().read_model(graph.path)
    model.reshape({"image": [1, 1, *shape]})
    channels_last(model, *load_parts())
    convolutions = [node for node in model.get_ordered_ops() if node.get_type_name() == "Convolution"]
    return sum(list(node.get_attributes()["strides"]) == [1, 3, 3] for node in convolutions)


def test_convolutions_are_joined_with_their_resize_where_it_has_a_period(
    cpu_graph: OnnxArtifact, reference: Reference, monkeypatch: pytest.MonkeyPatch
) -> None:
    # 14 products of four convolutions, at the three levels of which the sides are even: 48, 24 and 12.
    assert strided_convolutions(cpu_graph, PATCH) == 3 * 14 * 4
    verification = verify(OpenVINORunner(cpu_graph), reference, TOLERANCES["fp32"])
    assert verification.passed, verification.failures
    # Height 25, width 36: at 25, two thirds of the side are not whole.
    assert strided_convolutions(cpu_graph, SMALL) == 0
    monkeypatch.setattr(openvino_compose, "MOST_BYTES", 1000)
    assert strided_convolutions(cpu_graph, PATCH) == 0


@pytest.mark.parametrize(("side", "repeats"), [(48, True), (2, True), (24, True), (25, False), (3, False)])
def test_the_resize_back_has_a_period_for_even_sides(side: int, repeats: bool) -> None:
    large = side * 3 // 2
    matrix = interpolation_matrix(large, side, (large, side), device=torch.device("cpu")).numpy()
    assert openvino_compose._repeats(matrix) is repeats
    if repeats:
        for row in (0, -1):
            other = matrix.copy()
            other[row, -1 - row] += 0.01
            assert openvino_compose._repeats(other) is False, row


def test_a_kernel_joined_with_a_resize_is_both() -> None:
    random = np.random.default_rng(0)
    kernel, signal = random.standard_normal((1, 1, 1, 1, 7)).astype(np.float32), random.standard_normal(36)
    matrix = interpolation_matrix(36, 24, (36, 24), device=torch.device("cpu")).numpy()
    taps = kernel.reshape(7).astype(np.float64)
    expected = matrix @ [np.pad(signal, 3)[place : place + 7] @ taps for place in range(36)]
    for parity, (numbers, offset) in enumerate(openvino_compose._rows(matrix)):
        joined = openvino_compose._along(kernel, numbers, 4).reshape(8)
        padded = np.pad(signal, (3, 8))
        found = [padded[3 * place + offset : 3 * place + offset + 8] @ joined for place in range(12)]
        np.testing.assert_allclose(found, expected[parity::2], rtol=0, atol=1e-5)


def test_means_over_many_voxels_are_exact_to_rounding() -> None:
    """OpenVINO's own mean of channels-last tensors has an error of 1e-5 here, which reaches the logits."""
    passes, ops = load_parts()
    image = np.random.default_rng(0).random((1, 40, 64, 64, 16), np.float32)
    volume = ops.parameter(list(image.shape), np.float32, name="image")
    channels_second = ops.transpose(volume, ops.constant(np.array([0, 4, 1, 2, 3])))
    model = openvino.Model([ops.reduce_mean(channels_second, ops.constant(np.array([2, 3, 4])), True)], [volume])

    def error() -> float:
        config = {"INFERENCE_PRECISION_HINT": "f32"}
        found = openvino.Core().compile_model(model, "CPU", config)(image)[0]
        exact = image.astype(np.float64).mean((1, 2, 3)).reshape(1, 16, 1, 1, 1)
        return float(np.abs(found / exact - 1).max())

    plain = error()
    assert channels_last(model, passes, ops) == 1
    assert error() < 1e-6 < plain


def test_the_precision_is_always_said(graph: OnnxArtifact, monkeypatch: pytest.MonkeyPatch) -> None:
    configs: list[dict[str, str]] = []
    core = watch(monkeypatch, "FP32", "BF16")
    monkeypatch.setattr(openvino_, "check_computed", lambda compiled: None)
    monkeypatch.setattr(core, "compile_model", lambda model, device, config: configs.append(config))
    with OpenVINORunner(graph) as runner:
        runner.prepare(TINY.shape)
    with OpenVINORunner(graph, precision="mixed", threads=2) as runner:
        runner.prepare(TINY.shape)
    first, second = configs
    assert first["INFERENCE_PRECISION_HINT"] == "f32" and "INFERENCE_NUM_THREADS" not in first
    assert second["INFERENCE_PRECISION_HINT"] == "bf16" and second["INFERENCE_NUM_THREADS"] == "2"


def test_mixed_on_a_cpu_without_bf16_is_refused(graph: OnnxArtifact, monkeypatch: pytest.MonkeyPatch) -> None:
    watch(monkeypatch, "FP32", "INT8")
    with pytest.raises(EnvironmentLacks, match="avx512_bf16 or AMX"):
        OpenVINORunner(graph, precision="mixed")


def test_only_the_last_size_is_kept_compiled(graph: OnnxArtifact, monkeypatch: pytest.MonkeyPatch) -> None:
    core = watch(monkeypatch, "FP32")
    with OpenVINORunner(graph) as runner:
        outputs = [runner.infer(image) for image in (TINY, TINY, OTHER, TINY)]
    np.testing.assert_array_equal(outputs[0], outputs[1])
    np.testing.assert_array_equal(outputs[0], outputs[3])
    assert core.compiled == [TINY.shape, OTHER.shape, TINY.shape]


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (np.zeros((1, 1, 16, 64, 64), np.float32), "16x64x64 is outside the range"),
        (np.zeros((2, 1, 33, 50, 71), np.float32), "takes a batch of 1, got 2"),
        (np.zeros((1, 2, 33, 50, 71), np.float32), r"\(N,1,D,H,W\)"),
        (np.zeros((33, 50, 71), np.float32), r"\(N,1,D,H,W\)"),
        (np.zeros((1, 1, 33, 50, 71)), "float64"),
    ],
)
def test_what_the_graph_does_not_serve_is_refused(graph: OnnxArtifact, image: np.ndarray, words: str) -> None:
    with OpenVINORunner(graph) as runner, pytest.raises(RefusedInput, match=words):
        runner.infer(image)


def test_a_closed_runner_says_so_and_can_be_opened_again(graph: OnnxArtifact, monkeypatch: pytest.MonkeyPatch) -> None:
    core = watch(monkeypatch, "FP32")
    monkeypatch.setattr(core, "compile_model", lambda model, device, config: lambda image: [2 * image])
    runner = OpenVINORunner(graph)
    for _ in range(2):
        with pytest.raises(ValueError, match="closed"):
            runner.infer(TINY)
        with runner:
            np.testing.assert_array_equal(runner.infer(TINY), 2 * TINY)
    with pytest.raises(ValueError, match="closed"):
        runner.infer(TINY)


def test_fp16_graphs_are_refused_with_the_reason(graph: OnnxArtifact) -> None:
    half = replace(graph, facts={**graph.facts, "precision": "fp16"})
    with pytest.raises(RefusedInput, match=r"fp16 graph, and OpenVINO would compute it in fp32.*ONNX Runtime"):
        OpenVINORunner(half)


@pytest.mark.parametrize(("words", "kind"), [("std::bad_alloc", EnvironmentLacks), ("no such layer", RefusedInput)])
def test_errors_of_openvino_are_told_apart(
    words: str, kind: type[Exception], graph: OnnxArtifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Too little memory says nothing about the graph, so it must not become a failed comparison."""
    core = watch(monkeypatch, "FP32")

    def fails(*arguments: object) -> None:
        raise RuntimeError(f"Exception from src/inference:\n{words}")

    monkeypatch.setattr(core, "compile_model", fails)
    with OpenVINORunner(graph) as runner, pytest.raises(kind, match=words):
        runner.prepare(TINY.shape)


def test_a_file_that_openvino_cannot_read_is_refused(graph: OnnxArtifact) -> None:
    runner = OpenVINORunner(graph)
    runner._artifact = replace(graph, path=Path("gone.onnx"))
    with pytest.raises(RefusedInput, match=r"could not load the graph \(gone.onnx\)"), runner:
        pass


def test_a_missing_package_is_said_with_its_remedy(graph: OnnxArtifact, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(EnvironmentLacks, match=r"pip install 'lhanet-export\[openvino\]'"):
        OpenVINORunner(graph)


def test_openvino_sends_nothing_and_leaves_nothing_behind(tmp_path: Path) -> None:
    code = (
        "import sys; from lhanet_export.runners.openvino_library import load_openvino; load_openvino().Core();"
        "print([name for name in sys.modules if name.startswith('openvino_telemetry.')])"
    )
    # As on a desktop: it is quiet by itself on machines that call themselves CI.
    environment = {"HOME": str(tmp_path), "PATH": os.environ["PATH"]}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="resident memory is read from /proc")
def test_the_mapped_weights_leave_memory_and_come_back(tmp_path: Path) -> None:
    path = tmp_path / "weights.data"
    path.write_bytes(bytes(range(256)) * 4096 * 16)
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        assert sum(mapped[::4096]) == 0
        assert resident_bytes(path) == path.stat().st_size
        openvino_._release_pages(path)
        assert resident_bytes(path) == 0
        assert mapped[:256] == bytes(range(256))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="resident memory is read from /proc")
def test_mapped_weights_leave_memory_while_others_are_read(tmp_path: Path) -> None:
    path = tmp_path / "weights.data"
    path.write_bytes(bytes(256 * 4096 * 16))
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        with openvino_._pages_released(path):
            assert sum(mapped[::4096]) == 0
            deadline = time.monotonic() + 10
            while resident_bytes(path) and time.monotonic() < deadline:
                time.sleep(0.01)
            assert resident_bytes(path) == 0
            # Read again, and gone again at the end.
            assert mapped[4096] == 0
        assert resident_bytes(path) == 0


def resident_bytes(path: Path) -> int:
    """How much of a mapped file is in this process's resident memory."""
    lines = Path("/proc/self/smaps").read_text(encoding="utf-8").splitlines()
    start = next(index for index, line in enumerate(lines) if line.endswith(str(path)))
    return next(int(line.split()[1]) * 1024 for line in lines[start:] if line.startswith("Rss:"))


def test_verify_runs_graphs_in_openvino(
    graph: OnnxArtifact, narrow_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """The command, with its exit codes: passed, refused, and lacking."""
    verify_in_openvino = ["--checkpoint", str(narrow_checkpoint), "--runtime", "openvino", "--shape", "32x32x32"]
    assert run(["verify", str(graph.path), *verify_in_openvino, "--json", "-"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["passed"] is True and facts["runner"] == "openvino cpu"
    assert facts["tolerance"]["relative_l2"] == TOLERANCES["fp32"].relative_l2
    engine = tmp_path / "model.engine"
    engine.write_bytes(b"engine")
    engine.with_name("model.engine.json").write_text("{}", encoding="utf-8")
    assert run(["verify", str(engine), *verify_in_openvino]) == 2
    assert "is an engine, which its own library runs; openvino runs ONNX files only" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "openvino", None)
    assert run(["verify", str(graph.path), *verify_in_openvino]) == 3
    assert "pip install" in capsys.readouterr().err
