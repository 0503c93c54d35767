"""The organ-size-aware decoder: fusion and final classifier, size predictions, routed size-specific heads."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lhanet_export.model.backbone import conv_norm_relu
from lhanet_export.model.pmsa import fuse_fine_to_coarse, fusion_layers
from lhanet_export.model.resize import resize_to_size

ORGAN_SIZES = ("small", "medium", "large")


class SizeClassifier(nn.Module):
    """Probabilities (N, 3) of small, medium and large organs, from the mean of one level's features."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.classifier = nn.Sequential(
            nn.Linear(channels, channels // 4),
            nn.ReLU(inplace=True),
            nn.Dropout(0.3),
            nn.Linear(channels // 4, len(ORGAN_SIZES)),
            nn.Softmax(dim=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(x.mean((2, 3, 4)))


class SizeHead(nn.Module):
    """Logits for organs of one size; the smaller the organs, the deeper the head."""

    def __init__(self, channels: int, num_classes: int, organ_size: str) -> None:
        super().__init__()
        wide, narrow = channels // 2, channels // 4
        # Channels after each 3x3x3 convolution.
        widths = {"small": (wide, wide, narrow), "medium": (wide, narrow), "large": (narrow,)}[organ_size]
        layers: list[nn.Module] = []
        for before, after in zip((channels, *widths), widths, strict=False):
            layers += conv_norm_relu(before, after)
        self.decoder = nn.Sequential(*layers, nn.Conv3d(narrow, num_classes, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(x)


class OrganSizeAwareDecoder(nn.Module):
    """Fuses the levels fine to coarse and classifies the coarsest; size heads and their routing ride along."""

    def __init__(self, channels: tuple[int, ...], num_classes: int) -> None:
        super().__init__()
        self.size_classifiers = nn.ModuleList(SizeClassifier(width) for width in channels)
        self.size_specific_decoders = nn.ModuleDict(
            {
                f"level_{level}_{organ_size}": SizeHead(width, num_classes, organ_size)
                for level, width in enumerate(channels)
                for organ_size in ORGAN_SIZES
            }
        )
        self.feature_fusion = fusion_layers(channels)
        self.final_classifier = nn.Conv3d(channels[-1], num_classes, 1)
        self.routing_gate = nn.Sequential(
            nn.Conv3d(channels[-1], channels[-1] // 4, 1),
            nn.ReLU(inplace=True),
            nn.Conv3d(channels[-1] // 4, len(ORGAN_SIZES), 1),
            nn.Softmax(dim=1),
        )

    def fuse(self, features: list[Tensor]) -> list[Tensor]:
        """The fused levels u_0..u_3 of the hierarchy's features h_0..h_3."""
        return fuse_fine_to_coarse(features, self.feature_fusion, finer_first=False)

    def final_logits(self, fused: list[Tensor], size: Sequence[int]) -> Tensor:
        """Logits (N,K,D,H,W) made at the coarsest level and resized to `size`."""
        return resize_to_size(self.final_classifier(fused[-1]), size)

    def size_predictions(self, features: list[Tensor]) -> list[Tensor]:
        """For each level the probabilities (N, 3) of the organ sizes."""
        return [classifier(feature) for classifier, feature in zip(self.size_classifiers, features, strict=True)]

    def level_outputs(self, fused: list[Tensor], routing: Tensor, size: Sequence[int]) -> list[Tensor]:
        """For each level the logits of its three size heads, weighted by the routing (N,3,D,H,W)."""
        weights = resize_to_size(routing, size)
        outputs = []
        for level, feature in enumerate(fused):
            heads = (self.size_specific_decoders[f"level_{level}_{organ_size}"] for organ_size in ORGAN_SIZES)
            routed = [
                resize_to_size(head(feature), size) * weights[:, index : index + 1] for index, head in enumerate(heads)
            ]
            outputs.append(torch.stack(routed).sum(0))
        return outputs

    def forward(self, features: list[Tensor], size: Sequence[int]) -> dict[str, Tensor | list[Tensor]]:
        """Everything the decoder computes, for volumes of `size` (D,H,W); inference needs `final_logits` only."""
        fused = self.fuse(features)
        routing = self.routing_gate(fused[-1])
        return {
            "final_output": self.final_logits(fused, size),
            "level_outputs": self.level_outputs(fused, routing, size),
            "size_predictions": self.size_predictions(features),
            "routing_weights": routing,
            "fused_features": fused,
        }
