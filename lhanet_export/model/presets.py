"""The three published shapes of LHA-Net as data, and what they have in common."""

from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from lhanet_export.errors import RefusedInput

#: (scale, side of the organ kernel): small organs see 3 voxels, medium ones 5, large ones 7.
SCALES = (
    (Fraction(1, 2), 3),
    (Fraction(3, 4), 3),
    (Fraction(1), 5),
    (Fraction(5, 4), 5),
    (Fraction(3, 2), 7),
)


@dataclass(frozen=True, kw_only=True)
class Preset:
    """One published configuration: which backbone, and how wide and deep it is."""

    name: str
    backbone: Literal["lightweight", "resnet"]
    base_channels: int
    #: Residual blocks in each of the four ResNet stages; empty for the lightweight backbone.
    residual_blocks: tuple[int, ...] = ()

    @property
    def strides(self) -> tuple[int, int, int, int]:
        """Input voxels per feature voxel along an axis, for the four levels from fine to coarse."""
        return (2, 4, 8, 16) if self.backbone == "lightweight" else (4, 8, 16, 32)

    @property
    def smallest_side(self) -> int:
        """Shortest input side that leaves two voxels at the coarsest level.

        Every backbone stage maps n to ceil(n / 2), so the coarsest side is ceil(n / stride), and
        the half-size branch needs two voxels there to keep one.
        """
        return self.strides[-1] + 1

    def level_channels(self, base_channels: int) -> tuple[int, int, int, int]:
        """Channels of the four levels from fine to coarse, for a base width."""
        first = 2 * base_channels if self.backbone == "lightweight" else base_channels
        return (first, 2 * first, 4 * first, 8 * first)


PRESETS = {
    preset.name: preset
    for preset in (
        Preset(name="lightweight", backbone="lightweight", base_channels=32),
        Preset(name="standard", backbone="resnet", base_channels=64, residual_blocks=(2, 2, 2, 2)),
        Preset(name="high_capacity", backbone="resnet", base_channels=64, residual_blocks=(3, 4, 6, 3)),
    )
}


def preset_named(name: str) -> Preset:
    """The preset of that name; `RefusedInput` lists the known ones otherwise."""
    try:
        return PRESETS[name]
    except KeyError:
        raise RefusedInput(f"there is no preset '{name}'; known presets: {', '.join(PRESETS)}") from None
