"""A convolution with other weights than the one it stands for."""

import copy

from torch import Tensor, nn


def convolution_like(conv: nn.Conv3d, weight: Tensor, bias: Tensor | None) -> nn.Conv3d:
    """A convolution with the stride and padding of `conv` and these weights (O,I,D,H,W), which it does not train."""
    result = copy.copy(conv)
    result.out_channels, result.in_channels, *sides = weight.shape
    result.kernel_size = tuple(sides)
    # A table of its own: the shallow copy still shares that of `conv`.
    result._parameters = {
        "weight": nn.Parameter(weight.detach().contiguous(), requires_grad=False),
        "bias": None if bias is None else nn.Parameter(bias.detach().contiguous(), requires_grad=False),
    }
    return result
