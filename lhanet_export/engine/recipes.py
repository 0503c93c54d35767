"""Build recipes: which GPU an engine is for, and how much memory that GPU has.

A recipe is a small YAML file. The ones that come with the package are listed by `recipe_names`; a
path to a file of one's own works in their place.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from lhanet_export.engine.backends import BACKENDS
from lhanet_export.errors import RefusedInput
from lhanet_export.shapes import SpatialRange
from lhanet_export.strict import Node

_PACKAGE = "lhanet_export.recipes"
_LIMIT_BYTES = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A GPU, or a family of them, as far as building an engine needs to know it.

    `memory_gib` is what the card is sold with (of a family: the smallest); `spatial` is the range of
    volume sizes for whoever does not ask for another.
    """

    name: str
    title: str
    backends: tuple[str, ...]
    compute_capabilities: tuple[str, ...]
    memory_gib: float
    spatial: SpatialRange

    @property
    def memory_bytes(self) -> int:
        """`memory_gib` in bytes."""
        return int(self.memory_gib * 2**30)


def recipe_names() -> tuple[str, ...]:
    """The names of the recipes that come with the package, sorted."""
    files = resources.files(_PACKAGE).iterdir()
    return tuple(sorted(file.name.removesuffix(".yaml") for file in files if file.name.endswith(".yaml")))


def recipe_named(name: str) -> Recipe:
    """The recipe of a name from `recipe_names`, or of a path to a YAML file; anything else raises `RefusedInput`."""
    if name in recipe_names():
        file = resources.files(_PACKAGE) / f"{name}.yaml"
        return _recipe_from_yaml(file.read_bytes(), f"{name}.yaml", name)
    if not name.endswith((".yaml", ".yml")):
        raise RefusedInput(
            f"there is no recipe '{name}'; choose one of {', '.join(recipe_names())}, or name a YAML file of your own"
        )
    path = Path(name)
    try:
        with path.open("rb") as stream:
            raw = stream.read(_LIMIT_BYTES + 1)
    except (OSError, ValueError) as error:
        raise RefusedInput(f"cannot read the recipe {path}: {error}") from error
    return _recipe_from_yaml(raw, str(path), path.stem)


def _recipe_from_yaml(raw: bytes, source: str, file_name: str) -> Recipe:
    if len(raw) > _LIMIT_BYTES:
        raise RefusedInput(f"{source} is larger than {_LIMIT_BYTES} bytes; this is no recipe")
    document = Node(_strict_yaml(raw, source), source).object()
    recipe = Recipe(
        name=document.take("name").identifier(),
        title=document.take("title").text(),
        backends=document.take("backends").list_of(lambda node: node.one_of(tuple(BACKENDS)), at_most=len(BACKENDS)),
        compute_capabilities=document.take("compute_capabilities").list_of(Node.capability, at_most=16),
        memory_gib=document.take("memory_gib").number(1, 1024),
        spatial=SpatialRange.parse(document.take("spatial").text()),
    )
    document.finish()
    if recipe.name != file_name:
        raise RefusedInput(f"{source}: name: the recipe is called {recipe.name!r}, its file {file_name!r}")
    for repeated in (recipe.backends, recipe.compute_capabilities):
        if len(set(repeated)) != len(repeated):
            raise RefusedInput(f"{source}: {', '.join(repeated)} names something twice")
    return recipe


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


def _strict_yaml(raw: bytes, source: str) -> Any:
    try:
        loader = _StrictLoader(raw.decode("utf-8"))
        try:
            return loader.get_single_data()
        finally:
            loader.dispose()
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError, ValueError) as error:
        raise RefusedInput(f"{source} is not a valid recipe: {' '.join(str(error).split())[:300]}") from error
