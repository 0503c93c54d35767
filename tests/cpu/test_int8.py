"""INT8 where it says so, computed as int8 x int8, and no volume can take it out of FP16's range."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from lhanet_export.errors import RefusedInput
from lhanet_export.export.artifact import OnnxArtifact
from lhanet_export.export.onnx_from_network import ExportOptions, onnx_from_network
from lhanet_export.model.rule import rule_network
from lhanet_export.precision.calibrate import CalibrationImage, Ranges, calibrate
from lhanet_export.precision.channels import quantize_weights
from lhanet_export.precision.choose import without_scale
from lhanet_export.precision.convert import fp16_from_fp32
from lhanet_export.precision.int8 import (
    Int8Options,
    convolutions,
    int8_from_fp32,
    quantize,
    quantized_tensors,
    to_fp16,
)
from lhanet_export.precision.rounding import with_rounding
from lhanet_export.precision.scales import BINS, Magnitudes
from lhanet_export.precision.sessions import GraphSession
from lhanet_export.verify.inputs import bodies
from tests.cpu.conftest import CHECKPOINT
from tests.cpu.test_export import relative_l2

HALF, FLOAT, INT8 = ir.DataType.FLOAT16, ir.DataType.FLOAT, ir.DataType.INT8
SHAPE = (32, 33, 36)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> OnnxArtifact:
    path: Path = tmp_path_factory.mktemp("int8") / "fp32.onnx"
    network = rule_network("lightweight", base_channels=4, num_classes=5, seed=6)
    return onnx_from_network(network, CHECKPOINT, path, ExportOptions(without=("short-convolutions",)))


@pytest.fixture(scope="module")
def ranges(source: OnnxArtifact) -> Ranges:
    images = [CalibrationImage(name=f"bodies {seed}", voxels=bodies(SHAPE, seed)) for seed in range(4)]
    return calibrate(source, images, quantized_tensors(source))


@pytest.fixture(scope="module")
def quantized(source: OnnxArtifact, ranges: Ranges) -> ir.Model:
    """The FP32 graph with Q/DQ."""
    model = ir.load(source.path)
    quantize(model, ranges, Int8Options())
    return model


def test_int8_follows_fp32(source: OnnxArtifact, ranges: Ranges, tmp_path: Path) -> None:
    artifact, report = int8_from_fp32(source, ranges, tmp_path / "int8.onnx")
    onnx.checker.check_model(str(artifact.path), full_check=True)
    image = bodies(SHAPE, 11)
    expected = GraphSession(ir.load(source.path), source).output(image)
    found = GraphSession(with_rounding(ir.load(artifact.path)), artifact).output(image)
    # Below: not INT8 at all. A step of INT8 is 8e-3 of the largest value.
    assert 2e-3 < relative_l2(found, expected) < 0.1
    assert report.share >= 0.85, "of the narrowest network; resizes and attention weigh more there"
    assert len(report.layers) == 44 and sum(layer.weights for layer in report.layers) > 0.9 * _weights(source)
    assert artifact.facts["precision"] == "int8" and artifact.facts["parent_sha256"] == source.sha256
    assert artifact.facts["int8"]["ranges_sha256"] == ranges.key.sha256


def _weights(source: OnnxArtifact) -> int:
    return sum(int(np.prod(value.shape.numpy())) for value in ir.load(source.path).graph.initializers.values())


def test_types_in_the_graph(source: OnnxArtifact, ranges: Ranges) -> None:
    model = ir.load(source.path)
    layers = quantize(model, ranges, Int8Options())
    to_fp16(model)
    names = {layer.name for layer in layers}
    for node in model.graph:
        if node.op_type != "Conv":
            continue
        producers = [value.producer() for value in node.inputs if value is not None]
        if node.name not in names:
            assert not any(producer and producer.op_type == "DequantizeLinear" for producer in producers)
            continue
        assert [producer and producer.op_type for producer in producers] == ["DequantizeLinear"] * 2, "and no bias"
        # Nothing stands between: a builder has to see int8 tensors that are multiplied.
        assert [_quantized_by(producer).dtype for producer in producers] == [INT8] * 2
        assert {value.dtype for value in (*node.inputs, *node.outputs)} == {HALF}
        assert {producer.inputs[1].dtype for producer in producers if producer} == {HALF}
    sizes = {INT8: 0, HALF: 0, FLOAT: 0}
    for value in model.graph.initializers.values():
        if value.dtype in sizes:
            sizes[value.dtype] += int(np.prod(value.shape.numpy()))
    # Each weight is stored once: the FP16 form of what is INT8 is gone.
    assert sizes[INT8] > 10 * sizes[HALF] and sizes[FLOAT] < 5000


def _quantized_by(node: ir.Node | None) -> ir.Value:
    assert node is not None and node.inputs[0] is not None
    return node.inputs[0]


def test_what_is_computed_is_an_integer_convolution(source: OnnxArtifact, quantized: ir.Model) -> None:
    """Of one convolution, from the int8 numbers that stand in the graph."""
    name = "/pmsa.3/scale_attentions.2/organ_conv/Conv"
    nodes = {node.name: node for node in quantized.graph}
    conv, add = nodes[name], nodes[name.replace("Conv", "Add")]
    down = nodes["/pmsa.3/scale_attentions.2/organ_conv/QuantizeLinear"]
    asked = [str(value.name) for value in (down.inputs[0], down.outputs[0], add.outputs[0]) if value is not None]
    session = GraphSession(quantized, source, asked)
    real, integers, result = session.values(asked, bodies(SHAPE, 11)).values()
    scale = _constant(down, 1)
    assert integers.dtype == np.int8 and integers.min() == 0 and integers.max() > 60
    assert np.array_equal(integers, np.clip(np.rint(real / scale), -128, 127))
    up = conv.inputs[1].producer() if conv.inputs[1] is not None else None
    assert up is not None
    weights, multiplier = _constant(up, 0), _constant(up, 1)
    assert weights.dtype == np.int8
    padded = np.pad(integers[0].astype(np.int64), ((0, 0), (2, 2), (2, 2), (2, 2)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (5, 5, 5), (1, 2, 3))
    sums = np.einsum("idhwxyz,oixyz->odhw", windows, weights.astype(np.int64))
    factors = _constant(nodes[name.replace("Conv", "Mul")], 1)[0]
    expected = sums * float(scale * multiplier) * factors + _constant(add, 1)[0]
    assert np.abs(result[0] - expected).max() <= 1e-5 * np.abs(expected).max()


def _constant(node: ir.Node, index: int) -> np.ndarray:
    value = node.inputs[index]
    assert value is not None and value.const_value is not None
    return value.const_value.numpy()


def test_no_volume_leaves_the_range_of_fp16(source: OnnxArtifact, quantized: ir.Model) -> None:
    raw = [str(node.outputs[0].name) for node in quantized.graph if _is_quantized(node)]
    session = GraphSession(quantized, source, raw)
    for image in (1e4 * bodies(SHAPE, 11), np.full((1, 1, *SHAPE), 1e6, np.float32)):
        largest = {name: np.abs(values).max() for name, values in session.values(raw, image).items()}
        assert max(largest.values()) <= 2.0**15
        # They were driven far: the bound is not met because nothing happened.
        assert max(largest.values()) >= 100


def _is_quantized(node: ir.Node) -> bool:
    producer = node.inputs[0].producer() if node.op_type == "Conv" and node.inputs[0] is not None else None
    return producer is not None and producer.op_type == "DequantizeLinear"


def test_scales_are_exact_in_fp16(quantized: ir.Model) -> None:
    checked = 0
    for node in quantized.graph:
        for index in range(1, 3):
            name = str(node.inputs[index].name) if len(node.inputs) > index and node.inputs[index] is not None else ""
            if name.endswith(("_scale", "/factors")):
                values = _constant(node, index)
                assert np.array_equal(values, values.astype(np.float16)) and (values >= 6.1e-5).all()
                checked += 1
    assert checked == 44 * 4


def test_kept_convolutions_stay(source: OnnxArtifact, ranges: Ranges, tmp_path: Path) -> None:
    name = "/pmsa.0/scale_attentions.4/organ_conv/Conv"
    _, report = int8_from_fp32(
        source, ranges, tmp_path / "int8.onnx", options=Int8Options(keep={name: "because of a test"})
    )
    assert report.kept[name] == "because of a test" and len(report.layers) == 43
    assert report.share < 0.7, "a third of all multiply-adds is in this one"
    reasons = {conv.name: conv.reason for conv in convolutions(ir.load(source.path))}
    assert sum(reason is None for reason in reasons.values()) == 44
    stem, fine, coarse = "/backbone/initial_conv", "/backbone/encoder_blocks.1/", "/backbone/encoder_blocks.3/"
    for scope in ("_attention/", "/gate_conv/", "fusion", "/classifier/", stem, fine):
        kept = [reason for conv, reason in reasons.items() if scope in conv]
        assert kept and all(kept)
    assert [reason for conv, reason in reasons.items() if coarse in conv] == [None, None]
    with pytest.raises(RefusedInput, match="no convolutions named /nowhere"):
        quantized_tensors(source, Int8Options(keep={"/nowhere": "?"}))


def test_biases_are_replaced(source: OnnxArtifact, ranges: Ranges) -> None:
    name = "/pmsa.3/scale_attentions.2/organ_conv/Conv"
    model = ir.load(source.path)
    quantize(model, ranges, Int8Options(), biases={name: np.arange(64, dtype=np.float32)})
    add = next(node for node in model.graph if node.name == name.replace("Conv", "Add"))
    assert _constant(add, 1).ravel().tolist() == list(range(64))


def test_only_some_are_quantized(source: OnnxArtifact, ranges: Ranges) -> None:
    name = "/pmsa.3/scale_attentions.2/organ_conv/Conv"
    model = ir.load(source.path)
    assert [layer.name for layer in quantize(model, ranges, Int8Options(), only={name})] == [name]
    assert [node.name for node in model.graph if _is_quantized(node)] == [name]


def test_other_graphs_are_refused(source: OnnxArtifact, ranges: Ranges, tmp_path: Path) -> None:
    path = tmp_path / "int8.onnx"
    half, _ = fp16_from_fp32(source, tmp_path / "fp16.onnx")
    short = onnx_from_network(rule_network("lightweight", base_channels=4), CHECKPOINT, tmp_path / "short.onnx")
    plain = ExportOptions(without=("short-convolutions",))
    other = onnx_from_network(rule_network("lightweight", base_channels=4), CHECKPOINT, tmp_path / "other.onnx", plain)
    for graph, message in (
        (half, "is fp16 already"),
        (short, "export it again with --without short-convolutions"),
        (other, "ranges are of another graph"),
    ):
        with pytest.raises(RefusedInput, match=message):
            int8_from_fp32(graph, ranges, path)
    some = Ranges(key=ranges.key, tensors=dict(list(ranges.tensors.items())[1:]))
    with pytest.raises(RefusedInput, match="there is no range of"):
        int8_from_fp32(source, some, path)
    assert not path.exists()


@pytest.mark.parametrize("clip", ["max", "mse"])
def test_weights_are_rounded_channel_by_channel(clip: str) -> None:
    generator = np.random.default_rng(0)
    # Channels of very different size, one of them all 0.
    sizes = np.array([1e-4, 1.0, 30.0, 0.0, 0.1], np.float32)
    weights = generator.standard_normal((5, 8, 3, 3, 3), np.float32) * sizes[:, None, None, None, None]
    made = quantize_weights("conv", weights, input_scale=0.02, input_is_positive=True, clip=clip)
    scales = made.factors * np.float32(made.multiplier)
    again = made.values * scales[:, None, None, None, None]
    assert made.values.dtype == np.int8 and np.abs(made.values.astype(int)).max() == 127
    assert np.log2(made.multiplier) % 1 == 0
    error = np.abs(again - weights).max((1, 2, 3, 4))
    if clip == "max":
        assert (error <= 0.502 * scales).all()
    for channel in (1, 2, 4):
        noise = np.square(again[channel] - weights[channel]).sum() / np.square(weights[channel]).sum()
        assert noise < 2e-4
    assert made.noise == pytest.approx(np.square(again - weights).sum() / np.square(weights).sum(), rel=1e-3)


def test_clipping_by_squared_error_is_no_worse() -> None:
    # One weight far from the others sets the step of all of them, unless it is clipped.
    weights = np.random.default_rng(0).standard_normal((2, 300, 7, 7, 7)).astype(np.float32)
    weights[:, 0, 0, 0, 0] = 8
    noises = [
        quantize_weights("conv", weights, input_scale=0.02, input_is_positive=True, clip=clip).noise
        for clip in ("max", "mse")
    ]
    assert noises[1] < 0.8 * noises[0]


def test_weights_that_have_no_int8_form_are_refused() -> None:
    good = np.ones((2, 3, 3, 3, 3), np.float32)
    broken = good.copy()
    broken[0, 0, 0, 0, 0] = np.inf
    # 160,000 products of 127 x 127 in one direction are beyond int32.
    long = np.ones((1, 160_000), np.float32)
    for weights, clip, message in (
        (broken, "max", "weights of conv hold NaN or infinity"),
        (long, "max", "could leave the range of int32"),
        (good, "random", "no way 'random' to clip weights"),
    ):
        with pytest.raises(RefusedInput, match=message):
            quantize_weights("conv", weights, input_scale=0.02, input_is_positive=True, clip=clip)


def test_small_activations_keep_the_weights_digits() -> None:
    weights = 0.05 * np.random.default_rng(0).standard_normal((4, 8, 3, 3, 3)).astype(np.float32)
    for input_scale in (0.02, 5e-5, 2.0**-20):
        made = quantize_weights("conv", weights, input_scale=input_scale, input_is_positive=True)
        assert made.noise < 1e-4 and (np.abs(made.values.astype(int)).max((1, 2, 3, 4)) >= 126).all()
        # Ten in a sum of integers is a number that FP16 has.
        assert made.multiplier * input_scale * 10 > 2.0**-24


def test_tiny_activations_are_refused(source: OnnxArtifact, ranges: Ranges) -> None:
    name, seen = next(iter(ranges.tensors.items()))
    tiny = type(seen)(minimum=0, maximum=1e-6, counts=seen.counts)
    broken = Ranges(key=ranges.key, tensors={**ranges.tensors, name: tiny})
    with pytest.raises(RefusedInput, match="FP16 has no scale for"):
        quantize(ir.load(source.path), broken, Int8Options())
    # They can be kept instead, and nothing else is.
    assert without_scale(source, ranges, Int8Options()) == {}
    keep = without_scale(source, broken, Int8Options())
    assert {conv.tensor for conv in convolutions(ir.load(source.path)) if conv.name in keep} == {name}
    quantize(ir.load(source.path), broken, Int8Options(keep=keep))


ORGAN = "/pmsa.1/scale_attentions.2/organ_conv"


def _silenced(ranges: Ranges, tensor: str) -> Ranges:
    """The ranges as they were if a tensor had been 0 on every volume."""
    never = Magnitudes(minimum=0, maximum=0, counts=np.zeros(BINS))
    return Ranges(key=ranges.key, tensors={**ranges.tensors, tensor: never})


def test_a_branch_that_was_never_seen_alive_gets_the_bound_of_its_weights(source: OnnxArtifact, ranges: Ranges) -> None:
    plain = {node.name: node for node in ir.load(source.path).graph}
    tensor = str(plain[f"{ORGAN}/Conv"].inputs[0].name)
    silenced = _silenced(ranges, tensor)
    assert without_scale(source, silenced, Int8Options()) == {}
    model = ir.load(source.path)
    layer = next(one for one in quantize(model, silenced, Int8Options()) if one.tensor == tensor)

    before = plain[f"{ORGAN.replace('organ_conv', 'context_conv/context_conv.0')}/Conv"]
    weights, biases = _constant(before, 1), _constant(before, 2)
    bound = (np.abs(weights).sum((1, 2, 3, 4)) * ranges.tensors[str(before.inputs[0].name)].largest + biases).max()
    assert layer.silent and layer.clipped == 0
    assert layer.scale == pytest.approx(bound / 127, rel=1e-3)
    # Should it wake on some other volume after all, nothing of it is cut off.
    down = next(node for node in model.graph if node.name == f"{ORGAN}/QuantizeLinear")
    asked = [str(down.inputs[0].name), f"{ORGAN}/DequantizeLinear_output_0"]
    real, stored = GraphSession(model, source, asked).values(asked, bodies(SHAPE, 11)).values()
    assert real.max() > 0 and np.abs(stored - real).max() <= 0.501 * layer.scale


def test_what_nothing_bounds_has_no_scale(source: OnnxArtifact, ranges: Ranges) -> None:
    # Attention's result: no convolution and ReLU stand before it.
    context = ORGAN.replace("organ_conv", "context_conv/context_conv.0/Conv")
    tensor = next(conv.tensor for conv in convolutions(ir.load(source.path)) if conv.name == context)
    silenced = _silenced(ranges, tensor)
    with pytest.raises(RefusedInput, match="is 0 everywhere on the calibration volumes"):
        quantize(ir.load(source.path), silenced, Int8Options())
    assert context in without_scale(source, silenced, Int8Options())
    # Nor is there one behind a convolution of which nothing was seen either.
    behind = str({node.name: node for node in ir.load(source.path).graph}[f"{ORGAN}/Conv"].inputs[0].name)
    assert set(without_scale(source, _silenced(silenced, behind), Int8Options())) >= {context, f"{ORGAN}/Conv"}
