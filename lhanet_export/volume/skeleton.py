"""Spine, ribs, pelvis and the muscles along them, in the standard patient (mm, see `torso`)."""

from collections.abc import Iterator, Sequence
from itertools import pairwise

from lhanet_export.volume.draws import Draws
from lhanet_export.volume.implicit import Blob, Capsule, Drum, Layer, Part, Shape, TubePoint, tube, turned
from lhanet_export.volume.tissues import Tissue
from lhanet_export.volume.torso import outline

#: Height and place (y) of the vertebral bodies, L5 up to T5.
_VERTEBRAE = (
    (-15, -37), (20, -36), (55, -38), (89, -42), (122, -46), (153, -50), (182, -54), (209, -57), (235, -59),
    (260, -60), (284, -60), (307, -60), (329, -60),
)  # fmt: skip
_TWELFTH_THORACIC = 5
#: Sine and cosine of the angle from the back around the chest, every 15 degrees from 15 to 150.
_AROUND = (
    (0.2588, 0.9659), (0.5, 0.866), (0.7071, 0.7071), (0.866, 0.5), (0.9659, 0.2588), (1.0, 0.0),
    (0.9659, -0.2588), (0.866, -0.5), (0.7071, -0.7071), (0.5, -0.866),
)  # fmt: skip
#: How far a rib has come down at each of these angles, mm.
_FALL = (6, 18, 32, 46, 58, 68, 76, 82, 84, 82)
#: How many of the angles a rib of T12, T11, ... reaches as bone; from the third on cartilage goes on to the sternum.
_REACH = (3, 5, 7, 8, 8, 8, 8, 8)
_BONE = (Layer(0.0, Tissue.CORTICAL_BONE), Layer(2.0, Tissue.MARROW))
_THIN_BONE = (Layer(0.0, Tissue.CORTICAL_BONE), Layer(3.2, Tissue.MARROW))


def muscles() -> list[Part]:
    """The muscles inside the wall and along the spine, each wrapped in a thin layer of fat."""
    wrapped = (Layer(-1.2, Tissue.FAT), Layer(0.0, Tissue.MUSCLE))
    # Muscles of the back lie in the muscle wall: the seams of fat show them, and do not cut into skin or cavity.
    parts = []
    for side in (1, -1):
        courses = (
            [(25, -40, 128, 8), (32, -40, 90, 14), (38, -38, 50, 19), (45, -32, 10, 21), (58, -8, -45, 18),
             (70, 22, -95, 15), (86, 22, -150, 14)],
            [(60, -66, 118, 8), (66, -68, 70, 11), (68, -64, 25, 12)],
            [(33, -86, 360, 15), (34, -86, 240, 17), (36, -83, 120, 21), (33, -78, 20, 22), (24, -84, -60, 12)],
            [(14, -28, 175, 6), (16, -30, 140, 6), (16, -28, 105, 4)],
        )  # fmt: skip
        for course in courses:
            shapes = tube([(side * x, y, z, radius) for x, y, z, radius in course])
            over = (Tissue.FAT, Tissue.MUSCLE, Tissue.BOWEL_WALL, Tissue.LIVER, Tissue.SPLEEN)
            parts.append(Part(shapes=shapes, layers=wrapped, over=over))
        # The iliac muscle lines the wing of the pelvis; fat lies between the muscles of the buttock and below it.
        sheet = tuple(_wing(side, inward=9.0, thickness=8.0))
        parts.append(Part(shapes=sheet, layers=(Layer(0.0, Tissue.MUSCLE),), over=(Tissue.FAT,)))
        seams: tuple[Shape, ...] = (
            *tube([(side * 70, -96, -70, 2), (side * 112, -70, -80, 2.5), (side * 140, -25, -95, 2)]),
            *tube([(side * 70, -92, -100, 2), (side * 112, -66, -110, 3), (side * 145, -25, -120, 2)]),
            *tube([(side * 118, 15, -105, 2), (side * 120, 45, -130, 3), (side * 112, 50, -170, 3)]),
            Blob((side * 36, -62, -150), (18, 26, 34), turned(about_z=side * 15)),
            Blob((side * 62, 48, -130), (14, 12, 40)),
        )
        parts.append(Part(shapes=seams, layers=(Layer(0.0, Tissue.FAT),), over=(Tissue.MUSCLE,)))
    return parts


