"""Slices of scans with their organs in colour, side by side, for people to look at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from lhanet_export.files import staged

#: One colour for each class of AMOS22, background first; neighbours in the body differ most.
COLOURS = np.array(
    [
        (0, 0, 0), (214, 92, 92), (240, 190, 60), (246, 140, 40), (60, 170, 60), (150, 90, 200), (176, 124, 92),
        (70, 130, 210), (230, 40, 50), (90, 110, 240), (220, 220, 80), (40, 200, 200), (20, 150, 150),
        (190, 120, 230), (120, 190, 130), (230, 130, 170),
    ],
    np.float32,
)  # fmt: skip
#: How much of a voxel's colour is its organ's.
_TINT = 0.55
#: What is black and what is white, in standard deviations of a preprocessed scan.
_DARK, _BRIGHT = -1.2, 2.4
_TEXT, _PAPER = (225, 225, 225), (18, 18, 20)
_MARGIN, _LINE = 12, 22


@dataclass(frozen=True)
class Panel:
    """One picture of a row: a title, and the colours (rows, columns, 3) uint8."""

    title: str
    pixels: np.ndarray


def grey(image: np.ndarray) -> np.ndarray:
    """A slice (rows, columns) of a preprocessed scan as grey values (rows, columns, 3) uint8."""
    shade = np.clip((image - _DARK) / (_BRIGHT - _DARK), 0, 1) * 255
    return np.repeat(shade[..., None], 3, 2).astype(np.uint8)


def coloured(image: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The same slice with each class above 0 in its colour; classes beyond AMOS22's take the colours again."""
    colours = _colours_of(labels.astype(int))
    base = grey(image).astype(np.float32)
    mixed = np.where(labels[..., None] > 0, (1 - _TINT) * base + _TINT * colours, base)
    return mixed.astype(np.uint8)


def _colours_of(classes: np.ndarray | int) -> np.ndarray:
    return COLOURS[1:][(classes - 1) % (len(COLOURS) - 1)]


def marked(image: np.ndarray, where: np.ndarray) -> np.ndarray:
    """The same slice, darkened, with the voxels of a mask in white: where two segmentations differ."""
    base = grey(image) // 3
    base[where] = 255
    return base


def upright(plane: np.ndarray) -> np.ndarray:
    """A plane (across, up) of a scan in RAS axes as rows and columns as radiologists look at it: head or front above.

    The patient's right is on the left.
    """
    return np.ascontiguousarray(plane[::-1, ::-1].T)


def save_panels(
    panels: Sequence[Panel], target: Path, *, names: Sequence[str] = (), zoom: int = 2, columns: int | None = None
) -> None:
    """Write panels side by side, or in rows of `columns`, as a PNG with a legend of `names` (by class; 0 and
    empty ones left out).

    A voxel takes `zoom` pixels.
    """
    font = ImageFont.load_default(15)
    across = columns or len(panels)
    wide = max(panel.pixels.shape[1] for panel in panels) * zoom + _MARGIN
    high = max(panel.pixels.shape[0] for panel in panels) * zoom + _MARGIN + _LINE
    width = across * wide + _MARGIN
    legend = _legend_rows(names, width, font)
    below = -(-len(panels) // across) * high + _MARGIN
    sheet = Image.new("RGB", (width, below + _LINE * len(legend) + (_MARGIN if legend else 0)), _PAPER)
    draw = ImageDraw.Draw(sheet)
    for index, panel in enumerate(panels):
        left, top = _MARGIN + index % across * wide, _MARGIN + index // across * high
        draw.text((left, top), panel.title, _TEXT, font)
        size = (panel.pixels.shape[1] * zoom, panel.pixels.shape[0] * zoom)
        sheet.paste(Image.fromarray(panel.pixels).resize(size, Image.Resampling.NEAREST), (left, top + _LINE))
    for row in legend:
        for x, index, name in row:
            draw.rectangle((x, below + 4, x + 12, below + 16), tuple(_colours_of(index).astype(int).tolist()))
            draw.text((x + 18, below), name, _TEXT, font)
        below += _LINE
    with staged(target) as (path,):
        sheet.save(path, "PNG")


def _legend_rows(names: Sequence[str], width: int, font: ImageFont.ImageFont | ImageFont.FreeTypeFont) -> list[list]:
    """Where each class name goes: rows of (x, class, name) that fit the width."""
    rows: list[list] = []
    x = width
    for index, name in enumerate(names):
        if index == 0 or not name:
            continue
        needed = 18 + round(font.getlength(name)) + 18
        if x + needed > width:
            rows.append([])
            x = _MARGIN
        rows[-1].append((x, index, name))
        x += needed
    return rows
