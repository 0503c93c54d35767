"""A benchmark as one HTML page: the result in a sentence, charts, every number, and how to measure it again.

The page needs no network, no script and no library. It is made from the JSON values of a `Bench`, not from the
object, so it can be made again from a file that was kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from lhanet_export.bench.agreement import agrees, tolerance_of
from lhanet_export.bench.proof import proof_section
from lhanet_export.bench.result import SCHEMA
from lhanet_export.bench.style import style_sheet
from lhanet_export.bench.svg import Bar, Line, line_chart, share_axis, share_bars
from lhanet_export.bench.tables import conditions_table, facts_list, numbers_table, table
from lhanet_export.bench.units import (
    BILLIONS,
    MEGABYTES,
    MILLIONS,
    Unit,
    equal_labels,
    figure,
    number,
    percent,
    scientific,
    significant,
    time_unit,
)
from lhanet_export.errors import RefusedInput
from lhanet_export.shapes import format_shape

#: Where charts end. One slow row on a longer scale would leave no room to tell the fast ones apart.
LONGEST_SHARE = 1.5

#: What was taken for peak memory, as a reader says it.
_PEAK_KINDS = {
    "resident": "the process's resident memory",
    "allocator": "what torch's allocator held (allocator)",
    "process": "the process's GPU memory as the driver counts it (process)",
}

#: Number formats of a floor, as a reader says them.
_FORMATS = {
    "fp32": "FP32", "fp16": "FP16, adding up in FP32", "fp16-fp16": "FP16, adding up in FP16", "int8": "INT8",
}  # fmt: skip

#: The bytes of the network as trained, and what depends on them.
_NOT_COUNTED = "not counted"

Json = Mapping[str, Any]


def report_html(benches: Sequence[Json], *, scaling: Json | None = None, proof: Json | None = None, title: str) -> str:
    """The page for benches, in the order given; the same values make the same text.

    Benches and `scaling` are those of `run.facts_of`, `proof` is the manifest that `deploy` wrote, all as JSON values.
    Raises `RefusedInput` where there is no bench, one without a row, or one of another schema.
    """
    if not benches or not all(bench.get("rows") for bench in benches):
        raise RefusedInput("a report needs at least one bench, and each bench at least one row")
    for bench in benches:
        if bench.get("schema") != SCHEMA:
            raise RefusedInput(f"this is a bench of schema {bench.get('schema')!r}; this version reads {SCHEMA}")
    largest = max(benches, key=_voxels)
    parts = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="lead">{escape(f"On {_device(largest)}, {_result(largest)}.")}</p>',
        f'<p class="aside">{escape(f"{_not_counted(largest)} {_method(largest)}".strip())}</p>',
        *([proof_section(proof)] if proof is not None else []),
        *(_bench_section(bench, alone=len(benches) == 1) for bench in benches),
        *([_scaling_section(scaling)] if scaling is not None else []),
        *(_roofline_section(bench) for bench in benches if bench.get("roofline")),
        _skipped_section(benches),
        _repeat_section(benches),
    ]
    body = "\n".join(parts)
    # The policy makes the promise of no network one that the browser keeps, whatever is in a name.
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n"
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{escape(title)}</title>\n<style>\n{style_sheet()}</style>\n</head>\n"
        f"<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


def verdict(row: Json, *, reference: bool) -> tuple[str, str, str]:
    """The style, sign and word of a row's badge; only `good` and the reference may be called fastest."""
    if row.get("flag"):
        return "bad", "✕", "flagged"
    if reference:
        return "plain", "=", "reference"
    found = agrees(row)
    if found is None:
        return "warn", "?", "not compared"
    return ("good", "✓", "agrees") if found else ("warn", "!", "differs")


def _ranking(bench: Json) -> tuple[Json | None, list[str]]:
    """The fastest row that can be trusted, None without one; and the faster ones that cannot, with the reason."""
    timed = [(number(row["median_seconds"]), index) for index, row in enumerate(bench["rows"])]
    faster: list[str] = []
    for _, index in sorted((median, index) for median, index in timed if median is not None):
        row = bench["rows"][index]
        style, _, word = verdict(row, reference=index == 0)
        if style in ("good", "plain"):
            return row, faster
        faster.append(f"{row['name']} ({word})")
    return None, faster


