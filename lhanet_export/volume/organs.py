"""The fifteen organs of AMOS in the standard patient, moved, scaled and tilted a little from seed to seed.

Places are in mm: x to the patient's right, y to the front, z to the head (see `torso`).
"""

from collections.abc import Sequence

from lhanet_export.volume.draws import Draws
from lhanet_export.volume.implicit import Axes, Blob, Layer, Part, Point, Shape, TubePoint, tube, turned
from lhanet_export.volume.tissues import Tissue


def solid(*shapes: Shape, tissue: Tissue, gap: float = 0.0, inside: float | None = None) -> Part:
    """One tissue throughout, with `gap` mm of fat around it."""
    fat = (Layer(-gap, Tissue.FAT),) if gap else ()
    return Part(shapes=shapes, layers=(*fat, Layer(0.0, tissue)), inside=inside)


class Placement:
    """Where one organ of one patient lies: a shift and a size by chance."""

    def __init__(self, draws: Draws, shift_mm: Point, size: float = 0.07) -> None:
        self.shift = tuple(draws.around(0.0, reach) for reach in shift_mm)
        self.size = 1 + draws.around(0.0, size)

    def blob(self, centre: Point, radii: Point, axes: Axes) -> Blob:
        x, y, z = (value + shift for value, shift in zip(centre, self.shift, strict=True))
        return Blob((x, y, z), (radii[0] * self.size, radii[1] * self.size, radii[2] * self.size), axes)

    def tube(self, points: Sequence[TubePoint], steps: int = 3) -> tuple[Shape, ...]:
        dx, dy, dz = self.shift
        return tube([(x + dx, y + dy, z + dz, r * self.size) for x, y, z, r in points], steps)


def organs(draws: Draws, *, is_male: bool, breath_mm: float) -> list[Part]:
    """All organs but liver and spleen in painting order: each takes its room from those before it."""
    kidney_places = {side: Placement(draws, (3, 4, 8)) for side in (1, -1)}
    return [
        *_kidneys(draws, kidney_places),
        *_great_vessels(draws),
        *_adrenals(draws, kidney_places),
        *_stomach_and_esophagus(draws, breath_mm),
        *_pancreas_and_duodenum(draws),
        *_gall_bladder(draws),
        *_pelvis(draws, is_male),
    ]


def liver_and_spleen(draws: Draws, *, breath_mm: float) -> list[Part]:
    """The large organs that give way to all others, spine and muscles included."""
    place = Placement(draws, (4, 4, 4))
    lift = breath_mm * 0.6
    left_reach, edge = draws.around(0, 12), draws.around(0, 8)
    tilt = draws.around(0, 6)
    liver = Part(
        shapes=(
            place.blob((74, -4, 160 + lift), (72, 88, 92), turned(about_y=tilt)),
            place.blob((14 - left_reach, 46, 186 + lift), (68 + left_reach, 34, 38), turned(about_y=tilt - 10)),
            place.blob((108, -5, 125 + lift), (32, 55, 50), turned(about_y=4)),
        ),
        layers=(Layer(0.0, Tissue.LIVER),),
        blend=14,
        inside=3.0,
        # The lower surface falls from the midline to the right and from back to front.
        beyond=((0.50, 0.20, 1.0, 128 + edge + lift), (0.35, 0.9, 0.25, -12.0 + 0.25 * lift)),
    )
    veins = Part(
        shapes=(
            *place.tube([(26, 4, 212, 6), (55, 12, 200, 5), (95, 15, 180, 3)]),
            *place.tube([(26, 5, 212, 6), (30, 40, 200, 4.5), (35, 62, 180, 2.5)]),
            *place.tube([(24, 5, 213, 5), (0, 35, 205, 4), (-25, 45, 200, 2.5)]),
            *place.tube([(38, 12, 140, 6.5), (60, 8, 152, 5.5), (95, -15, 150, 3.5), (118, -30, 145, 2)]),
            *place.tube([(60, 8, 152, 5), (85, 25, 165, 4), (110, 30, 175, 2.5)]),
            *place.tube([(42, 14, 145, 6), (30, 38, 165, 4.5), (5, 48, 180, 3)]),
        ),
        layers=(Layer(0.0, Tissue.LIVER_VEIN),),
        over=(Tissue.LIVER,),
    )
    place = Placement(draws, (3, 6, 6), size=0.10)
    spleen = Part(
        shapes=(
            place.blob((-105, -38, 161 + lift), (34, 50, 60), turned(draws.between(8, 24), draws.around(-6, 6), 12)),
        ),
        layers=(Layer(-1.5, Tissue.FAT), Layer(0.0, Tissue.SPLEEN)),
        inside=3.0,
    )
    return [liver, veins, spleen]


