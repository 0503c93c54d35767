"""The FP16 graph is FP16 where it says so, and what is said of it on a CPU holds for FP16, not for FP32."""

import copy
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch

from lhanet_export.errors import RefusedInput
from lhanet_export.export.artifact import OnnxArtifact
from lhanet_export.export.onnx_from_network import ExportOptions, onnx_from_network
from lhanet_export.model.network import LHANet
from lhanet_export.model.rule import rule_image, rule_network
from lhanet_export.precision import fp16
from lhanet_export.precision.convert import fp16_from_fp32
from lhanet_export.precision.fp16 import convert_to_fp16
from lhanet_export.precision.rounding import with_rounding
from lhanet_export.runners.onnxruntime_ import OnnxRuntimeRunner
from lhanet_export.runners.onnxruntime_library import load_onnxruntime
from tests.cpu.conftest import CHECKPOINT
from tests.cpu.test_export import relative_l2

HALF, FLOAT = ir.DataType.FLOAT16, ir.DataType.FLOAT


@pytest.mark.parametrize("preset", ["lightweight", "standard", "high_capacity"])
def test_fp16_is_close_to_fp32(preset: str, tmp_path: Path) -> None:
    network = rule_network(preset, base_channels=8, seed=7)
    whole = onnx_from_network(network, CHECKPOINT, tmp_path / "fp32.onnx")
    half, _ = fp16_from_fp32(whole, tmp_path / "fp16.onnx")
    for size in ((48, 96, 96), (33, 50, 71)):
        image = rule_image(size, 3)
        with OnnxRuntimeRunner(whole) as one, OnnxRuntimeRunner(half) as other:
            expected, found = one.infer(image), other.infer(image)
        assert found.dtype == np.float32 and np.isfinite(found).all()
        error = relative_l2(found, expected)
        # Below: not FP16 at all. Half precision has a step of 5e-4.
        assert 1e-4 < error <= 5e-3
        assert (found.argmax(1) == expected.argmax(1)).mean() >= 0.99