def _result(bench: Json) -> str:
    """What the benchmark found, in words: the fastest row that can be trusted and what it gains."""
    reference = bench["rows"][0]
    best, faster = _ranking(bench)
    size = f"a {format_shape(bench['shape'])} volume"
    if best is None:
        return f"no row that agrees with {reference['name']} was timed for {size}"
    takes = f"takes {_unit(bench).text(best['median_seconds'])} for {size}"
    if best is reference:
        return f"no row{' that agrees with it' if faster else ''} is faster than {reference['name']}, which {takes}"
    which = f"the fastest row{' that agrees' if faster else ''}"
    # In quotes, because a name may have a comma.
    text = f"{which}, “{best['name']}”, {takes}, {_times(best['speedup'])} times as fast as {reference['name']}"
    if number(best["share_of_peak_memory"]) is not None:
        text += f", in {percent(best['share_of_peak_memory'])} of its memory"
    return text


def _not_counted(bench: Json) -> str:
    faster = _ranking(bench)[1]
    return f"Faster, but not counted: {', '.join(faster)}." if faster else ""


def _bench_section(bench: Json, *, alone: bool) -> str:
    rows = bench["rows"]
    unit = _unit(bench)
    bars = [_bars(row, unit) for row in rows]
    top = min(LONGEST_SHARE, max(1.0, *(bar.reach for both in bars for bar in both)))
    items = [
        '<li class="axis"><div class="who"><span class="key time"></span>time'
        '<span class="key memory"></span>peak memory</div>'
        f'<div class="plot">{share_axis(top)}</div><div class="speed">speed</div></li>'
    ]
    for index, (row, both) in enumerate(zip(rows, bars, strict=True)):
        style, sign, word = verdict(row, reference=index == 0)
        image = share_bars(f"{row['name']}: time and peak memory", both, top, outlined=style == "bad")
        items.append(
            f'<li class="row"><div class="who"><strong>{escape(row["name"])}</strong>'
            f'<span class="badge {style}"><span aria-hidden="true">{sign}</span> {word}</span>'
            + (f'<span class="reason">{escape(row["flag"])}</span> ' if row.get("flag") else "")
            + ("" if style == "plain" else f"{_errors(row)}")
            + f'</div><div class="plot">{image}</div>'
            f'<div class="speed">{_times(row["speedup"])}&times;</div></li>'
        )
    said = "" if alone else f"<p>{escape(f'{_sentence(_result(bench))} {_not_counted(bench)}'.strip())}</p>"
    size = format_shape(bench["shape"])
    conditions = conditions_table(rows)
    if conditions:
        conditions = f"<h3>The machine right after each row's first and last timed inference</h3>\n{conditions}\n"
    return (
        f"<section>\n<h2>{escape(size)} voxels</h2>\n{said}\n"
        f'<ol class="bars">\n{chr(10).join(items)}\n</ol>\n'
        f'<p class="note">{escape(_key(bench))}</p>\n'
        f"<h3>All numbers at {escape(size)}</h3>\n{numbers_table(rows, unit)}\n"
        f'<p class="note">{escape(_remarks(bench))}</p>\n{conditions}</section>'
    )


def _bars(row: Json, unit: Unit) -> list[Bar]:
    """Time and memory of a row as shares of the reference's in the same rounds."""
    whole = number(row["reference_seconds"])
    low, median, high = (
        None if value is None or not whole else value / whole
        for value in (number(row[key]) for key in ("p10_seconds", "median_seconds", "p90_seconds"))
    )
    memory = number(row["share_of_peak_memory"])

    def beside(text: str, share: float | None) -> str:
        return text if share is None else f"{text} · {percent(share)}"

    return [
        Bar(
            kind="time",
            share=median,
            text=beside(unit.text(row["median_seconds"]), median),
            whiskers=None if low is None or high is None else (low, high),
        ),
        Bar(kind="memory", share=memory, text=beside(MEGABYTES.text(row["peak_bytes"]), memory)),
    ]


def _errors(row: Json) -> str:
    texts = (f"L2 {scientific(row['relative_l2'])}", f"labels {equal_labels(row['label_agreement'])}")
    return " · ".join(f'<span class="errors">{text}</span>' for text in texts)


