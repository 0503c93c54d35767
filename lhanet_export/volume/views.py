"""A scan and its organs in three planes, for a look at a result."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from nibabel.orientations import apply_orientation, io_orientation

from lhanet_export.volume.picture import Panel, coloured, save_panels, upright


def save_views(image: np.ndarray, labels: np.ndarray, affine: np.ndarray, names: Sequence[str], target: Path) -> None:
    """Write a PNG of an axial, a coronal and a sagittal plane through the middle of the organs, with a legend.

    `image` (preprocessed) and `labels` are (D,H,W) on one grid whose axes lie as the columns of `affine`; the planes
    are shown as radiologists look at them: the patient's right is on the left. `names` are those of the classes; the
    ones that do not occur are left out of the legend.
    """
    axes = io_orientation(affine)
    image, labels = apply_orientation(image, axes), apply_orientation(labels, axes)
    organs = np.argwhere(labels > 0)
    x, y, z = (int(place) for place in (organs.mean(0).round() if len(organs) else np.array(labels.shape) // 2))
    panels = [
        Panel(name, coloured(upright(image.take(at, axis)), upright(labels.take(at, axis))))
        for name, axis, at in (("axial", 2, z), ("coronal", 1, y), ("sagittal", 0, x))
    ]
    present = set(np.unique(labels).tolist())
    save_panels(panels, target, names=[name if index in present else "" for index, name in enumerate(names)])
