"""How much a graph computes and moves at a volume size, part by part of the network; read from the graph alone.

What is counted:

- Multiply-adds: those of Conv (outputs x input channels of a group x kernel voxels) and MatMul (outputs x
  length of the inner axis); padding counts as work, as usual. Other operators count none.
- Bytes: what each node on image data reads and writes, as if each ran by itself, in the graph's number formats.
  A runtime that fuses nodes moves less. A Slice or Gather reads as much as it writes, and a new view of the
  same numbers (Reshape, Unsqueeze, Identity) moves nothing.
- Weight bytes: the floating-point tensors that the file stores, each once, at the first node that reads it.

Sizes follow from a walk over the nodes: what depends on shapes only is computed, with ONNX's own reference
operators, and what depends on the image or on large weights has its size inferred by ONNX. No weight is read.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx import shape_inference
from onnx.reference import ReferenceEvaluator

from lhanet_export.errors import RefusedInput
from lhanet_export.export.artifact import KNOWN_OPERATORS, read_graph_and_facts
from lhanet_export.inference.target import Target
from lhanet_export.model.presets import SCALES
from lhanet_export.shapes import Shape, SpatialRange, TensorSizes, format_shape
from lhanet_export.strict import Node

OTHER = "other"
FUSION = "fusion and gates"
BRANCHES = tuple(f"{float(scale):g}x" for scale, _ in SCALES)
PIECES = ("attention", "context convolution", "organ convolution", "resizes")
_ACROSS = "across levels"
#: Names of modules as they stand in the names of nodes: the piece of a branch, or the branch of a level or part.
_BRANCH_MODULES = {
    "spatial_attention": "attention", "channel_attention": "attention",
    "context_conv": "context convolution", "organ_conv": "organ convolution", "short_conv": "organ convolution",
}  # fmt: skip
_FUSION_MODULES = ("progressive_fusion", "final_fusion", "gate_conv")
_ACROSS_MODULES = {"cross_scale_fusion": "hierarchy", "feature_fusion": "decoder", "classifier": "classifier"}
#: What the FP16 conversion adds to the name of a value to name the cast of it.
_CAST = re.compile(r"(_output_\d+)?/(to_half|to_float|output)$")
#: Moves no data: the same numbers under another shape.
_VIEWS = frozenset({"Reshape", "Unsqueeze", "Identity"})
#: Reads a part of its first input.
_PICKS = frozenset({"Slice", "Gather"})
#: Larger values are no arithmetic on shapes; their size is all that anything else can depend on.
_MOST_VALUES = 4096


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where in the network a node belongs: a part; in a level also the branch; in a scale's branch also the piece."""

    part: str
    branch: str = ""
    piece: str = ""


@dataclass(frozen=True, kw_only=True)
class Amount:
    """What some nodes cost: multiply-adds, bytes of tensors read and written, bytes of the weights stored for them."""

    multiply_adds: int = 0
    moved_bytes: int = 0
    weight_bytes: int = 0

    def __add__(self, other: Amount) -> Amount:
        return Amount(
            multiply_adds=self.multiply_adds + other.multiply_adds,
            moved_bytes=self.moved_bytes + other.moved_bytes,
            weight_bytes=self.weight_bytes + other.weight_bytes,
        )

    def as_json(self) -> dict[str, int]:
        """The three numbers by name."""
        return {
            "multiply_adds": self.multiply_adds, "moved_bytes": self.moved_bytes, "weight_bytes": self.weight_bytes
        }  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Work:
    """The work of a graph for `batch` volumes of `shape` (D,H,W) in voxels, by place, in the network's order."""

    shape: Shape
    batch: int
    amounts: Mapping[Place, Amount] = field(repr=False)

    def total(self, part: str | None = None, branch: str | None = None, piece: str | None = None) -> Amount:
        """The sum over all places, or over those of a part, branch or piece."""
        chosen = [
            amount
            for place, amount in self.amounts.items()
            if part in (None, place.part) and branch in (None, place.branch) and piece in (None, place.piece)
        ]
        return sum(chosen, Amount())

    def branches(self) -> list[tuple[str, str]]:
        """Each (part, branch) that there is, in order."""
        return list(dict.fromkeys((place.part, place.branch) for place in self.amounts))

    def as_json(self) -> dict[str, Any]:
        """All numbers as JSON values."""
        return {
            "shape": list(self.shape),
            "batch": self.batch,
            "places": [
                {"part": place.part, "branch": place.branch, "piece": place.piece, **amount.as_json()}
                for place, amount in self.amounts.items()
            ],
            "together": self.total().as_json(),
        }


