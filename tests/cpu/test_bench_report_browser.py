"""The HTML report in a browser: everything is drawn, bars have their lengths, and nothing is wider than a phone."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from html import unescape

import numpy as np
import pytest
from PIL import Image

from lhanet_export.bench.report import report_html
from lhanet_export.bench.result import Bench, Device, Row, Skipped
from lhanet_export.bench.style import DARK, LIGHT
from tests.unit.test_readme import script

browser = script("_browser")
pytestmark = pytest.mark.skipif(browser.BROWSER is None, reason="needs Chromium or Google Chrome")
SECONDS = {"eager FP32": 4.0, "quick": 1.0, "quicker": 0.5, "middle": 2.0}
WIDE, NARROW = 1200, 420


@dataclass(frozen=True)
class Seen:
    """What the browser made of the page: its elements, its console, and pictures, wide, narrow and dark."""

    elements: str
    console: list[str]
    wide: np.ndarray
    narrow: np.ndarray
    dark: np.ndarray


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Seen:
    folder = tmp_path_factory.mktemp("report")
    page = folder / "report.html"
    page.write_text(_page(), encoding="utf-8")
    # What a reader who prefers dark pages sees; the browser has no option to be one.
    dark_page = folder / "dark.html"
    dark_page.write_text(_page().replace("(prefers-color-scheme: dark)", "screen"), encoding="utf-8")
    done = [browser.browse(page, "--dump-dom")]
    pictures = {}
    for name, of, width in (("wide", page, WIDE), ("narrow", page, NARROW), ("dark", dark_page, WIDE)):
        target = folder / f"{name}.png"
        done.append(browser.take_picture(of, target, width=width, height=1400))
        pictures[name] = np.asarray(Image.open(target).convert("RGB"))
    console = [line for one in done for line in one.stderr.splitlines() if ":CONSOLE" in line]
    return Seen(elements=done[0].stdout, console=console, **pictures)


def _page() -> str:
    rows = [
        Row(
            name=name, precision="fp32", network="ours", reference_seconds=4.0, seconds=(seconds,) * 3,
            ready_seconds=1.0, first_seconds=2.0,
            peak_bytes=1_000_000_000, peak_kind="resident", relative_l2=0.0, label_agreement=1.0,
        )
        for name, seconds in SECONDS.items()
    ]  # fmt: skip
    device = Device(kind="cpu", name="a CPU", cores=2, memory_bytes=8_000_000_000)
    bench = Bench(
        date="2026-11-23", command="lhanet-export bench " + "--option " * 30, machine={}, device=device, checkpoint={},
        shape=(48, 96, 96), threads=2, rounds=3, volumes=1, rows=rows, work={},
        skipped=[Skipped(name="a GPU", reason="not here")],
    )  # fmt: skip
    points = [
        {"name": name, "voxels": voxels, "seconds": seconds * voxels / 1e6, "peak_bytes": 1000 * voxels}
        for name, seconds in SECONDS.items()
        for voxels in (1_000_000, 2_000_000)
    ]
    facts = json.loads(json.dumps(bench.as_json()))
    return report_html([facts], scaling={"points": points, "fits": []}, title="A report")


def test_every_row_is_there_with_its_number(seen: Seen) -> None:
    items = re.findall(r'<li class="row">(.*?)</li>', seen.elements, re.DOTALL)
    assert len(items) == len(SECONDS)
    for item, (name, seconds) in zip(items, SECONDS.items(), strict=True):
        text = unescape(re.sub(r"<[^>]*>", " ", item))
        assert name in text and f"{seconds:#.3g} s" in text
    assert seen.elements.count("<circle") == 2 * 2 * len(SECONDS)


def test_the_browser_has_nothing_to_complain_of(seen: Seen) -> None:
    assert not seen.console


def test_bars_are_as_long_as_their_numbers(seen: Seen) -> None:
    for picture in (seen.wide, seen.narrow):
        lengths = _bar_lengths(picture)
        expected = [seconds / 4.0 for seconds in SECONDS.values()]
        assert [length / lengths[0] for length in lengths] == pytest.approx(expected, abs=0.03)
        assert lengths[0] > 0.3 * picture.shape[1]


def test_nothing_stands_out_at_the_sides(seen: Seen) -> None:
    background = _colour("page")
    for picture in (seen.wide, seen.narrow):
        assert (picture[:, :4] == background).all() and (picture[:, -12:] == background).all()
        # It is text and lines on a background, neither blank nor filled.
        assert 0.02 < (picture != background).any(-1).mean() < 0.3


def test_in_the_dark_it_is_the_same_page(seen: Seen) -> None:
    assert (seen.dark[:, :4] == _colour("page", DARK)).all()
    # The edges of a bar are mixed with the background.
    assert _bar_lengths(seen.dark, DARK) == pytest.approx(_bar_lengths(seen.wide), abs=4)
    assert not (seen.dark == _colour("page")).all(-1).any(), "nothing was left white"


def _bar_lengths(picture: np.ndarray, colours: Mapping[str, str] = LIGHT) -> list[int]:
    """Lengths of the bars of time from top to bottom, in pixels."""
    counts = (picture == _colour("time", colours)).all(-1).sum(1)
    # A bar is 14 pixels high; what has its colour in fewer lines is the key.
    edges = np.flatnonzero(np.diff(np.concatenate([[0], counts > 20, [0]])))
    return [int(counts[start:end].max()) for start, end in zip(edges[::2], edges[1::2], strict=True)]


def _colour(name: str, colours: Mapping[str, str] = LIGHT) -> np.ndarray:
    return np.frombuffer(bytes.fromhex(colours[name].removeprefix("#")), np.uint8)
