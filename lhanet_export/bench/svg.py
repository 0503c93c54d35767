"""Charts as SVG without a script: lengths are shares of the width, so they fit a phone and a page in print.

Text keeps its size whatever the width, and may stand right of the drawing, in room that the style sheet leaves.
Colours come from the style sheet, too, which knows light, dark and print.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise

#: Line colours that the style sheet has; further lines are the same ones, dashed.
LINE_COLOURS = 8
_LONGEST_LABEL = 30
_LABEL_APART = 16


@dataclass(frozen=True, kw_only=True)
class Bar:
    """One bar: its length and whiskers as shares of the reference (None: not measured), and the text beside it."""

    kind: str
    share: float | None
    text: str
    whiskers: tuple[float, float] | None = None

    @property
    def reach(self) -> float:
        """Where its right end is, whiskers included."""
        return max(self.share or 0, *(self.whiskers or (0,)), 0)


@dataclass(frozen=True, kw_only=True)
class Line:
    """One line of a chart: points from left to right."""

    name: str
    points: Sequence[tuple[float, float]]


def ticks(top: float, most: int = 5) -> list[float]:
    """Round numbers from 0 to at most `top`, in steps of 1, 2, 2.5 or 5 of a power of ten; `most` steps or fewer."""
    if top <= 0:
        return [0.0]
    power = 10.0 ** (math.floor(math.log10(top)) - 1)
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10, 20, 25, 50, 100) if top / (power * factor) <= most)
    return [float(f"{index * step:.6g}") for index in range(math.floor(top / step + 1e-9) + 1)]


def share_axis(top: float) -> str:
    """The labels of the scale that `share_bars` draws its grid on; decoration, because each bar has its number."""
    labels = "".join(
        # The first one would stand out at the left, and be cut off in print.
        f'<text class="tick" x="{_percent(tick, top)}" y="16" text-anchor="{"middle" if tick else "start"}">'
        f"{100 * tick:.0f} %</text>"
        for tick in ticks(top)
    )
    return f'<svg class="plot-area" aria-hidden="true">{labels}</svg>'


def share_bars(title: str, bars: Sequence[Bar], top: float, *, outlined: bool) -> str:
    """Bars of one row on a scale from 0 to `top`, with their numbers beside them; outlined means: do not trust.

    A bar that is longer than the scale fills it and ends in a tip.
    """
    marks = []
    for tick in ticks(top):
        x = _percent(tick, top)
        marks.append(f'<line class="{"whole" if tick == 1 else "grid"}" x1="{x}" x2="{x}" y1="0" y2="100%"/>')
    for index, bar in enumerate(bars):
        y = 11 + 20 * index
        cut = bar.share is not None and bar.share > top
        if bar.share is not None:
            style = f"bar {bar.kind}{' outlined' if outlined else ''}"
            width = _percent(min(bar.share, top), top)
            marks.append(f'<rect class="{style}" x="0" y="{y}" width="{width}" height="14" rx="{0 if cut else 2}"/>')
            if cut:
                marks.append(f'<svg x="100%" y="{y}"><path class="{style}" d="M0 0 L9 7 L0 14"/></svg>')
        if bar.whiskers is not None and not cut:
            low, high = (_percent(min(share, top), top) for share in bar.whiskers)
            marks.append(f'<line class="whisker" x1="{low}" x2="{high}" y1="{y + 7}" y2="{y + 7}"/>')
            marks += [f'<line class="whisker" x1="{x}" x2="{x}" y1="{y + 3}" y2="{y + 11}"/>' for x in (low, high)]
        x, gap = _percent(min(bar.reach, top), top), 15 if cut else 8
        marks.append(f'<text class="value" x="{x}" dx="{gap}" y="{y + 11}">{escape(bar.text)}</text>')
    described = "; ".join(f"{bar.kind} {bar.text}" for bar in bars)
    return _image("plot-area", title, described, marks)


def line_chart(
    title: str, lines: Sequence[Line], *, x_name: str, x_text: Callable[[float], str], y_text: Callable[[float], str]
) -> str:
    """Lines over a common scale that begins at 0, each with its number and name at its right end.

    The style sheet hides the names where there is no room for them; a list of them has to stand beside the chart.
    """
    height = max(240, _LABEL_APART * len(lines))
    x_top = max((x for line in lines for x, _ in line.points), default=0) or 1
    y_top = max((y for line in lines for _, y in line.points), default=0) or 1

    def down(y: float) -> str:
        return f"{height * (1 - y / y_top):.1f}"

    marks = []
    for tick in ticks(y_top):
        y = down(tick)
        marks.append(f'<line class="grid" x1="0" x2="100%" y1="{y}" y2="{y}"/>')
        marks.append(f'<text class="tick" x="0" dx="-8" y="{y}" dy="4" text-anchor="end">{escape(y_text(tick))}</text>')
    for tick in ticks(x_top, most=4):
        x = _percent(tick, x_top)
        marks.append(f'<line class="axis" x1="{x}" x2="{x}" y1="{height}" y2="{height + 5}"/>')
        text = escape(x_text(tick))
        marks.append(f'<text class="tick" x="{x}" y="{height + 19}" text-anchor="middle">{text}</text>')
    marks.append(f'<line class="axis" x1="0" x2="100%" y1="{height}" y2="{height}"/>')
    marks.append(f'<text class="tick" x="50%" y="{height + 38}" text-anchor="middle">{escape(x_name)}</text>')
    drawn = [(index, line) for index, line in enumerate(lines) if line.points]
    places = _apart([height * (1 - line.points[-1][1] / y_top) for _, line in drawn], height)
    for (index, line), place in zip(drawn, places, strict=True):
        marks.append(_drawn_line(line, index, place, lambda x: _percent(x, x_top), down))
    described = "; ".join(
        f"{line.name}: " + ", ".join(f"{y_text(y)} at {x_text(x)}" for x, y in line.points) for _, line in drawn
    )
    return _image("plot-area", title, described, marks, height=height + 44)


def _drawn_line(
    line: Line, index: int, place: float, across: Callable[[float], str], down: Callable[[float], str]
) -> str:
    """A line, its points, and number and name at height `place`, with a thin line that leads there."""
    marks = []
    places = [(across(x), down(y)) for x, y in line.points]
    for (x1, y1), (x2, y2) in pairwise(places):
        marks.append(f'<line class="path" x1="{x1}" x2="{x2}" y1="{y1}" y2="{y2}"/>')
    marks += [f'<circle cx="{x}" cy="{y}" r="3.5"/>' for x, y in places]
    x, y = places[-1]
    marks.append(f'<line class="leader" x1="{x}" x2="100%" y1="{y}" y2="{y}"/>')
    name = line.name if len(line.name) <= _LONGEST_LABEL else line.name[: _LONGEST_LABEL - 1].rstrip() + "…"
    # An image of its own that begins at the right end: from there on, lengths are in pixels.
    marks.append(
        f'<svg class="ends" x="100%"><line class="leader" x1="0" x2="16" y1="{y}" y2="{place:.1f}"/>'
        f'<text class="label" x="20" y="{place:.1f}" dy="4">{index + 1}'
        f'<tspan class="name" dx="6">{escape(name)}</tspan></text></svg>'
    )
    dashed = " dashed" if index >= LINE_COLOURS else ""
    return f'<g class="line c{index % LINE_COLOURS}{dashed}">{"".join(marks)}</g>'


def _apart(wanted: Sequence[float], bottom: float) -> list[float]:
    """Heights near the wanted ones, far enough apart for text and none below `bottom`, in the order given."""
    order = sorted(range(len(wanted)), key=lambda index: wanted[index])
    placed = list(wanted)
    for before, index in pairwise(order):
        placed[index] = max(placed[index], placed[before] + _LABEL_APART)
    limit = bottom
    for index in reversed(order):
        placed[index] = min(placed[index], limit)
        limit = placed[index] - _LABEL_APART
    return placed


def _image(style: str, title: str, description: str, marks: Sequence[str], height: int | None = None) -> str:
    size = "" if height is None else f' height="{height}"'
    words = f"<title>{escape(title)}</title><desc>{escape(description)}</desc>"
    return f'<svg class="{style}" role="img"{size}>{words}{"".join(marks)}</svg>'


def _percent(value: float, top: float) -> str:
    return f"{100 * value / top:.2f}%"
