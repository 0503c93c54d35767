"""Pictures of slices: every panel is in its place, and the legend names each class in its colour."""

from pathlib import Path

import numpy as np
from PIL import Image

from lhanet_export.volume.picture import COLOURS, Panel, coloured, grey, marked, save_panels, upright


def test_panels_stand_in_rows_above_a_legend(tmp_path: Path) -> None:
    colours = [(250, 0, 0), (0, 250, 0), (0, 0, 250)]
    panels = [Panel(str(index), np.full((10, 30, 3), colour, np.uint8)) for index, colour in enumerate(colours)]
    save_panels(panels, tmp_path / "rows.png", columns=2, names=("background", "liver"), zoom=3)
    save_panels(panels, tmp_path / "row.png", zoom=3)

    rows, row = (np.asarray(Image.open(tmp_path / name)) for name in ("rows.png", "row.png"))
    for sheet in (rows, row):
        for colour in colours:
            assert (sheet == colour).all(-1).sum() == 30 * 10 * 3**2
    corners = [np.argwhere((rows == colour).all(-1)).min(0) for colour in colours]
    assert corners[0][0] == corners[1][0] < corners[2][0] and corners[0][1] == corners[2][1] < corners[1][1]
    legend = np.argwhere((rows == COLOURS[1]).all(-1))
    assert legend.min(0)[0] > corners[2][0] + 10 * 3
    assert row.shape[0] < rows.shape[0] and row.shape[1] > rows.shape[1]


def test_organs_are_tinted_and_differences_are_white() -> None:
    image = np.linspace(-1, 2, 12, dtype=np.float32).reshape(3, 4)
    labels = np.zeros((3, 4), np.uint8)
    labels[1, 2] = 6
    changed = (coloured(image, labels) != grey(image)).any(-1)
    assert changed[1, 2] and changed.sum() == 1
    white = (marked(image, labels > 0) == 255).all(-1)
    assert white[1, 2] and white.sum() == 1


def test_the_patients_right_is_on_the_left_and_the_head_above() -> None:
    plane = np.zeros((5, 7), int)
    plane[4, 6] = 1  # in RAS axes the last index along x is the patient's right, along z the head
    assert np.argwhere(upright(plane)).tolist() == [[0, 0]]
    assert upright(plane).shape == (7, 5)
