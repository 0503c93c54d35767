"""Small typed graphs in the manner of exported ones, to search for FP32 nodes in without a network."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir

from lhanet_export.export.artifact import OnnxArtifact, save_onnx

CHANNELS, CLASSES, STAGES = 6, 3, 6
FACTS = {
    "schema": 1, "precision": "fp32", "head": "final", "output": "logits", "batch": 1, "half_io": False,
    "checkpoint": {"sha256": "c" * 64}, "preprocessing": {}, "labels": ["background", "one", "two"],
    "spatial": {"min": [4, 4, 4], "opt": [8, 9, 10], "max": [16, 16, 16]},
}  # fmt: skip


def chain(path: Path, *, factors: Mapping[int, float] | None = None, shift: float = 0) -> OnnxArtifact:
    """Convolutions with ReLUs, `/part.I/block/Conv` and `/part.I/block/Relu`, and a classifier, as an FP32 file.

    The weights of stage I are multiplied by `factors[I]`. With `shift`, that number is added to the output of
    stage 2 and taken away again, which is nothing in real numbers.
    """
    generator = np.random.default_rng(5)
    value = image = ir.Value(name="image", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([1, 1, "D", "H", "W"]))
    nodes: list[ir.Node] = []
    initializers: list[ir.Value] = []

    def stored(name: str, array: np.ndarray) -> ir.Value:
        tensor = ir.tensor(array.astype(np.float32), name=name)
        kind = ir.TensorType(ir.DataType.FLOAT)
        initializers.append(ir.Value(name=name, type=kind, shape=ir.Shape(array.shape), const_value=tensor))
        return initializers[-1]

    def add(op_type: str, name: str, *inputs: ir.Value, **attributes: list[int]) -> ir.Value:
        node = ir.node(op_type, list(inputs), attributes=attributes or None, name=name)
        node.outputs[0].name = f"{name}_output_0"
        nodes.append(node)
        return node.outputs[0]

    for stage in range(STAGES):
        inputs = 1 if stage == 0 else CHANNELS
        weight = generator.standard_normal((CHANNELS, inputs, 3, 3, 3)) * np.sqrt(2 / (27 * inputs))
        weight *= (factors or {}).get(stage, 1)
        scope = f"/part.{stage}/block"
        value = add("Conv", f"{scope}/Conv", value, stored(f"part.{stage}.weight", weight), pads=[1] * 6)
        value = add("Relu", f"{scope}/Relu", value)
        if stage == 2 and shift:
            number = stored("shift", np.array(shift))
            value = add("Add", f"{scope}/Add", value, number)
            value = add("Sub", f"{scope}/Sub", value, number)
    weight = generator.standard_normal((CLASSES, CHANNELS, 1, 1, 1))
    value = add("Conv", "/classifier/Conv", value, stored("classifier.weight", weight))
    value.name = "logits"
    value.dtype, value.shape = ir.DataType.FLOAT, ir.Shape([1, CLASSES, "D", "H", "W"])
    graph = ir.Graph([image], [value], nodes=nodes, initializers=initializers, opset_imports={"": 18}, name="chain")
    return save_onnx(ir.Model(graph, ir_version=10), path, FACTS)
