"""The two backbones: a light stack of strided convolutions and a 3D ResNet.

Both return five feature maps (N,C,D,H,W) from fine to coarse; the network uses the last four.
"""

from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from lhanet_export.model.presets import Preset


def conv_norm_relu(in_channels: int, out_channels: int, kernel: int = 3, stride: int = 1) -> list[nn.Module]:
    """Convolution with bias that keeps (or divides by `stride`, rounding up) the size, batch norm, ReLU."""
    return [
        nn.Conv3d(in_channels, out_channels, kernel, stride=stride, padding=kernel // 2),
        nn.BatchNorm3d(out_channels),
        nn.ReLU(inplace=True),
    ]


class LightweightBackbone(nn.Module):
    """Full resolution, then four blocks of stride 2 that double the channels."""

    def __init__(self, in_channels: int, base_channels: int) -> None:
        super().__init__()
        self.initial_conv = nn.Sequential(*conv_norm_relu(in_channels, base_channels))
        widths = [base_channels * 2**level for level in range(5)]
        self.encoder_blocks = nn.ModuleList(
            nn.Sequential(*conv_norm_relu(narrow, wide, stride=2), *conv_norm_relu(wide, wide))
            for narrow, wide in pairwise(widths)
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        features = [self.initial_conv(x)]
        for block in self.encoder_blocks:
            features.append(block(features[-1]))
        return features


class BasicBlock(nn.Module):
    """Two 3x3x3 convolutions with a shortcut (He et al. 2015, arXiv:1512.03385), in 3D."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(in_channels, channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm3d(channels)
        self.conv2 = nn.Conv3d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm3d(channels)
        self.downsample: nn.Module = nn.Identity()
        if stride != 1 or in_channels != channels:
            self.downsample = nn.Sequential(
                nn.Conv3d(in_channels, channels, 1, stride=stride, bias=False), nn.BatchNorm3d(channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        y = self.bn2(self.conv2(y))
        return F.relu(y + self.downsample(x), inplace=True)


class ResNet3DBackbone(nn.Module):
    """A 3D ResNet of basic blocks: 7x7x7 stem of stride 2, max-pool of stride 2, four stages."""

    def __init__(self, in_channels: int, base_channels: int, residual_blocks: tuple[int, ...]) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(in_channels, base_channels, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm3d(base_channels)
        width = base_channels
        for stage, blocks in enumerate(residual_blocks):
            wide = base_channels * 2**stage
            stride = 1 if stage == 0 else 2
            chain = [BasicBlock(width, wide, stride), *(BasicBlock(wide, wide, 1) for _ in range(blocks - 1))]
            self.add_module(f"layer{stage + 1}", nn.Sequential(*chain))
            width = wide
        self.stages = len(residual_blocks)

    def forward(self, x: Tensor) -> list[Tensor]:
        features = [F.relu(self.bn1(self.conv1(x)), inplace=True)]
        x = F.max_pool3d(features[0], kernel_size=3, stride=2, padding=1)
        for stage in range(self.stages):
            x = self.get_submodule(f"layer{stage + 1}")(x)
            features.append(x)
        return features


def backbone_of(preset: Preset, in_channels: int, base_channels: int) -> nn.Module:
    """The backbone that a preset names, untrained."""
    if preset.backbone == "lightweight":
        return LightweightBackbone(in_channels, base_channels)
    return ResNet3DBackbone(in_channels, base_channels, preset.residual_blocks)
