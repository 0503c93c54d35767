"""The trained reference network that comes with this package: what it is called, and where its file lies."""

from contextlib import AbstractContextManager
from importlib.resources import as_file, files
from pathlib import Path

#: What to write in place of a checkpoint's path; a file of that name is `./demo`.
DEMO = "demo"


def demo_file() -> AbstractContextManager[Path]:
    """The safetensors file of the reference network (docs/demo.md), wherever this package is installed."""
    return as_file(files("lhanet_export.model") / "demo.safetensors")