@dataclass(frozen=True, kw_only=True)
class ExportedGraph:
    """A graph of this toolkit with its weights left on disk, and the facts inside it that its work depends on."""

    model: ir.Model
    spatial: SpatialRange
    head: str
    preset: str
    base_channels: int
    num_classes: int


def read_graph(path: Path) -> ExportedGraph:
    """Read an ONNX file of this toolkit, without its weights and without a look at its hashes.

    `RefusedInput` for a file that is missing, damaged or of another origin.
    """
    proto, inside = read_graph_and_facts(path)
    facts = Node(inside, path).object()
    checkpoint = facts.take("checkpoint").object()
    return ExportedGraph(
        model=ir.from_proto(proto),
        spatial=facts.take("spatial").spatial(),
        head=Target(head=facts.take("head").text()).head,
        preset=checkpoint.take("preset").text(),
        base_channels=checkpoint.take("base_channels").integer(1, 4096),
        num_classes=checkpoint.take("num_classes").integer(2, 4096),
    )


def work_of(source: Path | ir.Model, shape: Shape) -> Work:
    """The work of a graph for volumes of `shape` (D,H,W) in voxels, of as many as the graph takes (any number: one).

    The graph has one input (N,1,D,H,W) and operators of this network only. `RefusedInput` for another
    graph, and for a size that it does not take.
    """
    model = source if isinstance(source, ir.Model) else read_graph(source).model
    image = _image_of(model.graph, shape)
    amounts: dict[Place, Amount] = defaultdict(Amount)
    counted: set[str] = set()
    for node, reads, writes in _walk(model, image, shape):
        weights = {
            name: tensor
            for name, tensor in zip(_names(node), reads, strict=True)
            if tensor.stored and tensor.dtype.is_floating_point() and name not in counted
        }
        counted |= weights.keys()
        amount = _amount(node.op_type, reads, list(writes.values())) + Amount(weight_bytes=_bytes(weights.values()))
        amounts[place_of(node.name or "")] += amount
    entries = [(place, amount) for place, amount in amounts.items() if amount != Amount()]
    return Work(shape=shape, batch=image.shape[0], amounts=dict(sorted(entries, key=_order)))


def multiply_adds_of(source: Path | ir.Model, shape: Shape) -> dict[str, int]:
    """The multiply-adds of each node that does any, by its name, for volumes of `shape`; refuses as `work_of` does."""
    model = source if isinstance(source, ir.Model) else read_graph(source).model
    found = {
        node.name or "": _amount(node.op_type, reads, list(writes.values())).multiply_adds
        for node, reads, writes in _walk(model, _image_of(model.graph, shape), shape)
    }
    return {name: count for name, count in found.items() if count}


def tensor_sizes(source: Path | ir.Model, shape: Shape) -> TensorSizes:
    """How large the tensors of a graph are for volumes of `shape` (D,H,W); refuses what `work_of` refuses."""
    model = source if isinstance(source, ir.Model) else read_graph(source).model
    image = _image_of(model.graph, shape)
    tensors = {str(model.graph.inputs[0].name): image}
    for _, _, writes in _walk(model, image, shape):
        tensors |= writes
    largest = max(tensors, key=lambda name: math.prod(tensors[name].shape))
    return TensorSizes(
        input_bytes=_bytes([image]),
        output_bytes=_bytes(tensors[str(value.name)] for value in model.graph.outputs),
        largest=largest,
        largest_elements=math.prod(tensors[largest].shape),
    )


# Where a node belongs


