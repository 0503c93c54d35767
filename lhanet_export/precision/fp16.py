"""A strongly typed FP16 graph from an FP32 one.

TensorRT 11 and TensorRT-RTX take precision from the graph: there are no precision flags any more.
So the types are decided here, in the ONNX file, where they can be read and checked on any machine.

Everything runs in FP16 but for a few islands, each with its reason:

- What does not depend on the image: interpolation matrices follow from indices, and at index 200
  FP16 has a step of 0.125. They are computed in FP32 and cast once, where they meet image data.
- Means over voxels: a sum over a million voxels leaves FP16's range and precision.
- What follows the classifier: the logits are FP32 and so few that resizing them costs nothing more.
- In networks whose backbone adds residuals, the way into the attention: the sums grow along the
  backbone, and the attention's sigmoids turn a rounding error of a large number into another weight
  for a whole channel or voxel. Where such sums are few, the convolutions of the backbone's last stage
  stay FP16: they are most of its memory, and the sums that they add to stay FP32.
  docs/measurements/ has what it costs and what it is worth.
- Graph inputs and outputs, unless asked otherwise: applications hand over FP32 volumes.
- What a precision recipe names (`precision.recipe`): found by search, where a network needs more than this rule.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass, ShapeInferencePass

from lhanet_export.errors import RefusedInput

FLOAT, HALF = ir.DataType.FLOAT, ir.DataType.FLOAT16
#: From here on FP16 rounds to infinity: half a step above its largest number, 65,504.
HALF_OVERFLOW = 65520.0
HALF_LARGEST = float(np.finfo(np.float16).max)
#: Below this magnitude FP16 has fewer than its 11 significant bits.
HALF_SMALLEST_NORMAL = float(np.finfo(np.float16).smallest_normal)
#: The smallest number above 0.
HALF_SMALLEST = float(np.finfo(np.float16).smallest_subnormal)
#: Modules of the network whose names the tracer puts into the names of their nodes.
_ATTENTION_SCOPES = ("/spatial_attention/", "/channel_attention/")
#: The last stage of a ResNet backbone, whose convolutions stay FP16: they have 25 of the 33 million weights of the
#: standard backbone. A stage more would cost labels: 98.5 % of them equal on the worst of 20 volumes.
_LAST_STAGE = re.compile(r"/backbone/(layers\.3|layer4)/")
#: But only in a backbone of at most so many blocks with an identity as their shortcut: standard has 5. high_capacity
#: has 13, and with its last stage in FP16 a relative error of 7.9e-3 on the worst of 20 volumes, in place of 3.4e-3.
FEW_SUMS = 5


@dataclass(frozen=True, kw_only=True)
class WeightLoss:
    """What one weight tensor loses in FP16.

    Values out of range become infinite, values below the smallest normal number keep fewer than
    11 significant bits, and those below half the smallest subnormal become 0 (counted apart).
    """

    name: str
    size: int
    largest: float
    overflowing: int
    subnormal: int
    vanishing: int


@dataclass(frozen=True, kw_only=True)
class Fp16Report:
    """What the conversion did: nodes by type, the reason of each FP32 node, weights that suffer."""

    half_nodes: int
    float_nodes: dict[str, str] = field(repr=False)
    weight_losses: tuple[WeightLoss, ...]

    def rows(self) -> list[tuple[str, str]]:
        """The report as names and values for a reader; each tensor that loses much is named."""
        rows = [("FP16 nodes", str(self.half_nodes))]
        rows += [(f"{count} FP32 nodes", reason) for reason, count in Counter(self.float_nodes.values()).items()]
        for loss in self.losing:
            rows.append(
                (loss.name, f"{loss.vanishing:,} of {loss.size:,} values become 0, {loss.subnormal:,} lose digits")
            )
        rows.append(
            (
                "weights losing digits",
                f"{len(self.weight_losses)} tensors, {len(self.losing)} of them in over 1 % of values",
            )
        )
        return rows

    def as_json(self) -> dict[str, Any]:
        """The same facts as JSON values."""
        return {
            "half_nodes": self.half_nodes,
            "float_nodes": self.float_nodes,
            "weight_losses": [asdict(loss) for loss in self.weight_losses],
        }

    @property
    def losing(self) -> tuple[WeightLoss, ...]:
        """Weights of which more than one value in a hundred is lost in FP16's subnormals."""
        return tuple(loss for loss in self.weight_losses if loss.subnormal + loss.vanishing > loss.size / 100)

    @property
    def overflowing(self) -> tuple[WeightLoss, ...]:
        """Weights with values beyond FP16's range: the graph computes infinities with them."""
        return tuple(loss for loss in self.weight_losses if loss.overflowing)


