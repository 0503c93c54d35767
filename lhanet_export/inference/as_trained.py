"""How much the network computes as it was trained: the measure that a graph's work is held against."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from lhanet_export.inference.target import Target
from lhanet_export.model.network import LHANet
from lhanet_export.model.presets import preset_named
from lhanet_export.shapes import Shape


def multiply_adds_as_trained(
    preset: str, shape: Shape, *, base_channels: int, num_classes: int, head: str = "final", batch: int = 1
) -> int:
    """Multiply-adds of the eager network's convolutions that `head` reads, for volumes of `shape` (D,H,W) in voxels.

    With plain interpolation a resize has none, so these are all. Padding counts as work. Nothing is
    computed: the network runs on the meta device, without weights. A size that the preset cannot take,
    or a width that it cannot have, raises `RefusedInput`.
    """
    levels = Target(head=head).levels
    counts: dict[str, int] = {}
    with torch.device("meta"), torch.inference_mode():
        network = LHANet(preset_named(preset), num_classes=num_classes, base_channels=base_channels).eval()
        for name, module in network.named_modules():
            if isinstance(module, nn.Conv3d):
                module.register_forward_hook(_counting(name, counts))
        features = network(torch.empty(batch, 1, *shape), return_features=True)["pmsa_features"]
        if head != "final":
            network.deep_supervision_heads[levels - 1](features[levels - 1])
    unread = _unread(levels, final=head == "final")
    return sum(count for name, count in counts.items() if not name.startswith(unread))


def _counting(name: str, counts: dict[str, int]) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
    """A forward hook that adds a convolution's multiply-adds to `counts`."""

    def count(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        assert isinstance(module, nn.Conv3d)
        counts[name] = counts.get(name, 0) + output.numel() * module.weight[0].numel()

    return count


def _unread(levels: int, *, final: bool) -> tuple[str, ...]:
    """Beginnings of the names of what runs above, but changes no logit of a head that reads so many levels."""
    unread = ["decoder.size_classifiers.", "decoder.routing_gate."] if final else ["decoder."]
    for level in range(levels, 4):
        unread += [
            f"backbone.encoder_blocks.{level}.",
            f"backbone.layer{level + 1}.",
            f"hierarchical_pmsa.pmsa_modules.level_{level}.",
            f"hierarchical_pmsa.cross_scale_fusion.{level - 1}.",
        ]
    return tuple(unread)
