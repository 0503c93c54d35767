"""The search for the largest patch with a planner that is a formula, and what is kept between two searches."""

from __future__ import annotations

import json
import logging
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import click
import pytest

from lhanet_export import fit as fit_module
from lhanet_export import patches as patches_module
from lhanet_export.cli.main import run
from lhanet_export.cli.options import AspectType, MemoryType
from lhanet_export.engine.recipes import recipe_named
from lhanet_export.errors import EnvironmentLacks, RefusedInput
from lhanet_export.fit import ALLOWANCE_BYTES, ELEMENT_LIMIT, AspectFit, Need, fit, largest_patch
from lhanet_export.inference.target import Target
from lhanet_export.patches import CachedPatches, Ladder, Planned, Question, cache_folder, key_of
from lhanet_export.shapes import LONGEST_SIDE, Shape, TensorSizes

WEIGHTS = 589 * 10**6
GIB = 2**30
FLAT, CUBE = (1, 2, 2), (1, 1, 1)
LIGHTWEIGHT = Ladder(stride=16, smallest=32)


@dataclass
class Formula:
    """Patches whose activations are a formula of their voxels; remembers what was built."""

    activations: Callable[[int], float] = lambda voxels: 340 * voxels
    elements_a_voxel: float = 7
    ladder: Ladder = LIGHTWEIGHT
    built: list[Shape] = field(default_factory=list)
    sized: list[Shape] = field(default_factory=list)

    def tensors(self, shape: Shape) -> TensorSizes:
        self.sized.append(shape)
        voxels = math.prod(shape)
        return TensorSizes(
            input_bytes=4 * voxels, output_bytes=56 * voxels, largest="/wide/MatMul_output_0",
            largest_elements=int(self.elements_a_voxel * voxels),
        )  # fmt: skip

    def planned(self, shape: Shape) -> Planned:
        assert shape not in self.built, "built twice"
        self.built.append(shape)
        return Planned(weights_bytes=WEIGHTS, activation_bytes=int(self.activations(math.prod(shape))))


def checked(result: AspectFit, patches: Formula, vram: int) -> AspectFit:
    """The promise: one patch was built and fits, the next one was built and does not fit or has too large a tensor."""
    sizes = patches.ladder.of(result.aspect)
    place = sizes.index(result.next_shape)
    if result.largest is not None:
        assert result.largest.shape == sizes[place - 1]
        assert result.largest.shape in patches.built
        assert result.largest.together_bytes <= vram
    else:
        assert place == 0
    assert (result.next_need is None) is (result.next_refused is not None)
    if result.next_need is not None:
        assert result.next_need.shape == result.next_shape
        assert result.next_shape in patches.built
        assert result.next_need.together_bytes > vram
    return result


# Sizes and aspects as they are written


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("12GiB", 12 * 2**30),
        ("12 GiB", 12 * 2**30),
        ("12gib", 12 * 2**30),
        ("11.5GB", 11_500_000_000),
        ("8000MiB", 8000 * 2**20),
        ("500MB", 500_000_000),
        ("1024GiB", 2**40),
    ],
)
def test_memory_with_its_unit(text: str, count: int) -> None:
    assert MemoryType().convert(text, None, None) == count


@pytest.mark.parametrize(
    "text",
    ["", "12", "GiB", "0GiB", "0.0MB", "-12GiB", "12TiB", "12G", "12GiB ", "12  GiB", "1e3MB", "nanGB", "infGB",
     "12,5GB", "12.GB", ".5GB", "1025GiB", "9999999GB", "99999999MB", "\u0661٢GB"],
)  # fmt: skip
def test_what_is_no_memory_is_refused(text: str) -> None:
    with pytest.raises(click.UsageError, match="is not the memory of a card"):
        MemoryType().convert(text, None, None)


@pytest.mark.parametrize(
    ("text", "aspect"), [("1:2:2", FLAT), ("2:4:4", FLAT), ("99:99:99", CUBE), ("2:3:4", (2, 3, 4))]
)
def test_aspects_in_lowest_terms(text: str, aspect: tuple[int, int, int]) -> None:
    assert AspectType().convert(text, None, None) == aspect


