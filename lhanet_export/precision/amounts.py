"""How many multiply-adds each convolution of a graph does."""

from __future__ import annotations

import onnx_ir as ir

from lhanet_export.export.artifact import OnnxArtifact
from lhanet_export.export.work import work_of


def multiply_adds_of(source: OnnxArtifact) -> tuple[dict[str, int], int]:
    """The multiply-adds of each convolution of a graph by name, and those of all it does, at its usual size."""
    model = ir.load(source.path)
    names = [str(node.name) for node in model.graph if node.op_type == "Conv"]
    for node in model.graph:
        # Work is counted by place, and several convolutions may share one: here each gets a level to itself.
        node.name = f"/pmsa.{names.index(str(node.name))}/Conv" if node.op_type == "Conv" else "/other/node"
    work = work_of(model, source.spatial.opt)
    return {
        name: work.total(f"level {index}").multiply_adds for index, name in enumerate(names)
    }, work.total().multiply_adds
