"""The report's style sheet: one column, light and dark by the reader's setting, light in print."""

from __future__ import annotations

from collections.abc import Mapping

from lhanet_export.bench.svg import LINE_COLOURS

#: Text and lines keep 4.5:1 to the background, bars 3:1; the colours of lines are far apart for the colour-blind, too.
LIGHT: Mapping[str, str] = {
    "page": "#ffffff", "panel": "#f6f7f9", "ink": "#1b2430", "quiet": "#586473", "grid": "#e4e7ec", "rule": "#98a3b0",
    "time": "#3f7fc1", "memory": "#8792a0", "whisker": "#1b2430",
    "good": "#17663a", "good-back": "#e7f4ec", "warn": "#7a4b00", "warn-back": "#fdf1d9",
    "bad": "#a3201d", "bad-back": "#fcebea",
    "c0": "#44505e", "c1": "#1f6bb5", "c2": "#a8500a", "c3": "#0f766e",
    "c4": "#8a3f9c", "c5": "#a8326a", "c6": "#5f6b12", "c7": "#4a57c4",
}  # fmt: skip
DARK: Mapping[str, str] = {
    "page": "#14181d", "panel": "#1b2027", "ink": "#e6eaef", "quiet": "#a3adb9", "grid": "#2a313a", "rule": "#67727f",
    "time": "#4a8bce", "memory": "#717d8b", "whisker": "#f4f6f8",
    "good": "#86d6a5", "good-back": "#17301f", "warn": "#efc471", "warn-back": "#342809",
    "bad": "#ff9f97", "bad-back": "#3c1917",
    "c0": "#b9c3ce", "c1": "#6cb0f0", "c2": "#f0a35e", "c3": "#4fc4b4",
    "c4": "#d29be0", "c5": "#f08fb8", "c6": "#b9c65a", "c7": "#a3adf5",
}  # fmt: skip