@pytest.mark.parametrize("text", ["", "1:2", "1:2:2:2", "0:1:1", "1:-1:1", "1:2.5:2", "1x2x2", "100:1:1", "\u0661:1:1"])
def test_what_is_no_aspect_is_refused(text: str) -> None:
    with pytest.raises(click.UsageError, match="is no aspect"):
        AspectType().convert(text, None, None)


def test_a_ladder_begins_where_the_network_does_and_ends_beyond_the_longest_side() -> None:
    flat = LIGHTWEIGHT.of(FLAT)
    assert flat[:3] == [(32, 64, 64), (48, 96, 96), (64, 128, 128)]
    assert flat[-2:] == [(512, 1024, 1024), (528, 1056, 1056)]
    # The residual presets take 33 voxels and more.
    assert Ladder(stride=32, smallest=33).of(CUBE)[0] == (64, 64, 64)
    assert LIGHTWEIGHT.of((1, 1, 99)) == [(32, 32, 3168)]


# The search


@pytest.mark.parametrize("aspect", [FLAT, CUBE, (2, 3, 3)])
@pytest.mark.parametrize("vram", [2 * GIB, 8 * GIB, 12 * GIB, 16 * GIB, 24 * GIB])
def test_memory_in_proportion_takes_three_builds(vram: int, aspect: tuple[int, int, int]) -> None:
    patches = Formula()
    checked(largest_patch(aspect, patches, vram), patches, vram)
    assert len(patches.built) <= 3


