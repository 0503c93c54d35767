"""The torso as a whole: skin, muscle wall and abdominal cavity by height, and the diaphragm.

Coordinates are those of a standard patient in mm: x to the patient's right, y to the front, z to the
head; z = 20 is at the fourth lumbar vertebra and the iliac crests, y = 0 about the middle of the body.
"""

from dataclasses import dataclass

import numpy as np

from lhanet_export.volume.implicit import Part, wave

#: Heights at which the outlines below are given.
_HEIGHTS = (-200, -150, -110, -60, 0, 60, 120, 180, 240, 300)
#: Reach of the muscle wall to the side, the front and the back; of the cavity in it likewise.
_OUTLINES = {
    "wall side": (150, 162, 165, 158, 143, 136, 142, 147, 143, 136),
    "wall front": (70, 74, 80, 88, 92, 93, 98, 103, 105, 104),
    "wall back": (100, 108, 110, 106, 99, 98, 100, 104, 106, 106),
    "cavity side": (14, 34, 58, 94, 122, 121, 127, 132, 128, 119),
    "cavity front": (40, 48, 62, 74, 81, 82, 87, 91, 93, 92),
    "cavity back": (40, 54, 64, 72, 72, 73, 80, 87, 89, 88),
    # Share of the patient's fat that lies under the skin here.
    "fat": (1.6, 1.6, 1.5, 1.25, 1.0, 0.95, 0.8, 0.6, 0.5, 0.5),
    # Share of the patient's belly that is in front of the standard outline here.
    "belly": (0, 0, 0.1, 0.5, 1.0, 1.0, 0.8, 0.4, 0.05, 0),
}
#: Domes of the diaphragm: centre x, y, height at the centre, fall to the edge, half axes x, y.
_DOMES = (
    (70.0, 8.0, 243.0, 86.0, 76.0, 95.0),
    (-70.0, 6.0, 230.0, 72.0, 74.0, 92.0),
    (0.0, 20.0, 217.0, 45.0, 60.0, 70.0),
)
_SKIN_MM = 2.0


@dataclass(frozen=True, kw_only=True)
class Torso:
    """What makes one patient's body unlike another's, beside the organs."""

    #: Size relative to the standard patient, to the side, front to back and along the body.
    scale: tuple[float, float, float]
    #: Fat under the skin (mm at the navel), and how far fat within pushes the belly forward (mm).
    fat_mm: float
    belly_mm: float
    #: Height of the breath: the domes of the diaphragm against the standard patient, mm.
    breath_mm: float
    #: Waves that bend everything a little: height in mm, period in mm, and four phases, each.
    waves: tuple[tuple[float, float, float, float, float, float], ...]

    @property
    def bend_mm(self) -> float:
        """More than the waves can move a point."""
        return sum(height for height, *_ in self.waves) + 0.5


def outline(name: str, height: float) -> float:
    """A measure of the standard torso at a height, smooth between the tabled ones."""
    values = _OUTLINES[name]
    if height <= _HEIGHTS[0]:
        return float(values[0])
    for low, high, first, second in zip(_HEIGHTS, _HEIGHTS[1:], values, values[1:], strict=False):
        if height <= high:
            t = (height - low) / (high - low)
            return first + (second - first) * t * t * (3 - 2 * t)
    return float(values[-1])


class Field:
    """A block of points of a grid: their places in the standard patient, and where the torso's surfaces are.

    Arrays are (Z,Y,X) float32; `x`, `y`, `z` are made where they are needed, from what bends them.
    """

    def __init__(self, torso: Torso, x_mm: np.ndarray, y_mm: np.ndarray, z_mm: np.ndarray) -> None:
        self.shape = (len(z_mm), len(y_mm), len(x_mm))
        #: Places without the waves, ascending; these select what a part can touch.
        self.axes = tuple(
            (places / scale).astype(np.float32) for places, scale in zip((x_mm, y_mm, z_mm), torso.scale, strict=True)
        )
        self.reach = torso.bend_mm
        x, y, z = self.axes[0][None, None, :], self.axes[1][None, :, None], self.axes[2][:, None, None]
        bends = [np.zeros((1, 1, 1), np.float32)] * 3
        for height, period, *phases in torso.waves:
            in_x, in_y, in_z = (
                wave(places * (1 / period) + phase) for places, phase in zip((x, y, z), phases, strict=False)
            )
            shifted = wave(z * (1 / period) + phases[3])
            bends = [
                bend + wanted * height
                for bend, wanted in zip(bends, (in_y * in_z, in_x * shifted, in_x * in_y), strict=True)
            ]
        self._bends = bends
        everything = (slice(None),) * 3
        self._measure(torso, *self.at(everything))

    def at(self, window: tuple[slice, slice, slice]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """x, y, z in the standard patient of a (Z,Y,X) window; they broadcast to it."""
        x, y, z = self.axes[0][None, None, :], self.axes[1][None, :, None], self.axes[2][:, None, None]
        along_z, along_y, along_x = window
        in_x, in_y, in_z = self._bends
        return (
            x[:, :, along_x] + in_x[along_z, along_y],
            y[:, along_y] + in_y[along_z, :, along_x],
            z[along_z] + in_z[:, along_y, along_x],
        )

    def window(self, part: Part, low: tuple[float, ...], high: tuple[float, ...]) -> tuple[slice, slice, slice] | None:
        """The part of the block that a box can touch, or None."""
        reach = self.reach + part.margin
        slices = []
        for places, first, last in zip(self.axes, low, high, strict=True):
            start, stop = np.searchsorted(places, (first - reach, last + reach))
            if start == stop:
                return None
            slices.append(slice(int(start), int(stop)))
        return slices[2], slices[1], slices[0]

    def _measure(self, torso: Torso, x: np.ndarray, y: np.ndarray, z: np.ndarray) -> None:
        """Distances in mm beyond the skin, the muscle wall, the cavity and the diaphragm; negative inside."""
        heights = [float(height) for height in self.axes[2]]

        def by_height(name: str) -> np.ndarray:
            return np.array([outline(name, height) for height in heights], np.float32)[:, None, None]

        belly, fat = by_height("belly") * torso.belly_mm, by_height("fat") * torso.fat_mm
        side, front, back = by_height("wall side"), by_height("wall front") + belly, by_height("wall back")
        self.wall = _beyond(x, y, side, front, back)
        self.skin = _beyond(x, y, side + fat, front + fat + _SKIN_MM, back + fat * 0.8 + _SKIN_MM) + _SKIN_MM
        side, front, back = by_height("cavity side"), by_height("cavity front") + belly, by_height("cavity back")
        self.cavity = _beyond(x, y, side, front, back)
        domes = [
            top - fall * (_square((x - across) * (1 / half)) + _square((y - ahead) * (1 / depth)))
            for across, ahead, top, fall, half, depth in _DOMES
        ]
        dome = np.maximum(np.maximum(domes[0], domes[1]), domes[2])
        self.diaphragm = (z - dome - torso.breath_mm) * 0.75


def _beyond(x: np.ndarray, y: np.ndarray, side: np.ndarray, front: np.ndarray, back: np.ndarray) -> np.ndarray:
    """About the distance (mm) beyond a rounded rectangle that reaches so far to both sides, the front and the back."""
    across = np.minimum(_square(x / side), np.float32(2))
    along = np.minimum(_square(y / np.where(y > 0, front, back)), np.float32(2))
    return (np.sqrt(across + along - 0.3 * across * along) - 1) * (0.5 * (side + front))


def _square(values: np.ndarray) -> np.ndarray:
    return values * values