def _key(bench: Json) -> str:
    name = bench["rows"][0]["name"]
    asked = [
        f"{allowed.relative_l2:.0e} and {100 * allowed.label_agreement:g} % for {precision.upper()}"
        for precision in dict.fromkeys(row["precision"] for row in bench["rows"])
        for allowed in [tolerance_of(precision)]
    ]
    return (
        f"Bars: median time and peak memory as shares of {name}'s, which are 100 %; whiskers from the 10th to the 90th "
        f"percentile of the times; speed: how many times as fast as {name}. A row agrees where the relative L2 error "
        "of its output is at most, and the share of equal labels at least, what the parity gate asks of its number "
        f"format ({'; '.join(asked)}); bars of a flagged row are dashed outlines. A bar with a tip goes on beyond the "
        "scale."
    )


def _remarks(bench: Json) -> str:
    """What the table's numbers are of, and how much work an inference is."""
    kinds = dict.fromkeys(row["peak_kind"] for row in bench["rows"])
    memory = " or ".join(_PEAK_KINDS.get(kind, kind) for kind in kinds)
    text = (
        f"Times are of {bench['rounds']} single inferences of each row, none left out; p10 and p90 are their 10th and "
        f"90th percentiles. Peak memory is {memory}, in any inference but the first. Errors are against the first row, "
        f"the worst of {bench['volumes']} volume{'' if bench['volumes'] == 1 else 's'}."
    )
    if bench["device"]["kind"] == "cpu":
        text += " On a CPU there are no copies to a card."
    else:
        text += " Each timed inference follows one that is not, because others have been on the card in between."
    if any(row["precision"] == "tf32" for row in bench["rows"]):
        text += " PyTorch's own default is the TF32 row for convolutions; the FP32 rows are told to do without TF32."
    work = {key: number(value) for key, value in bench["work"].items()}
    if work.get("multiply_adds"):
        text += f" The counted graph does {BILLIONS.text(work['multiply_adds'])} multiply-adds at this size"
        if work.get("multiply_adds_as_trained"):
            text += f" (the network as it was trained: {BILLIONS.text(work['multiply_adds_as_trained'])})"
        if work.get("moved_bytes"):
            text += f", and its nodes read and write {MEGABYTES.text(work['moved_bytes'])}"
        text += "."
    return text


def _scaling_section(scaling: Json) -> str:
    """Two charts, time and memory over the volume, and the straight lines through them as numbers."""
    names = list(dict.fromkeys(point["name"] for point in scaling["points"]))
    unit = time_unit(max((number(point["seconds"]) or 0 for point in scaling["points"]), default=0))
    charts = []
    for key, title, measure in (("seconds", "Time", unit), ("peak_bytes", "Peak memory", MEGABYTES)):
        lines = [
            Line(
                name=name,
                points=sorted(
                    (point["voxels"] * MILLIONS.factor, value * measure.factor)
                    for point in scaling["points"]
                    if point["name"] == name and (value := number(point[key])) is not None
                ),
            )
            for name in names
        ]
        caption = f"{title} over the volume, {measure.name}"
        image = line_chart(caption, lines, x_name="million voxels", x_text=_tick_text, y_text=_tick_text)
        charts.append(
            f'<figure><figcaption>{caption}</figcaption><div class="lines">{image}</div>{_names(names)}</figure>'
        )
    columns = {
        "Seconds per million voxels": lambda fit: figure(fit["seconds_per_megavoxel"]),
        "Fixed seconds": lambda fit: figure(fit["fixed_seconds"]),
        "Largest distance of a time from the line": lambda fit: percent(fit.get("seconds_largest_residual")),
        "Bytes per voxel": lambda fit: figure(fit["bytes_per_voxel"]),
        "Fixed memory (MB)": lambda fit: MEGABYTES.bare(fit["fixed_bytes"]),
        "Largest distance of a memory from the line": lambda fit: percent(fit.get("bytes_largest_residual")),
    }
    return (
        "<section>\n<h2>How time and memory grow with the volume</h2>\n" + "\n".join(charts) + "\n"
        "<h3>Straight lines through the points</h3>\n"
        f"{table(scaling['fits'], columns)}\n</section>"
    )


def _names(names: Sequence[str]) -> str:
    return '<ol class="names">' + "".join(f"<li>{escape(name)}</li>" for name in names) + "</ol>"


