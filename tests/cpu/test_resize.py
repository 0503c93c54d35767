"""The resize means what it meant in training, in every corner, and plain `F.interpolate` on a CPU does not."""

import itertools
import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lhanet_export.model.resize import resize_by_scale, resize_to_size

SCALES = (Fraction(1, 2), Fraction(3, 4), Fraction(5, 4), Fraction(3, 2))

#: Sizes at which kernels have special cases: sides of one to three samples, odd sides, sides that 5/4 keeps.
CORNERS = (
    *((1, 1, 1), (1, 1, 6), (1, 5, 4), (2, 2, 2), (2, 2, 6), (2, 6, 6), (6, 2, 2), (3, 3, 3), (3, 2, 3), (3, 6, 6)),
    *((3, 3, 6), (4, 4, 4), (5, 7, 3), (7, 5, 9), (6, 6, 6), (1, 2, 3), (2, 3, 4), (4, 1, 2)),
)


def axis_reads(side: int, size: int, step: Fraction) -> list[list[tuple[int, float]]]:
    """For each output sample the input samples that it reads, with their weights, in exact arithmetic."""
    reads = []
    for index in range(size):
        source = min(max((index + Fraction(1, 2)) * step - Fraction(1, 2), Fraction(0)), Fraction(side - 1))
        low = math.floor(source)
        share = source - low
        reads.append([(low, float(1 - share)), (min(low + 1, side - 1), float(share))])
    return reads


def reference(x: np.ndarray, sizes: Sequence[int], steps: Sequence[Fraction]) -> np.ndarray:
    """Gather loops in float64 over (N,C,D,H,W): eight neighbours for each output voxel."""
    axes = [axis_reads(*arguments) for arguments in zip(x.shape[-3:], sizes, steps, strict=True)]
    result = np.zeros((*x.shape[:2], *sizes))
    for d, h, w in itertools.product(*(range(size) for size in sizes)):
        for (i, a), (j, b), (k, c) in itertools.product(axes[0][d], axes[1][h], axes[2][w]):
            result[:, :, d, h, w] += a * b * c * x[:, :, i, j, k]
    return result


def reference_by_scale(x: np.ndarray, scale: Fraction) -> np.ndarray:
    sides = x.shape[-3:]
    sizes = [math.floor(side * scale) for side in sides]
    return x.copy() if sizes == list(sides) else reference(x, sizes, [1 / scale] * 3)


def reference_to_size(x: np.ndarray, sizes: Sequence[int]) -> np.ndarray:
    steps = [Fraction(side, size) for side, size in zip(x.shape[-3:], sizes, strict=True)]
    return reference(x, sizes, steps)


def random_map(sides: Sequence[int], seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal((2, 3, *sides))).to(dtype)


def assert_same(found: Tensor, wanted: np.ndarray) -> None:
    assert found.shape == wanted.shape
    np.testing.assert_allclose(found.numpy(), wanted, rtol=0, atol=3e-6)


def vanishes(sides: Sequence[int], scale: Fraction) -> bool:
    return any(side * scale < 1 for side in sides)


@pytest.mark.parametrize("scale", SCALES, ids=str)
@pytest.mark.parametrize("sides", CORNERS, ids=str)
def test_by_scale(sides: tuple[int, int, int], scale: Fraction) -> None:
    x = random_map(sides)
    if vanishes(sides, scale):
        with pytest.raises(ValueError, match="would be resized to 0"):
            resize_by_scale(x, scale)
        return
    assert_same(resize_by_scale(x, scale), reference_by_scale(x.double().numpy(), scale))


@pytest.mark.parametrize(
    ("sides", "size"),
    [
        *(((1, 1, 1), (3, 3, 3)), ((3, 3, 3), (1, 1, 1)), ((2, 2, 2), (2, 2, 3)), ((2, 3, 4), (2, 3, 8))),
        *(((4, 4, 4), (4, 8, 16)), ((5, 7, 9), (7, 9, 5)), ((5, 5, 5), (5, 5, 5)), ((3, 6, 2), (6, 3, 5))),
        *(((2, 2, 6), (2, 3, 7)), ((1, 8, 1), (4, 8, 1)), ((7, 6, 5), (3, 3, 2))),
    ],
    ids=str,
)
def test_to_size(sides: tuple[int, int, int], size: tuple[int, int, int]) -> None:
    x = random_map(sides)
    assert_same(resize_to_size(x, size), reference_to_size(x.double().numpy(), size))


@given(
    sides=st.tuples(*[st.integers(2, 7)] * 3),
    scale=st.sampled_from(SCALES),
    seed=st.integers(0, 2**16),
)
@settings(max_examples=40, deadline=None, derandomize=True)
def test_by_scale_at_any_sides(sides: tuple[int, int, int], scale: Fraction, seed: int) -> None:
    x = random_map(sides, seed)
    assert_same(resize_by_scale(x, scale), reference_by_scale(x.double().numpy(), scale))