def place_of(node_name: str) -> Place:
    """The place of a node by its name, `/<module>/<module>/.../<operator>` as the tracer writes it.

    What belongs to no module that is known here is put under `other`, within the level or branch if that is known.
    """
    if "/" not in (name := _CAST.sub("", node_name)):
        # A cast of the graph's input or output.
        return Place(part=_ACROSS, branch="resizes, output") if name else Place(part=OTHER)
    *scopes, operator = name.removeprefix("/").split("/")
    if not scopes:
        return Place(part=_ACROSS, branch="resizes, output")
    module, _, index = scopes[0].partition(".")
    if module == "backbone":
        return Place(part="backbone")
    if module in _ACROSS_MODULES:
        return Place(part=_ACROSS, branch=_ACROSS_MODULES[module])
    return _in_level(f"level {index}", scopes[1:], operator) if module == "pmsa" else Place(part=OTHER)


def title_of(node_name: str) -> str:
    """What to call a node before people: its place, where that says it all, else its name without the operator."""
    place = place_of(node_name)
    if place.piece:
        return f"{place.part}, {place.branch}, {place.piece}"
    return node_name.removeprefix("/").rpartition("/")[0]


def _in_level(level: str, scopes: Sequence[str], operator: str) -> Place:
    module, _, index = scopes[0].partition(".") if scopes else ("", "", "")
    if module in ("", *_FUSION_MODULES):
        return Place(part=level, branch=FUSION)
    if module != "scale_attentions" or index not in map(str, range(len(BRANCHES))):
        return Place(part=level, branch=OTHER)
    if len(scopes) == 1:
        # In the branch itself: its input times the attention's weights, and the resizes.
        piece = {"Mul": "attention", "Conv": OTHER}.get(operator.partition("_")[0], "resizes")
    else:
        piece = _BRANCH_MODULES.get(scopes[1].partition(".")[0], OTHER)
    return Place(part=level, branch=BRANCHES[int(index)], piece=piece)


def _order(entry: tuple[Place, Amount]) -> tuple[Any, ...]:
    """The network's order: parts as the volume goes through them, branches by scale, `other` last."""
    place = entry[0]
    branches = (*BRANCHES, FUSION, *_ACROSS_MODULES.values())
    return (
        (place.part == OTHER, place.part == _ACROSS, place.part),
        branches.index(place.branch) if place.branch in branches else len(branches),
        (place.branch == OTHER, PIECES.index(place.piece) if place.piece in PIECES else len(PIECES)),
    )


# Sizes and values


@dataclass(frozen=True, kw_only=True)
class _Tensor:
    """What is known of a tensor; its value only where it may decide a shape."""

    dtype: ir.DataType
    shape: tuple[int, ...]
    value: np.ndarray | None = None
    on_image: bool = False
    stored: bool = False


def _walk(model: ir.Model, image: _Tensor, shape: Shape) -> Iterator[tuple[ir.Node, list[_Tensor], dict[str, _Tensor]]]:
    """Each node in order with what it reads and, by name, what it writes, for an image of volumes of `shape`."""
    graph, opset = model.graph, model.opset_imports[""]
    strange = sorted({node.op_type for node in graph if node.domain or node.op_type not in KNOWN_OPERATORS})
    if strange:
        raise RefusedInput(f"the graph holds operators that LHA-Net does not have: {', '.join(strange[:8])}")
    known: dict[str, _Tensor] = {str(graph.inputs[0].name): image, **_stored(graph)}
    for node in graph:
        reads = [known[name] for name in _names(node)]
        try:
            writes = _written(node, reads, opset)
            if not all(all(tensor.shape) for tensor in writes.values() if tensor.value is None):
                raise ValueError("a side would vanish")
        except (shape_inference.InferenceError, ValueError, IndexError) as error:
            raise RefusedInput(
                f"the graph does not take volumes of {format_shape(shape)}: {node.name}: {error}"
            ) from error
        known |= writes
        yield node, reads, writes


def _names(node: ir.Node) -> list[str]:
    """The names of the tensors that a node reads, in order."""
    return [str(value.name) for value in node.inputs if value is not None]