@pytest.mark.parametrize(
    "activations",
    [
        lambda voxels: 66 * voxels,
        lambda voxels: 1700 * voxels,
        lambda voxels: 5e7 + 66 * voxels,
        lambda voxels: 68e6 if voxels < 5e5 else 148e6 if voxels < 2e6 else 66 * voxels,
        lambda voxels: 0.4 * voxels**1.4,
        lambda voxels: 3e4 * voxels**0.7,
    ],
    ids=["narrow", "wide", "with an offset", "in steps", "faster", "slower"],
)
@pytest.mark.parametrize("vram", [3 * GIB // 2, 3 * GIB, 12 * GIB, 24 * GIB])
def test_memory_of_another_kind_takes_a_few_more(activations: Callable[[int], float], vram: int) -> None:
    patches = Formula(activations=activations)
    checked(largest_patch(FLAT, patches, vram), patches, vram)
    assert len(patches.built) <= 6


def test_another_aspect_begins_at_what_is_known() -> None:
    patches = Formula(activations=lambda voxels: 1700 * voxels)
    first = checked(largest_patch(FLAT, patches, 12 * GIB), patches, 12 * GIB)
    assert first.largest and first.next_need
    before = len(patches.built)
    checked(largest_patch(CUBE, patches, 12 * GIB, [first.largest, first.next_need]), patches, 12 * GIB)
    assert len(patches.built) - before == 2


def test_more_memory_never_means_a_smaller_patch() -> None:
    sizes = []
    for vram in range(2 * GIB, 30 * GIB, GIB):
        patches = Formula()
        result = checked(largest_patch(FLAT, patches, vram), patches, vram)
        assert result.largest
        sizes.append(math.prod(result.largest.shape))
    assert sizes == sorted(sizes)
    assert len(set(sizes)) > 10


def test_a_byte_too_little_is_too_little() -> None:
    patches = Formula()
    result = largest_patch(FLAT, patches, 12 * GIB)
    assert result.largest
    exact = result.largest.together_bytes
    assert exact == ALLOWANCE_BYTES + WEIGHTS + 400 * math.prod(result.largest.shape)
    enough = largest_patch(FLAT, Formula(), exact).largest
    less = largest_patch(FLAT, Formula(), exact - 1).largest
    assert enough == result.largest
    assert less and math.prod(less.shape) < math.prod(result.largest.shape)


def test_nothing_fits() -> None:
    patches = Formula()
    result = checked(largest_patch(FLAT, patches, 500 * 10**6), patches, 500 * 10**6)
    assert result.largest is None
    assert result.next_shape == (32, 64, 64)
    assert patches.built == [(32, 64, 64)]


def test_a_tensor_of_two_to_the_31_elements_is_not_built() -> None:
    patches = Formula(elements_a_voxel=16)
    result = checked(largest_patch(CUBE, patches, 1000 * GIB), patches, 1000 * GIB)
    # 16 * 512^3 is the limit itself.
    assert result.next_shape == (512, 512, 512)
    assert result.largest and result.largest.shape == (496, 496, 496)
    assert patches.built == [(496, 496, 496)]
    assert result.next_refused == (
        "tensor '/wide/MatMul_output_0' would have 2,147,483,648 elements, and TensorRT's limit is 2,147,483,648"
    )
    assert len(set(patches.sized)) < 12
    one_less = Formula(elements_a_voxel=(ELEMENT_LIMIT - 1) / 512**3)
    assert one_less.tensors((512, 512, 512)).largest_elements == ELEMENT_LIMIT - 1
    assert largest_patch(CUBE, one_less, 1000 * GIB).next_shape == (528, 528, 528)


def test_the_limit_may_leave_nothing() -> None:
    patches = Formula(elements_a_voxel=1e5)
    result = checked(largest_patch(CUBE, patches, 12 * GIB), patches, 12 * GIB)
    assert result.largest is None and patches.built == []


def test_the_longest_side_is_a_limit_too() -> None:
    patches = Formula(activations=lambda voxels: 0, elements_a_voxel=0)
    result = largest_patch((1, 1, 8), patches, 1000 * GIB)
    assert result.largest and result.largest.shape == (128, 128, LONGEST_SIDE)
    assert result.next_refused == "a side is longer than 1024 voxels, the most that is taken"
    assert largest_patch((1, 1, 99), patches, 1000 * GIB).largest is None


def test_a_need_says_its_sum() -> None:
    need = Need(shape=(32, 64, 64), weights_bytes=1, activation_bytes=20, input_bytes=300, output_bytes=4000)
    assert need.together_bytes == ALLOWANCE_BYTES + 4321
    assert need.as_json()["together_bytes"] == need.together_bytes


# What is kept

KEY = {"checkpoint": "0" * 64, "backend": ["tensorrt-rtx", "1.7"]}


def search(folder: Path, key: dict[str, Any] = KEY) -> tuple[AspectFit, list[Shape]]:
    """The largest patch, and what was built to find it."""
    patches = Formula()
    return largest_patch(FLAT, CachedPatches(patches, folder, key), 12 * GIB), patches.built


def test_a_second_search_builds_nothing(tmp_path: Path) -> None:
    class NotAsked:
        @property
        def ladder(self) -> Ladder:
            raise AssertionError

        def tensors(self, shape: Shape) -> TensorSizes:
            raise AssertionError

        def planned(self, shape: Shape) -> Planned:
            raise AssertionError

    first, built = search(tmp_path / "cache")
    assert built
    again = largest_patch(FLAT, CachedPatches(NotAsked(), tmp_path / "cache", KEY), 12 * GIB)
    assert again == first
    (kept,) = (tmp_path / "cache").iterdir()
    assert json.loads(kept.read_text())["key"] == KEY


def test_each_build_is_kept_at_once(tmp_path: Path) -> None:
    class Interrupted(Formula):
        def planned(self, shape: Shape) -> Planned:
            if self.built:
                raise KeyboardInterrupt
            return super().planned(shape)

    patches = Interrupted(activations=lambda voxels: 340 * voxels)
    with pytest.raises(KeyboardInterrupt):
        largest_patch(FLAT, CachedPatches(patches, tmp_path, KEY), 12 * GIB)
    whole = Formula()
    largest_patch(FLAT, whole, 12 * GIB)
    _, built = search(tmp_path)
    assert built == [shape for shape in whole.built if shape not in patches.built]
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("key", [{**KEY, "checkpoint": "1" * 64}, {**KEY, "backend": ["tensorrt-rtx", "1.8"]}])
def test_another_checkpoint_or_version_is_asked_anew(tmp_path: Path, key: dict[str, Any]) -> None:
    _, first = search(tmp_path)
    _, second = search(tmp_path, key)
    assert first == second
    assert len(list(tmp_path.iterdir())) == 2


def damage(document: dict[str, Any], how: str) -> str:
    text = json.dumps(document)
    answers = document["answers"]
    planned = next(name for name in answers if name.startswith("planned"))
    match how:
        case "cut off":
            return text[:-20]
        case "empty":
            return ""
        case "a list":
            return "[]"
        case "another key":
            document["key"]["checkpoint"] = "2" * 64
        case "no answers":
            del document["answers"]
        case "an unknown answer":
            answers["measured 32x64x64"] = answers[planned]
        case "a field is missing":
            del answers[planned]["activation_bytes"]
        case "a field too many":
            answers[planned]["more"] = 1
        case "negative":
            answers[planned]["activation_bytes"] = -1
        case "a text":
            answers[planned]["activation_bytes"] = "many"
        case "a fraction":
            answers["ladder"]["stride"] = 1.5
    return json.dumps(document)


@pytest.mark.parametrize(
    "how",
    ["cut off", "empty", "a list", "another key", "no answers", "an unknown answer", "a field is missing",
     "a field too many", "negative", "a text", "a fraction"],
)  # fmt: skip
def test_a_damaged_file_is_ignored_and_rewritten(tmp_path: Path, how: str, caplog: pytest.LogCaptureFixture) -> None:
    first, built = search(tmp_path)
    (kept,) = tmp_path.iterdir()
    whole = kept.read_text()
    kept.write_text(damage(json.loads(whole), how))
    with caplog.at_level(logging.WARNING):
        again, rebuilt = search(tmp_path)
    assert "made anew" in caplog.text
    assert (again, rebuilt) == (first, built)
    assert kept.read_text() == whole


def test_answers_lie_where_caches_lie(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for setting, folder in (
        (str(tmp_path / "x"), tmp_path / "x"),
        ("", tmp_path / ".cache"),
        ("x", tmp_path / ".cache"),
    ):
        monkeypatch.setenv("XDG_CACHE_HOME", setting)
        assert cache_folder() == folder / "lhanet-export"

    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    with pytest.raises(EnvironmentLacks, match="XDG_CACHE_HOME"):
        cache_folder()


def question(checkpoint: str, **options: Any) -> Question:
    usual: dict[str, Any] = {
        "recipe": recipe_named("rtx3060"), "backend": "tensorrt-rtx", "precision": "fp16", "target": Target()
    }  # fmt: skip
    return Question(checkpoint=checkpoint, **{**usual, **options})


def missing(name: str) -> str:
    raise patches_module.metadata.PackageNotFoundError(name)


def test_the_key_names_all_that_decides_the_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = tmp_path / "one.pth", tmp_path / "other.pth"
    one.write_bytes(b"weights")
    other.write_bytes(b"other weights")
    asked = question(str(one))
    usual = key_of(asked, "1.7")
    one.rename(tmp_path / "renamed.pth")
    assert key_of(question(str(tmp_path / "renamed.pth")), "1.7") == usual
    keys = [
        usual,
        key_of(question(str(other)), "1.7"),
        key_of(question("preset:lightweight"), "1.7"),
        *(
            key_of(replace(asked, checkpoint=str(tmp_path / "renamed.pth"), **{name: value}), "1.7")
            for name, value in (
                ("recipe", recipe_named("rtx4090")),
                ("backend", "tensorrt"),
                ("precision", "fp32"),
                ("target", Target(output="labels")),
                ("target", Target(head="deep0")),
            )
        ),
        key_of(question(str(tmp_path / "renamed.pth")), "1.8"),
    ]
    with monkeypatch.context() as patch:
        patch.setattr(patches_module.metadata, "version", missing)
        keys.append(key_of(question("preset:lightweight"), "1.7"))
    # Another version of this package: one more byte in one of its modules.
    package = tmp_path / "package"
    package.mkdir()
    for text in ("x = 1\n", "x = 2\n"):
        (package / "patches.py").write_text(text)
        monkeypatch.setattr(patches_module, "__file__", str(package / "patches.py"))
        keys.append(key_of(question("preset:lightweight"), "1.7"))
    assert len({json.dumps(key) for key in keys}) == len(keys)


@pytest.mark.parametrize("name", ["missing.pth", ".", "\0"])
def test_a_checkpoint_that_is_no_file_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(RefusedInput, match="name a checkpoint file"):
        key_of(question(str(tmp_path / name)), "1.7")


# The whole, with the formula in place of the builder


@pytest.fixture
def formula(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Formula:
    patches = Formula()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(fit_module, "ExportedPatches", lambda **_: patches)
    monkeypatch.setattr(fit_module, "check_machine", lambda backend: None)
    monkeypatch.setattr(fit_module, "load_module", lambda backend: type("trt", (), {"__version__": "1.7"}))
    return patches


def test_each_aspect_has_its_answer(formula: Formula) -> None:
    result = fit(question("preset:lightweight"), 12 * GIB, [FLAT, CUBE])
    assert [one.aspect for one in result.aspects] == [FLAT, CUBE]
    for one in result.aspects:
        checked(one, formula, 12 * GIB)
    assert len(formula.built) <= 5
    facts = result.as_json()
    assert facts["measured_on_gpu"] is False
    assert facts["planned_by"] == {"backend": "tensorrt-rtx", "version": "1.7"}
    assert json.loads(json.dumps(facts)) == facts


def test_one_aspect_that_fits_is_enough(formula: Formula) -> None:
    """32x32x32 has a quarter of the voxels of 32x64x64."""
    vram = ALLOWANCE_BYTES + WEIGHTS + 400 * 32**3
    flat, cube = fit(question("preset:lightweight"), vram, [FLAT, CUBE]).aspects
    assert flat.largest is None
    assert cube.largest and cube.largest.shape == (32, 32, 32)


def test_what_is_refused_when_nothing_fits(formula: Formula) -> None:
    with pytest.raises(RefusedInput, match=r"no patch fits into 0.47 GiB: 32x32x32, the smallest, needs 1.31 GiB"):
        fit(question("preset:lightweight"), 500 * 10**6, [FLAT, CUBE])
    with pytest.raises(RefusedInput, match="32x32x3168: a side is longer than 1024"):
        fit(question("preset:lightweight"), 12 * GIB, [(1, 1, 99)])


def test_a_card_that_the_backend_does_not_build_for(formula: Formula) -> None:
    with pytest.raises(RefusedInput, match="is not for tensorrt-rtx"):
        fit(question("preset:lightweight", recipe=recipe_named("h200")), 12 * GIB, [FLAT])
    assert formula.built == []


def test_the_command_says_why_a_patch_was_not_built(formula: Formula, capsys: pytest.CaptureFixture[str]) -> None:
    formula.elements_a_voxel = 16
    assert run(["fit", "preset:lightweight", "--vram", "1000GiB", "--aspect", "1:1:1", "--aspect", "2:2:2"]) == 0
    said = capsys.readouterr().out
    assert re.search(r"largest patch that fits +496x496x496\n", said)
    assert re.search(r"which needs +not built\n", said)
    assert "512x512x512 was not built: tensor '/wide/MatMul_output_0' would have 2,147,483,648 elements" in said
    assert "TensorRT-RTX 1.7 planned" in said and "Nothing was run on a GPU" in said


def test_the_command_takes_the_memory_of_the_card(formula: Formula, capsys: pytest.CaptureFixture[str]) -> None:
    """And an aspect of which nothing fits is shown beside one of which something does."""
    assert run(["fit", "preset:lightweight", "--gpu", "rtx4090", "--json", "-"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["vram_bytes"], facts["recipe"], facts["precision"]) == (24 * GIB, "rtx4090", "fp16")
    assert [one["aspect"] for one in facts["aspects"]] == [[1, 2, 2], [1, 1, 1]]
    vram = (ALLOWANCE_BYTES + WEIGHTS + 400 * 32**3) / 1e6 + 0.001
    assert run(["fit", "preset:lightweight", "--vram", f"{vram:.3f}MB"]) == 0
    assert re.search(r"largest patch that fits +none +32x32x32\n", capsys.readouterr().out)


def test_the_command_is_exit_2_where_nothing_fits(formula: Formula, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["fit", "preset:lightweight", "--vram", "500MB"]) == 2
    assert "no patch fits into 0.47 GiB" in capsys.readouterr().err
