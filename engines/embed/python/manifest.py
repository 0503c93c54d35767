"""The manifest of an engine: what it is, how a scan becomes its input, and the proof that these are the engine's bytes.

It lies beside the engine as `<engine>.json`. An engine is native code, and TensorRT does not notice a flipped bit:
nothing is deserialized whose hash is not the manifest's.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from base import Refused, need, read_own

Size = tuple[int, int, int]


def whole(low: int, high: int) -> Callable[[Any], bool]:
    return lambda value: type(value) is int and low <= value <= high


def number(low: float, high: float) -> Callable[[Any], bool]:
    return lambda value: type(value) in (int, float) and low <= value <= high  # which NaN is not


def text(form: str) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, str) and re.fullmatch(form, value) is not None


NAME, SIZE, SIDE = text(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}"), (whole(1, 1024),) * 3, whole(-1, 1 << 20)
TYPE = text("float32|float16|int8|uint8|int32|int64|bool")
#: What is needed of a manifest: {keys}, (items one by one), [items all alike, at least one]. Axes are D, H, W.
MANIFEST: dict[str, Any] = {
    "schema": whole(1, 1),
    "engine": {
        "sha256": text("[0-9a-f]{64}"),
        "bytes": whole(1, 1 << 36),
        "backend": text("tensorrt-rtx|tensorrt"),
        "backend_version": NAME,
        "compute_capabilities": [text("[0-9]{1,2}[.][0-9]")],
        "profiles": [{"min": SIZE, "opt": SIZE, "max": SIZE}],
        "inputs": ({"name": text("image"), "dtype": TYPE, "shape": (SIDE, whole(1, 1), SIDE, SIDE, SIDE)},),
        "outputs": ({"name": NAME, "dtype": TYPE, "shape": [SIDE]},),
    },
    "labels": [text(r"[^\x00-\x1f\x7f]{1,400}")],
    "preprocessing": {
        "spacing_mm": (number(1e-3, 1e3),) * 3,
        "clip_hu": (number(-1e6, 1e6),) * 2,
        "normalization": text("z-score"),
        "orientation": text("as stored"),
        "patch": SIZE,
        "overlap": number(0, 0.95),
        "blending": text("gaussian|constant"),
        "blending_sigma_divisor": number(0.1, 64),
    },
}


def check(value: Any, pattern: Any, where: str) -> None:
    """Refuse a JSON value that is not what a pattern such as `MANIFEST` asks for."""
    if isinstance(pattern, dict):
        need(isinstance(value, dict), f"{where}: an object is expected")
        for key, inner in pattern.items():
            need(key in value, f"{where}: key '{key}' is missing")
            check(value[key], inner, f"{where} {key}")
    elif isinstance(pattern, list | tuple):
        count = max(1, len(value)) if isinstance(pattern, list) and isinstance(value, list) else len(pattern)
        need(isinstance(value, list) and len(value) == count, f"{where}: a list of {count} items is expected")
        for item, inner in zip(value, pattern * count if isinstance(pattern, list) else pattern, strict=True):
            check(item, inner, where)
    else:
        need(pattern(value), f"{where}: {value!r:.60} is not what a manifest of schema 1 has here")


def read_manifest(engine: Path) -> dict[str, Any]:
    """The checked manifest `<engine>.json` that lies beside an engine."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        need(len(dict(pairs)) == len(pairs), f"{path} has a key twice")
        return dict(pairs)

    path = engine.with_name(engine.name + ".json")
    raw = read_own(path, 1 << 20)
    need(len(raw) <= 1 << 20, f"{path} is larger than 1 MiB; this is no manifest")
    try:
        facts: dict[str, Any] = json.loads(raw.decode(), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise Refused(f"{path} is not valid JSON: {error}") from error
    check(facts, MANIFEST, f"{path}:")
    output, names, (low, high) = facts["engine"]["outputs"][0], facts["labels"], facts["preprocessing"]["clip_hu"]
    useless = f"{engine} gives labels, of which no windows can be blended; export it with --output coarse"
    need(output["name"] != "labels", useless)
    need(len(output["shape"]) == 5, f"{path}: the output has the shape {output['shape']}, expected (N,K,D,H,W)")
    need(2 <= len(set(names)) == len(names) <= 256, f"{path}: labels: 2 to 256 different names are expected")
    need(low < high, f"{path}: clip_hu: the lower bound comes first")
    for profile in facts["engine"]["profiles"]:
        sides = zip(profile["min"], profile["opt"], profile["max"], strict=True)
        need(all(least <= best <= most for least, best, most in sides), f"{path}: profiles: expected min <= opt <= max")
    return facts


def engine_bytes(engine: Path, facts: dict[str, Any]) -> bytes:
    """The engine's bytes, read once, whose size and SHA-256 are the manifest's: deserialize these, never the file."""
    raw = read_own(engine, facts["engine"]["bytes"])
    same = len(raw) == facts["engine"]["bytes"] and hashlib.sha256(raw).hexdigest() == facts["engine"]["sha256"]
    need(same, f"{engine} is not the file that its manifest describes: damaged or replaced; copy or build it again")
    return raw


def profile_of(engine: Path, facts: dict[str, Any], patch: Size) -> int:
    """The index of the first of the engine's profiles that serves windows of this size."""
    profiles = [[profile["min"], patch, profile["max"]] for profile in facts["engine"]["profiles"]]
    serving = [all(low <= side <= high for low, side, high in zip(*sizes, strict=True)) for sizes in profiles]
    need(any(serving), f"windows of {'x'.join(map(str, patch))} are outside what {engine} was built for; see --patch")
    return serving.index(True)


def batch_of(facts: dict[str, Any]) -> int:
    """How many windows an engine takes at a time: as many as it was built for, one if it takes any number."""
    return max(1, facts["engine"]["inputs"][0]["shape"][0])
