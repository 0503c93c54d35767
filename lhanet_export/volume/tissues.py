"""What the phantom is made of: tissues, the AMOS label of each, and how bright it is in a CT."""

from enum import IntEnum

import numpy as np

from lhanet_export.volume.draws import Draws


class Tissue(IntEnum):
    """Tissues by code; those of 1 to 15 are the AMOS classes of the same number."""

    AIR = 0
    SPLEEN = 1
    RIGHT_KIDNEY = 2
    LEFT_KIDNEY = 3
    GALL_BLADDER = 4
    ESOPHAGUS = 5
    LIVER = 6
    STOMACH = 7
    AORTA = 8
    POSTCAVA = 9
    PANCREAS = 10
    RIGHT_ADRENAL = 11
    LEFT_ADRENAL = 12
    DUODENUM = 13
    BLADDER = 14
    PROSTATE_UTERUS = 15
    # Parts of organs that look unlike the rest.
    RIGHT_MEDULLA = 16
    LEFT_MEDULLA = 17
    LIVER_VEIN = 18
    STOMACH_CONTENT = 19
    STOMACH_GAS = 20
    ESOPHAGUS_LUMEN = 21
    DUODENUM_CONTENT = 22
    BLADDER_WALL = 23
    UTERINE_CAVITY = 24
    # No class of AMOS.
    FAT = 32
    SKIN = 33
    MUSCLE = 34
    LUNG = 35
    HEART = 36
    CORTICAL_BONE = 37
    MARROW = 38
    CARTILAGE = 39
    DISC = 40
    CANAL = 41
    ARTERY = 42
    VEIN = 43
    BOWEL_WALL = 44
    BOWEL_FLUID = 45
    BOWEL_GAS = 46
    STOOL = 47
    TABLE = 48
    TABLE_CORE = 49


_PARTS_OF_ORGANS = {
    Tissue.RIGHT_MEDULLA: Tissue.RIGHT_KIDNEY,
    Tissue.LEFT_MEDULLA: Tissue.LEFT_KIDNEY,
    Tissue.LIVER_VEIN: Tissue.LIVER,
    Tissue.STOMACH_CONTENT: Tissue.STOMACH,
    Tissue.STOMACH_GAS: Tissue.STOMACH,
    Tissue.ESOPHAGUS_LUMEN: Tissue.ESOPHAGUS,
    Tissue.DUODENUM_CONTENT: Tissue.DUODENUM,
    Tissue.BLADDER_WALL: Tissue.BLADDER,
    Tissue.UTERINE_CAVITY: Tissue.PROSTATE_UTERUS,
}

#: The AMOS label (uint8) of each tissue code.
LABEL_OF = np.zeros(64, np.uint8)
for _tissue in Tissue:
    LABEL_OF[_tissue] = _tissue if _tissue < 16 else _PARTS_OF_ORGANS.get(_tissue, 0)

#: HU without contrast, and what a usual dose adds in the arterial and in the portal venous phase.
_BRIGHTNESS: dict[Tissue, tuple[float, float, float]] = {
    Tissue.AIR: (-1000, 0, 0),
    Tissue.SPLEEN: (48, 85, 72),
    Tissue.RIGHT_KIDNEY: (34, 140, 150),
    Tissue.LEFT_KIDNEY: (34, 140, 150),
    Tissue.GALL_BLADDER: (8, 0, 2),
    Tissue.ESOPHAGUS: (38, 22, 40),
    Tissue.LIVER: (56, 18, 56),
    Tissue.STOMACH: (40, 45, 55),
    Tissue.AORTA: (42, 270, 115),
    Tissue.POSTCAVA: (40, 50, 100),
    Tissue.PANCREAS: (40, 68, 55),
    Tissue.RIGHT_ADRENAL: (25, 55, 50),
    Tissue.LEFT_ADRENAL: (25, 55, 50),
    Tissue.DUODENUM: (36, 45, 55),
    Tissue.BLADDER: (5, 0, 3),
    Tissue.PROSTATE_UTERUS: (40, 30, 50),
    Tissue.RIGHT_MEDULLA: (32, 50, 130),
    Tissue.LEFT_MEDULLA: (32, 50, 130),
    Tissue.LIVER_VEIN: (42, 50, 115),
    Tissue.STOMACH_CONTENT: (15, 0, 0),
    Tissue.STOMACH_GAS: (-980, 0, 0),
    Tissue.ESOPHAGUS_LUMEN: (0, 0, 5),
    Tissue.DUODENUM_CONTENT: (16, 0, 3),
    Tissue.BLADDER_WALL: (34, 8, 25),
    Tissue.UTERINE_CAVITY: (30, 5, 15),
    Tissue.FAT: (-102, 0, 0),
    Tissue.SKIN: (15, 0, 10),
    Tissue.MUSCLE: (52, 5, 12),
    Tissue.LUNG: (-850, 0, 0),
    Tissue.HEART: (42, 130, 100),
    Tissue.CORTICAL_BONE: (720, 0, 0),
    Tissue.MARROW: (190, 5, 10),
    Tissue.CARTILAGE: (110, 0, 0),
    Tissue.DISC: (80, 0, 0),
    Tissue.CANAL: (25, 0, 0),
    Tissue.ARTERY: (42, 250, 105),
    Tissue.VEIN: (40, 45, 110),
    Tissue.BOWEL_WALL: (36, 45, 55),
    Tissue.BOWEL_FLUID: (18, 0, 2),
    Tissue.BOWEL_GAS: (-960, 0, 0),
    Tissue.STOOL: (-10, 0, 0),
    Tissue.TABLE: (-180, 0, 0),
    Tissue.TABLE_CORE: (-900, 0, 0),
}
#: Tissues that are not homogeneous: HU by which they vary over a few mm.
_MOTTLE = {Tissue.STOOL: 90.0, Tissue.LUNG: 40.0, Tissue.MARROW: 30.0, Tissue.MUSCLE: 6.0, Tissue.STOMACH_CONTENT: 12.0}
#: How far (HU) one patient's tissue may lie from another's; fat, gas and air are alike in all.
_SPREAD = {Tissue.LIVER: 9.0, Tissue.STOMACH_CONTENT: 14.0, Tissue.BOWEL_FLUID: 10.0, Tissue.GALL_BLADDER: 5.0}
_ALIKE = {Tissue.AIR, Tissue.STOMACH_GAS, Tissue.BOWEL_GAS, Tissue.TABLE, Tissue.TABLE_CORE}


def brightness(draws: Draws) -> tuple[float, ...]:
    """Mean HU of each tissue code in one patient: phase and dose of the contrast agent, and individual differences."""
    phase = draws.between(0.0, 1.0)  # 0 arterial, 1 portal venous
    dose = draws.between(0.75, 1.2) if draws.chance(0.85) else 0.0
    values = [0.0] * len(LABEL_OF)
    for tissue, (plain, arterial, portal) in _BRIGHTNESS.items():
        enhanced = dose * (arterial + phase * (portal - arterial))
        spread = 0.0 if tissue in _ALIKE else _SPREAD.get(tissue, 4.0)
        values[tissue] = plain + enhanced + draws.between(-spread, spread)
    return tuple(values)


def mottle() -> np.ndarray:
    """HU by which each tissue code varies over a few mm (float32)."""
    values = np.zeros(len(LABEL_OF), np.float32)
    for tissue, size in _MOTTLE.items():
        values[tissue] = size
    return values
