"""Clean-up of a traced graph that changes no value: shared constants, shared shape arithmetic, no idle casts.

The tracer writes every shape computation anew. After this, a graph holds each once, which halves
its nodes and what a builder has to look at.
"""

import onnx_ir as ir
from onnx_ir.passes.common import (
    CommonSubexpressionEliminationPass,
    DeduplicateInitializersPass,
    IdentityEliminationPass,
    LiftConstantsToInitializersPass,
    RemoveUnusedNodesPass,
    ShapeInferencePass,
)


def tidy(model: ir.Model) -> None:
    """Simplify the graph in place; every output keeps its value bit by bit."""
    ir.passes.Sequential(
        LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        DeduplicateInitializersPass(),
        ShapeInferencePass(),
    )(model)
    _drop_idle_casts(model.graph)
    ir.passes.Sequential(
        CommonSubexpressionEliminationPass(), IdentityEliminationPass(), RemoveUnusedNodesPass()
    )(model)  # fmt: skip


def _drop_idle_casts(graph: ir.Graph) -> None:
    """Remove casts to the type that a value already has."""
    for node in list(graph):
        if node.op_type != "Cast":
            continue
        source, result = node.inputs[0], node.outputs[0]
        if source is None or source.dtype is None or source.dtype != node.attributes["to"].as_int():
            continue
        if result.is_graph_output():
            continue
        result.replace_all_uses_with(source)
        graph.remove(node, safe=True)