def bones(draws: Draws, *, belly_mm: float) -> list[Part]:
    """Spine, ribs with their cartilage, sternum, pelvis and the heads of the femurs."""
    return [*_spine(draws), *_chest(belly_mm), *_pelvis()]


def _spine(draws: Draws) -> Iterator[Part]:
    places = [(float(z), float(y)) for z, y in _VERTEBRAE]
    column = tube([(0, y, z, 15) for z, y in places], 2)
    yield Part(shapes=column, layers=(Layer(-2.0, Tissue.FAT), Layer(0.0, Tissue.DISC)))
    width = draws.between(21, 25)
    for index, (z, y) in enumerate(places):
        share = 1 - 0.035 * max(0, index - 1)  # vertebrae get smaller towards the head
        above = places[min(index + 1, len(places) - 1)][0] - z or 22.0
        half = 0.5 * min(above, 34) - 3.2
        body = Drum((0, y, z), (width * share, (width - 6) * share + 1), half)
        arch: tuple[Shape, ...] = (
            Blob((0, y - 26, z - 2), (19 * share, 14 * share, half * 0.8)),
            Blob((0, y - 44, z - 9), (3.5, 15, 9), turned(about_x=18)),
            *(Blob((side * 16, y - 29, z - half - 1), (8, 8, 9)) for side in (1, -1)),
            *(Capsule((side * 12, y - 21, z), (side * 36 * share, y - 28, z + 1), (4.5, 3.5)) for side in (1, -1)),
        )
        yield Part(shapes=(body, *arch), layers=_BONE)
    canal = tube([(0, y - 24, z, 8.5) for z, y in places], 2)
    yield Part(shapes=canal, layers=(Layer(0.0, Tissue.FAT), Layer(1.2, Tissue.CANAL)))


def _chest(belly_mm: float) -> Iterator[Part]:
    def in_wall(side: int, sine: float, cosine: float, height: float, radius: float) -> TubePoint:
        """A point in the middle of the chest's wall, at an angle from the back."""
        front = "front" if cosine < 0 else "back"
        belly = belly_mm * outline("belly", height) if cosine < 0 else 0.0
        across = 0.45 * outline("wall side", height) + 0.55 * outline("cavity side", height)
        along = 0.45 * outline(f"wall {front}", height) + 0.55 * outline(f"cavity {front}", height)
        return side * (across + 3) * sine, -(along + belly + 1) * cosine, height, radius

    for index, reach in enumerate(_REACH):
        z, y = _VERTEBRAE[_TWELFTH_THORACIC + index]
        for side in (1, -1):
            course = [(side * 14.0, y - 20.0, float(z), 4.5)]
            for (sine, cosine), fall in zip(_AROUND, _FALL, strict=True):
                height = z - fall * (0.75 if index < 2 else 1.0)
                course.append(in_wall(side, sine, cosine, height, 5.2))
            yield Part(shapes=tube(course[: reach + 1], 2), layers=_THIN_BONE)
            if index >= 2:
                bottom = course[reach][2]
                end = max(226.0, bottom + 16)
                rise = [in_wall(side, 0.5, -0.88, bottom + (end - bottom) * 0.3, 5.0)] if reach < 9 else []
                rise += [in_wall(side, 0.3, -0.96, bottom + (end - bottom) * 0.7, 5.0)]
                gristle = tube([course[reach], *rise, in_wall(side, 0.1, -1.0, end, 5.0)], 3)
                yield Part(shapes=gristle, layers=(Layer(0.0, Tissue.CARTILAGE),))
    front = outline("wall front", 240) - 7 + belly_mm * outline("belly", 240)
    sternum = tube([(0, front - 1, 208, 4), (0, front, 228, 8), (0, front, 360, 9)], 2)
    broad = tuple(
        Capsule((part.start[0] + side * 5, *part.start[1:]), (part.end[0] + side * 5, *part.end[1:]), part.radii)
        for part in sternum
        for side in (1, -1)
    )
    yield Part(shapes=broad, layers=_BONE)


