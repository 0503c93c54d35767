"""A patient by a seed: everything that `phantom.render` needs to know, as plain numbers in mm and HU."""

from dataclasses import dataclass

from lhanet_export.volume.bowel import distractors
from lhanet_export.volume.draws import Draws
from lhanet_export.volume.implicit import Part, Point
from lhanet_export.volume.organs import liver_and_spleen, organs
from lhanet_export.volume.skeleton import bones, muscles
from lhanet_export.volume.tissues import brightness
from lhanet_export.volume.torso import Torso, outline

#: What a scan covers, heights in the standard patient: from the pelvic floor to above the diaphragm.
_LOWEST, _HIGHEST = -182.0, 278.0
_AIR_AROUND_MM = 14.0


@dataclass(frozen=True, kw_only=True)
class Anatomy:
    """One synthetic patient: analytic shapes in mm in patient coordinates (RAS), and how a scanner sees them."""

    seed: int
    is_male: bool
    torso: Torso
    #: In painting order, in the standard patient's mm; `torso.scale` makes them this patient's.
    parts: tuple[Part, ...]
    #: Mean HU by tissue code (`tissues.Tissue`).
    brightness_hu: tuple[float, ...]
    #: Standard deviation of the noise, HU, in slices of 2.5 mm.
    noise_hu: float
    #: Whether the patient lies on a table that shows.
    has_table: bool
    #: Spacing (x, y, z) of this patient's scan where none is asked for.
    spacing_mm: Point
    #: Lowest and highest corner (x, y, z) of what a scan covers where no shape is asked for.
    extent_mm: tuple[Point, Point]


def anatomy_from_seed(seed: int) -> Anatomy:
    """The patient of this seed (0 or more), the same on every machine."""
    draws = Draws(seed, purpose=20)
    is_male = draws.chance(0.5)
    size = draws.around(1.0 if is_male else 0.94, 0.07)
    fat_mm = draws.between(7, 30)
    torso = Torso(
        scale=(size * draws.around(1, 0.05), size * draws.around(1, 0.06), size * draws.around(1, 0.05)),
        fat_mm=fat_mm,
        belly_mm=draws.between(0, 0.6 * fat_mm + 8),
        breath_mm=draws.around(0, 7),
        waves=tuple(
            (height, draws.between(0.85, 1.15) * period, *(draws.between(0, 1) for _ in range(4)))  # type: ignore[misc]
            for height, period in ((4.5, 210.0), (2.0, 95.0))
        ),
    )
    # In painting order: each takes its room from those before it.
    parts = (
        *distractors(draws),
        *liver_and_spleen(draws, breath_mm=torso.breath_mm),
        *muscles(),
        *bones(draws, belly_mm=torso.belly_mm),
        *organs(draws, is_male=is_male, breath_mm=torso.breath_mm),
    )
    return Anatomy(
        seed=seed,
        is_male=is_male,
        torso=torso,
        parts=parts,
        brightness_hu=brightness(draws),
        noise_hu=draws.between(7, 18),
        has_table=draws.chance(0.7),
        spacing_mm=_spacing(draws),
        extent_mm=_extent(torso),
    )


def _spacing(draws: Draws) -> Point:
    in_plane = draws.between(0.7, 1.0)
    return in_plane, in_plane, draws.between(1.0, 5.0)


def _extent(torso: Torso) -> tuple[Point, Point]:
    def widest(name: str) -> float:
        return max(
            outline(name, height) + torso.fat_mm * outline("fat", height)
            + (torso.belly_mm * outline("belly", height) if name == "wall front" else 0)
            for height in range(int(_LOWEST), int(_HIGHEST), 10)
        )  # fmt: skip

    around = _AIR_AROUND_MM + torso.bend_mm
    side, front, back = (
        (widest(name) + around) * scale
        for name, scale in zip(
            ("wall side", "wall front", "wall back"), (torso.scale[0], torso.scale[1], torso.scale[1]), strict=True
        )
    )
    return (-side, -back - 12, _LOWEST * torso.scale[2]), (side, front, _HIGHEST * torso.scale[2])
