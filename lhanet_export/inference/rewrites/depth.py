"""The large organ convolutions as short convolutions along depth, joined with the resize that follows them.

A convolution with a t x t x t kernel is, along depth, a correlation with t taps whose coefficients are t x t
convolutions of planes. `short_convolution` gives six output planes from 14 products in place of 42 (t = 7), or from 11
in place of 30 (t = 5), each product being one 1 x t x t convolution with a kernel of its own:

    planes of a product = (data row) . depth          a matrix over the depth axis, from the shape
    products            = Conv(1, t, t)(planes)       a third of the multiply-adds
    result              = (resize @ inverse) . depth  another matrix over the depth axis

The resizes along height and width act on each product, which is linear, so they go before the last matrix, where
the data is smallest; the resize along depth is one matrix with the inverse. Depth is cut into tiles of six
planes; what the last tile lacks is 0 by the matrices themselves, so every size is exact. Weights double.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from lhanet_export.inference.rewrites.short_convolution import ShortConvolution, short_convolution
from lhanet_export.model.pmsa import ScaleBranch
from lhanet_export.model.resize import interpolation_matrix


class ShortBranch(ScaleBranch):
    """A scale branch whose organ convolution and resize are one `DepthConvolution`; shares the other weights."""

    def __init__(self, branch: ScaleBranch, *, joint: bool = False) -> None:
        nn.Module.__init__(self)
        self.scale, self.resize_order = branch.scale, branch.resize_order
        self.spatial_attention = branch.spatial_attention
        self.channel_attention = branch.channel_attention
        self.context_conv = branch.context_conv
        self.short_conv = DepthConvolution(branch.organ_conv, joint=joint)

    def organ_features(self, y: Tensor, size: Sequence[int]) -> Tensor:
        """The organ convolution of `y`, resized to `size` (D,H,W)."""
        return self.short_conv(y, None if self.scale == 1 else size)


class DepthConvolution(nn.Module):
    """A convolution (padding: same) of tensors (N,C,D,H,W), short along depth, then resized where a size is given.

    `slabs` is in how many parts, by depth, the products are made and summed up: more parts hold
    fewer products at a time. `joint` takes the planes of all products of a part from `x` at once, which reads it
    once and holds them all. `ValueError` for kernels that no short convolution is known for.
    """

    def __init__(self, conv: nn.Conv3d, *, slabs: int = 1, joint: bool = False) -> None:
        super().__init__()
        algorithm = short_convolution(conv.kernel_size[0])
        assert conv.bias is not None
        self.slabs, self.joint = slabs, joint
        self.samples, self.taps = algorithm.samples, algorithm.taps
        self.bias = nn.Parameter(conv.bias.detach().reshape(-1, 1, 1, 1), requires_grad=False)
        self.kernels = nn.ParameterList(_transformed_kernels(conv, algorithm))
        self.data = _table(algorithm.data, conv.weight.device)
        self.inverse = _table(algorithm.inverse.T, conv.weight.device)

    def forward(self, x: Tensor, size: Sequence[int] | None) -> Tensor:
        """The convolution of `x`, resized to `size` (D,H,W) or, for None, as it is."""
        batch, channels, depth = x.shape[:3]
        to_size = x.shape[-3:] if size is None else size
        # Made once, from the shape of `x`: a matrix from each product's own shape would be a graph of its own.
        resize_height, resize_width = (
            interpolation_matrix(side, to, (side, to), device=x.device).to(x.dtype)
            for side, to in zip(x.shape[-2:], to_size[1:], strict=True)
        )
        # Tiles of a slab, the same number in each: tensors of one size take each other's place in memory.
        count = (depth + self.samples * self.slabs - 1) // (self.samples * self.slabs)
        resize_depth = interpolation_matrix(
            depth, to_size[0], (depth, to_size[0]), device=x.device, columns=count * self.slabs * self.samples
        )
        matrix = self._inverse(count, x.device)
        if self.slabs == 1:
            matrix = torch.matmul(resize_depth, matrix)
        parts = []
        for slab in range(self.slabs):
            products = []
            for y in self._products(x, slab * count, count):
                if size is not None:
                    y = torch.matmul(resize_height, torch.matmul(y, resize_width.T))
                products.append(y.reshape(batch, channels, count, to_size[1] * to_size[2]))
            parts.append(torch.matmul(matrix.to(x.dtype), torch.cat(products, 2)))
        y = parts[0] if self.slabs == 1 else torch.matmul(resize_depth.to(x.dtype), torch.cat(parts, 2))
        return y.reshape(batch, channels, *to_size) + self.bias

    def _products(self, x: Tensor, first: int, count: int) -> Iterator[Tensor]:
        """The products (N,C,count,H,W) of `count` tiles from tile `first` on, one after the other."""
        batch, channels, depth, height, width = x.shape
        planes = torch.arange(depth, device=x.device) + self.taps // 2
        starts = (torch.arange(count, device=x.device) + first) * self.samples
        matrices = _band(self.data, planes[None, :] - starts[:, None]).to(x.dtype)
        flat = x.reshape(batch, channels, depth, height * width)
        if self.joint:
            rows = len(self.kernels) * count
            flat = torch.matmul(matrices.reshape(rows, depth), flat).reshape(batch, channels, rows, height, width)
        for index, kernel in enumerate(self.kernels):
            if self.joint:
                y = flat[:, :, index * count : (index + 1) * count]
            else:
                y = torch.matmul(matrices[index], flat).reshape(batch, channels, count, height, width)
            yield functional.conv3d(y, kernel, padding=(0, self.taps // 2, self.taps // 2))

    def _inverse(self, count: int, device: torch.device) -> Tensor:
        """Matrix (planes, products * tiles), float32: from the products of `count` tiles to their planes."""
        planes = torch.arange(count * self.samples, device=device)
        starts = torch.arange(count, device=device) * self.samples
        matrix = _band(self.inverse, planes[:, None] - starts[None, :]).permute(1, 0, 2)
        return matrix.reshape(count * self.samples, len(self.kernels) * count)


def _band(table: Tensor, offsets: Tensor) -> Tensor:
    """`table[:, offset]` for every offset, 0 beyond its ends; the table has a column of zeros at either end."""
    columns = (offsets + 1).clamp(0, table.shape[1] - 1).reshape(-1)
    return table.index_select(1, columns).reshape(table.shape[0], *offsets.shape)


def _table(values: np.ndarray, device: torch.device) -> nn.Parameter:
    padded = np.pad(values, ((0, 0), (1, 1)))
    return nn.Parameter(torch.from_numpy(padded).to(device, torch.float32), requires_grad=False)


def _transformed_kernels(conv: nn.Conv3d, algorithm: ShortConvolution) -> list[nn.Parameter]:
    """One kernel (O,I,1,t,t) a product; computed in float64."""
    weight = conv.weight.detach().double()
    return [
        nn.Parameter(torch.einsum("oithw,t->oihw", weight, row)[:, :, None].to(conv.weight.dtype), requires_grad=False)
        for row in torch.from_numpy(algorithm.kernel).to(weight.device)
    ]
