"""LHA-Net, eager: the network that checkpoints belong to and the reference that every artifact is held against."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lhanet_export.errors import RefusedInput
from lhanet_export.model.backbone import backbone_of
from lhanet_export.model.decoder import OrganSizeAwareDecoder
from lhanet_export.model.pmsa import HierarchicalPMSA
from lhanet_export.model.presets import Preset, preset_named
from lhanet_export.model.resize import resize_to_size


class LHANet(nn.Module):
    """Segments a CT volume (N,1,D,H,W) into logits (N,K,D,H,W).

    In eval mode `forward(x)` returns the logits. In training mode it returns a dict with
    `final_prediction` and `deep_supervision_outputs` (four logits at the input's size, from fine
    to coarse). `return_features=True` adds `size_predictions`, `routing_weights`,
    `pmsa_features` and `backbone_features`. A volume with a side below `preset.smallest_side`
    raises `RefusedInput`.
    """

    def __init__(
        self, preset: Preset, *, num_classes: int = 14, base_channels: int | None = None, in_channels: int = 1
    ) -> None:
        super().__init__()
        self.preset = preset
        self.num_classes = num_classes
        self.base_channels = base_channels if base_channels is not None else preset.base_channels
        self.channels = preset.level_channels(self.base_channels)
        # Channel attention divides the finest level's channels by eight.
        if num_classes < 2 or self.channels[0] < 8:
            raise RefusedInput(
                f"LHA-Net needs at least 2 classes and 8 channels at its finest level; "
                f"got {num_classes} classes and {self.channels[0]} channels ({preset.name}, width {self.base_channels})"
            )
        self.backbone = backbone_of(preset, in_channels, self.base_channels)
        self.hierarchical_pmsa = HierarchicalPMSA(self.channels)
        self.decoder = OrganSizeAwareDecoder(self.channels, num_classes)
        self.deep_supervision_heads = nn.ModuleList(nn.Conv3d(width, num_classes, 1) for width in self.channels)
        # Used by no path of the public network, but its checkpoints carry it.
        self.final_conv = nn.Conv3d(self.channels[-1] // 2, num_classes, 1)
        self.apply(_initialize)

    @classmethod
    def from_preset(cls, name: str, *, num_classes: int = 14, base_channels: int | None = None, **more: Any) -> LHANet:
        """An untrained network of a named preset (`lightweight`, `standard`, `high_capacity`)."""
        return cls(preset_named(name), num_classes=num_classes, base_channels=base_channels, **more)

    @classmethod
    def from_state_dict(
        cls, state: Mapping[str, Tensor], preset: Preset, *, num_classes: int, base_channels: int
    ) -> LHANet:
        """A network in eval mode that holds the tensors of `state` themselves, without a second copy of them."""
        with torch.device("meta"):
            network = cls(preset, num_classes=num_classes, base_channels=base_channels)
        network.load_state_dict(state, strict=True, assign=True)
        return network.eval()

    def forward(self, x: Tensor, return_features: bool = False) -> Any:
        size = x.shape[-3:]
        if min(size) < self.preset.smallest_side:
            raise RefusedInput(
                f"a volume of {'x'.join(map(str, size))} is too small for the {self.preset.name} preset: "
                f"a level would vanish; every side needs at least {self.preset.smallest_side} voxels"
            )
        backbone_features = self.backbone(x)
        features = self.hierarchical_pmsa(backbone_features[1:])
        fused = self.decoder.fuse(features)
        final = self.decoder.final_logits(fused, size)
        if not (self.training or return_features):
            return final
        results: dict[str, Any] = {"final_prediction": final}
        if self.training:
            results["deep_supervision_outputs"] = [
                resize_to_size(head(feature), size)
                for head, feature in zip(self.deep_supervision_heads, features, strict=True)
            ]
        if return_features:
            results |= {
                "size_predictions": self.decoder.size_predictions(features),
                "routing_weights": self.decoder.routing_gate(fused[-1]),
                "pmsa_features": features,
                "backbone_features": backbone_features,
            }
        return results


class LHANetWithAuxiliaryLoss(LHANet):
    """LHA-Net whose training output also carries the size predictions and the weights of the extra losses."""

    def __init__(self, *args: Any, auxiliary_weight: float = 0.4, size_prediction_weight: float = 0.1, **more: Any):
        super().__init__(*args, **more)
        self.auxiliary_weight = auxiliary_weight
        self.size_prediction_weight = size_prediction_weight

    def forward(self, x: Tensor, return_features: bool = False) -> Any:
        results = super().forward(x, return_features=return_features or self.training)
        if not self.training:
            return results
        return {
            "final_prediction": results["final_prediction"],
            "deep_supervision_outputs": results["deep_supervision_outputs"],
            "size_predictions": results["size_predictions"],
            "auxiliary_weight": self.auxiliary_weight,
            "size_prediction_weight": self.size_prediction_weight,
        }


def _initialize(module: nn.Module) -> None:
    """Weights for training from scratch: He initialization by fan-out, unit batch norms."""
    if isinstance(module, nn.Conv3d) and not module.weight.is_meta:
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