def convert_to_fp16(
    model: ir.Model, *, half_io: bool = False, keep: Mapping[str, str] = MappingProxyType({})
) -> Fp16Report:
    """Turn an FP32 graph into a strongly typed FP16 one, in place.

    `half_io` makes the volume (N,1,D,H,W) and floating outputs FP16 too. `keep` gives names of nodes that stay
    FP32 beyond the rule, with their reasons; `RefusedInput` for a name that no node on image data has. The
    result holds every weight in one type only, unless an FP32 and an FP16 node share it.
    """
    ShapeInferencePass()(model)
    graph = model.graph
    if half_io:
        for value in graph.inputs:
            value.dtype = HALF
    image_nodes = nodes_on_image_data(graph)
    reasons = {**_reasons_to_keep(image_nodes, keep), **_reasons_for_float(graph, image_nodes)}
    caster = _Caster(graph)
    half_nodes = 0
    for node in list(graph):
        if node not in image_nodes:
            continue
        target = FLOAT if node in reasons else HALF
        half_nodes += target is HALF
        for index, read in enumerate(node.inputs):
            if read is not None and read.dtype in (FLOAT, HALF) and read.dtype is not target:
                node.replace_input_with(index, caster.as_type(read, target))
        for result in node.outputs:
            if result.dtype is FLOAT:
                result.dtype = target
    _set_output_types(graph, HALF if half_io else FLOAT)
    RemoveUnusedNodesPass()(model)
    losses = tuple(loss for loss in caster.losses if loss.overflowing or loss.subnormal or loss.vanishing)
    names = {node.name or "": reason for node, reason in reasons.items()}
    return Fp16Report(half_nodes=half_nodes, float_nodes=names, weight_losses=losses)


def nodes_on_image_data(graph: ir.Graph) -> set[ir.Node]:
    """Nodes that read image data; a shape is not image data, and nothing that is computed from shapes only."""
    data = set(graph.inputs)
    nodes = set()
    for node in graph:
        if node.op_type != "Shape" and any(value in data for value in node.inputs):
            nodes.add(node)
            data.update(node.outputs)
    return nodes


def _reasons_to_keep(image_nodes: set[ir.Node], keep: Mapping[str, str]) -> dict[ir.Node, str]:
    named = {node.name: node for node in image_nodes}
    missing = [name for name in keep if name not in named]
    if missing:
        raise RefusedInput(
            f"{len(missing)} nodes that should stay FP32 are not in the graph, or do not depend on the image: "
            f"{', '.join(missing[:4])}. The recipe is for another network, or for another way to export it"
        )
    return {named[name]: reason for name, reason in keep.items()}


def _reasons_for_float(graph: ir.Graph, image_nodes: set[ir.Node]) -> dict[ir.Node, str]:
    reasons: dict[ir.Node, str] = {}
    classifier = [node for node in graph if node.op_type == "Conv"][-1]
    after_classifier = set(classifier.outputs)
    for node in _way_into_attention(graph, image_nodes):
        reasons[node] = "way into the attention of a residual network: sigmoids amplify its rounding"
    for node in graph:
        if node not in image_nodes:
            continue
        if any(value in after_classifier for value in node.inputs):
            after_classifier.update(node.outputs)
            reasons[node] = "after the classifier: logits are FP32"
        elif _is_mean_over_voxels(node):
            reasons[node] = "mean over voxels: the sum leaves FP16's range"
    return reasons


def _way_into_attention(graph: ir.Graph, image_nodes: set[ir.Node]) -> set[ir.Node]:
    """What the attention's sigmoids are computed from, if residual sums are among it; else nothing."""
    way: set[ir.Node] = set()
    pending = [node for node in image_nodes if node.op_type == "Sigmoid" and _in_attention(node)]
    while pending:
        node = pending.pop()
        if node in way or node not in image_nodes:
            continue
        way.add(node)
        pending += [producer for value in node.inputs if value and (producer := value.producer())]
    sums = sum(_is_residual_sum(node) for node in way)
    if not sums:
        return set()
    return {node for node in way if sums > FEW_SUMS or not _is_in_last_stage(node)}