@given(
    sides=st.tuples(*[st.integers(1, 12)] * 3),
    size=st.tuples(*[st.integers(1, 12)] * 3),
    seed=st.integers(0, 2**16),
)
@settings(max_examples=60, deadline=None, derandomize=True)
def test_every_result_lies_between_the_input_values(
    sides: tuple[int, int, int], size: tuple[int, int, int], seed: int
) -> None:
    x = random_map(sides, seed)
    y = resize_to_size(x, size)
    assert y.amin() >= x.amin() - 1e-5 and y.amax() <= x.amax() + 1e-5
    torch.testing.assert_close(resize_to_size(torch.ones_like(x), size), torch.ones(2, 3, *size), rtol=0, atol=1e-6)
    if sides == size:
        assert torch.equal(y, x)


@pytest.mark.parametrize(("sides", "scale"), [((2, 2, 2), "5/4"), ((3, 2, 3), "5/4"), ((1, 1, 1), "3/2")])
def test_a_resize_that_keeps_all_sides_is_the_identity(sides: tuple[int, int, int], scale: str) -> None:
    x = random_map(sides)
    assert torch.equal(resize_by_scale(x, Fraction(scale)), x)


@pytest.mark.parametrize("sides", [(2, 2, 6), (3, 6, 6), (2, 6, 6), (3, 3, 6)], ids=str)
def test_plain_interpolate_on_a_cpu_is_not_the_reference(sides: tuple[int, int, int]) -> None:
    """Where 5/4 keeps one side and not another the CPU kernel differs, so these tests can tell the meanings apart."""
    x = random_map(sides)
    plain = F.interpolate(x, scale_factor=1.25, mode="trilinear")
    found = resize_by_scale(x, Fraction(5, 4))
    assert plain.shape == found.shape
    assert (plain - found).norm() / found.norm() > 0.02


@pytest.mark.parametrize("scale", SCALES, ids=str)
@pytest.mark.parametrize("sides", [(6, 6, 6), (8, 12, 10), (5, 7, 9), (16, 31, 17)], ids=str)
def test_plain_interpolate_agrees_where_no_side_is_kept(sides: tuple[int, int, int], scale: Fraction) -> None:
    x = random_map(sides)
    plain = F.interpolate(x, scale_factor=float(scale), mode="trilinear")
    torch.testing.assert_close(resize_by_scale(x, scale), plain, rtol=0, atol=3e-5)


@pytest.mark.parametrize("scale", SCALES, ids=str)
@pytest.mark.parametrize("sides", [(2, 3, 4), (3, 3, 2)], ids=str)
def test_gradients(sides: tuple[int, int, int], scale: Fraction) -> None:
    x = random_map(sides, dtype=torch.float64).requires_grad_()
    torch.autograd.gradcheck(lambda x: resize_by_scale(x, scale), x)
    torch.autograd.gradcheck(lambda x: resize_to_size(x, (5, 2, 3)), x)


@pytest.mark.parametrize("scale", SCALES, ids=str)
def test_gradient_is_the_transposed_resize(scale: Fraction) -> None:
    x = random_map((2, 3, 6)).requires_grad_()
    y = resize_by_scale(x, scale)
    upstream = random_map(y.shape[-3:], seed=1)
    y.backward(upstream)
    # The resize acts on each axis by one matrix; here they are the reference's, and the gradient is their transpose.
    dense = [
        reference_by_scale_matrix(side, math.floor(side * scale), scale, kept=tuple(y.shape) == tuple(x.shape))
        for side in x.shape[-3:]
    ]
    wanted = np.einsum("ncdhw,di,hj,wk->ncijk", upstream.double().numpy(), *dense)
    assert x.grad is not None
    assert_same(x.grad, wanted)


def reference_by_scale_matrix(side: int, size: int, scale: Fraction, *, kept: bool) -> np.ndarray:
    matrix = np.zeros((size, side))
    for row, reads in enumerate(axis_reads(side, size, Fraction(1) if kept else 1 / scale)):
        for column, weight in reads:
            matrix[row, column] += weight
    return matrix


@pytest.mark.parametrize(("dtype", "step"), [(torch.float16, 2**-10), (torch.bfloat16, 2**-7)], ids=str)
def test_half_precision_is_kept_and_only_rounds(dtype: torch.dtype, step: float) -> None:
    # At 200 samples indices in half precision would be off by an eighth of a sample.
    x = random_map((3, 4, 200), dtype=dtype)
    for half, single in (
        (resize_by_scale(x, Fraction(3, 2)), resize_by_scale(x.float(), Fraction(3, 2))),
        (resize_to_size(x, (4, 3, 333)), resize_to_size(x.float(), (4, 3, 333))),
    ):
        assert half.dtype == dtype
        assert (half.float() - single).norm() / single.norm() < 2 * step
