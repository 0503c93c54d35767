"""Tensors that calibration never saw leave 0: how far they can go, by the weights of the layer before them.

A trained network may have branches that are 0 on every scan. INT8 is exact for that at any scale, and what the
branch might give on some other scan has a bound of its own, by interval arithmetic: behind a convolution and a ReLU,

    0 <= y <= max over channels (largest |x| * sum of |w| + b)

with the largest |x| that was seen of the convolution's input. What is stored in FP16 ends at its largest number.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from lhanet_export.precision.fp16 import HALF_LARGEST
from lhanet_export.precision.scales import Magnitudes


def silent_bounds(model: ir.Model, seen: Mapping[str, Magnitudes]) -> dict[str, float]:
    """The bound of each tensor that was 0 everywhere and comes from a ReLU behind a convolution whose input was not."""
    bounds = {}
    for node in model.graph:
        value = node.outputs[0]
        if node.op_type == "Relu" and (name := str(value.name)) in seen and seen[name].largest == 0:
            bound = _bound(node.inputs[0], seen)
            if bound is not None:
                bounds[name] = bound
    return bounds


def _bound(value: ir.Value | None, seen: Mapping[str, Magnitudes]) -> float | None:
    """Of what comes out of a ReLU that takes this; above 0, `None` where nothing bounds it."""
    conv = value.producer() if value is not None else None
    if conv is None or conv.op_type != "Conv":
        return None
    source, *constants = conv.inputs
    before = seen.get(str(source.name)) if source is not None else None
    arrays = [one.const_value.numpy() for one in constants if one is not None and one.const_value is not None]
    if before is None or before.largest == 0 or len(arrays) != len(constants):
        return None
    weights, *biases = arrays
    sums = np.abs(weights).reshape(len(weights), -1).sum(1, dtype=np.float64) * before.largest
    most = float((sums + biases[0] if biases else sums).max())
    # Where the biases outweigh everything, it stays 0 for certain, and any bound will do.
    return min(most if most > 0 else float(sums.max()), HALF_LARGEST) or None