def _tick_text(value: float) -> str:
    return f"{float(f'{value:.3g}'):,.10g}"


def _roofline_section(bench: Json) -> str:
    columns = {
        "Achieved TFLOP/s": lambda row: figure(row["achieved_tflops"]),
        "Achieved GB/s": lambda row: _NOT_COUNTED if row["achieved_gbps"] is None else figure(row["achieved_gbps"]),
    }
    if any(row["share_of_peak"] is not None for row in bench["roofline"]):
        columns |= {
            "Share of the card's peak": lambda row: percent(row["share_of_peak"]),
            "Bound by": lambda row: row["bound"] or _NOT_COUNTED,
        }
    floors = [{"name": _FORMATS.get(one["precision"], one["precision"]), **one} for one in bench["floors"]]
    floor_columns = {
        "At least": lambda row: time_unit(number(row["seconds"])).text(row["seconds"]),
        "Bound by": lambda row: row["bound"],
    }
    card = escape(bench["floors"][0]["card"])
    return (
        f"<section>\n<h2>How near the hardware's limits, {format_shape(bench['shape'])}</h2>\n"
        '<p class="note">Operations and bytes of the layers that a row runs, divided by its median time. The bytes are '
        "an upper estimate: a runtime that fuses nodes moves less.</p>\n"
        f"{table(bench['roofline'], columns)}\n"
        f"<h3>The least time of our graph on a {card}</h3>\n"
        '<p class="note">Computed from the card\'s peaks, not measured.</p>\n'
        f"{table(floors, floor_columns)}\n</section>"
    )


def _skipped_section(benches: Sequence[Json]) -> str:
    """Each baseline that was not measured, once, with the sizes at which it was not."""
    sizes: dict[tuple[str, str], list[str]] = {}
    for bench in benches:
        for one in bench["not_measured"]:
            sizes.setdefault((one["name"], one["reason"]), []).append(format_shape(bench["shape"]))
    if not sizes:
        body = "<p>Nothing: all that was to be measured was.</p>"
    else:
        rows = [
            {"name": name, "reason": reason, "sizes": "all" if len(found) == len(benches) else ", ".join(found)}
            for (name, reason), found in sizes.items()
        ]
        columns = {"Reason": lambda row: row["reason"], "Sizes": lambda row: row["sizes"]}
        body = table(rows, columns, style="words")
    return f"<section>\n<h2>What was not measured</h2>\n{body}\n</section>"


def _repeat_section(benches: Sequence[Json]) -> str:
    """Commands and what they ran on; once for all sizes that have them in common."""
    keys = ("command", "date", "device", "machine", "checkpoint", "threads", "rounds")
    runs: list[tuple[dict[str, Any], list[str]]] = []
    for bench in benches:
        facts, size = {key: bench[key] for key in keys}, format_shape(bench["shape"])
        same = next((sizes for known, sizes in runs if known == facts), None)
        if same is None:
            runs.append((facts, [size]))
        else:
            same.append(size)
    lists = [facts_list(facts | {"sizes": sizes}) for facts, sizes in runs]
    return "<section>\n<h2>How to repeat</h2>\n" + "\n".join(lists) + "\n</section>"


def _method(bench: Json) -> str:
    """When it was measured and what against what, in one line."""
    return (
        f"Measured on {bench['date']} with {bench['threads']} thread{'' if bench['threads'] == 1 else 's'}, "
        f"{len(bench['rows'])} rows in {bench['rounds']} rounds; every row is compared with "
        f"{bench['rows'][0]['name']}."
    )


def _device(bench: Json) -> str:
    device = bench["device"]
    if device["kind"] == "cpu":
        name, cores = device["name"], f"{device['cores']} core{'' if device['cores'] == 1 else 's'}"
        # A name may have its instructions in brackets.
        return f"{name[:-1]}, {cores})" if name.endswith(")") else f"{name} ({cores})"
    return f"{device['name']} ({MEGABYTES.text(device['memory_bytes'])})"


def _unit(bench: Json) -> Unit:
    return time_unit(number(bench["rows"][0]["median_seconds"]))


def _voxels(bench: Json) -> int:
    depth, height, width = bench["shape"]
    return depth * height * width


def _times(speedup: object) -> str:
    found = number(speedup)
    return "?" if found is None else significant(found, 2)


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."
