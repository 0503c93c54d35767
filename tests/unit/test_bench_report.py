"""The HTML report of a benchmark: its numbers are those of the JSON, nothing in it reaches out, and all can read it."""

import json
import re
from html import unescape
from html.parser import HTMLParser
from itertools import pairwise
from typing import Any

import pytest

from lhanet_export.bench.report import report_html, verdict
from lhanet_export.bench.result import Bench, Device, Row, Skipped
from lhanet_export.bench.style import DARK, LIGHT
from lhanet_export.bench.svg import LINE_COLOURS, Line, line_chart, ticks
from lhanet_export.bench.units import MEGABYTES, equal_labels, figure, number, percent, scientific, significant
from lhanet_export.errors import RefusedInput

EAGER = "eager FP32"
HALVES = ("fp16", "bf16", "tf32", "mixed")


def row(name: str, seconds: float, **facts: Any) -> Row:
    """A row whose times are 0.9, 1 and 1.1 times `seconds`, beside a reference of four seconds."""
    given: dict[str, Any] = {
        "precision": "fp32", "network": "ours", "reference_seconds": 4.0,
        "ready_seconds": 2.5, "first_seconds": 7.25, "peak_bytes": 1_000_000_000,
        "peak_kind": "resident", "disk_bytes": 1_234_000_000, "relative_l2": 7e-7, "label_agreement": 0.999997,
    }  # fmt: skip
    return Row(name=name, seconds=(seconds * 0.9, seconds, seconds * 1.1), **given | facts)


def bench(*rows: Row, shape: tuple[int, int, int] = (48, 96, 96), **facts: Any) -> dict[str, Any]:
    """The JSON of a bench with these rows, as a file would give it back."""
    given: dict[str, Any] = {
        "date": "2026-11-23", "command": "lhanet-export bench", "machine": {"versions": {"torch": "2.13"}},
        "device": Device(kind="cpu", name="AMD EPYC", cores=2, memory_bytes=24_000_000_000),
        "checkpoint": {"preset": "lightweight", "epoch": None}, "threads": 2, "rounds": 3, "volumes": 2,
        "skipped": [Skipped(name="TensorRT", reason="there is no NVIDIA GPU here")],
        "work": {"multiply_adds": 182_000_000_000, "moved_bytes": 5_441_000_000},
    }  # fmt: skip
    made = Bench(shape=shape, rows=rows, **given | facts)
    return json.loads(json.dumps(made.as_json()))


def eager(seconds: float = 4.0) -> Row:
    return row(
        EAGER, seconds, reference_seconds=seconds, peak_bytes=2_000_000_000, relative_l2=0.0, label_agreement=1.0
    )


SCALING = {
    "points": [
        {"name": name, "voxels": voxels, "seconds": slope * voxels / 1e6, "peak_bytes": 1e9 + 1000 * voxels}
        for name, slope in (("slow", 9.0), ("quick", 2.0))
        for voxels in (400_000, 1_000_000)
    ],
    "fits": [
        {
            "name": "slow",
            "seconds_per_megavoxel": 9.0,
            "fixed_seconds": 0.25,
            "bytes_per_voxel": 1000,
            "fixed_bytes": 1e9,
        }
    ],
}
ROOFLINE = {
    "roofline": [
        {"name": "x", "achieved_tflops": 0.581, "achieved_gbps": 17.4, "share_of_peak": None, "bound": None},
        {"name": "y", "achieved_tflops": 0.25, "achieved_gbps": None, "share_of_peak": 0.5, "bound": None},
    ],
    "floors": [{"card": "GeForce RTX 3060", "precision": "fp16", "seconds": 0.0143, "bound": "compute"}],
}


def text_of(page: str) -> str:
    """What a reader sees: no tags, no style sheet, single spaces."""
    body = page[page.index("<body>") :]
    return " ".join(unescape(re.sub(r"<[^>]*>", " ", body)).split())


