"""Synthetic scans for the programs that calibrate."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

_BUILDER = Path(__file__).resolve().parents[1] / "calibration" / "build_phantoms.py"


def write_scans(folder: Path, count: int) -> None:
    """Write phantoms with labels into a folder, at the spacing that the network works in."""
    options = ["-o", str(folder), "--count", str(count), "--spacing-mm", "1.5"]
    subprocess.run([sys.executable, str(_BUILDER), *options], check=True)
