"""Reading facts that somebody else wrote: every value has the type asked for, or the message names its key path."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping
from pathlib import PurePath
from typing import Any, TypeVar

from lhanet_export.errors import RefusedInput
from lhanet_export.shapes import LONGEST_SIDE, Shape, SpatialRange

T = TypeVar("T")

_LARGEST = sys.float_info.max

_TYPE_NAMES = {dict: "an object", list: "a list", str: "a text", bool: "true or false", int: "a whole number"}


class Node:
    """One value of a JSON or YAML document together with where it stands, as `file: engine.profiles[0].min`."""

    def __init__(self, value: Any, source: PurePath | str, path: str = "") -> None:
        self.value = value
        self.source = source
        self.path = path

    def refused(self, reason: str) -> RefusedInput:
        """The error for this value, to be raised by the caller."""
        return RefusedInput(f"{self.source}: {f'{self.path}: ' if self.path else ''}{reason}")

    def _of(self, kind: type[T]) -> T:
        # `True` is an int to Python; nobody who writes true means 1.
        if not isinstance(self.value, kind) or (kind is int and isinstance(self.value, bool)):
            found = "nothing" if self.value is None else f"{type(self.value).__name__} {str(self.value)[:60]!r}"
            raise self.refused(f"expected {_TYPE_NAMES[kind]}, found {found}")
        return self.value

    def object(self) -> Object:
        """This value as an object whose keys are asked for one by one."""
        return Object(self._of(dict), self)

    def facts(self) -> dict[str, Any]:
        """This value as an object that is passed on as it is."""
        return dict(self._of(dict))

    def list_of(self, read: Callable[[Node], T], *, at_least: int = 1, at_most: int = 4096) -> tuple[T, ...]:
        """This value as a list whose items `read` takes one by one."""
        items = self._of(list)
        if not at_least <= len(items) <= at_most:
            raise self.refused(f"expected {at_least} to {at_most} items, found {len(items)}")
        return tuple(read(Node(item, self.source, f"{self.path}[{index}]")) for index, item in enumerate(items))

    def text(self) -> str:
        """A text of printable characters, neither empty nor longer than a line."""
        text = self._of(str)
        if not text or len(text) > 400 or not text.isprintable():
            raise self.refused("expected a text of 1 to 400 printable characters")
        return text

    def label(self) -> str:
        """A text that people read and programs may make a file name of; it cannot climb out of a folder."""
        text = self.text()
        if ".." in text.replace("\\", "/").split("/") or text.startswith(("/", "-")):
            raise self.refused(f"{text!r} looks like a path or an option, not like a name")
        return text

    def identifier(self) -> str:
        """A name of letters, digits, `_`, `.` and `-` that starts with a letter or digit."""
        text = self.text()
        if len(text) > 64 or not text[0].isalnum() or not all(char.isalnum() or char in "_.-" for char in text):
            raise self.refused(f"{text!r} is not a name of letters, digits, '_', '.' and '-'")
        if not text.isascii():
            raise self.refused(f"{text!r} is not a name of ASCII letters")
        return text

    def one_of(self, choices: tuple[str, ...]) -> str:
        """One of the given texts."""
        text = self.text()
        if text not in choices:
            raise self.refused(f"expected {' or '.join(choices)}, found {text!r}")
        return text

    def sha256(self) -> str:
        """A SHA-256 in lower-case hex."""
        text = self.text()
        if len(text) != 64 or not set(text) <= set("0123456789abcdef"):
            raise self.refused("expected a SHA-256 of 64 lower-case hexadecimal digits")
        return text

    def capability(self) -> str:
        """A CUDA compute capability as `8.6`."""
        text = self.value
        if isinstance(text, float):
            raise self.refused(f"{text} needs quotes: a compute capability is a text, as in '8.6'")
        major, dot, minor = self.text().partition(".")
        if not (dot and major.isascii() and major.isdigit() and minor in tuple("0123456789") and len(major) <= 2):
            raise self.refused(f"{text!r} is not a compute capability; write it as '8.6'")
        return f"{int(major)}.{minor}"

    def integer(self, low: int, high: int = 2**63 - 1) -> int:
        """A whole number from `low` to `high`."""
        number = self._of(int)
        if not low <= number <= high:
            raise self.refused(f"expected a whole number from {low} to {high}, found {number}")
        return number

    def number(self, low: float, high: float = math.inf) -> float:
        """A finite number from `low` to `high`."""
        if isinstance(self.value, bool) or not isinstance(self.value, int | float):
            raise self.refused(f"expected a number, found {str(self.value)[:60]!r}")
        # A whole number of any length may stand in JSON; compared before it becomes a double, which it may not fit.
        if not (-_LARGEST <= self.value <= _LARGEST and low <= self.value <= high):
            raise self.refused(f"expected a finite number of at least {low:g}, found {str(self.value)[:60]}")
        number = float(self.value)
        return number

    def shape(self) -> Shape:
        """A volume size [D,H,W] in voxels."""
        depth, height, width = self.list_of(lambda side: side.integer(1, LONGEST_SIDE), at_least=3, at_most=3)
        return depth, height, width

    def spatial(self) -> SpatialRange:
        """A range of sizes as an object with `min`, `opt` and `max`."""
        sizes = self.object()
        shapes = [sizes.take(key).shape() for key in ("min", "opt", "max")]
        sizes.finish()
        try:
            return SpatialRange(*shapes)
        except RefusedInput as error:
            raise self.refused(str(error)) from error


class Object:
    """The keys of one object; what nobody asked for is refused by `finish`."""

    def __init__(self, values: Mapping[str, Any], node: Node) -> None:
        self._values = dict(values)
        self._node = node

    def take(self, key: str) -> Node:
        """The value of a key that has to be there."""
        if key not in self._values:
            raise self._node.refused(f"key '{key}' is missing")
        return self._child(key)

    def take_if(self, key: str, read: Callable[[Node], T]) -> T | None:
        """The value of a key that may be missing or null."""
        if self._values.get(key) is None:
            self._values.pop(key, None)
            return None
        return read(self._child(key))

    def _child(self, key: str) -> Node:
        value = self._values.pop(key)
        return Node(value, self._node.source, f"{self._node.path}.{key}" if self._node.path else key)

    def finish(self) -> None:
        """Refuse keys that are left: a misspelt key must not look like an accepted one."""
        if self._values:
            raise self._node.refused(f"unknown key {', '.join(sorted(map(repr, self._values)))}")
