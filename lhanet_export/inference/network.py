"""The part of LHA-Net that a prediction needs, and nothing else.

The final head reads the backbone, the PMSA hierarchy, the decoder's fusion and its classifier. A
deep-supervision head `deep0`..`deep3` reads the hierarchy up to its own level only. Size
predictions, routing and size-specific heads change no logit and are left out. The network is
equal in meaning to `LHANet` in eval mode; batch norms are folded away, and `rewrites` reorder the rest.
"""

from collections.abc import Callable, Collection, Sequence

import torch
from torch import Tensor, nn

from lhanet_export.conventions import MOST_LABELS
from lhanet_export.errors import RefusedInput
from lhanet_export.inference.fold import folded
from lhanet_export.inference.rewrites.registry import rewrite
from lhanet_export.inference.target import Target
from lhanet_export.model.backbone import LightweightBackbone, ResNet3DBackbone
from lhanet_export.model.network import LHANet
from lhanet_export.model.pmsa import fuse_fine_to_coarse
from lhanet_export.model.resize import resize_to_size


class InferenceNetwork(nn.Module):
    """Maps a volume (N,1,D,H,W) to what `target` names; shares its unfolded weights with `network`.

    `purpose` is what it is for, `engine` or `cpu`; `without` names rewrites to leave out; `rewrites` says
    what the others did.
    """

    def __init__(
        self, network: LHANet, target: Target, *, purpose: str = "engine", without: Collection[str] = ()
    ) -> None:
        super().__init__()
        if target.output == "labels" and network.num_classes > MOST_LABELS:
            raise RefusedInput(f"labels are uint8: {network.num_classes} classes do not fit; use --output logits")
        self.target = target
        self.resize_logits: Callable[[Tensor, Sequence[int]], Tensor] = resize_to_size
        levels = target.levels
        hierarchy = network.hierarchical_pmsa
        self.backbone = _first_levels(folded(network.backbone), levels)
        self.pmsa = nn.ModuleList(folded(hierarchy.pmsa_modules[f"level_{level}"]) for level in range(levels))
        self.rewrites = rewrite(self, network.preset.strides[:levels], purpose=purpose, without=without)
        self.cross_scale_fusion = nn.ModuleList(folded(fusion) for fusion in hierarchy.cross_scale_fusion[: levels - 1])
        # Only the final head reads the decoder's fusion.
        fusions = network.decoder.feature_fusion if target.head == "final" else nn.ModuleList()
        self.feature_fusion = nn.ModuleList(folded(fusion) for fusion in fusions)
        classifier = (
            network.decoder.final_classifier if target.head == "final" else network.deep_supervision_heads[levels - 1]
        )
        assert isinstance(classifier, nn.Conv3d)
        self.classifier = classifier
        self.eval()

    def forward(self, image: Tensor) -> Tensor:
        # A backbone may give the full-resolution map first, which no level reads.
        maps = self.backbone(image)[-len(self.pmsa) :]
        features = [pmsa(feature) for pmsa, feature in zip(self.pmsa, maps, strict=True)]
        features = fuse_fine_to_coarse(features, self.cross_scale_fusion, finer_first=True)
        if self.target.head == "final":
            features = fuse_fine_to_coarse(features, self.feature_fusion, finer_first=False)
        return self.finish(self.classifier(features[-1]), image.shape[-3:])

    def finish(self, coarse: Tensor, size: Sequence[int]) -> Tensor:
        """From the head's own grid to the output that the target names."""
        if self.target.output == "coarse":
            return coarse
        logits = self.resize_logits(coarse, size)
        if self.target.output == "labels":
            return logits.argmax(1).to(torch.uint8)
        return logits.softmax(1) if self.target.output == "probabilities" else logits


def _first_levels(backbone: nn.Module, levels: int) -> nn.Module:
    """Drop what a (folded, own) copy of a backbone computes below the given number of levels."""
    if isinstance(backbone, LightweightBackbone):
        backbone.encoder_blocks = backbone.encoder_blocks[:levels]
    elif isinstance(backbone, ResNet3DBackbone):
        for stage in range(levels, backbone.stages):
            delattr(backbone, f"layer{stage + 1}")
        backbone.stages = levels
    return backbone
