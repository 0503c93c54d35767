"""Build recipes: which GPU an engine is for, and how much memory that GPU has.

A recipe is a small YAML file. The ones that come with the package are listed by `recipe_names`; a
path to a file of one's own works in their place.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from lhanet_export.engine.backends import BACKENDS
from lhanet_export.errors import RefusedInput
from lhanet_export.shapes import SpatialRange
from lhanet_export.strict import Node
from lhanet_export.strict_yaml import parse_yaml, read_yaml

_PACKAGE = "lhanet_export.recipes"


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
        return _recipe_from_document(parse_yaml(file.read_bytes(), file.name), file.name, name)
    if not name.endswith((".yaml", ".yml")):
        raise RefusedInput(
            f"there is no recipe '{name}'; choose one of {', '.join(recipe_names())}, or name a YAML file of your own"
        )
    path = Path(name)
    return _recipe_from_document(read_yaml(path), str(path), path.stem)


def _recipe_from_document(values: Any, source: str, file_name: str) -> Recipe:
    document = Node(values, source).object()
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
