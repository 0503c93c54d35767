"""What INT8 in one layer alone does: to the logits, or, where that takes too many runs, to the layer's own output."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
import onnx_ir as ir

from lhanet_export.export.artifact import OnnxArtifact
from lhanet_export.precision.calibrate import CalibrationImage, Ranges
from lhanet_export.precision.choose import Judge
from lhanet_export.precision.int8 import Int8Options, convolutions, initializer, quantize, result_of
from lhanet_export.precision.sessions import GraphSession
from lhanet_export.progress import SILENT, Progress

#: The input that says which convolution is quantized.
_CHOSEN = "quantized_layer"


@dataclass(frozen=True, kw_only=True)
class Sensitivity:
    """Of one layer: the relative error of the logits and the share of changed labels, or `noise`.

    `noise` is the relative L2 error of the layer's output with everything before it in FP32.
    """

    relative_l2: float | None = None
    labels_changed: float | None = None
    noise: float | None = None

    @property
    def size(self) -> float:
        """What layers are compared by."""
        return next(value for value in (self.relative_l2, self.noise) if value is not None)

    def as_json(self) -> dict[str, float | None]:
        """The same facts as JSON values."""
        return asdict(self)


def logit_sensitivities(
    source: OnnxArtifact,
    ranges: Ranges,
    options: Int8Options,
    judge: Judge,
    progress: Progress = SILENT,
) -> dict[str, Sensitivity]:
    """The error of the logits on the judge's first window with one convolution quantized and all others in FP32.

    One graph serves for all of them, because opening one takes longer than running it: it holds each convolution in
    both forms, and a further input says which one takes the quantized form.
    """
    model = ir.load(source.path)
    graph = model.graph
    twins = _add_twins(model, ranges, options)
    chosen = ir.Value(name=_CHOSEN, shape=ir.Shape(()), type=ir.TensorType(ir.DataType.INT64))
    graph.inputs.append(chosen)
    for index, (name, twin) in enumerate(twins.items()):
        exact, rounded = result_of(graph, name), result_of(graph, twin)
        number = initializer(graph, f"{twin}/index", np.array(index))
        equal = ir.node("Equal", [chosen, number], name=f"{twin}/Equal")
        either = ir.node("Where", [equal.outputs[0], rounded, exact], name=f"{twin}/Where")
        for node in (equal, either):
            node.outputs[0].name = f"{node.name}_output_0"
        either.outputs[0].dtype, either.outputs[0].shape = ir.DataType.FLOAT, exact.shape
        exact.replace_all_uses_with(either.outputs[0], replace_graph_outputs=True)
        either.replace_input_with(2, exact)
        last = rounded.producer()
        assert last is not None
        graph.insert_after(last, [equal, either])
    del graph.outputs[1:]
    session = GraphSession(model, source)
    found = {}
    with progress.step("sensitivity of layers", total=len(twins)) as advance:
        for index, name in enumerate(twins):
            logits = session.output(judge.images[0].voxels, **{_CHOSEN: np.array(index)})
            error = judge.error_of(logits)
            found[name] = Sensitivity(relative_l2=error.relative_l2, labels_changed=error.labels_changed)
            advance(1)
    return found


def output_sensitivities(
    source: OnnxArtifact, ranges: Ranges, options: Int8Options, image: CalibrationImage, progress: Progress = SILENT
) -> dict[str, Sensitivity]:
    """The error of each convolution's output on the same FP32 input, all from one run."""
    model = ir.load(source.path)
    graph = model.graph
    twins = _add_twins(model, ranges, options)
    asked = []
    for name, twin_name in twins.items():
        exact, rounded = result_of(graph, name), result_of(graph, twin_name)
        difference = _appended(graph, "Sub", [rounded, exact], f"{name}/difference")
        for value, result in ((difference, f"{name}/noise"), (exact, f"{name}/signal")):
            _appended(graph, "ReduceSumSquare", [value], result, keepdims=0)
            asked.append(result)
    del graph.outputs[1:]
    with progress.step("error of layers"):
        values = GraphSession(model, source, asked).values(asked, image.voxels)
    found = {}
    for name in twins:
        noise, signal = (float(values[f"{name}/{what}"]) for what in ("noise", "signal"))
        found[name] = Sensitivity(noise=(noise / signal) ** 0.5 if signal else 0.0)
    return found


def _add_twins(model: ir.Model, ranges: Ranges, options: Int8Options) -> dict[str, str]:
    """Put a quantized twin beside each convolution that is to be INT8; the twins' names by the convolutions' names.

    Twins' raw results are further outputs of the graph: something has to read them, or they are removed.
    """
    graph = model.graph
    names = [conv.name for conv in convolutions(model, options) if conv.reason is None]
    twins = {name: f"/twin{name}" for name in names}
    for node in list(graph):
        if node.name in twins:
            twin = ir.Node("", "Conv", node.inputs, node.attributes.values(), num_outputs=1, name=twins[node.name])
            value = twin.outputs[0]
            value.name, value.dtype, value.shape = f"{twin.name}_output_0", ir.DataType.FLOAT, node.outputs[0].shape
            graph.insert_after(node, twin)
            graph.outputs.append(value)
    quantize(model, ranges, options, only=set(twins.values()))
    return twins


def _appended(graph: ir.Graph, operator: str, inputs: list[ir.Value], name: str, **attributes: int) -> ir.Value:
    """The result, of the same name, of a node that is put behind all others."""
    node = ir.node(operator, inputs, attributes=attributes or None, name=name)
    node.outputs[0].name = name
    graph.append(node)
    return node.outputs[0]