def _image_of(graph: ir.Graph, shape: Shape) -> _Tensor:
    """The graph's input with concrete sizes (N,1,D,H,W)."""
    image = graph.inputs[0] if len(graph.inputs) == 1 else None
    if image is None or image.dtype is None or image.shape is None or len(image.shape) != 5 or image.shape[1] != 1:
        raise RefusedInput("the graph should have one input (N,1,D,H,W)")
    fixed = [side if isinstance(side, int) else None for side in image.shape]
    if any(side not in (None, wanted) for side, wanted in zip(fixed[2:], shape, strict=True)):
        raise RefusedInput(f"the graph does not take volumes of {format_shape(shape)}; its input is {image.shape}")
    return _Tensor(dtype=image.dtype, shape=(fixed[0] or 1, 1, *shape), on_image=True)


def _stored(graph: ir.Graph) -> dict[str, _Tensor]:
    """The tensors that the file holds; values of the small ones that lie in the graph itself."""
    tensors = {}
    for name, value in graph.initializers.items():
        tensor = value.const_value
        assert tensor is not None
        small = tensor.size <= _MOST_VALUES and not isinstance(tensor, ir.ExternalTensor)
        tensors[name] = _Tensor(
            dtype=tensor.dtype,
            shape=tuple(tensor.shape.numpy()),
            value=tensor.numpy() if small else None,
            stored=True,
        )
    return tensors


def _written(node: ir.Node, reads: Sequence[_Tensor], opset: int) -> dict[str, _Tensor]:
    """What a node writes: computed where every input's value is known, otherwise inferred from sizes."""
    proto = ir.serde.serialize_node(node)
    if node.op_type == "Shape":
        part = slice(node.attributes.get_int("start", None), node.attributes.get_int("end", None))
        return {proto.output[0]: _tensor_of(np.array(reads[0].shape[part], np.int64))}
    if any(tensor.value is None for tensor in reads):
        return _inferred(proto, reads, opset)
    one_node = ReferenceEvaluator(onnx.GraphProto(node=[proto]), opsets={"": opset})
    values = one_node.run(list(proto.output), {name: tensor.value for name, tensor in _by_name(proto, reads).items()})
    return {name: _tensor_of(np.asarray(value)) for name, value in zip(proto.output, values, strict=True)}


def _tensor_of(value: np.ndarray) -> _Tensor:
    small = value.size <= _MOST_VALUES
    return _Tensor(dtype=ir.DataType.from_numpy(value.dtype), shape=value.shape, value=value if small else None)


def _inferred(proto: onnx.NodeProto, reads: Sequence[_Tensor], opset: int) -> dict[str, _Tensor]:
    named = _by_name(proto, reads)
    types = shape_inference.infer_node_outputs(
        onnx.defs.get_schema(proto.op_type, opset),
        proto,
        {name: onnx.helper.make_tensor_type_proto(tensor.dtype, tensor.shape) for name, tensor in named.items()},
        {
            name: onnx.numpy_helper.from_array(tensor.value, name)
            for name, tensor in named.items()
            if tensor.value is not None
        },
        opset_imports=[onnx.helper.make_opsetid("", opset)],
    )
    on_image = any(tensor.on_image for tensor in reads)
    return {
        name: _Tensor(
            dtype=ir.DataType(found.tensor_type.elem_type),
            shape=tuple(dim.dim_value for dim in found.tensor_type.shape.dim),
            on_image=on_image,
        )
        for name, found in types.items()
    }


def _by_name(proto: onnx.NodeProto, reads: Sequence[_Tensor]) -> dict[str, _Tensor]:
    return dict(zip(filter(None, proto.input), reads, strict=True))


# Counting


def _amount(op_type: str, reads: Sequence[_Tensor], writes: Sequence[_Tensor]) -> Amount:
    """What one node costs, without its weights."""
    outputs = sum(math.prod(tensor.shape) for tensor in writes)
    products = {"Conv": lambda: math.prod(reads[1].shape[1:]), "MatMul": lambda: reads[0].shape[-1]}
    moved = 0
    if op_type not in _VIEWS and any(tensor.on_image for tensor in writes):
        read = writes if op_type in _PICKS else [tensor for tensor in reads if not tensor.stored]
        moved = _bytes(read) + _bytes(writes)
    return Amount(multiply_adds=outputs * products[op_type]() if op_type in products else 0, moved_bytes=moved)


def _bytes(tensors: Iterable[_Tensor]) -> int:
    return sum(math.ceil(math.prod(tensor.shape) * tensor.dtype.itemsize) for tensor in tensors)
