"""Bowel, heart and vessels that no class of AMOS names: what a network must tell from the organs.

In the standard patient (mm, see `torso`).
"""

from lhanet_export.volume.draws import Draws
from lhanet_export.volume.implicit import Blob, Layer, Part, tube, turned
from lhanet_export.volume.tissues import Tissue

_HAUSTRA_STEPS = 4


def distractors(draws: Draws) -> list[Part]:
    """Loops of small bowel, colon with stool and gas, heart and iliac vessels; painted before the organs."""
    return [*_heart(draws), *_small_bowel(draws), *_colon(draws), *_iliac_vessels()]


def _small_bowel(draws: Draws) -> list[Part]:
    parts = []
    for row in range(6):
        for layer in range(3):
            z, y = -66 + 25 * row + draws.around(0, 8), 6 + 27 * layer + draws.around(0, 6)
            half = (68.0 if row > 1 else 50.0) - (16 if layer == 0 else 0)
            radius, fold = draws.between(9.5, 13), draws.between(-19, 19)
            start = draws.around(0, 14)
            course = []
            for step in range(9):
                x = start - half + 2 * half * step / 8
                up = fold if step % 2 else -fold
                course.append(
                    (x, y + draws.around(0, 13), z + up + draws.around(0, 8), radius * draws.between(0.75, 1.15))
                )
            layers = [Layer(-1.3, Tissue.FAT), Layer(0.0, Tissue.BOWEL_WALL), Layer(2.5, Tissue.BOWEL_FLUID)]
            if draws.chance(0.3):
                layers.append(Layer(3.0, Tissue.BOWEL_GAS, above=y + draws.between(1, 9)))
            parts.append(Part(shapes=tube(course, 3), layers=tuple(layers), inside=5.0))
    return parts


def _colon(draws: Draws) -> list[Part]:
    sag = draws.around(0, 18)
    courses = (
        [(84, 22, -42, 15), (96, 16, -22, 24), (103, 4, 10, 22), (106, -4, 40, 20), (100, 6, 62, 20), (90, 28, 70, 20)],
        [(90, 28, 70, 19), (62, 62, 66, 19), (22, 72, 62 + sag, 18), (-22, 72, 66 + sag, 18),
         (-66, 62, 90 + sag / 2, 18), (-98, 30, 122, 17), (-112, -8, 130, 16)],
        [(-112, -8, 128, 15), (-114, -30, 100, 14), (-112, -34, 60, 14), (-110, -20, 20, 14), (-104, 0, -15, 14)],
        [(-104, 0, -15, 14), (-84, 26, -44, 14), (-48, 26, -56, 14), (-22, 2, -62, 14), (-10, -28, -76, 15)],
        [(-10, -28, -76, 15), (0, -44, -98, 18), (2, -48, -125, 20), (0, -42, -152, 15), (0, -50, -185, 9)],
    )  # fmt: skip
    parts = []
    for course in courses:
        # Haustra: the tube is wide and narrow in turn.
        fine = [(*capsule.start, capsule.radii[0]) for capsule in tube(course, _HAUSTRA_STEPS)]
        fine.append(course[-1])
        bulging = [
            (x, y, z, radius * (0.84 if index % 2 else 1.0) * draws.between(0.94, 1.06))
            for index, (x, y, z, radius) in enumerate(fine)
        ]
        front = max(y for _, y, _, _ in bulging)
        layers = [Layer(-1.3, Tissue.FAT), Layer(0.0, Tissue.BOWEL_WALL), Layer(2.5, Tissue.STOOL)]
        if draws.chance(0.8):
            layers.append(Layer(3.0, Tissue.BOWEL_GAS, above=front + draws.between(-26, 8)))
        parts.append(Part(shapes=tube(bulging, 2), layers=tuple(layers), inside=3.0))
    return parts


def _heart(draws: Draws) -> list[Part]:
    shift = draws.around(0, 5)
    heart = Blob((-18 + shift, 34, 282), (62, 44, 52), turned(about_z=-18))
    around = Blob((-8 + shift, 26, 284), (72, 54, 60))
    column = tube([(-2, -28, 200, 30), (-2, -28, 360, 30)], 1)
    over = (Tissue.LUNG,)
    return [
        Part(shapes=(around, *column), layers=(Layer(0.0, Tissue.FAT),), over=over),
        Part(shapes=(heart,), layers=(Layer(0.0, Tissue.MUSCLE), Layer(7.0, Tissue.HEART)), over=(Tissue.FAT,)),
    ]


def _iliac_vessels() -> list[Part]:
    parts = []
    for side in (1, -1):
        artery = tube([(-5, -10, 22, 7), (side * 24, -12, -12, 6), (side * 42, -8, -45, 5.5),
                       (side * 60, 24, -95, 5), (side * 66, 52, -140, 5)])  # fmt: skip
        vein = tube([(9, -11, 4, 9), (side * 28, -22, -20, 7), (side * 46, -18, -52, 6.5),
                     (side * 56, 14, -98, 6), (side * 54, 44, -142, 6)])  # fmt: skip
        inner = tube([(side * 34, -12, -30, 4), (side * 44, -38, -70, 3.5), (side * 42, -46, -100, 3)])
        parts += [
            Part(shapes=vein, layers=(Layer(-1.0, Tissue.FAT), Layer(0.0, Tissue.VEIN))),
            Part(shapes=(*artery, *inner), layers=(Layer(-1.0, Tissue.FAT), Layer(0.0, Tissue.ARTERY))),
        ]
    return parts
