"""The largest map of a backbone made and used in parts.

Lightweight: the first convolution keeps the resolution; its map (67 MB in FP16 at 64x128x128) is read by the strided
convolution after it only. A convolution is linear in its input channels, so with the map's channels in two halves

    conv2([a; b]) = conv2_a(a) + conv2_b(b),

and b is made when a is no longer needed. Equal up to the rounding of the sum.

ResNet: the first convolution's map (34 MB in FP32 at 64x128x128) is read by a max-pool only, which takes each channel
by itself, so a quarter of the channels is pooled before the next is made. Equal to the last bit.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lhanet_export.inference.convolution import convolution_like
from lhanet_export.model.backbone import LightweightBackbone, ResNet3DBackbone

HALVES = 2
QUARTERS = 4


class SplitStemBackbone(nn.Module):
    """A lightweight backbone with folded batch norms without its full-resolution map; shares the other weights.

    `forward` (N,1,D,H,W) returns the maps that the levels read, from fine to coarse.
    """

    def __init__(self, backbone: LightweightBackbone) -> None:
        super().__init__()
        first_block = cast(nn.Sequential, backbone.encoder_blocks[0])
        wide, strided = cast(nn.Conv3d, backbone.initial_conv[0]), cast(nn.Conv3d, first_block[0])
        self.initial_conv = _outputs_in_parts(wide, HALVES)
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


class SplitStemResNet(nn.Module):
    """A ResNet backbone with folded batch norms without its map of stride 2; shares the other weights.

    `forward` (N,1,D,H,W) returns the maps that the levels read, from fine to coarse.
    """

    def __init__(self, backbone: ResNet3DBackbone) -> None:
        super().__init__()
        self.conv1 = _outputs_in_parts(backbone.conv1, QUARTERS)
        self.layers = nn.ModuleList(backbone.get_submodule(f"layer{stage + 1}") for stage in range(backbone.stages))

    def forward(self, x: Tensor) -> list[Tensor]:
        parts = [F.max_pool3d(torch.relu(conv(x)), kernel_size=3, stride=2, padding=1) for conv in self.conv1]
        features = [torch.cat(parts, 1)]
        for layer in self.layers:
            features.append(layer(features[-1]))
        return features[1:]


def _outputs_in_parts(conv: nn.Conv3d, parts: int) -> nn.ModuleList:
    """Convolutions that give a part of the channels of `conv` each."""
    assert conv.bias is not None
    return nn.ModuleList(
        convolution_like(conv, weight, bias)
        for weight, bias in zip(conv.weight.chunk(parts), conv.bias.chunk(parts), strict=True)
    )
