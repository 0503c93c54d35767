"""What the numbers inside a graph look like on data: how near each layer is to leaving FP16's range.

The FP32 graph runs on volumes, and beside every tensor on image data its largest magnitude, its sum of squares
and three counts are computed in the graph itself. So one run gives the ranges of all tensors, and no tensor
has to be kept or copied for it: only as much memory is needed as the run itself takes, and half as much again.

Ranges say what the tensors hold, not what a kernel adds up on the way to them. `ACCUMULATION` says what is
known of that, and `accumulation_error` why the number of products in a sum matters.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass

from lhanet_export.errors import RefusedInput
from lhanet_export.export.artifact import OnnxArtifact, external_data_of
from lhanet_export.precision.fp16 import FLOAT, HALF_LARGEST, HALF_SMALLEST, HALF_SMALLEST_NORMAL, nodes_on_image_data
from lhanet_export.precision.rounding import SELECTING
from lhanet_export.progress import SILENT, Progress
from lhanet_export.runners.onnxruntime_library import load_onnxruntime, open_session

#: The largest relative error of one rounding to FP16.
HALF_ROUNDOFF = 2.0**-11

#: Who adds up products of FP16 numbers in which precision.
ACCUMULATION = (
    (
        "FP16 graph on a CPU, as the gate runs it (ONNX Runtime)",
        "products and sums in FP32; one rounding to FP16 where a tensor is stored",
    ),
    (
        "FP16 nodes in an engine (TensorRT, TensorRT-RTX)",
        "NVIDIA's documentation of strongly typed networks names no accumulator: the types of inputs and outputs "
        "are kept, and the builder takes the fastest kernel, which may add up in FP16 or in FP32. A GeForce card "
        "adds up in FP16 twice as fast. Only a comparison of the engine itself shows it",
    ),
    (
        "FP32 nodes in an engine, those of a precision recipe among them",
        "FP32; this toolkit clears TF32, with which products would have 11 significant bits",
    ),
)  # fmt: skip

#: The same numbers under another shape.
_VIEWS = frozenset("Identity Reshape Transpose Unsqueeze".split())
_PROBES = 6


@dataclass(frozen=True, kw_only=True)
class NodeRange:
    """The output of one node over all volumes, in FP32.

    `largest` is the largest magnitude, on the volume `largest_in` (counted from 1). `subnormal` and `vanishing`
    are shares of the values other than 0: of those below FP16's smallest normal number, which keep fewer than 11
    significant bits, and among them of those that FP16 makes 0. `depth` is how many products one number of a
    convolution's or matrix product's output sums, None for other nodes.
    """

    name: str
    op_type: str
    elements: int
    largest: float
    largest_in: int
    rms: float
    subnormal: float
    vanishing: float
    depth: int | None

    @property
    def headroom(self) -> float:
        """By how much the values could grow before FP16 overflows; below 1 they do."""
        return HALF_LARGEST / self.largest if self.largest else math.inf

    @property
    def multiply_adds(self) -> int:
        """Products of a convolution or matrix product, over all volumes."""
        return self.elements * (self.depth or 0)

    def as_json(self) -> dict[str, Any]:
        """The numbers by name."""
        headroom = self.headroom if self.largest else None
        return {**asdict(self), "headroom": headroom}


def activation_ranges(
    source: OnnxArtifact, images: Sequence[np.ndarray], progress: Progress = SILENT
) -> tuple[NodeRange, ...]:
    """The range of every node on image data of an FP32 ONNX file over volumes (N,1,D,H,W), in the graph's order.

    `images` have to be what the network is for, preprocessed: ranges on noise say nothing. `RefusedInput` for
    no volumes, a constant one, a size or batch that the graph does not serve, a graph that is not FP32, and for
    values beyond FP32.
    """
    if source.precision != "fp32":
        raise RefusedInput(f"{source.path} is {source.precision}; ranges are measured on the FP32 graph")
    if not images:
        raise RefusedInput("activation ranges come from data, and there are no volumes")
    for number, image in enumerate(images, 1):
        depth, height, width = image.shape[2:]
        source.check_size((depth, height, width))
        if source.facts["batch"] not in (None, image.shape[0]):
            raise RefusedInput(f"{source.path} takes {source.facts['batch']} volumes at a time, not {image.shape[0]}")
        if float(image.min()) == float(image.max()):
            raise RefusedInput(f"volume {number} is {float(image.min()):g} everywhere; its ranges would say nothing")
    with TemporaryDirectory() as folder, progress.step("activation ranges", total=len(images) + 1) as advance:
        model = ir.load(source.path)
        probed = _add_probes(model)
        path = Path(folder) / "ranges.onnx"
        ir.save(model, path, external_data=external_data_of(path).name)
        session = _session(path)
        advance(1)
        runs = []
        for image in images:
            runs.append(session.run(None, {"image": image.astype(np.float32, copy=False)}))
            advance(1)
    return _ranges(model.graph, probed, runs)


def nearest_to_overflow(ranges: Sequence[NodeRange], count: int) -> list[NodeRange]:
    """The nodes with least headroom; those that only pass on or select numbers of another one are left out."""
    return sorted(_computing(ranges), key=lambda found: found.headroom)[:count]


def nearest_to_underflow(ranges: Sequence[NodeRange], count: int) -> list[NodeRange]:
    """The nodes with the smallest values (RMS); those that select, and those that give nothing but 0, are left out."""
    return sorted((found for found in _computing(ranges) if found.largest), key=lambda found: found.rms)[:count]


def deepest(ranges: Sequence[NodeRange], count: int) -> list[NodeRange]:
    """The nodes with the longest sums of products, one of each depth."""
    by_depth = {found.depth: found for found in reversed(ranges) if found.depth}
    return [by_depth[depth] for depth in sorted(by_depth, reverse=True)[:count]]


def accumulation_error(depth: int) -> tuple[float, float]:
    """What summing `depth` products in FP16, one after the other, does to the result, relative to it.

    An estimate for roundings that are independent, sqrt(n) u, and the worst case, n u, of which the latter is
    relative to the sum of magnitudes; u is 2^-11. Kernels that sum in blocks stay below both.
    Source: N. J. Higham, T. Mary, A new approach to probabilistic rounding error analysis, SIAM J. Sci. Comput.
    41, 2019.
    """
    return math.sqrt(depth) * HALF_ROUNDOFF, depth * HALF_ROUNDOFF


def _computing(ranges: Sequence[NodeRange]) -> list[NodeRange]:
    # Where every number of the result stands in an input, the input is what a reader has to see.
    return [found for found in ranges if found.op_type not in SELECTING]


def _add_probes(model: ir.Model) -> list[ir.Node]:
    """Let a graph give six numbers about each node on image data instead of its output, but for views.

    After all of them it gives for each matrix product among the nodes how many products it sums.
    """
    ShapeInferencePass()(model)
    graph = model.graph
    below_normal = float(np.nextafter(np.float32(HALF_SMALLEST_NORMAL), np.float32(0)))
    limits = [_constant(graph, value) for value in (0.0, HALF_SMALLEST / 2, below_normal)]
    on_image = nodes_on_image_data(graph)
    probed = [
        node for node in graph if node in on_image and node.outputs[0].dtype is FLOAT and node.op_type not in _VIEWS
    ]
    outputs: list[ir.Value] = []
    inner_sides: list[ir.Value] = []
    for node in probed:
        outputs += _probe(graph, node, limits)
        if node.op_type == "MatMul":
            side = ir.node("Shape", [node.inputs[0]], attributes={"start": -1})
            side.name = side.outputs[0].name = f"{node.name}/probe_depth"
            graph.insert_after(node, side)
            inner_sides.append(_described(side.outputs[0], ir.DataType.INT64, [1]))
    graph.outputs[:] = [*outputs, *inner_sides]
    return probed


def _probe(graph: ir.Graph, node: ir.Node, limits: Sequence[ir.Value]) -> list[ir.Value]:
    """Elements, largest magnitude, sum of squares, and how many magnitudes are at most each of the limits."""
    value = node.outputs[0]
    added: list[ir.Node] = []

    def computed(op_type: str, *inputs: ir.Value, **attributes: int) -> ir.Value:
        new = ir.node(op_type, list(inputs), attributes=attributes or None)
        new.name = new.outputs[0].name = f"{value.name}/probe_{len(added)}"
        added.append(new)
        return new.outputs[0]

    magnitude = computed("Abs", value)
    found = [
        computed("Size", value),
        computed("ReduceMax", magnitude, keepdims=0),
        computed("ReduceSumSquare", value, keepdims=0),
    ]
    for limit in limits:
        below = computed("Cast", computed("LessOrEqual", magnitude, limit), to=ir.DataType.INT32.value)
        found.append(computed("ReduceSum", below, keepdims=0))
    graph.insert_after(node, added)
    types = (ir.DataType.INT64, FLOAT, FLOAT, *[ir.DataType.INT32] * len(limits))
    return [_described(result, dtype, []) for result, dtype in zip(found, types, strict=True)]


def _described(value: ir.Value, dtype: ir.DataType, shape: Sequence[int]) -> ir.Value:
    value.dtype, value.shape = dtype, ir.Shape(shape)
    return value


def _constant(graph: ir.Graph, value: float) -> ir.Value:
    tensor = ir.tensor(np.float32(value), name=f"probe_limit_{value:g}")
    result = ir.Value(name=tensor.name, shape=ir.Shape([]), type=ir.TensorType(FLOAT), const_value=tensor)
    graph.register_initializer(result)
    return result


def _session(path: Path) -> Any:
    onnxruntime = load_onnxruntime()
    options = onnxruntime.SessionOptions()
    # By default the probes run last, and until then every tensor of the graph is kept.
    options.execution_order = onnxruntime.ExecutionOrder.PRIORITY_BASED
    return open_session(path, options, "the graph")


def _ranges(graph: ir.Graph, probed: Sequence[ir.Node], runs: Sequence[Sequence[np.ndarray]]) -> tuple[NodeRange, ...]:
    """What the probes gave on each volume, put together for each node; views have the range of what they view."""
    count = len(probed) * _PROBES
    # (volumes, nodes, 6)
    tables = np.array([run[:count] for run in runs], np.float64).reshape(len(runs), len(probed), _PROBES)
    inner_sides = iter(np.array([run[count:] for run in runs]).reshape(len(runs), -1).max(0))
    rows = {node: tables[:, index] for index, node in enumerate(probed)}
    found: dict[ir.Value | None, NodeRange] = {}
    for node in graph:
        if node in rows:
            depth = int(next(inner_sides)) if node.op_type == "MatMul" else _depth_of_convolution(node)
            found[node.outputs[0]] = _range(node, rows[node], depth)
        elif node.op_type in _VIEWS and (viewed := found.get(node.inputs[0])):
            found[node.outputs[0]] = replace(viewed, name=str(node.name), op_type=node.op_type, depth=None)
    return tuple(found.values())


def _range(node: ir.Node, table: np.ndarray, depth: int | None) -> NodeRange:
    largest = table[:, 1]
    elements, _, squares, zeros, vanishing, subnormal = table.sum(0).tolist()
    if not (np.isfinite(largest).all() and math.isfinite(squares)):
        raise RefusedInput(f"{node.name} leaves the range of FP32 already; no precision helps there")
    others = max(elements - zeros, 1)
    return NodeRange(
        name=str(node.name),
        op_type=node.op_type,
        elements=int(elements),
        largest=float(largest.max()),
        largest_in=int(largest.argmax()) + 1,
        rms=math.sqrt(squares / max(elements, 1)),
        subnormal=(subnormal - zeros) / others,
        vanishing=(vanishing - zeros) / others,
        depth=depth,
    )


def _depth_of_convolution(node: ir.Node) -> int | None:
    """Input channels of a group times voxels of the kernel."""
    if node.op_type != "Conv":
        return None
    weight = node.inputs[1]
    assert weight is not None and weight.shape is not None
    return math.prod(weight.shape.numpy()[1:])