def _kidneys(draws: Draws, places: dict[int, Placement]) -> list[Part]:
    parts = []
    for side, height, cortex, medulla in (
        (1, 90, Tissue.RIGHT_KIDNEY, Tissue.RIGHT_MEDULLA),
        (-1, 104, Tissue.LEFT_KIDNEY, Tissue.LEFT_MEDULLA),
    ):
        place = places[side]
        # The upper poles lean to the spine and to the back.
        lean = turned(draws.around(-8, 4), side * draws.around(-11, 4), side * draws.around(-20, 8))
        centre = (side * 64.0, -38.0, float(height))
        body = place.blob(centre, (27, 26, 55), lean)
        hilum = place.blob((side * 44.0, -30.0, height - 2.0), (14, 12, 24), lean)
        pyramids = [
            place.blob((side * (66.0 + across), -39.0 + along, height + up), (10, 9, 9), lean)
            for up in (-36.0, -18.0, 0.0, 18.0, 36.0)
            for across, along in ((3.0, -8.0), (5.0, 8.0))
        ]
        parts += [
            Part(shapes=(body,), layers=(Layer(-5.0, Tissue.FAT),), inside=1.0),
            Part(shapes=(body,), layers=(Layer(0.0, cortex),)),
            Part(shapes=tuple(pyramids), layers=(Layer(0.0, medulla),), over=(cortex,)),
            Part(
                shapes=(hilum, place.blob((side * 57.0, -34.0, height - 2.0), (9, 7, 26), lean)),
                layers=(Layer(0.0, Tissue.FAT),),
                over=(cortex, medulla, Tissue.MUSCLE),
            ),
            solid(
                *place.tube([(side * 56, -33, height - 4, 5), (side * 40, -30, height - 14, 4)], 1),
                tissue=Tissue.MUSCLE,
            ),
            solid(
                *place.tube([(side * 54, -32, height + 3, 3), (side * 18, -16, height + 6, 3.5)], 1),
                tissue=Tissue.ARTERY,
            ),
            solid(
                *place.tube([(side * 54, -28, height - 2, 4.5), (side * 30, -14, height + 2, 5)], 1),
                tissue=Tissue.VEIN,
            ),
        ]
    # The left renal vein crosses in front of the aorta.
    parts.append(solid(*tube([(-30, -14, 106, 5), (-8, -1, 104, 4), (12, -8, 102, 5)]), tissue=Tissue.VEIN))
    return parts


