"""The C++ application of `engines/embed/cpp`: built once for all tests, and engines for it that hold no network."""

from __future__ import annotations

import fcntl
import functools
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from lhanet_export.conventions import Preprocessing
from lhanet_export.engine.build import BuiltEngine, TensorFacts
from lhanet_export.engine.manifest import manifest_of, publish_engine
from lhanet_export.engine.plan import plan_engine
from lhanet_export.engine.recipes import recipe_named
from lhanet_export.shapes import Shape, SpatialRange

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "engines" / "embed" / "cpp"
#: Errors that the sanitizers find, and leaks, end the program with this code.
SANITIZER = {"ASAN_OPTIONS": "exitcode=99", "UBSAN_OPTIONS": "exitcode=99:print_stacktrace=1"}


@functools.cache
def built(sanitized: bool = False) -> Path:
    """The application `lhanet-segment`, built if it is not up to date; skips the test where nobody can build it."""
    folder = configured(sanitized)
    with (folder.parent / f"{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        run(["cmake", "--build", folder, "--parallel", "2"])
    return folder / "lhanet-segment"


def configured(sanitized: bool = False) -> Path:
    """The build folder, with the library `liblhanet.a` and the application in it once `built` has been called."""
    require_tools()
    folder = ROOT / "build" / ("embed-sanitized" if sanitized else "embed-release")
    folder.parent.mkdir(exist_ok=True)
    with (folder.parent / f"{folder.name}.lock").open("w") as lock:
        # Several processes run tests; one builds.
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not _is_configured(folder):
            shutil.rmtree(folder, ignore_errors=True)
            # -O1: without any optimization sanitized code is several times slower, with all of it compiling is.
            kind = ["-DLHANET_SANITIZE=ON", "-DCMAKE_CXX_FLAGS_RELEASE=-O1"] if sanitized else []
            run(["cmake", "-S", SOURCE, "-B", folder, "-DCMAKE_BUILD_TYPE=Release", *kind])
    return folder


def _is_configured(folder: Path) -> bool:
    """Whether a build is of this checkout, in this place: the test of docs/embedding.md calls both by other names."""
    cache = folder / "CMakeCache.txt"
    lines = cache.read_text(encoding="utf-8").splitlines() if cache.exists() else []
    return {f"CMAKE_CACHEFILE_DIR:INTERNAL={folder}", f"CMAKE_HOME_DIRECTORY:INTERNAL={SOURCE}"}.issubset(lines)


@functools.cache
def require_tools() -> None:
    """Skip the test, and say what is missing."""
    for tool in ("g++", "cmake"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed")
    found = subprocess.run(
        ["g++", "-fsyntax-only", "-x", "c++", "-"], input="#include <zlib.h>\n", text=True, capture_output=True
    )
    if found.returncode != 0:
        pytest.skip("zlib's header is not installed")


def run(command: Sequence[str | Path]) -> None:
    """Run a command that has to succeed; what it said is in the error if it does not."""
    found = subprocess.run(command, capture_output=True, text=True)
    assert found.returncode == 0, f"{' '.join(map(str, command))}\n{found.stdout}\n{found.stderr}"


def null_engine(
    folder: Path, *, output: str = "logits", classes: int = 4, patch: Shape = (32, 40, 48), batch: int | None = 1,
    spatial: SpatialRange | None = None, backend: str = "tensorrt-rtx", name: str = "null.engine", **rules: Any,
) -> Path:  # fmt: skip
    """A file that says it is an engine, with its manifest; `batch` None takes any number of windows at a time.

    `rules` are those of `Preprocessing` besides the patch. All patches are served unless `spatial` says which.
    """
    folder.mkdir(parents=True, exist_ok=True)
    spatial = spatial or SpatialRange((1, 1, 1), patch, (1024, 1024, 1024))
    onnx = {
        "sha256": "a" * 64,
        "opset": 18,
        "head": "final",
        "precision": "fp16",
        "spatial": spatial.as_json(),
        "checkpoint": {
            "sha256": "b" * 64, "preset": "lightweight", "num_classes": classes, "base_channels": 32, "epoch": None,
        },
        "labels": ["background", *(f"organ {index}" for index in range(1, classes))],
        "preprocessing": Preprocessing(patch=patch, **rules).as_json(),
    }  # fmt: skip
    plan = plan_engine(Path("model.onnx"), onnx, recipe=recipe_named("rtx3060"), spatial=spatial, backend=backend)
    raw = folder / f"{name}.raw"
    raw.write_bytes(b"no engine" * 100)
    first = batch or -1
    facts = BuiltEngine(
        path=raw,
        seconds=1.0,
        peak_rss_bytes=1,
        backend_version="1.7.1.116",
        compute_capabilities=("8.6",),
        weights_bytes=None,
        activation_bytes=None,
        inputs=(TensorFacts(name="image", dtype="float32", shape=(first, 1, -1, -1, -1)),),
        outputs=(TensorFacts(name=output, dtype="float32", shape=(first, classes, -1, -1, -1)),),
        log_tail=(),
    )
    publish_engine(raw, manifest_of(plan, facts, onnx, verification={}), folder / name)
    raw.unlink()
    return folder / name
