"""What the pages of figures are made of, for the scripts beside this file that write one."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parents[1] / "docs"
MEASUREMENTS, BENCHMARKS = DOCS / "measurements", DOCS / "benchmarks"


def figures_in(path: Path) -> dict[str, Any]:
    """What a script has measured and kept."""
    figures: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return figures


def table(names: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table; what is in a cell stays in it."""
    cells = [names, ["---"] * len(names), *rows]
    return [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in cells]
