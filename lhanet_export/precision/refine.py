"""Bias correction: what INT8 shifts the mean of a convolution's output by, taken back from its bias.

Rounding the weights, and clipping what comes in, moves the mean of each output channel, and a shift goes on through the
network where noise averages out. It is measured, not derived: the mean over calibration volumes of the FP32
convolution's output minus that of the quantized one, with everything before it quantized and corrected already
(M. Nagel et al., Data-Free Quantization Through Weight Equalization and Bias Correction, arXiv:1906.04721, 4.2, with
data).

Convolutions that do not depend on each other are measured in one run: those of all branches and levels in two, a
backbone's one after the other, each time with only that part of the graph that leads to them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from lhanet_export.export.artifact import OnnxArtifact
from lhanet_export.precision.calibrate import CalibrationImage, Ranges
from lhanet_export.precision.int8 import Int8Options, convolutions, quantize, result_of
from lhanet_export.precision.sessions import GraphSession
from lhanet_export.progress import SILENT, Progress

_CHANNELS_KEPT = np.array([0, 2, 3, 4], np.int64)


def corrected_biases(
    source: OnnxArtifact,
    ranges: Ranges,
    options: Int8Options,
    images: Sequence[CalibrationImage],
    progress: Progress = SILENT,
) -> dict[str, np.ndarray]:
    """The biases (O,) float32 for `int8_from_fp32`, by name of the convolution, measured on `images`.

    Refuses what `quantize` refuses.
    """
    model = ir.load(source.path)
    names = [conv.name for conv in convolutions(model, options) if conv.reason is None]
    biases = {name: _bias(model.graph, name) for name in names}
    stages = _stages(model.graph, names)
    corrected: dict[str, np.ndarray] = {}
    with progress.step("correct biases", total=len(images) * (1 + len(stages))) as advance:
        wanted = _means(model, names, source, images, advance)
        for stage, before in stages:
            model = ir.load(source.path)
            quantize(model, ranges, options, only={*stage, *before}, biases=corrected)
            found = _means(model, stage, source, images, advance)
            corrected |= {name: (biases[name] + wanted[name] - found[name]).astype(np.float32) for name in stage}
    return corrected


def _bias(graph: ir.Graph, name: str) -> np.ndarray:
    """The bias of a convolution of the FP32 graph; zeros where it has none."""
    node = next(node for node in graph if node.name == name)
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if bias is not None and bias.const_value is not None:
        return bias.const_value.numpy()
    weight = node.inputs[1]
    assert weight is not None and weight.shape is not None
    return np.zeros(weight.shape.numpy()[0], np.float32)


def _stages(graph: ir.Graph, names: Collection[str]) -> list[tuple[list[str], set[str]]]:
    """The convolutions in stages: none depends on another of its own; with each, those that it depends on."""
    depths: dict[ir.Value, int] = {}
    above: dict[ir.Value, frozenset[str]] = {}
    stages: dict[int, tuple[list[str], set[str]]] = {}
    for node in graph:
        reads = [value for value in node.inputs if value is not None and value in depths]
        depth = max((depths[value] for value in reads), default=0)
        before = frozenset().union(*(above[value] for value in reads))
        if node.name in names:
            stage, leading = stages.setdefault(depth, ([], set()))
            stage.append(str(node.name))
            leading |= before
            depth, before = depth + 1, before | {str(node.name)}
        for value in node.outputs:
            depths[value], above[value] = depth, before
    return [stages[depth] for depth in sorted(stages)]


def _means(
    model: ir.Model,
    names: Sequence[str],
    source: OnnxArtifact,
    images: Sequence[CalibrationImage],
    advance: Callable[[float], None],
) -> Mapping[str, np.ndarray]:
    """The mean of each channel (O,) of what comes out of convolutions; the rest of the graph is cut off, in place."""
    graph = model.graph
    axes = ir.Value(
        name="axes_of_means", shape=ir.Shape([4]), type=ir.TensorType(ir.DataType.INT64),
        const_value=ir.tensor(_CHANNELS_KEPT, name="axes_of_means"),
    )  # fmt: skip
    graph.register_initializer(axes)
    results = [result_of(graph, name) for name in names]
    outputs = []
    for name, result in zip(names, results, strict=True):
        node = ir.node("ReduceMean", [result, axes], attributes={"keepdims": 0}, name=f"{name}/mean")
        value = node.outputs[0]
        value.name, value.dtype, value.shape = f"{name}/mean", ir.DataType.FLOAT, ir.Shape([None])
        graph.append(node)
        outputs.append(value)
    graph.outputs[:] = outputs
    RemoveUnusedNodesPass()(model)
    session = GraphSession(model, source)
    asked = [str(value.name) for value in outputs]
    sums = {name: np.zeros(1) for name in asked}
    for image in images:
        for name, mean in session.values(asked, image.voxels).items():
            sums[name] = sums[name] + mean
        advance(1)
    return {name: sums[one] / len(images) for name, one in zip(names, asked, strict=True)}
