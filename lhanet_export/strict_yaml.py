"""YAML files of this toolkit: small, plain, and refused where they could mean something else than they seem to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from lhanet_export.errors import RefusedInput

LIMIT_BYTES = 1 << 20


def read_yaml(path: Path) -> Any:
    """What a YAML file holds, in plain Python values; `RefusedInput` for whatever `parse_yaml` refuses."""
    try:
        with path.open("rb") as stream:
            raw = stream.read(LIMIT_BYTES + 1)
    except (OSError, ValueError) as error:
        raise RefusedInput(f"cannot read the recipe {path}: {error}") from error
    return parse_yaml(raw, str(path))


def parse_yaml(raw: bytes, source: str) -> Any:
    """What a YAML document holds, in plain Python values.

    `RefusedInput`, which names `source`, for more than 1 MiB, text that is not UTF-8 or not YAML, tags that name
    Python objects, aliases, and keys that occur twice or are no text.
    """
    if len(raw) > LIMIT_BYTES:
        raise RefusedInput(f"{source} is larger than {LIMIT_BYTES} bytes; this is no recipe")
    try:
        loader = _StrictLoader(raw.decode("utf-8"))
        try:
            return loader.get_single_data()
        finally:
            loader.dispose()
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError, ValueError) as error:
        raise RefusedInput(f"{source} is not a valid recipe: {' '.join(str(error).split())[:300]}") from error


class _StrictLoader(yaml.SafeLoader):
    """YAML without what a recipe has no use for: aliases, which can grow without bound, and keys that occur twice."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases are not allowed")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys: set[str] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise yaml.YAMLError(f"key {key!r} is not a text")
            if key in keys:
                raise yaml.YAMLError(f"key '{key}' occurs twice")
            keys.add(key)
        return super().construct_mapping(node, deep=deep)
