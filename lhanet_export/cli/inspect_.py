"""`lhanet-export inspect`: what is in a file, as a reader would like to know it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lhanet_export.cli.options import command, file_argument, json_option
from lhanet_export.cli.show import Show, format_bytes, format_seconds
from lhanet_export.errors import RefusedInput

#: Reading less than this takes no time that needs to be shown.
_LARGE_BYTES = 100_000_000
_MOST_CHARACTERS = 400
_SHA256_DIGITS = 64
_TITLES = {
    "checkpoint": "Checkpoint",
    "onnx": "ONNX file",
    "engine": "Engine",
    "manifest": "Manifest",
    "sidecar": "Sidecar of an ONNX file",
}


@command("inspect")
@file_argument("file")
@json_option
def inspect(file: Path, show: Show) -> None:
    """Say what is in FILE: a checkpoint, an ONNX file, an engine or a manifest.

    The kind is told from the content. Files that lie beside it (FILE.json, weights of an ONNX file)
    are compared with it; if they do not belong together, the facts are shown and the exit code is 2.
    Nothing in FILE is run.
    """
    from lhanet_export.cli.contents import contents_of

    if file.stat().st_size > _LARGE_BYTES:
        with show.progress.step(f"read {file.name}"):
            contents = contents_of(file)
    else:
        contents = contents_of(file)
    for title, rows in tables(contents.facts):
        show.table(title, rows)
    show.facts(contents.facts)
    if contents.faults:
        raise RefusedInput(f"{file}: {'; '.join(contents.faults)}")


def tables(facts: dict[str, Any]) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """The facts about a file as titled tables of names and values."""
    kind = facts["kind"]
    own: dict[str, Any] = {key: facts[key] for key in ("file", "bytes", "sha256") if key in facts}
    if "sha256_matches" in facts:
        own["recorded_sha256"] = "matches" if facts["sha256_matches"] else "does not match"
    parts = {**facts.get("checkpoint", {}), **facts.get("onnx", {})}
    metadata = parts.pop("metadata", {})
    own |= parts | {key: facts[key] for key in ("stored_types",) if key in facts}
    sections: dict[str, dict[str, Any]] = {_TITLES[kind]: own, "Parameters": facts.get("parameters", {})}
    for name, part in metadata.items():
        sections[f"Metadata '{name}'"] = part if isinstance(part, dict) else {name: part}
    if kind != "onnx":
        # An ONNX file's sidecar repeats the facts inside it.
        sections |= _recorded(facts.get("manifest") or facts.get("sidecar") or {})
    for title, section in sections.items():
        if section:
            yield title, [(_as_name(key), _as_text(key, value)) for key, value in section.items()]


def _recorded(facts: dict[str, Any]) -> dict[str, dict[str, Any]]:
    objects = {name: part for name, part in facts.items() if isinstance(part, dict)}
    rest = {name: part for name, part in facts.items() if name not in objects}
    return {"Recorded": rest, **{f"Recorded {name}": part for name, part in objects.items()}}


def _as_name(key: str) -> str:
    """`weights_bytes` as `weights`: the value has the unit."""
    return key.removesuffix("_bytes").replace("_", " ")


def _as_text(key: str, value: Any) -> str:
    """A fact as a reader takes it in: bytes with their unit, sizes as 64x128x128, long hashes by their beginning."""
    if value is None:
        return "dynamic" if key == "batch" else "not recorded"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return ", ".join(f"{_as_name(name)} {_as_text(_inherited(key, name), part)}" for name, part in value.items())
    if isinstance(value, (int, float)):
        return _number(key, value)
    if isinstance(value, list):
        return _listed(key, value)
    text = f"{value[:12]}..." if key.endswith("sha256") and len(value) == _SHA256_DIGITS else str(value)
    return text if len(text) <= _MOST_CHARACTERS else f"{text[:_MOST_CHARACTERS]}..."


def _number(key: str, value: float) -> str:
    if key == "bytes" or key.endswith("_bytes"):
        return format_bytes(value)
    if key.endswith("seconds"):
        return format_seconds(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def _listed(key: str, values: list[Any]) -> str:
    if not values:
        return "none"
    if key in ("min", "opt", "max", "patch"):
        return "x".join(map(str, values))
    if all(isinstance(value, dict) and {"name", "dtype", "shape"} <= value.keys() for value in values):
        return ", ".join(f"{value['name']} {value['dtype']} {_as_text('', value['shape'])}" for value in values)
    if all(isinstance(value, (int, float, str)) for value in values):
        joined = ", ".join(_as_text(key, value) for value in values)
        return joined if all(isinstance(value, str) for value in values) else f"({joined})"
    return "; ".join(_as_text(key, value) for value in values)


def _inherited(key: str, name: str) -> str:
    """`weights_bytes: {"float16": 1}` counts bytes, though `float16` does not say so."""
    return f"{name}_bytes" if key.endswith("_bytes") else name
