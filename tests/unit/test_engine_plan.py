"""What is decided before an engine is built, without TensorRT."""

import json
from pathlib import Path
from typing import Any

import pytest

from lhanet_export.engine.backends import is_out_of_memory
from lhanet_export.engine.build import Phases
from lhanet_export.engine.plan import EnginePlan, plan_engine
from lhanet_export.engine.recipes import recipe_named
from lhanet_export.errors import RefusedInput
from lhanet_export.shapes import SpatialRange

EXPORTED = "32x64x64:64x128x128:64x128x128"


def facts(**changes: Any) -> dict[str, Any]:
    """An ONNX sidecar, as far as a plan reads it."""
    sizes = SpatialRange.parse(EXPORTED)
    return {
        "sha256": "a" * 64,
        "opset": 18,
        "precision": "fp16",
        "batch": 1,
        "spatial": {"min": list(sizes.min), "opt": list(sizes.opt), "max": list(sizes.max)},
        **changes,
    }


def plan(onnx_facts: dict[str, Any], **options: Any) -> EnginePlan:
    return plan_engine(Path("model.onnx"), onnx_facts, **{"recipe": recipe_named("rtx3060"), **options})


def test_a_plan_follows_graph_and_recipe() -> None:
    made = plan(facts())
    assert made.onnx == Path.cwd() / "model.onnx"
    assert made.onnx_sha256 == "a" * 64
    assert (made.precision, made.backend, made.compute_capabilities) == ("fp16", "tensorrt-rtx", ("8.6",))
    assert made.profiles == (SpatialRange.parse(EXPORTED),)
    assert made.memory_bytes == 12 * 2**30
    assert made.shapes(made.profiles[0]) == ((1, 1, 32, 64, 64), (1, 1, 64, 128, 128), (1, 1, 64, 128, 128))


def test_sizes_come_from_the_option_or_else_from_recipe_and_graph() -> None:
    narrower = SpatialRange.parse("48x64x64:48x96x96:64x96x96")
    assert plan(facts(), spatial=narrower).profiles == (narrower,)
    assert plan(facts(spatial=None)).profiles == (recipe_named("rtx3060").spatial,)
    assert plan(facts(spatial=None), spatial=narrower).profiles == (narrower,)
    wide = {"min": [16, 16, 16], "opt": [64, 64, 64], "max": [96, 100, 1024]}
    assert plan(facts(spatial=wide)).profiles == (SpatialRange.parse("32x64x64:64x100x128:96x100x192"),)
    large = {"min": [256, 256, 256], "opt": [256, 256, 256], "max": [256, 256, 256]}
    with pytest.raises(RefusedInput, match="no size in common"):
        plan(facts(spatial=large))


def test_sizes_beyond_the_graph_are_refused() -> None:
    with pytest.raises(RefusedInput, match=r"go beyond 32x64x64.*export it again"):
        plan(facts(), spatial=SpatialRange.parse("32x64x64:64x128x128:64x128x129"))


def test_batch_of_the_graph() -> None:
    assert plan(facts(batch=4)).batch == (4, 4, 4)
    assert plan(facts(batch=None)).batch == (1, 1, 1)
    assert plan(facts(batch=None), batch=(1, 2, 4)).batch == (1, 2, 4)
    assert plan(facts(batch=4), batch=(4, 4, 4)).batch == (4, 4, 4)
    with pytest.raises(RefusedInput, match="exported for batch 1"):
        plan(facts(), batch=(1, 2, 4))
    with pytest.raises(RefusedInput, match="min <= opt <= max"):
        plan(facts(batch=None), batch=(2, 1, 4))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"precision": "fp8"}, "precision: expected fp32 or fp16"),
        ({"precision": None}, "precision: expected a text, found nothing"),
        ({"sha256": "A" * 64}, "sha256: expected a SHA-256"),
        ({"spatial": {"min": [1, 2, 3]}}, "spatial: key 'opt' is missing"),
        ({"spatial": [1, 2, 3]}, "spatial: expected an object"),
        ({"batch": True}, "batch: expected a whole number"),
        ({"batch": 0}, "batch: expected a whole number from 1"),
    ],
)
def test_facts_that_are_refused(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(RefusedInput, match=reason):
        plan(facts(**changes))


def test_backends_that_a_recipe_is_not_for() -> None:
    assert plan(facts(), backend="tensorrt").backend == "tensorrt"
    with pytest.raises(RefusedInput, match=r"any-rtx.*is not for tensorrt; it builds with tensorrt-rtx"):
        plan(facts(), recipe=recipe_named("any-rtx"), backend="tensorrt")
    with pytest.raises(RefusedInput, match="it builds with tensorrt"):
        plan(facts(), recipe=recipe_named("h200"))
    with pytest.raises(RefusedInput, match="there is no backend 'openvino'"):
        plan(facts(), backend="openvino")


def test_a_plan_survives_json() -> None:
    made = plan(facts(batch=None), batch=(1, 2, 4), recipe=recipe_named("any-rtx"))
    assert EnginePlan.from_json(json.loads(json.dumps(made.as_json()))) == made


@pytest.mark.parametrize("change", [{"backend": "x"}, {"profiles": []}, {"batch": [1, 1]}, {"extra": 1}, {"onnx": 1}])
def test_json_that_is_no_plan(change: dict[str, Any]) -> None:
    with pytest.raises(RefusedInput, match="build plan"):
        EnginePlan.from_json({**plan(facts()).as_json(), **change})


def test_nested_phases_become_one_growing_fraction() -> None:
    phases = Phases()
    phases.start("build", None, 4)
    assert phases.step("build") == pytest.approx(0.25)
    phases.start("inner", "build", 2)
    assert phases.step("inner") == pytest.approx(0.125)
    assert phases.finish("inner") == pytest.approx(0.125)
    assert phases.step("build") == 0  # the step that the inner phase was
    assert phases.step("unknown") == 0
    assert phases.finish("unknown") == 0
    assert phases.finish("build") == pytest.approx(0.5)
    phases.start("another", None, 2)
    assert phases.step("another") == 0


def test_words_for_memory() -> None:
    assert is_out_of_memory("Error Code 2: OutOfMemory (Requested size was 1 bytes.)")
    assert is_out_of_memory("CUDA out of memory. Tried to allocate")
    assert is_out_of_memory("cudaErrorMemoryAllocation")
    assert not is_out_of_memory("Total Activation Memory: 12 bytes")
