"""Writes docs/benchmarks/README.md from the figures beside it, and from nothing else.

python scripts/render_benchmarks.py
"""

from __future__ import annotations

import json

import click
import reproduce_report

PAGE = reproduce_report.FIGURES.with_name("README.md")


def page() -> str:
    """The whole page."""
    figures = json.loads(reproduce_report.FIGURES.read_text(encoding="utf-8"))
    return "\n".join([
        "# Benchmarks",
        "",
        "No GPU was at hand: nothing here was measured on one, and no figure here stands for an RTX 3060. Where there",
        "is one, `python scripts/gpu_acceptance.py` measures what only a GPU can show, and leaves it in a folder",
        "beside this page. This page is made by `python scripts/render_benchmarks.py` from figures alone. Planned",
        "memory of more engines, speed on a CPU and what each rewrite brings are in",
        "[docs/measurements](../measurements/README.md).",
        "",
        *reproduce_report.section(figures),
        "",
    ])  # fmt: skip


@click.command()
def main() -> None:
    """Write the page."""
    PAGE.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