def _pelvis() -> Iterator[Part]:
    sacrum = (
        Blob((0, -47, -42), (36, 18, 17), turned(about_x=-25)),
        Blob((0, -58, -64), (32, 16, 18), turned(about_x=-25)),
        Blob((0, -68, -86), (25, 13, 17), turned(about_x=-15)),
        Blob((0, -74, -108), (18, 9, 15)),
        Blob((0, -71, -130), (8, 6, 13), turned(about_x=25)),
        *(Blob((side * 34, -56, -48), (20, 15, 22), turned(about_z=-side * 12)) for side in (1, -1)),
    )
    yield Part(shapes=sacrum, layers=_BONE)
    yield Part(shapes=tube([(0, -62, -10, 9), (0, -68, -45, 8), (0, -78, -80, 5)]), layers=(Layer(0.0, Tissue.CANAL),))
    for side in (1, -1):
        yield Part(shapes=tuple(_wing(side)), layers=_BONE)
        socket: tuple[Shape, ...] = (
            Blob((side * 84, 2, -112), (27, 31, 30)),
            *tube([(side * 76, -30, -108, 12), (side * 66, -40, -145, 11), (side * 62, -36, -180, 13)]),
            *tube([(side * 72, 28, -112, 11), (side * 42, 44, -134, 8), (side * 9, 47, -146, 9)]),
            *tube([(side * 9, 46, -152, 9), (side * 26, 26, -172, 7), (side * 54, -22, -188, 9)]),
        )
        yield Part(shapes=socket, layers=_BONE)
        head = Blob((side * 92, 6, -124), (24, 24, 24))
        yield Part(shapes=(head,), layers=(Layer(-3.0, Tissue.CARTILAGE), *_BONE))
        neck = tube([(side * 95, 4, -127, 16), (side * 122, -8, -142, 15), (side * 134, -10, -150, 18)])
        shaft = tube([(side * 132, -6, -150, 18), (side * 130, 0, -195, 15), (side * 124, 4, -300, 14)])
        yield Part(shapes=(*neck, *shaft), layers=_BONE)


def _wing(side: int, inward: float = 0.0, thickness: float = 0.0) -> Iterator[Shape]:
    """The wing of the ilium as rods from the sacrum to the front, a rod every 8 mm; or a sheet along its inside."""
    # Height; x, y of the rear end, the middle and the front end; radius.
    rows = (
        (24, 92, -34, 112, -18, 122, 2, 4.0),
        (8, 66, -66, 106, -34, 126, 16, 4.5),
        (-18, 56, -76, 98, -42, 125, 26, 5.0),
        (-45, 54, -74, 90, -36, 116, 30, 5.0),
        (-70, 62, -60, 86, -24, 104, 30, 6.5),
        (-95, 74, -34, 86, -4, 94, 28, 10.0),
    )
    for lower, upper in pairwise(rows):
        steps = 3
        for step in range(steps):
            t = step / steps
            z, x0, y0, x1, y1, x2, y2, radius = (a + (b - a) * t for a, b in zip(lower, upper, strict=True))
            radius = thickness or radius
            course: Sequence[TubePoint] = [
                (side * (x0 - inward * 0.5), y0 + inward, z, radius),
                (side * (x1 - inward), y1 + inward * 0.5, z, radius),
                (side * (x2 - inward), y2 - inward, z, radius),
            ]
            yield from tube(course, 2)