def _great_vessels(draws: Draws) -> list[Part]:
    place = Placement(draws, (2, 2, 0), size=0.12)
    cava = place.tube(
        [(20, 10, 248, 12), (26, 0, 215, 12), (25, -8, 165, 11.5), (21, -12, 120, 11), (18, -13, 80, 11),
         (16, -11, 40, 10), (10, -10, 5, 9.5)]
    )  # fmt: skip
    place = Placement(draws, (2, 2, 0), size=0.14)
    aorta = place.tube(
        [(-24, -40, 360, 12.5), (-22, -37, 300, 12.5), (-19, -33, 250, 12), (-14, -26, 190, 11.5),
         (-11, -20, 140, 10.5), (-9, -15, 95, 9.5), (-7, -11, 50, 9), (-5, -10, 24, 8.5)]
    )  # fmt: skip
    celiac = [(-11, -10, 148, 3.5), (-9, 5, 152, 3.5), (2, 12, 150, 3)]
    mesenteric = [(-9, -8, 128, 4), (-8, 6, 118, 3.6), (-6, 14, 95, 3.4), (2, 26, 55, 3), (20, 34, 10, 2.2)]
    portal = [(16, 22, 20, 4), (13, 22, 70, 5), (13, 17, 100, 6), (20, 14, 122, 6.5), (38, 12, 140, 6.5)]
    artery = (Layer(0.0, Tissue.ARTERY),)
    return [
        # Bowel hides the branches, and so do the organs that come later.
        Part(shapes=place.tube(celiac), layers=artery, over=(Tissue.FAT, Tissue.LIVER)),
        Part(shapes=place.tube(mesenteric), layers=artery, over=(Tissue.FAT, Tissue.LIVER)),
        Part(shapes=tube(portal), layers=(Layer(0.0, Tissue.VEIN),), over=(Tissue.FAT, Tissue.LIVER)),
        solid(*cava, tissue=Tissue.POSTCAVA, gap=1.0),
        solid(*aorta, tissue=Tissue.AORTA, gap=1.5),
    ]


def _adrenals(draws: Draws, kidneys: dict[int, Placement]) -> list[Part]:
    parts = []
    for side, tissue, (x, y, z) in (
        (1, Tissue.RIGHT_ADRENAL, (35.0, -31.0, 144.0)),
        (-1, Tissue.LEFT_ADRENAL, (-34.0, -24.0, 156.0)),
    ):
        place = Placement(draws, (1.5, 2, 3), size=0.12)
        spread = draws.between(16, 28)
        z += 0.8 * kidneys[side].shift[2]  # each sits on its kidney
        # Two thin limbs that meet in front: an inverted V.
        limbs = (
            place.blob((x + side * 3.6, y - 5, z - 1), (2.9, 11.5, 14), turned(about_z=side * spread)),
            place.blob((x - side * 3.2, y - 5, z), (2.7, 11, 15), turned(about_z=-side * spread * 0.6)),
            place.blob((x, y + 4, z + 2), (3.4, 5, 11), turned()),
        )
        parts.append(Part(shapes=limbs, layers=(Layer(-2.5, Tissue.FAT), Layer(0.0, tissue))))
    return parts


def _stomach_and_esophagus(draws: Draws, breath_mm: float) -> list[Part]:
    place = Placement(draws, (4, 4, 5), size=0.14)
    lift, sag = breath_mm * 0.6, draws.around(0, 10)
    stomach = place.tube(
        [(-60, -2, 206 + lift, 34), (-62, 14, 174 + lift, 31), (-62, 40, 140 + sag, 26), (-38, 58, 114 + sag, 21),
         (-6, 60, 106 + sag, 17), (18, 50, 108, 13), (28, 44, 111, 10)], 4,
    )  # fmt: skip
    level = draws.between(36, 62)
    esophagus = [(2, -22, 360, 8), (2, -22, 300, 8), (0, -20, 262, 8.5), (-8, -10, 232 + lift, 9),
                 (-19, -2, 211 + lift, 9), (-38, 2, 198 + lift, 9)]  # fmt: skip
    lumen = [(x, y + 1, z, r * 0.35) for x, y, z, r in esophagus]
    place_esophagus = Placement(draws, (2, 2, 0), size=0.12)
    return [
        Part(
            shapes=stomach,
            layers=(
                Layer(-2.0, Tissue.FAT),
                Layer(0.0, Tissue.STOMACH),
                Layer(4.0, Tissue.STOMACH_CONTENT),
                Layer(4.5, Tissue.STOMACH_GAS, above=level),
            ),
            inside=3.0,
        ),
        solid(*place_esophagus.tube(esophagus), tissue=Tissue.ESOPHAGUS, gap=0.8),
        Part(
            shapes=place_esophagus.tube(lumen),
            layers=(Layer(0.0, Tissue.ESOPHAGUS_LUMEN),),
            over=(Tissue.ESOPHAGUS,),
        ),
    ]