_RULES = """
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
  font-variant-numeric: tabular-nums; }
main { max-width: 1160px; margin: 0 auto; padding: 2.5rem 1.5rem 4rem; }
h1 { font-size: 1rem; font-weight: 600; color: var(--quiet); margin: 0 0 .75rem; overflow-wrap: anywhere; }
.lead { font-size: 1.5rem; line-height: 1.35; font-weight: 500; margin: 0; max-width: 46rem; text-wrap: pretty; }
.aside { color: var(--quiet); margin: .75rem 0 0; max-width: 46rem; }
section { margin-top: 3.5rem; }
h2 { font-size: 1.2rem; line-height: 1.3; margin: 0 0 .35rem; }
h3 { font-size: 1rem; margin: 2rem 0 .6rem; }
p { margin: 0 0 .75rem; max-width: 46rem; overflow-wrap: anywhere; }
.note { color: var(--quiet); font-size: .875rem; }
ol.bars { list-style: none; margin: 1.25rem 0 .75rem; padding: 0; }
.bars li { display: grid; grid-template-columns: 18rem 1fr 4.5rem; column-gap: 1.25rem;
  border-top: 1px solid var(--grid); break-inside: avoid; }
.bars li.axis { border-top: 0; font-size: .8125rem; color: var(--quiet); }
.who { padding: .55rem 0 .65rem; font-size: .8125rem; line-height: 1.45; overflow-wrap: anywhere; min-width: 0; }
.axis .who { padding: 0 0 .3rem; align-self: end; }
.who strong { display: block; font-size: .9375rem; font-weight: 600; }
.who .reason { display: block; color: var(--bad); }
.plot { position: relative; min-height: 56px; margin-right: 152px; min-width: 0; }
.axis .plot { min-height: 24px; }
.plot svg { position: absolute; inset: 0; width: 100%; height: 100%; }
.speed { text-align: right; font-size: 1.125rem; font-weight: 600; padding-top: .45rem; white-space: nowrap; }
.axis .speed { font-size: .8125rem; font-weight: 400; align-self: end; padding: 0 0 .3rem; }
.key { display: inline-block; width: .8em; height: .8em; border-radius: 2px; margin: 0 .35em 0 0; }
.key.time { background: var(--time); } .key.memory { background: var(--memory); margin-left: 1em; }
.badge { display: inline-block; border: 1px solid; border-radius: 999px; padding: 0 .55em; margin: .1rem .35em 0 0;
  font-size: .75rem; line-height: 1.5; font-weight: 600; white-space: nowrap; }
.badge.good { color: var(--good); background: var(--good-back); }
.badge.warn { color: var(--warn); background: var(--warn-back); }
.badge.bad { color: var(--bad); background: var(--bad-back); }
.badge.plain { color: var(--quiet); }
.errors { color: var(--quiet); white-space: nowrap; }
svg { overflow: visible; display: block; }
svg text { fill: var(--ink); font-size: 12px; }
svg .value { paint-order: stroke; stroke: var(--page); stroke-width: 4px; stroke-linejoin: round; }
svg .tick { fill: var(--quiet); font-size: 11px; }
.grid { stroke: var(--grid); } .whole, .axis line, line.axis { stroke: var(--rule); }
.whisker { stroke: var(--whisker); stroke-width: 1.25; }
.bar.time { fill: var(--time); stroke: var(--time); } .bar.memory { fill: var(--memory); stroke: var(--memory); }
.bar.outlined { fill: none; stroke-dasharray: 3 2; }
.lines { margin: 0 250px 0 60px; padding-top: .5rem; }
.lines svg { width: 100%; }
.line .path { stroke: currentColor; stroke-width: 2; stroke-linecap: round; } .line circle { fill: currentColor; }
.line .leader { stroke: currentColor; stroke-width: .75; opacity: .55; }
.line .label { fill: currentColor; font-weight: 600; } .line .name { font-weight: 400; }
.dashed .path { stroke-dasharray: 5 4; }
figure { margin: 1.5rem 0 0; break-inside: avoid; }
figcaption { font-weight: 600; font-size: .9375rem; margin-bottom: .75rem; }
ol.names { display: none; font-size: .8125rem; margin: .5rem 0 0; padding-left: 2em; overflow-wrap: anywhere; }
.scroll { overflow-x: auto; margin: .5rem 0; }
table { border-collapse: collapse; font-size: .8125rem; line-height: 1.35; min-width: 100%; }
th, td { padding: .4rem 0 .4rem .8rem; text-align: right; vertical-align: top; border-bottom: 1px solid var(--grid);
  white-space: nowrap; }
thead th { vertical-align: bottom; color: var(--quiet); font-weight: 500; border-color: var(--rule);
  white-space: normal; }
th:first-child { padding-left: 0; text-align: left; }
tbody th { font-weight: 500; white-space: normal; min-width: 9.5rem; position: sticky; left: 0;
  background: var(--page); }
table.words { min-width: 0; } table.words td, table.words th { text-align: left; white-space: normal; }
table.words td { overflow-wrap: anywhere; }
dl { display: grid; grid-template-columns: 9rem 1fr; gap: .35rem 1rem; margin: .75rem 0 1.5rem; font-size: .875rem; }
dt { color: var(--quiet); } dd { margin: 0; overflow-wrap: anywhere; min-width: 0; }
code { font: .8125rem/1.5 ui-monospace, "SF Mono", Menlo, Consolas, "Liberation Mono", monospace; white-space: pre-wrap;
  display: block; background: var(--panel); border-radius: 6px; padding: .5rem .75rem; overflow-wrap: anywhere; }
@media (max-width: 760px) {
  main { padding: 1.5rem 1rem 3rem; } .lead { font-size: 1.2rem; } section { margin-top: 2.75rem; }
  .bars li { grid-template-columns: 1fr auto; padding-bottom: .3rem; } .plot { grid-area: 2 / 1 / 3 / 3; }
  .speed { grid-area: 1 / 2; }
  .who { padding-bottom: .2rem; } .bars li:not(.axis) .plot { min-height: 52px; }
  .lines { margin: 0 40px 0 56px; } .line .name { display: none; } ol.names { display: block; }
  dl { grid-template-columns: 1fr; gap: 0; } dd { margin-bottom: .6rem; }
  tbody th { min-width: 7.5rem; }
}
@media print {
  html, body { font-size: 12px; } main { max-width: none; padding: 0; } .lead { font-size: 1.5rem; }
  section { margin-top: 1.75rem; }
  * { -webkit-print-color-adjust: exact; print-color-adjust: exact; }
  .scroll { overflow: visible; } tbody th { position: static; min-width: 0; } table { font-size: 8px; }
  th, td { padding-left: .5rem; } h2, h3, figcaption { break-after: avoid; } tr { break-inside: avoid; }
}
"""


def style_sheet() -> str:
    """All rules, with the colours of light, dark and print as variables."""
    lines = "\n".join(f".line.c{index} {{ color: var(--c{index}); }}" for index in range(LINE_COLOURS))
    return (
        f":root {{ color-scheme: light dark; {_variables(LIGHT)} }}\n"
        f"@media (prefers-color-scheme: dark) {{ :root {{ {_variables(DARK)} }} }}\n"
        f"@media print {{ :root {{ color-scheme: light; {_variables(LIGHT)} }} }}\n"
        f"{_RULES}{lines}\n"
    )


def _variables(colours: Mapping[str, str]) -> str:
    return " ".join(f"--{name}: {colour};" for name, colour in colours.items())
