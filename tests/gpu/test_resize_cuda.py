"""The resize means what PyTorch's CUDA kernel computes, with which LHA-Net was trained."""

import itertools
from fractions import Fraction

import pytest
import torch
import torch.nn.functional as F

from lhanet_export.model.resize import resize_by_scale, resize_to_size
from tests.cpu.test_resize import CORNERS, SCALES, random_map, vanishes

pytestmark = pytest.mark.gpu

LARGER = ((16, 31, 17), (48, 96, 96), (33, 64, 65))


@pytest.fixture(autouse=True)
def _full_precision_products(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)


@pytest.mark.parametrize(
    ("sides", "scale"),
    [pair for pair in itertools.product((*CORNERS, *LARGER), SCALES) if not vanishes(*pair)],
    ids=str,
)
def test_by_scale_is_interpolate_on_cuda(sides: tuple[int, int, int], scale: Fraction) -> None:
    x = random_map(sides).cuda()
    wanted = F.interpolate(x, scale_factor=float(scale), mode="trilinear", align_corners=False)
    torch.testing.assert_close(resize_by_scale(x, scale), wanted, rtol=0, atol=5e-5)


@pytest.mark.parametrize("size", [(1, 1, 1), (2, 2, 7), (6, 2, 3), (5, 9, 7), (12, 12, 12)], ids=str)
@pytest.mark.parametrize("sides", [*CORNERS, *LARGER], ids=str)
def test_to_size_is_interpolate_on_cuda(sides: tuple[int, int, int], size: tuple[int, int, int]) -> None:
    x = random_map(sides).cuda()
    wanted = F.interpolate(x, size=size, mode="trilinear", align_corners=False)
    torch.testing.assert_close(resize_to_size(x, size), wanted, rtol=0, atol=5e-5)


@pytest.mark.parametrize("sides", [(2, 2, 6), (3, 6, 6), (6, 7, 8)], ids=str)
def test_cpu_and_cuda_give_the_same(sides: tuple[int, int, int]) -> None:
    x = random_map(sides)
    for scale in SCALES:
        torch.testing.assert_close(resize_by_scale(x.cuda(), scale).cpu(), resize_by_scale(x, scale), rtol=0, atol=5e-5)
