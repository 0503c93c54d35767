"""Trilinear resize with one meaning on every device and runtime.

For an axis of n samples resized by scale s the output has floor(n * s) samples, and output i
reads the input at (i + 0.5) / s - 0.5, clamped to [0, n - 1]. Resized to m samples, output i
reads at (i + 0.5) * n / m - 0.5, clamped likewise. If all three axes keep their size, the
resize is the identity. This is what PyTorch's CUDA kernel computes for
`interpolate(mode="trilinear", align_corners=False)` and therefore what LHA-Net was trained
with (source: aten/src/ATen/native/cuda/UpSampleTrilinear3d.cu and UpSample.cuh). PyTorch's CPU
kernel differs: it treats each single axis of unchanged size as the identity.

Linear interpolation along an axis is a product with a matrix whose row i holds
max(0, 1 - |source(i) - j|); a trilinear resize is three such products. Written so, no kernel's
corner cases are left, gradients are deterministic, and a traced graph computes the matrices
from the shape that it is run with.
"""

from collections.abc import Sequence
from fractions import Fraction

import torch
from torch import Tensor

#: The order of the three products: the last axis first.
LAST_AXIS_FIRST = (4, 3, 2)


def resize_by_scale(x: Tensor, scale: Fraction, order: Sequence[int] = LAST_AXIS_FIRST) -> Tensor:
    """Resize the last three axes of `x` (N,C,D,H,W) by the factor `scale`; sides become floor(n * scale).

    Floating dtypes only; the result has the dtype of `x`. A side that would become 0 raises ValueError.
    `order` is the order in which the axes 2, 3 and 4 are resized; the result is the same up to rounding.
    """
    sides = x.shape[-3:]
    up, down = scale.numerator, scale.denominator
    sizes = [side * up // down for side in sides]
    keep = False
    # Only scales between 1 and 1.5 can keep a side of two samples or more; with one sample every scale is the identity.
    if 1 < scale < Fraction(3, 2):
        keep = (sizes[0] == sides[0]) & (sizes[1] == sides[1]) & (sizes[2] == sides[2])
    # One output step is down/up input samples, or exactly one (up/up) where all sides are kept.
    return _resize(x, sizes, [(down + keep * (up - down), up)] * 3, order)


def resize_to_size(x: Tensor, size: Sequence[int], axes: Sequence[int] = LAST_AXIS_FIRST) -> Tensor:
    """Resize the last three axes of `x` (N,C,D,H,W) to `size` (D,H,W), reading by the ratio of the sizes.

    `axes` are those that are resized (2, 3, 4), in this order; the others are left as they are.
    """
    return _resize(x, size, list(zip(x.shape[-3:], size, strict=True)), axes)


def _resize(x: Tensor, sizes: Sequence[int], steps: Sequence[tuple[int, int]], order: Sequence[int]) -> Tensor:
    sides = x.shape[-3:]
    for axis in order:
        matrix = interpolation_matrix(sides[axis - 2], sizes[axis - 2], steps[axis - 2], device=x.device)
        x = _multiply_axis(matrix.to(x.dtype), x, axis)
    return x


def _multiply_axis(matrix: Tensor, x: Tensor, axis: int) -> Tensor:
    """The product of `matrix` (rows, side) with `x` (N,C,D,H,W) along one of its last three axes (2, 3 or 4)."""
    if axis == 4:
        return torch.matmul(x, matrix.T)
    if axis == 3:
        return torch.matmul(matrix, x)
    batch, channels, depth, height, width = x.shape
    planes = x.reshape(batch, channels, depth, height * width)
    return torch.matmul(matrix, planes).reshape(batch, channels, matrix.shape[0], height, width)


def interpolation_matrix(
    side: int, size: int, step: tuple[int, int], *, device: torch.device, columns: int | None = None
) -> Tensor:
    """Matrix (size, side), float32: row i interpolates where `reading_positions` says.

    With `columns` (at least `side`) the matrix has that many; the ones beyond `side` are 0.
    """
    source, samples = reading_positions(side, size, step, device=device)
    reads = samples if columns is None else torch.arange(columns, device=device).to(torch.float32)
    return (1 - (source[:, None] - reads[None, :]).abs()).clamp(min=0)


def reading_positions(side: int, size: int, step: tuple[int, int], *, device: torch.device) -> tuple[Tensor, Tensor]:
    """Where each of `size` outputs reads an axis of `side` samples, and the samples' own positions, float32 both.

    Output i reads at ((2 i + 1) * num - den) / (2 den), step = num / den, clamped to [0, side - 1]. Always
    float32: at index 200 float16 has steps of 0.125. Numerators are whole and below 2**24 for every
    volume that fits a GPU, so the one division is the only rounding.
    """
    if not torch.jit.is_tracing() and size < 1:
        raise ValueError(f"a side of {side} would be resized to {size}")
    num, den = step
    rows = torch.arange(size, device=device).to(torch.float32)
    samples = torch.arange(side, device=device).to(torch.float32)
    source = ((2 * rows + 1) * num - den) / (2 * den)
    # The upper limit is read from the samples, so that it stays dynamic in a traced graph.
    return source.clamp(min=0).minimum(samples[-1]), samples
