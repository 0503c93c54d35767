"""INT8 convolutions in a strongly typed FP16 graph, by explicit quantization (Q/DQ).

What is quantized: the convolutions of the branches, context and organ, and those of a ResNet's stages but for the
shortcuts, whose sums stay FP16. Everything else stays as `precision.fp16` types it. A quantized convolution stands in
the graph as

    q = QuantizeLinear(x, a)                                  int8, one scale `a` a tensor
    y = Conv(DequantizeLinear(q, a), DequantizeLinear(w, p))  int8 x int8, summed in int32, stored as FP16
    result = y * (s / p) + bias                               s: one scale an output channel

where w = round(weights / s) is int8. That is per-channel quantization; only the channels' scales stand behind the
convolution and not in it. Written inside, as DequantizeLinear with an axis, TensorRT-RTX 1.7 stores the convolution's
result in FP32 and needs more memory than an FP16 engine: planned 279 MB of activations at the two finest levels,
against 205 MB this way, and 205 MB in FP16.

`p` is a power of two, so that nothing is rounded by it, small enough that no volume whatever can take y out of
FP16's range: |y| <= a p 127 max over channels (sum of |w|). The same sum shows that int32 cannot overflow.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from lhanet_export.errors import RefusedInput
from lhanet_export.export.artifact import OnnxArtifact, save_onnx
from lhanet_export.export.work import multiply_adds_of
from lhanet_export.precision.calibrate import Ranges, graph_sha256
from lhanet_export.precision.channels import ChannelWeights, quantize_weights
from lhanet_export.precision.fp16 import Fp16Report, convert_to_fp16
from lhanet_export.precision.scales import LEVELS, bound_of
from lhanet_export.precision.silent import silent_bounds
from lhanet_export.progress import SILENT, Progress

INT8, FLOAT, HALF = ir.DataType.INT8, ir.DataType.FLOAT, ir.DataType.FLOAT16
#: The first operator set in which QuantizeLinear takes FP16. Nothing else that a graph of this network holds has
#: changed its meaning since 18.
OPSET = 19
#: The rewrite that a graph for INT8 has to do without (`check_source`).
NOT_FOR_INT8 = "short-convolutions"
#: The smallest scale of a tensor. Below FP16's smallest normal number it has fewer digits, but it is exact as it is
#: stored, and the steps of the tensor itself, 2^-24 there, are still much finer than it.
SMALLEST_SCALE = 2.0**-20
#: A context or an organ convolution, one of a residual block, or one of the light backbone's two coarse blocks, which
#: have 94 % of its weights, by the scopes in the names of nodes.
_QUANTIZED = re.compile(
    r"/scale_attentions\.\d+/(context_conv|organ_conv)/|/backbone/(layers\.\d+/[^/]+/conv[12]|encoder_blocks\.[23])/"
)
#: What reads the image. At full width it does 1 % of the multiply-adds, at an eighth of it 9 %.
_STEM = re.compile(r"^/backbone/(conv1|initial_conv)\b")
#: Why other convolutions are not quantized, by their names.
_KEPT = (
    (re.compile(r"/(spatial|channel)_attention/"), "attention: sigmoids amplify its rounding"),
    (re.compile(r"/gate_conv/"), "gate: one number for a whole map hangs on it"),
    (re.compile(r"fusion"), "fusion: 1 % of the multiply-adds; INT8 copies of its inputs take twice the memory"),
    (re.compile(r"^/backbone/(conv1|initial_conv|strided_conv)"), "stem: it reads the image"),
    (re.compile(r"/downsample/"), "shortcut: 1 % of the multiply-adds"),
    (re.compile(r"^/backbone/"), "light backbone at its fine levels: few weights, and every level reads it"),
    (re.compile(r"^/classifier/"), "classifier: what it makes are the logits"),
)


@dataclass(frozen=True, kw_only=True)
class Convolution:
    """A convolution of a graph by its name, the tensor that it reads, and why it is not quantized, if it is not."""

    name: str
    tensor: str
    reason: str | None


@dataclass(frozen=True, kw_only=True)
class Int8Options:
    """How scales are found: a method of `scales.METHODS` for activations, one of `channels.CLIPS` for weights.

    `keep` names convolutions that stay in FP16, with the reason. `stem` quantizes the convolution of the image, too.
    """

    method: str = "mse"
    clip: str = "max"
    stem: bool = False
    keep: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class QuantizedLayer:
    """What quantization did to one convolution.

    `scale` is the input's; `clipped` the share of its values (other than 0) beyond it on the calibration volumes;
    `silent` whether they were all 0, and the scale follows from the layer before (`precision.silent`).
    `weight_noise` is the weights' squared error relative to their squares.
    """

    name: str
    tensor: str
    scale: float
    clipped: float
    silent: bool
    weight_noise: float
    weights: int


@dataclass(frozen=True, kw_only=True)
class Int8Report:
    """What became INT8, what did not and why, and what share of the network's multiply-adds that is."""

    layers: tuple[QuantizedLayer, ...]
    kept: Mapping[str, str]
    multiply_adds: Mapping[str, int]
    share: float
    fp16: Fp16Report = field(repr=False)

    def rows(self) -> list[tuple[str, str]]:
        """The report as names and values for a reader."""
        rows = [
            ("INT8 convolutions", f"{len(self.layers)}, {self.share:.1%} of the multiply-adds"),
            ("INT8 weights", f"{sum(layer.weights for layer in self.layers):,}"),
        ]
        rows += [(f"{count} convolutions in FP16", reason) for reason, count in Counter(self.kept.values()).items()]
        return rows + self.fp16.rows()

    def as_json(self) -> dict[str, Any]:
        """The same facts as JSON values, layer by layer."""
        return {
            "share_of_multiply_adds": self.share,
            "layers": [{**asdict(layer), "multiply_adds": self.multiply_adds[layer.name]} for layer in self.layers],
            "kept": dict(self.kept),
            **self.fp16.as_json(),
        }


