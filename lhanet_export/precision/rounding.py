"""An FP16 graph made to compute FP16 on a CPU.

ONNX Runtime has few FP16 kernels for CPUs. It runs the others in FP32 and drops the casts between
them, so nothing in between is rounded and nothing overflows: a graph whose values leave FP16's range
passes there and gives infinities on a GPU. `with_rounding` writes the rounding into the graph, as
pairs of casts that no optimizer may remove: every tensor that the FP16 graph stores is rounded to
FP16, beyond 65,504 to infinity; each operator computes in FP32 inside, as tensor cores do when they
accumulate in FP32.
"""

import onnx_ir as ir

FLOAT, HALF = ir.DataType.FLOAT, ir.DataType.FLOAT16

#: Operators whose results are among their inputs: rounding those again would change nothing.
SELECTING = frozenset("Concat Gather Identity Max MaxPool Min ReduceMax Relu Reshape Slice Transpose Unsqueeze".split())
#: What dequantizing gives is never stored: a convolution reads the INT8 numbers.
_NOT_ROUNDED = SELECTING | {"DequantizeLinear"}


def is_half(model: ir.Model) -> bool:
    """Whether a graph computes anything in FP16."""
    return any(value.dtype is HALF for node in model.graph for value in node.outputs)


def with_rounding(model: ir.Model) -> ir.Model:
    """Make an FP16 graph an FP32 one that rounds like FP16, in place; inputs and outputs keep their types."""
    graph = model.graph
    widened: dict[ir.Value, ir.Value] = {}

    def wide(value: ir.Value) -> ir.Value:
        """The FP32 form of a value that stays FP16 itself: a weight or a graph input."""
        if value not in widened:
            cast = ir.node("Cast", [value], attributes={"to": FLOAT.value}, name=f"{value.name}/widen")
            _describe(cast.outputs[0], f"{value.name}_wide", FLOAT, value)
            graph.insert_before(graph[0], cast)
            widened[value] = cast.outputs[0]
        return widened[value]

    for node in list(graph):
        for index, value in enumerate(node.inputs):
            if value is not None and value.dtype is HALF and value.producer() is None:
                node.replace_input_with(index, wide(value))
        for value in node.outputs:
            if value.dtype is not HALF:
                continue
            if value.is_graph_output():
                _compute_output_wide(graph, node, value)
                continue
            if node.op_type == "Cast":
                node.attributes["to"] = ir.AttrInt64("to", FLOAT.value)
            value.dtype = FLOAT
            if node.op_type not in _NOT_ROUNDED:
                _round_after(graph, node, value)
    return model


def _round_after(graph: ir.Graph, node: ir.Node, value: ir.Value) -> None:
    """Let all readers of a value read it rounded to FP16."""
    narrow = ir.node("Cast", [value], attributes={"to": HALF.value}, name=f"{value.name}/round")
    back = ir.node("Cast", [narrow.outputs[0]], attributes={"to": FLOAT.value}, name=f"{value.name}/rounded")
    _describe(narrow.outputs[0], f"{value.name}_narrow", HALF, value)
    _describe(back.outputs[0], f"{value.name}_rounded", FLOAT, value)
    value.replace_all_uses_with(back.outputs[0])
    narrow.replace_input_with(0, value)
    graph.insert_after(node, [narrow, back])


def _compute_output_wide(graph: ir.Graph, node: ir.Node, value: ir.Value) -> None:
    """Let a graph output that stays FP16 be computed in FP32 and cast; a cast to FP16 is that already."""
    if node.op_type == "Cast":
        return
    cast = ir.node("Cast", [value], attributes={"to": HALF.value}, name=f"{value.name}/round")
    _describe(cast.outputs[0], str(value.name), HALF, value)
    value.name, value.dtype = f"{value.name}_wide", FLOAT
    graph.insert_after(node, cast)
    graph.outputs[graph.outputs.index(value)] = cast.outputs[0]


def _describe(value: ir.Value, name: str, dtype: ir.DataType, like: ir.Value) -> None:
    value.name, value.dtype, value.shape = name, dtype, like.shape
