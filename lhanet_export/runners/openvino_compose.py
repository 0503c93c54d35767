"""Convolutions joined with the resize by two thirds that follows them, in graphs of one fixed size.

The 1.5x branch is resized back to its level. Where a side of the level is even, its side is 3/2 of that to the voxel,
and the resize along it is the same for every three samples y, and needs no clamping:

    out[2k]     = 3/4 y[3k]     + 1/4 y[3k + 1]
    out[2k + 1] = 1/4 y[3k + 1] + 3/4 y[3k + 2].

y is a convolution, so out[2k] and out[2k + 1] are convolutions of stride 3 each, with kernels of one tap more. Along
height and width together, four convolutions of 8 x 8 taps make the resized result from the input itself, in 0.58 of
the multiply-adds of 7 x 7 taps alone. The kernels come from the matrices in the graph, and only where those have
the period of three samples; a side that is not even has not, and stays as it is. Weights are 5.2 times as many.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

#: Bytes that the kernels of one branch may take, float32. The finest level's take 59 MB; the next level's would
#: take 235 MB, and with OpenVINO's own copy more memory than eager PyTorch.
MOST_BYTES = 64 * 2**20
#: Samples that are read, and made, before the resize repeats itself.
READS, MAKES = 3, 2


@dataclass(frozen=True, kw_only=True)
class Product:
    """One product of a short convolution: the convolution (kernel 1 x t x t) and the two matrices (rows, side)."""

    convolution: Any
    height: np.ndarray
    width: np.ndarray


def products_before(reshape: Any) -> tuple[Any, list[Product]] | None:
    """The matrix and the products of a short convolution with resize that ends in `reshape`, if it is one.

    That is: reshape(matrix @ concat(reshape(height @ (convolution @ width)), ...)), the matrices constant.
    """
    joined = _source(reshape, 0, "MatMul")
    matrix, pieces = _constant(joined, 0), _source(joined, 1, "Concat")
    if matrix is None or matrix.ndim != 2 or pieces is None or not _multiplies_as_written(joined):
        return None
    if pieces.get_attributes()["axis"] != 2:
        return None
    found = []
    for index in range(pieces.get_input_size()):
        resized = _source(_source(pieces, index, "Reshape"), 0, "MatMul")
        narrowed = _source(resized, 1, "MatMul")
        convolution = _source(narrowed, 0, "Convolution")
        height, width = _constant(resized, 0), _constant(narrowed, 1)
        if convolution is None or height is None or width is None or not _multiplies_as_written(resized):
            return None
        if narrowed.get_attributes()["transpose_a"]:
            return None
        width = width if narrowed.get_attributes()["transpose_b"] else width.T
        found.append(Product(convolution=convolution, height=height, width=width))
    return joined, found


def composed(products: Sequence[Product]) -> list[list[tuple[np.ndarray, tuple[int, int]]]] | None:
    """For each product the four kernels (O,I,1,t+1,t+1), rows of the result first, and their first taps' offsets.

    None where the resize has no period, or the kernels would take too much memory.
    """
    kernels = [kernel for each in products if (kernel := _plane_kernel(each.convolution)) is not None]
    if len(kernels) < len(products):
        return None
    taps = kernels[0].shape[-1]
    total = sum(kernel.nbytes for kernel in kernels) / taps**2 * (taps + 1) ** 2 * MAKES**2
    if total > MOST_BYTES or not all(_repeats(each.height) and _repeats(each.width) for each in products):
        return None
    return [
        [
            (_along(_along(kernel, height, 3), width, 4), (row_offset, column_offset))
            for (height, row_offset), (width, column_offset) in product(_rows(each.height), _rows(each.width))
        ]
        for each, kernel in zip(products, kernels, strict=True)
    ]


def _repeats(matrix: np.ndarray) -> bool:
    """Whether the rows of a matrix (2k, 3k) are the first two again and again, three columns further each time."""
    rows, side = matrix.shape
    if rows % MAKES or rows * READS != side * MAKES:
        return False
    wanted = np.zeros_like(matrix)
    for parity, (numbers, begin) in enumerate(_rows(matrix)):
        for block in range(rows // MAKES):
            at = begin + READS * block
            wanted[MAKES * block + parity, at : at + 2] = numbers
    # Positions are computed in FP32 from numbers as large as the side: their last bits differ.
    return bool(np.abs(matrix - wanted).max() <= 1e-5)


def _rows(matrix: np.ndarray) -> Iterator[tuple[np.ndarray, int]]:
    """Two neighbouring numbers of each of the first two rows, the first not 0, and in which column they begin."""
    for row in matrix[:MAKES]:
        begin = min(int(np.flatnonzero(row)[0]), READS - 2)
        yield row[begin : begin + 2], begin


def _along(kernel: np.ndarray, numbers: np.ndarray, axis: int) -> np.ndarray:
    """A kernel followed by a sum of two neighbours along `axis`: one tap more."""
    one, other = numbers.astype(np.float64)
    pad = [(0, 0)] * kernel.ndim
    first, second = pad.copy(), pad.copy()
    first[axis], second[axis] = (0, 1), (1, 0)
    return (one * np.pad(kernel, first) + other * np.pad(kernel, second)).astype(np.float32)


def _plane_kernel(convolution: Any) -> np.ndarray | None:
    """The kernel (O,I,1,t,t) of a convolution in the planes only, that keeps the size; None for others."""
    kernel = _constant(convolution, 1)
    if kernel is None or kernel.ndim != 5 or kernel.shape[2] != 1 or kernel.shape[3] != kernel.shape[4]:
        return None
    facts, half = convolution.get_attributes(), kernel.shape[-1] // 2
    wanted = {"strides": [1, 1, 1], "dilations": [1, 1, 1], "pads_begin": [0, half, half], "pads_end": [0, half, half]}
    return kernel if all(list(facts[key]) == values for key, values in wanted.items()) else None


def _multiplies_as_written(matmul: Any) -> bool:
    facts = matmul.get_attributes()
    return not facts["transpose_a"] and not facts["transpose_b"]


def _source(node: Any, index: int, kind: str) -> Any:
    """The operation behind an input, if it is of a kind."""
    found = node.input_value(index).get_node() if node is not None else None
    return found if found is not None and found.get_type_name() == kind else None


def _constant(node: Any, index: int) -> np.ndarray | None:
    """The values behind an input, if they are constant."""
    found = _source(node, index, "Constant")
    return None if found is None else found.data