def int8_from_fp32(
    source: OnnxArtifact,
    ranges: Ranges,
    path: Path,
    *,
    options: Int8Options = Int8Options(),
    biases: Mapping[str, np.ndarray] = MappingProxyType({}),
    half_io: bool = False,
    progress: Progress = SILENT,
) -> tuple[OnnxArtifact, Int8Report]:
    """Write the INT8 form of an FP32 ONNX file with its sidecar, which names the source by its SHA-256.

    `biases` replaces the biases (O,) of convolutions, by name. `RefusedInput` where the ranges are of another
    graph, or lack a tensor, where no scale follows from them, and where weights that stay FP16 are beyond its
    range. Nothing is written then.
    """
    check_source(source)
    if ranges.key.graph != graph_sha256(source):
        raise RefusedInput(f"the ranges are of another graph than {source.path}; measure them on this one")
    with progress.step("convert to INT8"):
        model = ir.load(source.path)
        kept = {conv.name: conv.reason for conv in convolutions(model, options) if conv.reason is not None}
        layers = quantize(model, ranges, options, biases=biases)
        halves = to_fp16(model, half_io=half_io)
        if halves.overflowing:
            named = ", ".join(f"{loss.name} (largest {loss.largest:.3g})" for loss in halves.overflowing[:8])
            raise RefusedInput(f"{len(halves.overflowing)} weight tensors are beyond FP16's range of 65,504: {named}")
        facts = {
            **source.facts,
            "precision": "int8",
            "half_io": half_io,
            "parent_sha256": source.sha256,
            "int8": {
                "method": options.method,
                "clip": options.clip,
                "stem": options.stem,
                "ranges_sha256": ranges.key.sha256,
                "volumes": len(ranges.key.images),
                "corrected_biases": len(biases),
            },
        }
        artifact = save_onnx(model, path, facts)
    multiply_adds = multiply_adds_of(source.path, source.spatial.opt)
    report = Int8Report(
        layers=layers,
        kept=kept,
        multiply_adds={layer.name: multiply_adds[layer.name] for layer in layers},
        share=sum(multiply_adds[layer.name] for layer in layers) / sum(multiply_adds.values()),
        fp16=halves,
    )
    return artifact, report


def check_source(source: OnnxArtifact) -> None:
    """Refuse a graph that INT8 is not made from: of another precision, or with large convolutions in short form."""
    if source.precision != "fp32":
        raise RefusedInput(f"{source.path} is {source.precision} already; INT8 is made from the FP32 graph")
    if NOT_FOR_INT8 in source.facts["rewrites"]:
        raise RefusedInput(
            f"{source.path} has its large convolutions in a short form, which trades exactness of small integers for "
            "multiply-adds; export it again with --without short-convolutions"
        )


