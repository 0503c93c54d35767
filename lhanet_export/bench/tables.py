"""The report's tables: numbers of rows, and the facts of a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

from lhanet_export.bench.units import (
    MEGABYTES,
    NOT_MEASURED,
    SECONDS,
    Unit,
    equal_labels,
    figure,
    percent,
    scientific,
)

Json = Mapping[str, Any]
#: Headings of columns, and what stands in them for a row.
Columns = Mapping[str, Callable[[Any], str]]

#: A fact whose name ends so is shown in MB.
_BYTES = "_bytes"


def table(rows: Sequence[Json], columns: Columns, *, style: str = "numbers") -> str:
    """A row for each mapping, headed by its `name`; a wide table scrolls by itself, not with the page."""
    headings = "".join(f'<th scope="col">{escape(heading)}</th>' for heading in ("Name", *columns))
    body = "\n".join(
        f'<tr><th scope="row">{escape(row["name"])}</th>'
        + "".join(f"<td>{escape(text(row))}</td>" for text in columns.values())
        + "</tr>"
        for row in rows
    )
    # Scrolling needs the focus where there is no mouse.
    return (
        f'<div class="scroll" tabindex="0"><table class="{style}">\n<thead><tr>{headings}</tr></thead>\n'
        f"<tbody>\n{body}\n</tbody>\n</table></div>"
    )


def numbers_table(rows: Sequence[Json], unit: Unit) -> str:
    """All numbers of a bench's rows; what none of the rows has, such as copies on a CPU, has no column."""

    def column(key: str, text: Callable[[object], str]) -> Callable[[Json], str]:
        return lambda row: text(row.get(key))

    columns = {
        "Precision": column("precision", str),
        f"Median ({unit.name})": column("median_seconds", unit.bare),
        f"p10 ({unit.name})": column("p10_seconds", unit.bare),
        f"p90 ({unit.name})": column("p90_seconds", unit.bare),
        "Voxels/s": column("voxels_per_second", figure),
        "Speed-up": column("speedup", figure),
        "Peak memory (MB)": column("peak_bytes", MEGABYTES.bare),
        "Of the first row's": column("share_of_peak_memory", percent),
    }
    if len({row["peak_kind"] for row in rows}) > 1:
        columns["Memory of"] = column("peak_kind", str)
    perhaps = {
        "Torch's allocator (MB)": ("allocator_bytes", MEGABYTES.bare),
        "Ready after (s)": ("ready_seconds", SECONDS.bare),
        "First call (s)": ("first_seconds", SECONDS.bare),
        "Peak until then (MB)": ("opening_peak_bytes", MEGABYTES.bare),
        f"Copies ({unit.name})": ("copy_seconds", unit.bare),
        "On disk (MB)": ("disk_bytes", _besides_the_checkpoint),
    }
    for heading, (key, text) in perhaps.items():
        if any(row.get(key) is not None for row in rows):
            columns[heading] = column(key, text)
    columns["Relative L2"] = column("relative_l2", scientific)
    columns["Labels equal"] = column("label_agreement", equal_labels)
    return table(rows, columns)


def _besides_the_checkpoint(size: object) -> str:
    return "checkpoint" if size is None else MEGABYTES.bare(size)


#: What `conditions` calls a number, and how a reader does.
_CONDITIONS = {
    "mhz": "Clock (MHz)", "load": "Load", "sm_mhz": "Clock (MHz)", "memory_mhz": "Memory's clock (MHz)",
    "celsius": "Temperature (°C)", "watts": "Power (W)", "busy_percent": "Busy (%)",
    "process_bytes": "Own memory (MB)", "used_bytes": "Memory in use (MB)", "total_bytes": "Memory (MB)",
}  # fmt: skip


def conditions_table(rows: Sequence[Json]) -> str:
    """Clocks, temperature, load and the like when each row's rounds begin and end; nothing if nobody told."""
    taken = [numbers for row in rows for numbers in row["conditions"].values()]
    names = dict.fromkeys(name for numbers in taken for name in numbers)
    if not names:
        return ""

    def column(name: str) -> Callable[[Json], str]:
        text = MEGABYTES.bare if name.endswith(_BYTES) else figure
        return lambda row: " → ".join(text(one.get(name)) for one in row["conditions"].values()) or NOT_MEASURED

    return table(rows, {_CONDITIONS.get(name, _fact_name(name)): column(name) for name in names})


def facts_list(facts: Mapping[str, Any]) -> str:
    """Names and values, nested ones in brackets, unknown ones left out; a command stands as it has to be typed."""
    entries = []
    for key, value in facts.items():
        text = escape(_fact_text(key, value))
        if text:
            shown = f"<code>{text}</code>" if key == "command" else text
            entries.append(f"<dt>{escape(_fact_name(key))}</dt><dd>{shown}</dd>")
    return "<dl>\n" + "\n".join(entries) + "\n</dl>"


def _fact_text(key: str, value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, Mapping):
        texts = ((_fact_name(name), _fact_text(name, one), isinstance(one, Mapping)) for name, one in value.items())
        return ", ".join(f"{name} ({text})" if nested else f"{name} {text}" for name, text, nested in texts if text)
    if isinstance(value, (list, tuple)):
        return ", ".join(_fact_text(key, one) for one in value)
    if key.endswith(_BYTES):
        return MEGABYTES.text(value)
    return str(value)


def _fact_name(key: str) -> str:
    return key.removesuffix(_BYTES).replace("_", " ")
