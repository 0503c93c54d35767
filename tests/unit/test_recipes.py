"""Build recipes: those that come with the package, and files that are refused."""

import ctypes
from pathlib import Path
from typing import Any

import pytest

from lhanet_export.engine.gpu import Gpu, find_gpus
from lhanet_export.engine.recipes import Recipe, recipe_named, recipe_names
from lhanet_export.errors import RefusedInput
from lhanet_export.shapes import SpatialRange

GOOD = """\
name: mine
title: A card of my own
backends: [tensorrt-rtx]
compute_capabilities: ["8.6", "8.9"]
memory_gib: 6.5
spatial: 32x64x64:64x128x128:96x192x192
"""


def write(folder: Path, text: str | bytes, name: str = "mine.yaml") -> str:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(path)


@pytest.mark.parametrize("name", recipe_names())
def test_recipes_of_the_package_load(name: str) -> None:
    recipe = recipe_named(name)
    assert recipe.name == name
    assert recipe.memory_bytes >= 8 * 2**30
    # TensorRT builds for one GPU, the one that is there.
    assert len(recipe.compute_capabilities) == 1 or recipe.backends == ("tensorrt-rtx",)


def test_the_default_card_is_there() -> None:
    recipe = recipe_named("rtx3060")
    assert recipe.compute_capabilities == ("8.6",)
    assert recipe.memory_bytes == 12 * 2**30
    assert {"any-rtx", "rtx3060", "rtx4090", "rtx5090"} <= set(recipe_names())


def test_every_recipe_stands_in_the_readme() -> None:
    text = (Path(__file__).parents[2] / "engines" / "README.md").read_text(encoding="utf-8")
    for name in recipe_names():
        row = next(line for line in text.splitlines() if line.startswith(f"| `{name}`"))
        recipe = recipe_named(name)
        assert f"| {', '.join(recipe.compute_capabilities)} | {recipe.memory_gib:g} GiB |" in row
        assert row.endswith(f"| {', '.join(f'`{backend}`' for backend in recipe.backends)} |")


def test_a_file_of_ones_own(tmp_path: Path) -> None:
    assert recipe_named(write(tmp_path, GOOD)) == Recipe(
        name="mine",
        title="A card of my own",
        backends=("tensorrt-rtx",),
        compute_capabilities=("8.6", "8.9"),
        memory_gib=6.5,
        spatial=SpatialRange.parse("32x64x64:64x128x128:96x192x192"),
    )


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (GOOD + "colour: red\n", "unknown key 'colour'"),
        (GOOD.replace("title: A card of my own\n", ""), "key 'title' is missing"),
        (GOOD + "name: mine\n", "key 'name' occurs twice"),
        (GOOD.replace("6.5", "'6.5'"), "memory_gib: expected a number"),
        (GOOD.replace("6.5", ".nan"), "memory_gib: expected a finite number"),
        (GOOD.replace("6.5", "true"), "memory_gib: expected a number"),
        (GOOD.replace('"8.9"', "8.9"), r"compute_capabilities\[1\]: 8.9 needs quotes"),
        (GOOD.replace('"8.9"', '"SM89"'), r"compute_capabilities\[1\]: 'SM89' is not a compute capability"),
        (GOOD.replace('"8.9"', '"8.6"'), "names something twice"),
        (GOOD.replace("[tensorrt-rtx]", "[openvino]"), r"backends\[0\]: expected tensorrt-rtx or tensorrt"),
        (GOOD.replace("[tensorrt-rtx]", "tensorrt-rtx"), "backends: expected a list"),
        (GOOD.replace("64x128x128", "16x128x128"), "min <= opt <= max"),
        (GOOD.replace("name: mine", "name: ../mine"), "is not a name"),
        (GOOD.replace("name: mine", "name: other"), "the recipe is called 'other', its file 'mine'"),
        (GOOD.replace("A card of my own", "!!python/object/apply:os.system [true]"), "not a valid recipe"),
        ("a: &x [1]\nb: *x\n", "aliases are not allowed"),
        ("[" * 5000, "not a valid recipe"),
        ("- a\n- b\n", "expected an object"),
        ("", "expected an object, found nothing"),
        (b"\xff\xfe\x00", "not a valid recipe"),
        ("x" * (1 << 20) + "y", "larger than"),
    ],
)
def test_files_that_are_refused(tmp_path: Path, text: str | bytes, reason: str) -> None:
    with pytest.raises(RefusedInput, match=reason):
        recipe_named(write(tmp_path, text))


@pytest.mark.parametrize("name", ["", "rtx9999", "../engines/rtx3060", "README.md", "rtx3060\0", "/etc/passwd"])
def test_names_that_are_no_recipes(name: str) -> None:
    with pytest.raises(RefusedInput, match="there is no recipe"):
        recipe_named(name)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(RefusedInput, match="cannot read the recipe"):
        recipe_named(str(tmp_path / "none.yaml"))
    with pytest.raises(RefusedInput, match="cannot read the recipe"):
        recipe_named("\0.yaml")


class FakeDriver:
    """The driver's library with one RTX 3060, or with an error."""

    def __init__(self, status: int = 0) -> None:
        self.status = status

    def cuInit(self, flags: int) -> int:
        return self.status

    def cuDeviceGetCount(self, count: Any) -> int:
        count._obj.value = 1
        return 0

    def cuDeviceGet(self, device: ctypes.c_int, index: int) -> int:
        return 0

    def cuDeviceGetName(self, name: ctypes.Array, size: int, device: ctypes.c_int) -> int:
        name.value = b"NVIDIA GeForce RTX 3060"
        return 0

    def cuDeviceGetAttribute(self, value: Any, attribute: int, device: ctypes.c_int) -> int:
        value._obj.value = {75: 8, 76: 6}[attribute]
        return 0

    def cuDeviceTotalMem_v2(self, size: Any, device: ctypes.c_int) -> int:
        size._obj.value = 12 << 30
        return 0


def test_gpus_as_the_driver_tells() -> None:
    expected = Gpu(name="NVIDIA GeForce RTX 3060", compute_capability="8.6", memory_bytes=12 << 30)
    assert find_gpus(FakeDriver()) == (expected,)
    assert find_gpus(FakeDriver(status=100)) == ()
