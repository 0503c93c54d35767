"""An HTML page as a browser shows it: for the script that puts one into the docs, and for tests that look at one."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
_QUIET = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-component-update",
    "--disable-background-networking", "--disable-sync", "--hide-scrollbars", "--force-device-scale-factor=1",
    # The console goes to stderr.
    "--enable-logging=stderr",
)  # fmt: skip


def browse(page: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Open a page in Chromium or Chrome, without a window; raises `CalledProcessError` if that fails."""
    assert BROWSER is not None, "no Chromium or Google Chrome is installed"
    with tempfile.TemporaryDirectory() as profile:
        command = [BROWSER, *_QUIET, f"--user-data-dir={profile}", *options, page.resolve().as_uri()]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)


def take_picture(page: Path, target: Path, *, width: int, height: int) -> subprocess.CompletedProcess[str]:
    """Write the top of a page as PNG, in pixels."""
    return browse(page, f"--window-size={width},{height}", f"--screenshot={target.resolve()}")
