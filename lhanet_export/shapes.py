"""Volume sizes: (D,H,W) in voxels, the range of them that a graph or an engine serves, and what tensors they make."""

from __future__ import annotations

import re
from dataclasses import dataclass

from lhanet_export.errors import RefusedInput

Shape = tuple[int, int, int]

#: The longest side that is taken; a 64-channel feature map of 1024^3 voxels would not fit any card.
LONGEST_SIDE = 1024


def parse_shape(text: str) -> Shape:
    """`64x128x128` as (64, 128, 128); anything else raises `RefusedInput`."""
    if not re.fullmatch(r"[0-9]{1,4}x[0-9]{1,4}x[0-9]{1,4}", text, re.ASCII):
        raise RefusedInput(f"'{text}' is not a size; write depth x height x width in voxels, as in 64x128x128")
    depth, height, width = (int(side) for side in text.split("x"))
    if not all(1 <= side <= LONGEST_SIDE for side in (depth, height, width)):
        raise RefusedInput(f"'{text}': every side must be 1 to {LONGEST_SIDE} voxels")
    return depth, height, width


def format_shape(shape: Shape) -> str:
    """(64, 128, 128) as `64x128x128`."""
    return "x".join(map(str, shape))


@dataclass(frozen=True)
class SpatialRange:
    """The volume sizes that one graph or engine profile serves: each axis from `min` to `max`, tuned for `opt`."""

    min: Shape
    opt: Shape
    max: Shape

    def __post_init__(self) -> None:
        for axis, low, best, high in zip("DHW", self.min, self.opt, self.max, strict=True):
            if not low <= best <= high:
                raise RefusedInput(f"range {self}: axis {axis} needs min <= opt <= max, got {low}, {best}, {high}")

    @classmethod
    def parse(cls, text: str) -> SpatialRange:
        """`MIN:OPT:MAX`, three sizes; inverse of `str`."""
        parts = text.split(":")
        if len(parts) != 3:
            raise RefusedInput(f"'{text}' is not a range; write MIN:OPT:MAX, as in 48x64x64:64x128x128:96x192x192")
        return cls(*(parse_shape(part) for part in parts))

    def __str__(self) -> str:
        return ":".join(format_shape(shape) for shape in (self.min, self.opt, self.max))

    def as_json(self) -> dict[str, list[int]]:
        """The range as sidecars and manifests write it."""
        return {"min": list(self.min), "opt": list(self.opt), "max": list(self.max)}

    def __contains__(self, shape: Shape) -> bool:
        return all(low <= side <= high for low, side, high in zip(self.min, shape, self.max, strict=True))

    def within(self, other: SpatialRange) -> SpatialRange:
        """This range as far as `other` goes; `RefusedInput` if they have no size in common."""

        def clip(shape: Shape) -> Shape:
            depth, height, width = (
                min(max(side, low), high) for side, low, high in zip(shape, other.min, other.max, strict=True)
            )
            return depth, height, width

        clipped = SpatialRange(clip(self.min), clip(self.opt), clip(self.max))
        if clipped.min not in self and clipped.max not in self:
            raise RefusedInput(f"ranges {self} and {other} have no size in common")
        return clipped

    def check_network(self, smallest_side: int) -> None:
        """Refuse a range that holds sizes at which a level of the network would vanish."""
        if min(self.min) < smallest_side:
            raise RefusedInput(
                f"range {self}: at {format_shape(self.min)} a level of this network would vanish; "
                f"the smallest size it takes is {format_shape((smallest_side,) * 3)}"
            )


@dataclass(frozen=True, kw_only=True)
class TensorSizes:
    """Tensors of a graph at one volume size: its input and its output in bytes, the largest one in elements."""

    input_bytes: int
    output_bytes: int
    largest: str
    largest_elements: int
