"""Progressive multi-scale attention (PMSA): five scales per level, fused step by step, and the hierarchy over levels.

Tensors are (N,C,D,H,W). Attribute names are those of the public checkpoints, also where they
mislead: `spatial_attention` weighs channels, `channel_attention` weighs voxels.
"""

from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise

import torch
from torch import Tensor, nn

from lhanet_export.model.backbone import conv_norm_relu
from lhanet_export.model.presets import SCALES
from lhanet_export.model.resize import LAST_AXIS_FIRST, resize_by_scale, resize_to_size


class PooledAttention(nn.Module):
    """One weight a channel, from the mean and the maximum over all voxels (upstream: spatial attention)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc = nn.Sequential(
            nn.Conv3d(channels, channels // 8, 1, bias=False),
            nn.ReLU(inplace=True),
            nn.Conv3d(channels // 8, channels, 1, bias=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        axes = (2, 3, 4)
        return torch.sigmoid(self.fc(x.mean(axes, keepdim=True)) + self.fc(x.amax(axes, keepdim=True)))


class VoxelAttention(nn.Module):
    """One weight a voxel, from the mean and the maximum over the channels (upstream: channel attention)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv3d(2, 1, 7, padding=3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.conv(torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], dim=1)))


class ScaleBranch(nn.Module):
    """One scale: resize, weigh channels and voxels, convolve with context and organ kernel, resize back."""

    def __init__(self, channels: int, scale: Fraction, organ_kernel: int) -> None:
        super().__init__()
        self.scale = scale
        # The order in which `forward` resizes the axes; it changes nothing but rounding.
        self.resize_order: Sequence[int] = LAST_AXIS_FIRST
        self.spatial_attention = PooledAttention(channels)
        self.channel_attention = VoxelAttention()
        self.context_conv = nn.Sequential(*conv_norm_relu(channels, channels))
        self.organ_conv = nn.Conv3d(channels, channels, organ_kernel, padding=organ_kernel // 2)

    def forward(self, x: Tensor) -> Tensor:
        y = x if self.scale == 1 else resize_by_scale(x, self.scale, self.resize_order)
        y = y * self.spatial_attention(y) * self.channel_attention(y)
        return self.organ_features(self.context_conv(y), x.shape[-3:])

    def organ_features(self, y: Tensor, size: Sequence[int]) -> Tensor:
        """The organ convolution of `y`, resized to `size` (D,H,W)."""
        y = self.organ_conv(y)
        return y if self.scale == 1 else resize_to_size(y, size)


class PMSA(nn.Module):
    """The five branches of one level, fused progressively and summed with a learned gate each."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.scale_attentions = nn.ModuleList(ScaleBranch(channels, scale, kernel) for scale, kernel in SCALES)
        self.progressive_fusion = nn.ModuleList(
            nn.Sequential(*conv_norm_relu(channels * count, channels, kernel=1)) for count in range(2, len(SCALES) + 1)
        )
        self.final_fusion = nn.Sequential(*conv_norm_relu(channels * len(SCALES), channels, kernel=1))
        self.gate_conv = nn.Sequential(
            nn.Conv3d(channels, channels // 4, 1),
            nn.ReLU(inplace=True),
            nn.Conv3d(channels // 4, len(SCALES), 1),
            nn.Sigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        branches = [branch(x) for branch in self.scale_attentions]
        progressive = [branches[0]]
        for count, fusion in enumerate(self.progressive_fusion, start=2):
            progressive.append(fusion(torch.cat(branches[:count], dim=1)))
        gates = self.gate_conv(self.final_fusion(torch.cat(progressive, dim=1))).mean((2, 3, 4), keepdim=True)
        total = progressive[0] * gates[:, 0:1]
        for index, feature in enumerate(progressive[1:], start=1):
            total = total + feature * gates[:, index : index + 1]
        return total


def fuse_fine_to_coarse(features: list[Tensor], fusions: nn.ModuleList, *, finer_first: bool) -> list[Tensor]:
    """Carry each level into the next coarser one: resize the finer result, concatenate, fuse.

    `features` run from fine to coarse; `fusions[i]` makes level i + 1. The hierarchy puts the finer
    result's channels first, the decoder last: `finer_first` says which.
    """
    fused = [features[0]]
    for feature, fusion in zip(features[1:], fusions, strict=True):
        finer = resize_to_size(fused[-1], feature.shape[-3:])
        pair = [finer, feature] if finer_first else [feature, finer]
        fused.append(fusion(torch.cat(pair, dim=1)))
    return fused


def fusion_layers(channels: tuple[int, ...]) -> nn.ModuleList:
    """For each pair of neighbouring levels the 1x1x1 fusion that makes the coarser one."""
    return nn.ModuleList(
        nn.Sequential(*conv_norm_relu(fine + coarse, coarse, kernel=1)) for fine, coarse in pairwise(channels)
    )


class HierarchicalPMSA(nn.Module):
    """One PMSA per level, then fine to coarse fusion; returns h_0..h_3."""

    def __init__(self, channels: tuple[int, ...]) -> None:
        super().__init__()
        self.pmsa_modules = nn.ModuleDict({f"level_{level}": PMSA(width) for level, width in enumerate(channels)})
        self.cross_scale_fusion = fusion_layers(channels)

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        outputs = [pmsa(feature) for pmsa, feature in zip(self.pmsa_modules.values(), features, strict=True)]
        return fuse_fine_to_coarse(outputs, self.cross_scale_fusion, finer_first=True)
