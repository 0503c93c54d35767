"""Which machine figures belong to; the scripts beside this file that measure something record it with them."""

from __future__ import annotations

import os
import platform
from importlib.metadata import version
from typing import Any

from lhanet_export.bench.conditions import cpu_name


def machine(*packages: str) -> dict[str, Any]:
    """The machine, its Python, and the versions of the named packages, as JSON values."""
    return {
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "platform": platform.system(),
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
    }
