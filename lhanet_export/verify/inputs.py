"""Volumes to compare networks on: seeded, and not only noise.

Both kinds look to the network like a preprocessed scan, about zero mean and unit variance, float32.
"""

from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

from lhanet_export.errors import RefusedInput
from lhanet_export.shapes import Shape, SpatialRange, format_shape

Kind = Literal["bodies", "texture"]

#: The training patch of the public configuration. PyTorch's CPU and CUDA kernels disagree here, so a resize
#: with another meaning shows.
PUBLIC_PATCH: Shape = (48, 96, 96)


class Case(Protocol):
    """One input to compare on: a volume, or a batch of them."""

    @property
    def shape(self) -> Shape:
        """Its size (D,H,W)."""

    @property
    def kind(self) -> str:
        """What it is, as reports show it."""

    @property
    def image(self) -> np.ndarray:
        """The volumes, (N,1,D,H,W) float32."""

    @property
    def is_scan(self) -> bool:
        """Whether it is a scan, or a phantom of one, so that its organs mean something."""

    @property
    def truth(self) -> np.ndarray | None:
        """The labels that a perfect network would give, (N,D,H,W) uint8, where they are known."""


@dataclass(frozen=True, kw_only=True)
class RuleCase:
    """One volume by rule, or a batch of them; there is no truth about it."""

    shape: Shape
    kind: Kind
    seed: int
    batch: int = 1

    @property
    def is_scan(self) -> bool:
        """It is not."""
        return False

    @property
    def truth(self) -> None:
        """Nobody knows what the labels of such a volume should be."""

    @property
    def image(self) -> np.ndarray:
        """The volumes, (N,1,D,H,W) float32, no two alike."""
        make = bodies if self.kind == "bodies" else texture
        return np.concatenate([make(self.shape, self.seed + 1000 * index) for index in range(self.batch)])


def cases_for(shapes: list[Shape], batch: int | None = 1, seed: int = 0) -> list[RuleCase]:
    """One case a shape, kinds in turn, and the smallest shape twice.

    Two different volumes of one size show whether the output depends on the input at all. `batch` is
    what the artifact takes at a time; where it takes any number (None), the smallest shape comes in
    pairs and the others alone.
    """
    if not shapes:
        raise RefusedInput("no sizes to compare at; name one with --shape, as in --shape 48x96x96")
    ordered = sorted(set(shapes), key=lambda shape: (np.prod(shape), shape))
    kinds: tuple[Kind, Kind] = ("bodies", "texture")
    repeated = [ordered[0], *ordered]
    return [
        RuleCase(
            shape=shape,
            kind=kinds[index % 2],
            seed=seed + index,
            batch=batch if batch is not None else 2 if shape == ordered[0] else 1,
        )
        for index, shape in enumerate(repeated)
    ]


def shapes_in(spatial: SpatialRange) -> list[Shape]:
    """Sizes of a range that show most for their cost: the smallest, the public patch, and an odd one."""
    odd = tuple(
        min(high, max(low, side)) for low, side, high in zip(spatial.min, (51, 71, 90), spatial.max, strict=True)
    )
    candidates: list[Shape] = [spatial.min, PUBLIC_PATCH, (odd[0], odd[1], odd[2])]
    return [shape for shape in candidates if shape in spatial]


def check_shapes(shapes: list[Shape], spatial: SpatialRange) -> None:
    """Refuse sizes that a graph or engine does not serve."""
    outside = [format_shape(shape) for shape in shapes if shape not in spatial]
    if outside:
        raise RefusedInput(f"{', '.join(outside)} lies outside the range {spatial}; choose sizes inside it")


def texture(shape: Shape, seed: int) -> np.ndarray:
    """Waves of random direction under white noise (1,1,D,H,W)."""
    generator = np.random.default_rng([seed, 1])
    grid = np.stack(np.meshgrid(*(np.linspace(0, 1, side) for side in shape), indexing="ij"))
    waves = sum(
        np.sin(2 * np.pi * (np.tensordot(generator.uniform(-3, 3, 3), grid, 1) + generator.uniform())) for _ in range(6)
    )
    return _standardized(waves + generator.standard_normal(shape))


def bodies(shape: Shape, seed: int) -> np.ndarray:
    """A large ellipsoid in air with a dozen smaller ones inside, each of its own intensity (1,1,D,H,W)."""
    generator = np.random.default_rng([seed, 2])
    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, side) for side in shape), indexing="ij"))

    def inside(centre: np.ndarray, radii: np.ndarray) -> np.ndarray:
        return (((grid - centre[:, None, None, None]) / radii[:, None, None, None]) ** 2).sum(0) <= 1

    volume = np.full(shape, -2.0)
    volume[inside(np.zeros(3), np.array([1.4, 0.85, 0.9]))] = 0.0
    for _ in range(12):
        part = inside(generator.uniform(-0.6, 0.6, 3), generator.uniform(0.08, 0.4, 3))
        volume[part] = generator.uniform(-0.5, 1.5)
    return _standardized(volume + 0.15 * generator.standard_normal(shape))


def _standardized(volume: np.ndarray) -> np.ndarray:
    return ((volume - volume.mean()) / volume.std()).astype(np.float32)[None, None]