def lead_of(page: str) -> str:
    found = re.search('<p class="lead">(.*?)</p>', page)
    assert found is not None
    return unescape(found[1])


def widths(page: str, kind: str) -> list[float]:
    return [float(found) for found in re.findall(rf'<rect class="bar {kind}[^"]*"[^>]* width="([0-9.]+)%"', page)]


class Parts(HTMLParser):
    """Tags with their attributes, in order, and whether each one that was opened was closed."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def full_page() -> str:
    rows = (eager(), row("quick", 1.0), row("wrong", 0.5, flag="it is wrong", relative_l2=1.0, label_agreement=0.5))
    benches = [bench(*rows), bench(*rows, shape=(64, 128, 128)) | ROOFLINE]
    return report_html(benches, scaling=SCALING, title="A title")


def test_one_sentence_on_top_says_what_came_out() -> None:
    quick = row("quick", 0.88, peak_bytes=1_420_000_000)
    lead = lead_of(report_html([bench(eager(), quick)], title=""))
    assert lead == (
        "On AMD EPYC (2 cores), the fastest row, “quick”, takes 0.880 s for a 48x96x96 volume, "
        "4.5 times as fast as eager FP32, in 71 % of its memory."
    )


def test_a_processor_with_its_instructions_is_named_in_one_pair_of_brackets() -> None:
    cpu = Device(kind="cpu", name="AMD EPYC (AVX2)", cores=1, memory_bytes=1)
    assert lead_of(report_html([bench(eager(), device=cpu)], title="")).startswith("On AMD EPYC (AVX2, 1 core), no row")


def test_the_sentence_is_about_the_largest_volume_and_names_the_gpu() -> None:
    gpu = Device(kind="cuda", name="RTX 3060", cores=28, memory_bytes=12_600_000_000)
    benches = [bench(eager(), row("quick", 1), shape=shape, device=gpu) for shape in ((64, 64, 64), (32, 32, 32))]
    lead = lead_of(report_html(benches, title=""))
    assert lead.startswith("On RTX 3060 (12,600 MB), the fastest row, “quick”, takes 1.00 s for a 64x64x64 volume")


def test_a_fast_row_that_is_wrong_is_not_called_the_fastest() -> None:
    rows = [
        eager(),
        row("good", 2.0),
        row("off", 1.0, relative_l2=2e-2, label_agreement=0.98),
        row("flagged", 0.5, flag="no"),
    ]
    page = report_html([bench(*rows)], title="")
    assert "the fastest row that agrees, “good”, takes 2.00 s" in lead_of(page)
    assert "Faster, but not counted: flagged (flagged), off (differs)." in text_of(page)
    page = report_html([bench(rows[0], *rows[2:])], title="")
    assert "no row that agrees with it is faster than eager FP32, which takes 4.00 s" in lead_of(page)
    page = report_html([bench(rows[0], row("slow", 5.0))], title="")
    assert "no row is faster than eager FP32, which takes 4.00 s for a 48x96x96 volume." in lead_of(page)


@pytest.mark.parametrize(
    ("facts", "word"),
    [
        # What the gate asks of each number format, and of those that it does not know what it asks of FP16.
        ({"relative_l2": 1e-5, "label_agreement": 0.9999}, "agrees"),
        ({"relative_l2": 1.01e-5, "label_agreement": 1.0}, "differs"),
        ({"relative_l2": 0.0, "label_agreement": 0.99989}, "differs"),
        ({"relative_l2": float("nan"), "label_agreement": 1.0}, "differs"),
        ({"relative_l2": 0.0, "label_agreement": float("nan")}, "differs"),
        *(({"relative_l2": 5e-3, "label_agreement": 0.99, "precision": one}, "agrees") for one in HALVES),
        *(({"relative_l2": 5.01e-3, "label_agreement": 1.0, "precision": one}, "differs") for one in HALVES),
        *(({"relative_l2": 0.0, "label_agreement": 0.9899, "precision": one}, "differs") for one in HALVES),
        ({"relative_l2": 0.03, "label_agreement": 0.97, "precision": "int8"}, "agrees"),
        ({"relative_l2": 0.031, "label_agreement": 0.97, "precision": "int8"}, "differs"),
        ({"relative_l2": float("nan"), "label_agreement": float("nan")}, "not compared"),
        ({"relative_l2": 0.0, "label_agreement": 1.0, "flag": "slow by mistake"}, "flagged"),
    ],
)
def test_badges_say_in_a_word_and_a_sign_what_their_colour_says(facts: dict[str, Any], word: str) -> None:
    facts = {"precision": "fp32"} | facts
    style, sign, found = verdict(facts, reference=False)
    assert found == word
    page = report_html([bench(eager(), row("other", 1.0, **facts))], title="")
    assert f'<span class="badge {style}"><span aria-hidden="true">{sign}</span> {word}</span>' in page
    assert facts.get("flag", "") in text_of(page)
    # The note beneath names the tolerance of each format on the page.
    assert "1e-05 and 99.99 % for FP32" in text_of(page)
    assert ("5e-03 and 99 % for BF16" in text_of(page)) == (facts["precision"] == "bf16")


def test_the_table_has_every_number_of_the_json() -> None:
    mapping = bench(
        eager(), row("quick", 1.234, relative_l2=3.3e-5, allocator_bytes=1_777_000_000, copy_seconds=0.0321)
    )
    page = report_html([mapping], title="")
    cells = [unescape(cell) for cell in re.findall(r"<td>(.*?)</td>", page)]
    values = mapping["rows"][1]
    for key in ("median_seconds", "p10_seconds", "p90_seconds", "first_seconds", "copy_seconds", "voxels_per_second"):
        assert figure(values[key]) in cells
    for key in ("peak_bytes", "allocator_bytes", "disk_bytes"):
        assert MEGABYTES.bare(values[key]) in cells
    assert {"3.3e-05", "99.9997 %", "50 %", "1.23", "1.14", "1.33", "7.25", "0.0321", "3.24"} <= set(cells)


def test_conditions_have_a_table_of_their_own() -> None:
    hot = {"before": {"sm_mhz": 1980.0, "used_bytes": 2e9}, "after": {"sm_mhz": 1755.0, "used_bytes": 3e9}}
    text = text_of(report_html([bench(eager(), row("hot", 1.0, conditions=hot))], title=""))
    assert "Name Clock (MHz) Memory in use (MB)" in text
    assert f"{EAGER} not measured not measured hot 1,980 → 1,755 2,000 → 3,000" in text
    assert "right after each row" not in text_of(report_html([bench(eager())], title=""))


def test_what_pytorch_does_by_default_is_said() -> None:
    said = "PyTorch's own default is the TF32 row"
    assert said in text_of(report_html([bench(eager(), row("quicker", 1.0, precision="tf32"))], title=""))
    assert said not in full_page()


def test_times_of_one_table_have_one_unit() -> None:
    page = report_html([bench(eager(0.5), row("quick", 0.0123, reference_seconds=0.5), row("slow", 2.0))], title="")
    assert "Median (ms)" in page
    assert all(f"<td>{text}</td>" in page for text in ("500", "12.3", "2,000"))
    assert "12.3 ms · 2.5 %" in page


def test_bars_are_proportional_to_numbers() -> None:
    quick, other = row("quick", 1.0, peak_bytes=500_000_000), row("other", 3.0, peak_bytes=1_500_000_000)
    page = report_html([bench(eager(), quick, other)], title="")
    for kind, shares in (("time", (1, 0.25, 0.75)), ("memory", (1, 0.25, 0.75))):
        found = widths(page, kind)
        assert [width / found[0] for width in found] == pytest.approx(shares, abs=1e-3)
    # Both kinds are on one scale, and the whiskers are at 10 % and 90 % of the times.
    assert widths(page, "time") == widths(page, "memory")
    low, high = re.findall(r'class="whisker" x1="([0-9.]+)%" x2="([0-9.]+)%"', page)[0]
    whole = widths(page, "time")[0]
    assert float(low) / whole == pytest.approx(0.92, abs=1e-3) and float(high) / whole == pytest.approx(1.08, abs=1e-3)


def test_a_bar_beyond_the_scale_ends_in_a_tip_and_keeps_its_number() -> None:
    page = report_html([bench(eager(), row("slow", 40.0))], title="")
    assert widths(page, "time")[1] == 100 and widths(page, "time")[0] == pytest.approx(100 / 1.5, abs=0.01)
    assert page.count("<path ") == 1
    assert "40.0 s · 1,000 %" in page


def test_what_was_not_measured_says_so() -> None:
    empty = bench(eager(), row("empty", 1.0, copy_seconds=float("nan"), disk_bytes=None))
    values = dict.fromkeys(
        ("median_seconds", "p10_seconds", "p90_seconds", "voxels_per_second", "speedup", "peak_bytes",
         "share_of_peak_memory", "relative_l2", "label_agreement"),
        None,
    )  # fmt: skip
    empty["rows"][1] |= values | {"p90_seconds": float("nan")}
    page = report_html([empty], title="")
    assert page.count("<td>not measured</td>") == len(values) + len(["copies", "copies of eager"])
    assert page.count("<td>checkpoint</td>") == 1, "PyTorch needs no other file"
    assert len(widths(page, "time")) == len(widths(page, "memory")) == 1
    assert "nan" not in text_of(page).lower() and "None" not in text_of(page)
    assert "no row is faster than eager FP32" in lead_of(page)
    empty["rows"][0]["median_seconds"] = None
    assert "no row that agrees with eager FP32 was timed" in lead_of(report_html([empty], title=""))


def test_everything_from_outside_is_escaped() -> None:
    bad = "<script>alert('x')</script>\" onload=\"y&z"
    facts = {
        "date": bad, "command": bad, "machine": {bad: [bad, {bad: bad}]}, "checkpoint": {bad: bad},
        "device": Device(kind="cpu", name=bad, cores=1, memory_bytes=1), "skipped": [Skipped(name=bad, reason=bad)],
    }  # fmt: skip
    rows = [row(bad, 1.0, precision=bad, flag=bad, peak_kind=bad, conditions={bad: {bad: 1.0}}), row("quick", 0.5)]
    scaling = {"points": [{"name": bad, "voxels": 1, "seconds": 1, "peak_bytes": 1}], "fits": []}
    roofline = {
        "roofline": [{**ROOFLINE["roofline"][0], "name": bad, "bound": bad}],
        "floors": [{**ROOFLINE["floors"][0], "card": bad, "precision": bad, "bound": bad}],
    }
    proof = manifest(runner=bad, backend=bad, said=bad)
    page = report_html([bench(*rows, **facts) | roofline], scaling=scaling, proof=proof, title=bad)
    parts = Parts(page)
    assert not parts.open
    assert "script" not in {tag for tag, _ in parts.tags}
    assert not [name for _, attributes in parts.tags for name in attributes if name.startswith("on")]
    assert "<script" not in page and bad in unescape(page)


def manifest(
    *, runner: str = "onnxruntime cpu", backend: str = "tensorrt-rtx", said: str = "not run"
) -> dict[str, Any]:
    """As much of a manifest as a report shows: two comparisons of two volumes, one that failed."""
    cases = [{"relative_l2": 1e-3, "label_agreement": 0.9991}, {"relative_l2": 2e-3, "label_agreement": 0.9995}]
    found = {"passed": True, "runner": runner, "cases": cases, "tolerance": {"relative_l2": 5e-3}}
    return {
        "verification": {"fp32": found | {"passed": False}, "fp16": found, "engine": said},
        "engine": {
            "backend": backend, "backend_version": "1.7", "compute_capabilities": ["8.6"], "precision": "fp16",
            "profiles": [{"min": [48, 64, 64], "opt": [64, 128, 128], "max": [96, 192, 192]}], "bytes": 600_000_000,
            "device_memory": {"weights_bytes": 603_000_000, "activation_bytes": 224_000_000},
        },
    }  # fmt: skip


def test_what_a_deployment_proved_comes_first() -> None:
    text = text_of(report_html([bench(eager())], proof=manifest(), title=""))
    assert "FP32 graph ✕ failed 2 2.0e-03 5.0e-03 99.91 %" in text and "FP16 graph ✓ passed 2" in text
    assert "the engine itself: not run." in text
    assert text.index("Is it the network that was trained?") < text.index("48x96x96 voxels")
    assert "memory planned by the builder, not measured 827 MB (603 MB of weights, 224 MB of activations)" in text
    assert "volumes 48x64x64 to 96x192x192" in text
    silent = manifest()
    silent["engine"]["device_memory"] = {"weights_bytes": None, "activation_bytes": None}
    assert "the backend does not say" in text_of(report_html([bench(eager())], proof=silent, title=""))


def test_a_row_measured_later_is_held_against_its_own_reference() -> None:
    later = row("later", 1.0, reference_seconds=2.0)
    page = report_html([bench(eager(), later)], title="")
    whole, half = widths(page, "time")
    assert half == pytest.approx(whole / 2, abs=0.01) and "1.00 s · 50 %" in page
    other = row("on a card", 1.0, peak_kind="process")
    assert bench(eager(), other)["rows"][1]["share_of_peak_memory"] is None


def test_the_same_values_make_the_same_page() -> None:
    assert full_page() == full_page()


def test_the_page_needs_nothing_but_itself() -> None:
    page = full_page()
    parts = Parts(page)
    assert not parts.open
    assert not {tag for tag, _ in parts.tags} & {"script", "link", "img", "iframe", "object", "base", "a"}
    assert not {name for _, attributes in parts.tags for name in attributes} & {"src", "href", "xlink:href", "srcset"}
    assert not re.search(r"https?://|url\(|@import", page)
    assert "default-src 'none'" in page


def test_images_and_tables_can_be_read_aloud() -> None:
    parts = Parts(full_page())
    images = [attributes for tag, attributes in parts.tags if tag == "svg" and attributes.get("role") == "img"]
    described = re.findall(r'role="img"[^>]*><title>[^<]+</title><desc>[^<]+</desc>', full_page())
    assert len(images) == len(described) == 2 * 3 + 2
    headings = [attributes.get("scope") for tag, attributes in parts.tags if tag == "th"]
    assert set(headings) == {"col", "row"}


def test_one_section_each_says_what_is_missing_how_to_repeat_and_how_it_grows() -> None:
    text = text_of(full_page())
    assert text.count("there is no NVIDIA GPU here all") == 1
    assert text.count("lhanet-export bench") == 1 and "sizes 48x96x96, 64x128x128" in text
    assert "versions (torch 2.13)" in text and "memory 24,000 MB" in text and "epoch" not in text
    assert "slow 9.00 0.250 not measured 1,000 1,000 not measured" in text
    assert text.count("How near the hardware's limits") == 1
    assert "x 0.581 17.4 not measured not counted y 0.250 not counted 50 % not counted" in text
    assert "The least time of our graph on a GeForce RTX 3060" in text
    assert "FP16, adding up in FP32 14.3 ms compute" in text
    page = report_html([bench(eager(), skipped=[])], title="")
    assert "How near" not in page and "grow with" not in page
    assert "Nothing: all that was to be measured was." in page


@pytest.mark.parametrize("benches", [[], [bench(eager()) | {"rows": []}], [bench(eager()) | {"schema": 99}]])
def test_what_is_no_bench_is_refused(benches: list[dict[str, Any]]) -> None:
    with pytest.raises(RefusedInput):
        report_html(benches, title="")


def test_lines_lie_where_their_numbers_are_and_names_keep_apart() -> None:
    lines = [Line(name=f"line {index}", points=[(0, 0), (10, 8 + 0.01 * index)]) for index in range(12)]
    chart = line_chart("t", lines, x_name="x", x_text=str, y_text=str)
    ends = [float(y) for y in re.findall(r'<circle cx="100.00%" cy="([0-9.-]+)"', chart)]
    assert ends == sorted(ends, reverse=True) and ends[-1] == 0 and len(ends) == 12
    labels = sorted(float(y) for y in re.findall(r'class="label" x="20" y="([0-9.-]+)"', chart))
    assert min(high - low for low, high in pairwise(labels)) >= 15
    assert labels[0] >= 0 and labels[-1] <= 240
    assert chart.count(" dashed") == 12 - LINE_COLOURS


def test_a_line_that_was_not_measured_is_not_drawn() -> None:
    lines = [Line(name="none", points=[]), Line(name="one", points=[(1, 1)])]
    chart = line_chart("t", lines, x_name="x", x_text=str, y_text=str)
    assert "none" not in chart and chart.count("<circle") == 1
    assert "<circle" not in line_chart("t", [], x_name="x", x_text=str, y_text=str)


def luminance(colour: str) -> float:
    parts = [int(colour[index : index + 2], 16) / 255 for index in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    """The contrast of WCAG 2, from 1 to 21."""
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("colours", [LIGHT, DARK], ids=["light", "dark"])
def test_colours_have_contrast(colours: dict[str, str]) -> None:
    for name in ("ink", "quiet", "bad", *(f"c{index}" for index in range(LINE_COLOURS))):
        assert contrast(colours[name], colours["page"]) >= 4.5, name
    for name in ("good", "warn", "bad"):
        assert contrast(colours[name], colours[f"{name}-back"]) >= 4.5, name
    for name in ("time", "memory"):
        assert contrast(colours[name], colours["page"]) >= 3, name
    for name in ("time", "memory"):
        assert contrast(colours[name], colours["whisker"]) >= 3, name


def test_there_are_rules_for_light_dark_and_print() -> None:
    page = full_page()
    assert f"--page: {LIGHT['page']};" in page
    dark = page[page.index("@media (prefers-color-scheme: dark)") :]
    assert f"--page: {DARK['page']};" in dark[: dark.index("\n")]
    assert page.count("@media print") == 2
    assert LIGHT.keys() == DARK.keys()
    assert set(re.findall(r"var\(--([a-z0-9-]+)\)", page)) == set(LIGHT)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"), (1334.4, "1,334"), (4.049, "4.05"), (0.8824, "0.882"), (0.9996, "1.00"), (99.96, "100"),
        (12345678, "12,345,678"), (2.1e-6, "2.1e-06"), (-3.5, "-3.50"),
    ],
)  # fmt: skip
def test_three_digits_count(value: float, text: str) -> None:
    assert significant(value) == text


def test_shares_and_errors_are_not_made_prettier_than_they_are() -> None:
    assert [equal_labels(share) for share in (1.0, 0.99999999, 0.9996, 0.5)] == [
        "100 %", "99.9999 %", "99.96 %", "50 %"
    ]  # fmt: skip
    assert [percent(share) for share in (0, 0.0312, 0.218, 1.224, 10)] == ["0 %", "3.1 %", "22 %", "122 %", "1,000 %"]
    assert [scientific(error) for error in (0.0, 7.23e-7, None)] == ["0", "7.2e-07", "not measured"]
    assert [number(value) for value in (None, float("nan"), float("inf"), "1", True, 2)] == [None] * 5 + [2.0]


@pytest.mark.parametrize("top", [0.0007, 0.9, 1.0, 1.22, 1.5, 10, 99, 12345])
def test_ticks_are_round_and_few(top: float) -> None:
    found = ticks(top)
    assert found[0] == 0 and found[-1] <= top * (1 + 1e-9) and 3 <= len(found) <= 6
    assert top - found[-1] < found[1]
