"""The graph as OpenVINO's CPU kernels like it: resizes on channels-last tensors, gates from one split.

The convolution kernels compute on tensors whose channels are last in memory. A resize is a product along W, H or
D; written on (N,C,D,H,W), each one makes OpenVINO copy its operand into another order and the result back. Written
as products from the left on (N,D,H,W,C) they need no copy, because OpenVINO takes a transpose between a kernel's
own order and the order that the graph names as nothing to do. The arithmetic is the same, number by number, but
where a convolution and its resize are joined (`openvino_compose`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np

from lhanet_export.runners.openvino_compose import MAKES, READS, composed, products_before


def channels_last(model: Any, passes: Any, ops: Any) -> int:
    """Rewrite a model of one fixed size in place; how many operations were rewritten.

    `passes` and `ops` are `openvino.passes` and an opset. Products with a matrix along D, H or W, what is between
    them, and the elementwise operations and means after them are computed on tensors (N,D,H,W,C).
    """
    manager = passes.Manager()
    manager.register_pass(passes.ConstantFolding())
    manager.run_passes(model)
    rewriting = _Rewriting(ops)
    for node in model.get_ordered_ops():
        if node.get_output_size() == 1 and node.get_output_partial_shape(0).is_static:
            rewriting.visit(node)
    rewriting.finish()
    split = _join_slices(model, ops)
    model.validate_nodes_and_infer_types()
    return len(rewriting.done) + split


class _Rewriting:
    """Tensors (N,C,...) of the graph, and for those that were asked for or rewritten the same one as (N,...,C)."""

    def __init__(self, ops: Any) -> None:
        self._ops = ops
        self._last: dict[tuple[str, int], Any] = {}
        self._rewritten: set[tuple[str, int]] = set()
        self.done: list[tuple[Any, Any]] = []

    def visit(self, node: Any) -> None:
        """Rewrite one operation if its kind is known; its producers come before it."""
        rule = {
            "MatMul": self._product, "Reshape": self._reshape, "Concat": self._concat, "Slice": self._slice,
            "Multiply": self._elementwise, "Add": self._elementwise,
            "ReduceMean": self._reduce, "ReduceMax": self._reduce,
        }.get(node.get_type_name())  # fmt: skip
        made = rule(node) if rule is not None else None
        if made is not None:
            made.get_node().set_friendly_name(f"{node.get_friendly_name()}/channels_last")
            output = node.output(0)
            self._last[_key(output)] = made
            self._rewritten.add(_key(output))
            self.done.append((output, made))

    def finish(self) -> None:
        """Give what was not rewritten the tensors that it knows; the old operations are left without a reader."""
        for output, made in self.done:
            rank = len(_shape(made))
            usual = self._transposed(made, [0, rank - 1, *range(1, rank - 1)])
            for reader in list(output.get_target_inputs()):
                reader.replace_source_output(usual)

    def _product(self, node: Any) -> Any:
        left, right = node.input_value(0), node.input_value(1)
        if node.get_attributes()["transpose_a"]:
            return None
        transposed, sides = node.get_attributes()["transpose_b"], (len(_shape(left)), len(_shape(right)))
        if sides == (5, 2):
            matrix = right if transposed else self._ops.transpose(right, self._whole([1, 0])).output(0)
            return self._ops.matmul(matrix, self._get(left), False, False).output(0)
        if transposed or sides not in ((2, 4), (2, 5)):
            return None
        value = self._get(right)
        # Along the last axis but C and W, or but C and the plane: what is behind it is one long row.
        *front, _, inner, channels = _shape(value)
        rows, side = _shape(left)
        flat = self._reshaped(value, [*front, side, inner * channels])
        made = self._ops.matmul(left, flat, False, False).output(0)
        return self._reshaped(made, [*front, rows, inner, channels])

    def _reshape(self, node: Any) -> Any:
        made = self._composed(node)
        if made is not None:
            return made
        source = node.input_value(0)
        before, after = _shape(source), _shape(node.output(0))
        if len(before) == 5 and after == [*before[:3], before[3] * before[4]]:
            return self._reshaped(self._get(source), [before[0], *after[2:], before[1]])
        joined = len(before) == 4 and len(after) == 5 and after[:3] == before[:3]
        if joined and after[3] * after[4] == before[3] and _key(source) in self._rewritten:
            return self._reshaped(self._get(source), [after[0], *after[2:], after[1]])
        return None

    def _composed(self, node: Any) -> Any:
        """The end of a short convolution with resize, made by convolutions of stride 3 (`openvino_compose`)."""
        found = products_before(node)
        kernels = composed(found[1]) if found is not None else None
        if found is None or kernels is None:
            return None
        joined, products = found
        batch, channels, planes, height, width = _shape(node.output(0))
        # The matrix along depth does not mind the order of pixels: they are sorted once, after it.
        size, pieces = (height // MAKES, width // MAKES), []
        for each, quarters in zip(products, kernels, strict=True):
            parts = [self._strided(each.convolution, *quarter, size) for quarter in quarters]
            pieces.append(self._ops.concat(parts, 2).output(0))
        value = self._ops.concat(pieces, 1).output(0)
        flat = self._reshaped(value, [batch, _shape(value)[1], height * width * channels])
        made = self._ops.matmul(joined.input_value(0), flat, False, False).output(0)
        made = self._reshaped(made, [batch, planes, MAKES, MAKES, *size, channels])
        made = self._ops.transpose(made, self._whole([0, 1, 4, 2, 5, 3, 6])).output(0)
        return self._reshaped(made, [batch, planes, height, width, channels])

    def _strided(self, plain: Any, kernel: np.ndarray, offset: tuple[int, int], size: tuple[int, int]) -> Any:
        """A convolution of stride `READS` in the planes that reads what `plain` reads, as (N,D,pixels,C)."""
        source = plain.input_value(0)
        half = plain.get_attributes()["pads_begin"][1]
        begin = [half - each for each in offset]
        taps, sides = kernel.shape[-1], _shape(source)[3:]
        end = [(to - 1) * READS + taps - side - pad for to, side, pad in zip(size, sides, begin, strict=True)]
        weights = self._ops.constant(kernel)
        made = self._ops.convolution(source, weights, [1, READS, READS], [0, *begin], [0, *end], [1, 1, 1])
        made.set_friendly_name(f"{plain.get_friendly_name()}/{offset[0]}{offset[1]}")
        batch, channels, planes = _shape(made.output(0))[:3]
        return self._reshaped(
            self._transposed(made.output(0), [0, 2, 3, 4, 1]), [batch, planes, size[0] * size[1], channels]
        )

    def _concat(self, node: Any) -> Any:
        sources, axis = [each.get_source_output() for each in node.inputs()], node.get_attributes()["axis"]
        rank = len(_shape(node.output(0)))
        if rank not in (4, 5) or axis < 1 or not all(_key(source) in self._rewritten for source in sources):
            return None
        moved = axis - 1 if axis > 1 else rank - 1
        return self._ops.concat([self._get(source) for source in sources], moved).output(0)

    def _slice(self, node: Any) -> Any:
        source = node.input_value(0)
        bounds = [each.get_source_output().get_node() for each in node.inputs()][1:]
        constant = len(bounds) == 4 and all(bound.get_type_name() == "Constant" for bound in bounds)
        if _key(source) not in self._rewritten or len(_shape(source)) != 5 or not constant:
            return None
        *limits, axes = (bound.data.reshape(-1).tolist() for bound in bounds)
        moved = [(0, 4, 1, 2, 3)[axis] for axis in axes]
        return self._ops.slice(self._get(source), *map(self._whole, limits), self._whole(moved)).output(0)

    def _elementwise(self, node: Any) -> Any:
        sources = [each.get_source_output() for each in node.inputs()]
        if len(_shape(node.output(0))) != 5 or not any(_key(source) in self._rewritten for source in sources):
            return None
        operands = []
        for source in sources:
            shape = _shape(source)
            if len(shape) == 5:
                operands.append(self._get(source))
            elif len(shape) == 4 and shape[1:] == [1, 1, 1]:
                operands.append(self._reshaped(source, [1, 1, 1, 1, shape[0]]))
            elif not shape:
                operands.append(source)
            else:
                return None
        make = self._ops.multiply if node.get_type_name() == "Multiply" else self._ops.add
        return make(*operands).output(0)

    def _reduce(self, node: Any) -> Any:
        source, axes = node.input_value(0), node.input_value(1).get_node()
        if len(_shape(source)) != 5 or axes.get_type_name() != "Constant" or not node.get_attributes()["keep_dims"]:
            return None
        mean = node.get_type_name() == "ReduceMean"
        if mean and sorted(axes.data.reshape(-1)) == [2, 3, 4]:
            return self._mean_over_voxels(self._get(source))
        if _key(source) not in self._rewritten:
            return None
        moved = [(0, 4, 1, 2, 3)[int(axis)] for axis in axes.data.reshape(-1)]
        make = self._ops.reduce_mean if mean else self._ops.reduce_max
        return make(self._get(source), self._whole(moved), True).output(0)

    def _mean_over_voxels(self, value: Any) -> Any:
        """The mean of (N,D,H,W,C) over D, H and W as (N,1,1,1,C): a product with a row of 1/side for each axis.

        OpenVINO's own adds up number by number. Of 442,000 voxels, the finest level at 64x128x128, its relative
        error is 3e-5 in FP32; that of the products, whose sums are a side long, is 3e-7, in less than half the time.
        """
        batch, depth, height, width, channels = _shape(value)
        for side, front in ((width, [depth, height]), (height, [depth]), (depth, [])):
            row = self._ops.constant(np.full((1, side), 1 / side, np.float32))
            value = self._reshaped(value, [batch, *front, side, channels])
            value = self._ops.matmul(row, value, False, False).output(0)
        return self._reshaped(value, [batch, 1, 1, 1, channels])

    def _get(self, output: Any) -> Any:
        """A tensor with its channels last; one transpose, however many ask."""
        key = _key(output)
        if key not in self._last:
            self._last[key] = self._transposed(output, [0, *range(2, len(_shape(output))), 1])
        return self._last[key]

    def _transposed(self, output: Any, order: list[int]) -> Any:
        shape = _shape(output)
        moved = [axis for axis in order if shape[axis] != 1]
        if moved == sorted(moved):
            return self._reshaped(output, [shape[axis] for axis in order])
        return self._ops.transpose(output, self._whole(order)).output(0)

    def _reshaped(self, output: Any, shape: list[int]) -> Any:
        # OpenVINO merges a chain of reshapes into a new one, which would not carry its mark (`openvino_mixed`).
        while output.get_node().get_type_name() == "Reshape":
            output = output.get_node().input_value(0)
        return output if _shape(output) == shape else self._ops.reshape(output, self._whole(shape), False).output(0)

    def _whole(self, values: Sequence[int]) -> Any:
        return self._ops.constant(np.array(values, np.int64))


def _join_slices(model: Any, ops: Any) -> int:
    """Replace slices that divide one tensor among them by one split, as OpenVINO would, which loses their marks."""
    groups: dict[tuple[str, int, int], list[tuple[int, int, Any]]] = defaultdict(list)
    for node in model.get_ordered_ops():
        bounds = [each.get_source_output().get_node() for each in node.inputs()][1:]
        if node.get_type_name() != "Slice" or any(bound.get_type_name() != "Constant" for bound in bounds):
            continue
        values = [bound.data.reshape(-1).tolist() for bound in bounds]
        if len(values) == 4 and all(len(value) == 1 for value in values) and values[2] == [1]:
            (start,), (stop,), _, (axis,) = values
            side = _shape(node.input_value(0))[axis]
            groups[(*_key(node.input_value(0)), axis)].append((start, min(stop, side), node))
    joined = 0
    for (*_, axis), slices in groups.items():
        slices.sort(key=lambda each: each[:2])
        source = slices[0][2].input_value(0)
        starts, stops = [each[0] for each in slices], [each[1] for each in slices]
        if len(slices) < 2 or starts != [0, *stops[:-1]] or stops[-1] != _shape(source)[axis]:
            continue
        sizes = [stop - start for start, stop in zip(starts, stops, strict=True)]
        split = ops.variadic_split(source, ops.constant(np.int64(axis)), ops.constant(np.array(sizes, np.int64)))
        split.set_friendly_name(f"{slices[0][2].get_friendly_name()}/split")
        for index, (_, _, node) in enumerate(slices):
            for reader in list(node.output(0).get_target_inputs()):
                reader.replace_source_output(split.output(index))
        joined += len(slices)
    return joined


def _key(output: Any) -> tuple[str, int]:
    return output.get_node().get_name(), output.get_index()


def _shape(output: Any) -> list[int]:
    return [int(side) for side in output.get_shape()]