def convolutions(model: ir.Model, options: Int8Options = Int8Options()) -> tuple[Convolution, ...]:
    """Every convolution of an FP32 graph in its order; `RefusedInput` for one to keep that the graph does not have."""
    found = [node for node in model.graph if node.op_type == "Conv"]
    unknown = sorted(set(options.keep) - {node.name for node in found})
    if unknown:
        raise RefusedInput(f"the graph has no convolutions named {', '.join(unknown[:4])}")
    return tuple(
        Convolution(name=str(node.name), tensor=str(node.inputs[0].name), reason=_reason(str(node.name), options))
        for node in found
        if node.inputs[0] is not None
    )


def _reason(name: str, options: Int8Options) -> str | None:
    if name in options.keep:
        return options.keep[name]
    if _QUANTIZED.search(name) or (options.stem and _STEM.search(name)):
        return None
    return next((reason for pattern, reason in _KEPT if pattern.search(name)), "no context or organ convolution")


def result_of(graph: ir.Graph, name: str) -> ir.Value:
    """What comes out of a convolution with its bias, whether `quantize` has replaced it or not."""
    nodes = {node.name: node for node in graph}
    scope = name.rpartition("/")[0]
    made = (nodes.get(f"{scope}/Add"), nodes.get(f"{scope}/Mul"), nodes[name])
    return next(node for node in made if node is not None).outputs[0]


def quantized_tensors(source: OnnxArtifact, options: Int8Options = Int8Options()) -> tuple[str, ...]:
    """The tensors of an FP32 graph whose ranges `int8_from_fp32` may need; refuses what that refuses."""
    check_source(source)
    convs = convolutions(ir.load(source.path), replace(options, stem=True))
    return tuple(dict.fromkeys(conv.tensor for conv in convs if conv.reason is None))


def quantize(
    model: ir.Model,
    ranges: Ranges,
    options: Int8Options,
    *,
    only: Collection[str] | None = None,
    biases: Mapping[str, np.ndarray] = MappingProxyType({}),
) -> tuple[QuantizedLayer, ...]:
    """Put Q/DQ around the convolutions of an FP32 graph, in place: it stays FP32 and computes what INT8 would.

    `only` quantizes those of these names, not all that can be. `biases` as in `int8_from_fp32`.
    """
    chosen = {
        conv.name
        for conv in convolutions(model, options)
        if conv.reason is None and (only is None or conv.name in only)
    }
    inserter = _Inserter(model, ranges, options, biases)
    layers = tuple(inserter.quantize(node) for node in list(model.graph) if node.name in chosen)
    model.opset_imports[""] = OPSET
    RemoveUnusedNodesPass()(model)
    return layers


def to_fp16(model: ir.Model, *, half_io: bool = False) -> Fp16Report:
    """Type a graph that `quantize` made as FP16, in place, what its weights are dequantized to included."""
    report = convert_to_fp16(model, half_io=half_io)
    graph = model.graph
    for node in graph:
        if node.op_type != "DequantizeLinear" or node.inputs[0] is None or not node.inputs[0].is_initializer():
            continue
        # The conversion took weights for what does not depend on the image, and cast what follows from them. A cast
        # between would keep a builder from seeing that these are weights in INT8.
        scale, result = node.inputs[1], node.outputs[0]
        if any(use.node.op_type != "Cast" for use in result.uses()):
            continue  # of a convolution that stays FP32
        assert scale is not None and scale.const_value is not None
        values = scale.const_value.numpy().astype(np.float16)
        node.replace_input_with(1, initializer(graph, f"{scale.name}_half", values))
        result.dtype = HALF
        for use in result.uses():
            use.node.outputs[0].replace_all_uses_with(result)
    RemoveUnusedNodesPass()(model)
    return report