@pytest.mark.parametrize(("without", "stage"), [((), "/backbone/layers.3/"), (("split-stem",), "/backbone/layer4/")])
def test_the_last_stage_of_a_short_residual_backbone_stays_fp16(
    without: tuple[str, ...], stage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = rule_network("standard", base_channels=8, num_classes=3, seed=7)
    whole = onnx_from_network(network, CHECKPOINT, tmp_path / "fp32.onnx", ExportOptions(without=without))

    def half_convolutions() -> set[str]:
        model = ir.load(whole.path)
        convert_to_fp16(model)
        convolutions = [
            node for node in model.graph if node.op_type == "Conv" and str(node.name).startswith("/backbone/")
        ]
        assert len(convolutions) >= 20
        return {str(node.name) for node in convolutions if node.outputs[0].dtype is HALF}

    half = half_convolutions()
    # Two blocks of two, and a shortcut.
    assert len(half) == 5 and all(name.startswith(stage) for name in half)
    # A longer chain of residual sums keeps them all in FP32.
    monkeypatch.setattr(fp16, "FEW_SUMS", 4)
    assert half_convolutions() == set()


def test_types_in_the_graph(narrow_fp16: OnnxArtifact) -> None:
    graph = ir.load(narrow_fp16.path).graph
    for node in graph:
        if node.op_type == "Conv":
            assert {value.dtype for value in (*node.inputs, *node.outputs)} == {HALF}, node.name
        if node.op_type == "Range":
            assert node.outputs[0].dtype is ir.DataType.INT64
        if node.op_type == "Abs":
            assert node.outputs[0].dtype is FLOAT, "interpolation matrices are made in FP32"
    assert graph.inputs[0].dtype is FLOAT and graph.outputs[0].dtype is FLOAT
    weights = {value.dtype for value in graph.initializers.values() if np.prod(value.shape.numpy()) > 1000}
    assert weights == {HALF}


def test_every_fp32_node_has_its_reason(narrow_onnx: OnnxArtifact) -> None:
    model = ir.load(narrow_onnx.path)
    report = convert_to_fp16(model)
    reasons = set(report.float_nodes.values())
    assert reasons == {"after the classifier: logits are FP32", "mean over voxels: the sum leaves FP16's range"}
    assert sum("mean" in reason for reason in report.float_nodes.values()) == 24
    assert report.half_nodes > 10 * len(report.float_nodes)


def test_residual_networks_keep_the_way_into_the_attention_in_fp32(tmp_path: Path) -> None:
    network = rule_network("standard", base_channels=8, num_classes=5, seed=7)
    model = ir.load(onnx_from_network(network, CHECKPOINT, tmp_path / "fp32.onnx").path)
    report = convert_to_fp16(model)
    kept = {name for name, reason in report.float_nodes.items() if reason.startswith("way into the attention")}
    types = {node.name: node.outputs[0].dtype for node in model.graph}
    for node in model.graph:
        scope = node.name or ""
        last_stage = scope.startswith("/backbone/layers.3/")
        if node.op_type == "Conv" and not last_stage and ("/backbone/" in scope or "_attention/" in scope):
            assert scope in kept and types[scope] is FLOAT, scope
        if node.op_type == "Add" and scope.startswith("/backbone/"):
            assert scope in kept and types[scope] is FLOAT, "residual sums, the last stage's too"
        if node.op_type == "Conv" and (last_stage or "/organ_conv/" in scope or "/context_conv/" in scope):
            assert scope not in kept and types[scope] is HALF, scope


def test_a_sum_without_a_shortcut_makes_no_residual_network(narrow_onnx: OnnxArtifact) -> None:
    """The split stem adds two halves; nothing grows along such a sum."""
    model = ir.load(narrow_onnx.path)
    assert any(node.op_type == "Add" and (node.name or "").startswith("/backbone/") for node in model.graph)
    assert not any("attention" in reason for reason in convert_to_fp16(model).float_nodes.values())


def test_half_inputs_and_outputs_on_request(narrow_onnx: OnnxArtifact, tmp_path: Path) -> None:
    half, _ = fp16_from_fp32(narrow_onnx, tmp_path / "half.onnx", half_io=True)
    graph = ir.load(half.path).graph
    assert graph.inputs[0].dtype is HALF and graph.outputs[0].dtype is HALF and graph.outputs[0].name == "logits"
    image = rule_image((33, 40, 51), 3)
    with OnnxRuntimeRunner(narrow_onnx) as one, OnnxRuntimeRunner(half) as other:
        expected, found = one.infer(image), other.infer(image)
    assert found.dtype == np.float16
    assert 1e-4 < relative_l2(found.astype(np.float32), expected) <= 5e-3


def test_fp16_of_fp16_is_refused(narrow_fp16: OnnxArtifact, tmp_path: Path) -> None:
    with pytest.raises(RefusedInput, match="fp16 already"):
        fp16_from_fp32(narrow_fp16, tmp_path / "again.onnx")


def _exported(network: LHANet, folder: Path) -> OnnxArtifact:
    return onnx_from_network(network, CHECKPOINT, folder / "fp32.onnx")


def test_weights_beyond_fp16_are_named(tmp_path: Path) -> None:
    network = rule_network("lightweight", base_channels=4, num_classes=3)
    with torch.no_grad():
        network.hierarchical_pmsa.pmsa_modules["level_1"].scale_attentions[2].organ_conv.weight[0, 0, 0, 0, 0] = 7e4
    with pytest.raises(RefusedInput, match=r"pmsa\.1\.scale_attentions\.2\.organ_conv\.weight \(largest 7e\+04\)"):
        fp16_from_fp32(_exported(network, tmp_path), tmp_path / "fp16.onnx")
    assert not (tmp_path / "fp16.onnx").exists()


def test_weights_lost_in_subnormals_are_named(tmp_path: Path) -> None:
    network = rule_network("lightweight", base_channels=4, num_classes=3)
    weight = network.hierarchical_pmsa.pmsa_modules["level_1"].scale_attentions[2].organ_conv.weight
    with torch.no_grad():
        weight[0] *= 1e-9
        weight[1] = 1e-5
    _, report = fp16_from_fp32(_exported(network, tmp_path), tmp_path / "fp16.onnx")
    (loss,) = (loss for loss in report.losing if loss.name == "pmsa.1.scale_attentions.2.organ_conv.weight")
    assert loss.vanishing >= weight[0].numel() and loss.subnormal >= weight[1].numel()
    assert any(name == loss.name for name, _ in report.rows())


def _overflowing_graph() -> ir.Model:
    """x * 200 * 200 / 40000 in FP16: 1 for x = 1, infinite from x = 1.64 on, because the product leaves the range."""
    image = ir.Value(name="x", type=ir.TensorType(HALF), shape=ir.Shape([4]))
    constants = [
        ir.Value(
            name=name,
            type=ir.TensorType(HALF),
            shape=ir.Shape([]),
            const_value=ir.tensor(np.float16(number), name=name),
        )
        for name, number in (("a", 200), ("b", 1 / 200))
    ]
    value, nodes = image, []
    for index, constant in enumerate((constants[0], constants[0], constants[1], constants[1])):
        node = ir.node("Mul", [value, constant], name=f"mul{index}")
        node.outputs[0].name, node.outputs[0].dtype, node.outputs[0].shape = f"y{index}", HALF, image.shape
        nodes.append(node)
        value = node.outputs[0]
    graph = ir.Graph([image], [value], nodes=nodes, initializers=constants, opset_imports={"": 18}, name="overflow")
    return ir.Model(graph, ir_version=10)


def test_rounding_makes_overflow_visible_on_a_cpu() -> None:
    """ONNX Runtime alone computes FP16 graphs in FP32 on a CPU and shows nothing: the reason for `with_rounding`."""
    x = np.array([1, 1.5, 2, 1.0009765], np.float16)

    def run(model: ir.Model) -> np.ndarray:
        session = load_onnxruntime().InferenceSession(
            ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"]
        )
        return session.run(None, {"x": x})[0]

    plain, rounded = run(_overflowing_graph()), run(with_rounding(_overflowing_graph()))
    a, b = np.float16(200), np.float16(1 / 200)
    with np.errstate(over="ignore"):
        expected = x * a * a * b * b
    assert np.isinf(expected[2])
    np.testing.assert_array_equal(rounded, expected)
    assert np.isfinite(plain).all(), "ONNX Runtime now rounds by itself; with_rounding may go"


def test_rounding_agrees_with_torch_half(narrow_network: LHANet, narrow_fp16: OnnxArtifact) -> None:
    """Two independent ways to compute in FP16 are as far from FP32 as each other."""
    image = rule_image((33, 40, 51), 3)
    with torch.inference_mode():
        exact = narrow_network(torch.from_numpy(image)).numpy()
        half = copy.deepcopy(narrow_network).half()(torch.from_numpy(image).half()).float().numpy()
    with OnnxRuntimeRunner(narrow_fp16) as runner:
        rounded = runner.infer(image)
    assert 0.3 < relative_l2(rounded, exact) / relative_l2(half, exact) < 3


def test_onnxruntime_leaves_nothing_behind(tmp_path: Path) -> None:
    code = "from lhanet_export.runners.onnxruntime_library import load_onnxruntime; load_onnxruntime()"
    environment = {"HOME": str(tmp_path), "PATH": os.environ["PATH"]}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
    assert list(tmp_path.iterdir()) == []
