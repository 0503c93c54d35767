"""The full-resolution map of the lightweight backbone made and used half by half.

The first convolution keeps the resolution; its map is the largest tensor of the backbone (67 MB in FP16 at
64x128x128), and only the strided convolution after it reads it. A convolution is linear in its input
channels, so with the map's channels in two halves a and b

    conv2([a; b]) = conv2_a(a) + conv2_b(b),

and b is made when a is no longer needed. Equal up to the rounding of the sum.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from lhanet_export.inference.convolution import convolution_like
from lhanet_export.model.backbone import LightweightBackbone

HALVES = 2


class SplitStemBackbone(nn.Module):
    """A lightweight backbone with folded batch norms without its full-resolution map; shares the other weights.

    `forward` (N,1,D,H,W) returns the maps that the levels read, from fine to coarse.
    """

    def __init__(self, backbone: LightweightBackbone) -> None:
        super().__init__()
        first_block = cast(nn.Sequential, backbone.encoder_blocks[0])
        wide, strided = cast(nn.Conv3d, backbone.initial_conv[0]), cast(nn.Conv3d, first_block[0])
        assert wide.bias is not None
        self.initial_conv = nn.ModuleList(
            convolution_like(wide, weight, bias)
            for weight, bias in zip(wide.weight.chunk(HALVES), wide.bias.chunk(HALVES), strict=True)
        )
        # One bias is enough for a sum.
        self.strided_conv = nn.ModuleList(
            convolution_like(strided, weight, strided.bias if half == 0 else None)
            for half, weight in enumerate(strided.weight.chunk(HALVES, dim=1))
        )
        self.encoder_blocks = nn.ModuleList([first_block[1:], *backbone.encoder_blocks[1:]])

    def forward(self, x: Tensor) -> list[Tensor]:
        halves = [
            strided(torch.relu(initial(x)))
            for initial, strided in zip(self.initial_conv, self.strided_conv, strict=True)
        ]
        features = [self.encoder_blocks[0](halves[0] + halves[1])]
        for block in self.encoder_blocks[1:]:
            features.append(block(features[-1]))
        return features
