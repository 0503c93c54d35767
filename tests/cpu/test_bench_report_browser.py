"""The HTML report in a browser: everything is drawn, bars have their lengths, and nothing is wider than a phone."""

import json
import re
import shutil
import subprocess
from dataclasses import dataclass
from html import unescape
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lhanet_export.bench.report import report_html
from lhanet_export.bench.result import Bench, Device, Row, Skipped
from lhanet_export.bench.style import LIGHT

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium or Google Chrome")
QUIET = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-component-update",
    "--disable-background-networking", "--disable-sync", "--hide-scrollbars", "--force-device-scale-factor=1",
    # The console goes to stderr.
    "--enable-logging=stderr",
)  # fmt: skip
SECONDS = {"eager FP32": 4.0, "quick": 1.0, "quicker": 0.5, "middle": 2.0}
WIDE, NARROW = 1200, 420


@dataclass(frozen=True)
class Seen:
    """What the browser made of the page: its elements, its console, and pictures, wide and narrow."""

    elements: str
    console: list[str]
    wide: np.ndarray
    narrow: np.ndarray


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Seen:
    folder = tmp_path_factory.mktemp("report")
    page = folder / "report.html"
    page.write_text(_page(), encoding="utf-8")
    done = [_browse(page, folder, "--dump-dom")]
    for width in (WIDE, NARROW):
        done.append(_browse(page, folder, f"--window-size={width},1400", f"--screenshot={folder / str(width)}.png"))
    wide, narrow = (np.asarray(Image.open(folder / f"{width}.png").convert("RGB")) for width in (WIDE, NARROW))
    console = [line for one in done for line in one.stderr.splitlines() if ":CONSOLE" in line]
    return Seen(elements=done[0].stdout, console=console, wide=wide, narrow=narrow)


def _browse(page: Path, folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [str(CHROMIUM), *QUIET, f"--user-data-dir={folder / 'profile'}", *options, page.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)


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


def _bar_lengths(picture: np.ndarray) -> list[int]:
    """Lengths of the bars of time from top to bottom, in pixels."""
    counts = (picture == _colour("time")).all(-1).sum(1)
    # A bar is 14 pixels high; what has its colour in fewer lines is the key.
    edges = np.flatnonzero(np.diff(np.concatenate([[0], counts > 20, [0]])))
    return [int(counts[start:end].max()) for start, end in zip(edges[::2], edges[1::2], strict=True)]


def _colour(name: str) -> np.ndarray:
    return np.frombuffer(bytes.fromhex(LIGHT[name].removeprefix("#")), np.uint8)