def _is_in_last_stage(node: ir.Node) -> bool:
    return node.op_type == "Conv" and _LAST_STAGE.match(node.name or "") is not None


def _is_residual_sum(node: ir.Node) -> bool:
    """Whether a node adds something to what that was computed from, as a shortcut around convolutions does."""
    if node.op_type != "Add" or _in_attention(node):
        return False
    one, other = node.inputs
    return _is_computed_from(one, other) or _is_computed_from(other, one)


def _is_computed_from(value: ir.Value | None, source: ir.Value | None) -> bool:
    seen: set[ir.Value] = set()
    pending = [value]
    while pending:
        value = pending.pop()
        if value is source:
            return True
        if value is not None and value not in seen:
            seen.add(value)
            producer = value.producer()
            pending += producer.inputs if producer is not None else ()
    return False


def _in_attention(node: ir.Node) -> bool:
    return any(scope in (node.name or "") for scope in _ATTENTION_SCOPES)


def _is_mean_over_voxels(node: ir.Node) -> bool:
    if node.op_type != "ReduceMean":
        return False
    axes = node.inputs[1].const_value if len(node.inputs) > 1 and node.inputs[1] is not None else None
    return axes is None or 1 not in axes.numpy().tolist()


class _Caster:
    """Hands out each value in the wanted type: initializers converted, other values through one shared Cast."""

    def __init__(self, graph: ir.Graph) -> None:
        self._graph = graph
        self._made: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}
        self.losses: list[WeightLoss] = []

    def as_type(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        key = (value, dtype)
        if key not in self._made:
            self._made[key] = self._half_initializer(value) if value.is_initializer() else self._cast(value, dtype)
        return self._made[key]

    def _cast(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        suffix = "half" if dtype is HALF else "float"
        node = ir.node("Cast", [value], attributes={"to": dtype.value}, name=f"{value.name}/to_{suffix}")
        result = node.outputs[0]
        result.name, result.dtype, result.shape = f"{value.name}_{suffix}", dtype, value.shape
        producer = value.producer()
        if producer is None:
            self._graph.insert_before(self._graph[0], node)
        else:
            self._graph.insert_after(producer, node)
        return result

    def _half_initializer(self, value: ir.Value) -> ir.Value:
        # Weights of the FP32 graph are FP32, so HALF is all that can be asked for.
        assert value.const_value is not None
        name = f"{value.name}_half"
        self.losses.append(_weight_loss(str(value.name), value.const_value.numpy()))
        source = value.const_value

        def half() -> ir.TensorProtocol:
            return ir.tensor(_to_half(source.numpy()), name=name)

        shape = ir.Shape(source.shape.numpy())
        # Lazily, so that only one tensor at a time is held in both types while the graph is written.
        tensor = ir.LazyTensor(half, dtype=HALF, shape=shape, name=name)
        result = ir.Value(name=name, shape=shape, type=ir.TensorType(HALF), const_value=tensor)
        self._graph.register_initializer(result)
        return result


def _to_half(values: np.ndarray) -> np.ndarray:
    # Overflow to infinity is reported by name (`WeightLoss`); numpy's warning would add nothing.
    with np.errstate(over="ignore"):
        return values.astype(np.float16)


def _weight_loss(name: str, values: np.ndarray) -> WeightLoss:
    magnitude = np.abs(values)
    vanishing = np.count_nonzero((magnitude <= HALF_SMALLEST / 2) & (magnitude > 0))
    return WeightLoss(
        name=name,
        size=values.size,
        largest=float(magnitude.max(initial=0)),
        overflowing=int(np.count_nonzero(magnitude >= HALF_OVERFLOW)),
        subnormal=int(np.count_nonzero((magnitude < HALF_SMALLEST_NORMAL) & (magnitude > 0)) - vanishing),
        vanishing=int(vanishing),
    )


def _set_output_types(graph: ir.Graph, dtype: ir.DataType) -> None:
    """Give the floating outputs their type under their own names; integer outputs (labels) keep theirs."""
    for index, value in enumerate(graph.outputs):
        producer = value.producer()
        if value.dtype not in (FLOAT, HALF) or value.dtype is dtype or producer is None:
            continue
        cast = ir.node("Cast", [value], attributes={"to": dtype.value}, name=f"{value.name}/output")
        result = cast.outputs[0]
        result.name, result.dtype, result.shape = value.name, dtype, value.shape
        value.name = f"{value.name}_unconverted"
        graph.insert_after(producer, cast)
        graph.outputs[index] = result