class _Inserter:
    """Puts Q/DQ around convolutions of one graph; tensors that several of them read are quantized once."""

    def __init__(self, model: ir.Model, ranges: Ranges, options: Int8Options, biases: Mapping[str, np.ndarray]) -> None:
        self._graph, self._ranges, self._options, self._biases = model.graph, ranges, options, biases
        self._silent = silent_bounds(model, ranges.tensors)
        self._zero = initializer(model.graph, "zero_point", np.array(0, np.int8))
        self._inputs: dict[ir.Value, tuple[ir.Value, float]] = {}

    def quantize(self, node: ir.Node) -> QuantizedLayer:
        """Replace one convolution by its quantized form."""
        name, (source, weight, *rest) = str(node.name), node.inputs
        assert source is not None and weight is not None and weight.const_value is not None
        quantized, scale = self._input(source, node)
        weights = weight.const_value.numpy()
        channels = quantize_weights(
            name, weights, input_scale=scale, input_is_positive=_is_positive(source), clip=self._options.clip
        )
        graph, scope = self._graph, name.rpartition("/")[0]
        node.replace_input_with(0, quantized)
        node.replace_input_with(1, self._weights(weight, channels, node, scope))
        node.resize_inputs(2)
        biases = self._biases.get(name)
        if biases is None and rest and rest[0] is not None and rest[0].const_value is not None:
            biases = rest[0].const_value.numpy()
        raw = node.outputs[0]
        sides = (1, -1) + (1,) * (weights.ndim - 2)
        factors = initializer(graph, f"{scope}/factors", channels.factors.reshape(sides))
        made = [_node("Mul", [raw, factors], f"{scope}/Mul", like=raw)]
        if biases is not None:
            terms = initializer(graph, f"{scope}/biases", biases.astype(np.float32).reshape(sides))
            made.append(_node("Add", [made[0].outputs[0], terms], f"{scope}/Add", like=raw))
        raw.replace_all_uses_with(made[-1].outputs[0], replace_graph_outputs=True)
        made[0].replace_input_with(0, raw)
        graph.insert_after(node, made)
        return QuantizedLayer(
            name=name,
            tensor=str(source.name),
            scale=scale,
            clipped=self._ranges.tensors[str(source.name)].clipped(scale * LEVELS),
            silent=str(source.name) in self._silent,
            weight_noise=channels.noise,
            weights=weights.size,
        )

    def _input(self, value: ir.Value, reader: ir.Node) -> tuple[ir.Value, float]:
        """A value as it comes out of its Q/DQ pair, which stands before `reader`, and its scale."""
        if value not in self._inputs:
            number = self._scale(str(value.name))
            scale = initializer(self._graph, f"{value.name}_scale", np.array(number, np.float32))
            scope = str(reader.name).rpartition("/")[0]
            down = _node("QuantizeLinear", [value, scale, self._zero], f"{scope}/QuantizeLinear", like=value)
            down.outputs[0].dtype = INT8
            up = _node(
                "DequantizeLinear", [down.outputs[0], scale, self._zero], f"{scope}/DequantizeLinear", like=value
            )
            self._graph.insert_before(reader, [down, up])
            self._inputs[value] = up.outputs[0], number
        return self._inputs[value]

    def _scale(self, tensor: str) -> float:
        """The scale of a tensor, exact in FP16."""
        seen = self._ranges.tensors.get(tensor)
        if seen is None:
            raise RefusedInput(f"there is no range of {tensor}; measure the ranges again")
        bound = largest = self._silent.get(tensor, seen.largest)
        if tensor not in self._silent:
            bound = bound_of(tensor, seen, self._options.method)
        # A method may clip at a small part of what was seen; the smallest scale then clips less than it wants.
        scale = max(float(np.float16(bound / LEVELS)), SMALLEST_SCALE)
        if largest < SMALLEST_SCALE * LEVELS or not scale < np.inf:
            raise RefusedInput(
                f"{tensor} goes up to {largest:.3g} on the calibration volumes: FP16 has no scale for that"
            )
        return scale

    def _weights(self, weight: ir.Value, channels: ChannelWeights, reader: ir.Node, scope: str) -> ir.Value:
        values = initializer(self._graph, f"{weight.name}_int8", channels.values)
        scale = initializer(self._graph, f"{weight.name}_scale", np.array(channels.multiplier, np.float32))
        up = _node("DequantizeLinear", [values, scale, self._zero], f"{scope}/DequantizeLinear_weight", like=weight)
        self._graph.insert_before(reader, up)
        return up.outputs[0]


def _is_positive(value: ir.Value) -> bool:
    producer = value.producer()
    return producer is not None and producer.op_type == "Relu"


def _node(operator: str, inputs: Sequence[ir.Value], name: str, *, like: ir.Value) -> ir.Node:
    """A node whose one result has the type and size of another value."""
    node = ir.node(operator, inputs, name=name)
    result = node.outputs[0]
    result.name, result.dtype, result.shape = f"{name}_output_0", FLOAT, like.shape
    return node


def initializer(graph: ir.Graph, name: str, values: np.ndarray) -> ir.Value:
    """A constant of this name that is added to the graph."""
    value = ir.Value(
        name=name,
        shape=ir.Shape(values.shape),
        type=ir.TensorType(ir.DataType.from_numpy(values.dtype)),
        const_value=ir.tensor(values, name=name),
    )
    graph.register_initializer(value)
    return value
