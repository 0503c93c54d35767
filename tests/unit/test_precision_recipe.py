"""Precision recipes as files: what is written is what is read, and nothing else is taken for one."""

from dataclasses import replace
from pathlib import Path

import pytest

from lhanet_export.errors import RefusedInput
from lhanet_export.precision.recipe import (
    CaseError,
    Cost,
    KeptNode,
    Measured,
    PrecisionRecipe,
    read_recipe,
    write_recipe,
)

RECIPE = PrecisionRecipe(
    onnx_sha256="a" * 64,
    checkpoint_sha256="0" * 64,
    keep=(
        KeptNode(name="/pmsa.1/organ_conv/Conv", reason="gives values up to 81,920 (volume 2): beyond FP16's range"),
        KeptNode(name="/pmsa.1/Relu", reason='without it "relative L2" is 7.1e-03, allowed 5e-03'),
    ),
    measured=Measured(
        runner="onnxruntime cpu, rounding to fp16",
        before=(CaseError(shape=(33, 50, 71), relative_l2=None, label_agreement=0.25, nonfinite=585750),),
        after=(CaseError(shape=(33, 50, 71), relative_l2=9.465558602274105e-05, label_agreement=1.0, nonfinite=0),),
        trials=2,
        seconds=28.6,
        cost=Cost(multiply_adds=0.002722, weights=0.003004, activations=1e-6),
    ),
)
GOOD = f"schema: 1\nprecision: fp16\nonnx_sha256: {'a' * 64}\ncheckpoint_sha256: {'b' * 64}\nkeep: []\n"


def _write(folder: Path, text: str | bytes) -> Path:
    path = folder / "recipe.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


@pytest.mark.parametrize("recipe", [RECIPE, replace(RECIPE, keep=(), measured=None)])
def test_what_is_written_is_read(recipe: PrecisionRecipe, tmp_path: Path) -> None:
    write_recipe(recipe, tmp_path / "recipe.yaml")
    assert read_recipe(tmp_path / "recipe.yaml") == recipe
    assert read_recipe(tmp_path / "recipe.yaml").sha256 == recipe.sha256
    assert list(tmp_path.iterdir()) == [tmp_path / "recipe.yaml"]


def test_the_hash_is_that_of_the_file_and_tells_recipes_apart(tmp_path: Path) -> None:
    from lhanet_export.files import sha256_of

    write_recipe(RECIPE, tmp_path / "recipe.yaml")
    assert RECIPE.sha256 == sha256_of(tmp_path / "recipe.yaml")
    assert RECIPE.sha256 != replace(RECIPE, keep=RECIPE.keep[:1]).sha256


def test_a_recipe_by_hand_needs_no_measurement(tmp_path: Path) -> None:
    recipe = read_recipe(_write(tmp_path, GOOD.replace("keep: []", "keep:\n  - {node: /Conv, reason: I say so}")))
    assert recipe.measured is None and recipe.reasons == {"/Conv": "I say so"}


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "expected an object"),
        (b"\xff\xfe", "not a valid recipe"),
        ("keep: [", "not a valid recipe"),
        (GOOD + "keep: []\n", "occurs twice"),
        (GOOD + "keeep: []\n", "unknown key 'keeep'"),
        (GOOD.replace("schema: 1", "schema: 2"), "schema: expected a whole number"),
        (GOOD.replace("fp16", "fp8"), "precision: expected fp16"),
        (GOOD.replace("a" * 64, "abc"), "onnx_sha256: expected a SHA-256"),
        (GOOD.replace("keep: []", ""), "key 'keep' is missing"),
        (GOOD.replace("keep: []", "keep: [{node: /a}]"), r"keep\[0\]: key 'reason' is missing"),
        (GOOD.replace("keep: []", "keep: [{node: /a, reason: b, why: c}]"), r"keep\[0\]: unknown key 'why'"),
        (GOOD.replace("keep: []", "keep: [{node: /a, reason: b}, {node: /a, reason: c}]"), "named twice"),
        (GOOD.replace("keep: []", "keep: &a [{node: *a, reason: b}]"), "aliases are not allowed"),
        (GOOD.replace("keep: []", "keep: !!python/object/apply:os.getcwd []"), "not a valid recipe"),
        (GOOD + "measured: {runner: cpu}\n", "measured: key 'before' is missing"),
        (" " * (1 << 20) + GOOD, "larger than 1048576 bytes"),
    ],
)
def test_what_is_no_recipe_is_refused(text: str | bytes, complaint: str, tmp_path: Path) -> None:
    with pytest.raises(RefusedInput, match=complaint):
        read_recipe(_write(tmp_path, text))


def test_numbers_out_of_range_are_refused(tmp_path: Path) -> None:
    write_recipe(RECIPE, tmp_path / "recipe.yaml")
    text = (tmp_path / "recipe.yaml").read_text(encoding="utf-8")
    for old, new in (("0.002722", "1.5"), ("0.002722", ".nan"), ("trials: 2", "trials: 0"), ("585750", "-1")):
        with pytest.raises(RefusedInput, match=r"measured\..*expected"):
            read_recipe(_write(tmp_path, text.replace(old, new)))


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RefusedInput, match="cannot read the recipe"):
        read_recipe(tmp_path / "none.yaml")