def _pancreas_and_duodenum(draws: Draws) -> list[Part]:
    place = Placement(draws, (3, 2, 4), size=0.10)
    rise = draws.around(0, 12)
    course = [(30, 4, 84, 10), (30, 8, 100, 14), (24, 14, 112, 13), (8, 20, 120, 10), (-14, 20, 126 + rise / 3, 11),
              (-38, 12, 134 + rise, 11.5), (-62, -2, 142 + rise, 11), (-84, -16, 150 + rise, 9)]  # fmt: skip
    lobules = tube(course, 4)
    pancreas = place.tube(
        [(*capsule.start, capsule.radii[0] * draws.between(0.86, 1.14)) for capsule in lobules]
        + [(*lobules[-1].end, lobules[-1].radii[1])], 1
    )  # fmt: skip
    place = Placement(draws, (3, 2, 4), size=0.10)
    drop = draws.around(0, 8)
    duodenum = place.tube(
        [(28, 43, 110, 11), (41, 34, 111, 11.5), (53, 19, 105, 11.5), (56, 9, 84, 11.5), (50, 4, 60 - drop, 11.5),
         (28, 7, 50 - drop, 11), (2, 10, 50 - drop, 10), (-20, 9, 62 - drop, 10.5), (-28, 13, 86, 10.5),
         (-30, 24, 96, 11)]
    )  # fmt: skip
    return [
        solid(*pancreas, tissue=Tissue.PANCREAS, gap=1.2),
        Part(
            shapes=duodenum,
            layers=(
                Layer(-1.0, Tissue.FAT),
                Layer(0.0, Tissue.DUODENUM),
                Layer(3.0, Tissue.DUODENUM_CONTENT),
            ),
            # It turns around the head of the pancreas and does not cut it, nor the vessels behind it.
            over=tuple(set(Tissue) - {Tissue.PANCREAS, Tissue.AORTA, Tissue.POSTCAVA}),
        ),
    ]


def _gall_bladder(draws: Draws) -> list[Part]:
    place = Placement(draws, (3, 3, 3), size=0.18)
    shapes = place.tube([(50, 25, 123, 5), (58, 42, 112, 11.5), (65, 58, 98, 15), (67, 63, 90, 15)])
    return [solid(*shapes, tissue=Tissue.GALL_BLADDER, gap=0.8, inside=3.0)]


def _pelvis(draws: Draws, is_male: bool) -> list[Part]:
    place = Placement(draws, (4, 3, 3), size=0.10)
    fill = draws.between(0.78, 1.08)
    bladder = place.blob((0, 24, -112), (44 * fill, 34 * fill, 35 * fill), turned(about_x=draws.around(0, 8)))
    walls = (Layer(-1.5, Tissue.FAT), Layer(0.0, Tissue.BLADDER_WALL), Layer(3.0, Tissue.BLADDER))
    place = Placement(draws, (2, 2, 2), size=0.14)
    if is_male:
        prostate = place.blob((0, 10, -152), (25, 18, 19), turned(about_x=-10))
        seminal = [
            solid(*tube([(side * 4, -14, -128, 4), (side * 28, -18, -118, 5)], 1), tissue=Tissue.MUSCLE)
            for side in (1, -1)
        ]
        return [*seminal, Part(shapes=(bladder,), layers=walls), solid(prostate, tissue=Tissue.PROSTATE_UTERUS, gap=1)]
    lean = turned(about_x=draws.between(-45, -20))
    uterus = place.blob((0, 0, -88), (25, 21, 34), lean)
    neck = place.blob((0, -12, -122), (13, 12, 18), turned(about_x=-10))
    cavity = place.blob((0, 0, -86), (13, 3, 20), lean)
    vagina = tube([(0, -14, -130, 8), (0, -4, -158, 9), (0, 6, -190, 8)], 1)
    return [
        solid(*vagina, tissue=Tissue.MUSCLE, gap=1),
        Part(shapes=(bladder,), layers=walls),
        solid(uterus, neck, tissue=Tissue.PROSTATE_UTERUS, gap=1),
        Part(shapes=(cavity,), layers=(Layer(0.0, Tissue.UTERINE_CAVITY),), over=(Tissue.PROSTATE_UTERUS,)),
    ]
