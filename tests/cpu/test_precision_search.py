"""The search for FP32 nodes finds what makes FP16 fail, and nothing else, and what it finds passes."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from lhanet_export.cli.search import search as search_command
from lhanet_export.errors import GateFailed, RefusedInput
from lhanet_export.export.artifact import OnnxArtifact, read_onnx
from lhanet_export.export.onnx_from_network import ExportOptions, onnx_from_network
from lhanet_export.model.checkpoint import open_checkpoint
from lhanet_export.model.network import LHANet
from lhanet_export.precision.convert import fp16_from_fp32
from lhanet_export.precision.fp16 import convert_to_fp16
from lhanet_export.precision.recipe import KeptNode, PrecisionRecipe, read_recipe, write_recipe
from lhanet_export.precision.search import SearchResult, search_fp16, smallest_set
from lhanet_export.runners.eager import EagerRunner
from lhanet_export.runners.onnxruntime_ import OnnxRuntimeRunner
from lhanet_export.verify import cases as verify_cases
from lhanet_export.verify.gate import TOLERANCES, Verification, reference_for, verify
from lhanet_export.verify.inputs import bodies, cases_for
from tests.cpu.chains import chain
from tests.cpu.conftest import CHECKPOINT
from tests.cpu.test_export import relative_l2

IMAGES = [bodies((8, 9, 10), 1), bodies((5, 6, 7), 2)]
#: Fewer nodes, so sessions open sooner.
PLAIN = ExportOptions(without=("short-convolutions", "stacked-fusions", "split-stem"))


@dataclass
class GateOfChains:
    """Holds the logits of chains against those of the FP32 file; counts what it is asked."""

    allowed: float = 5e-3
    expected: list[np.ndarray] = field(default_factory=list)
    kept: list[list[str]] = field(default_factory=list)

    def __call__(self, artifact: OnnxArtifact) -> "VerdictOnChain":
        self.kept.append(artifact.facts.get("precision_recipe", {"keep": ["all"]})["keep"])
        with OnnxRuntimeRunner(artifact) as runner:
            found = [runner.infer(image) for image in IMAGES]
        return VerdictOnChain(
            errors=[relative_l2(one, other) for one, other in zip(found, self.expected, strict=True)],
            allowed=self.allowed,
        )


@dataclass
class VerdictOnChain:
    errors: list[float]
    allowed: float
    runner: str = "chains"

    @property
    def passed(self) -> bool:
        return not self.failures

    @property
    def failures(self) -> tuple[str, ...]:
        return tuple(f"relative L2 is {error:.2e}" for error in self.errors if not error <= self.allowed)

    def as_json(self) -> dict[str, Any]:
        return {
            "cases": [
                {
                    "shape": list(image.shape[2:]),
                    "relative_l2": error if np.isfinite(error) else None,
                    "label_agreement": None,
                    "nonfinite": int(not np.isfinite(error)),
                }
                for image, error in zip(IMAGES, self.errors, strict=True)
            ]
        }


Search = Callable[..., tuple[SearchResult, GateOfChains]]


@pytest.fixture
def searched(tmp_path: Path) -> Search:
    """Makes a chain, searches its recipe, and checks what holds of every result."""

    def search(allowed: float = 5e-3, most_trials: int = 200, **how: Any) -> tuple[SearchResult, GateOfChains]:
        source = chain(tmp_path / "fp32.onnx", **how)
        gate = GateOfChains(allowed=allowed)
        with OnnxRuntimeRunner(source) as runner:
            gate.expected = [runner.infer(image) for image in IMAGES]
        result = search_fp16(source, gate, IMAGES, tmp_path / "trials", most_trials=most_trials)
        assert result.measured.trials == len(gate.kept)
        assert len({tuple(kept) for kept in gate.kept}) == len(gate.kept), "nothing is tried twice"
        assert list((tmp_path / "trials").iterdir()) == []
        half, report = fp16_from_fp32(source, tmp_path / "fp16.onnx", recipe=result.recipe)
        assert gate(half).passed and result.after.passed
        assert {node.name: node.reason for node in result.recipe.keep}.items() <= report.float_nodes.items()
        return result, gate

    return search


def _names(result: SearchResult) -> list[str]:
    return [node.name.removeprefix("/part.").replace("/block/", " ") for node in result.recipe.keep]


def test_what_passes_needs_nothing(searched: Search) -> None:
    result, gate = searched()
    assert result.recipe.keep == () and len(gate.kept) == 2
    assert result.measured.cost.multiply_adds == 0 and result.before.passed


def test_overflow_is_found_from_ranges(searched: Search) -> None:
    result, _ = searched(factors={2: 2e5, 3: 1 / 2e5})
    assert _names(result) == ["2 Conv", "2 Relu", "3 Conv"]
    gives, also, reads = (node.reason for node in result.recipe.keep)
    assert gives.startswith("gives values up to ") and gives.endswith("beyond FP16's range of 65,504")
    assert also.startswith("gives values") and reads.startswith("reads values")
    assert result.measured.trials == 2 and not result.before.passed
    # Two of seven convolutions; the first reads one channel, and the last sums six products.
    products = [27 * 6, *[27 * 36] * 5, 18]
    assert result.measured.cost.multiply_adds == pytest.approx(2 * 27 * 36 / sum(products), abs=1e-6)
    assert result.measured.cost.weights == pytest.approx(2 * 27 * 36 / sum(products), abs=1e-6)
    assert result.measured.cost.activations == pytest.approx(18 / (12 * 6 + 3), abs=1e-6)
    assert [case.shape for case in result.measured.before] == [(8, 9, 10), (5, 6, 7)]
    rows = dict(result.rows())
    assert rows["nodes kept in FP32"] == "3" and rows["share of multiply-adds"] == "38.57%"
    assert rows["search"].startswith("2 trials")


def test_weights_beyond_the_range_stay_fp32_at_once(searched: Search) -> None:
    result, _ = searched(factors={1: 1e-3, 2: 1e6, 3: 1e-3})
    reasons = {name: node.reason for name, node in zip(_names(result), result.recipe.keep, strict=True)}
    assert "2 Conv" in reasons
    assert "beyond FP16's range" in reasons["2 Conv"]


def test_underflow_is_found_among_suspects(searched: Search) -> None:
    result, gate = searched(factors={2: 1e-7, 3: 1e7})
    assert _names(result) == ["2 Conv", "2 Relu", "3 Conv"]
    conv, relu, reader = (node.reason for node in result.recipe.keep)
    assert "below FP16's smallest normal number" in conv and "without it relative L2 is" in conv
    assert "reads values of RMS" in relu or "gives values of RMS" in relu
    assert reader.startswith("weights reach") and "beyond FP16's range" in reader
    assert len(gate.kept) < 10


def test_what_no_range_shows_is_found_by_bisection(searched: Search) -> None:
    result, gate = searched(shift=20_000.0)
    assert _names(result) == ["2 Add", "2 Sub"]
    assert all(node.reason.startswith("without it relative L2 is") for node in result.recipe.keep)
    # Of 4,096 sets of its twelve FP16 nodes.
    assert len(gate.kept) < 25


def test_too_few_trials_still_give_what_passes(searched: Search) -> None:
    whole, _ = searched(shift=20_000.0)
    some, gate = searched(shift=20_000.0, most_trials=5)
    assert len(gate.kept) <= 7
    assert {node.name for node in whole.recipe.keep} < {node.name for node in some.recipe.keep}
    assert any(node.reason == "found by bisection, together with the others" for node in some.recipe.keep)


def test_a_gate_that_only_fp32_passes(tmp_path: Path) -> None:
    source = chain(tmp_path / "fp32.onnx")
    gate = GateOfChains(allowed=0)
    with OnnxRuntimeRunner(source) as runner:
        gate.expected = [runner.infer(image) for image in IMAGES]
    with pytest.raises(GateFailed, match=r"in 12 trials .* passed with nothing in FP16 only; use --precision fp32"):
        search_fp16(source, gate, IMAGES, tmp_path / "trials", most_trials=12)
    assert not (tmp_path / "trials").exists()


def test_a_gate_that_not_even_fp32_passes(tmp_path: Path) -> None:
    source = chain(tmp_path / "fp32.onnx")
    gate = GateOfChains(expected=[np.ones((1, 3, *image.shape[2:]), np.float32) for image in IMAGES])
    with pytest.raises(GateFailed, match=r"does not pass in FP32 either, so no precision recipe can help: relative L2"):
        search_fp16(source, gate, IMAGES, tmp_path / "trials")
    assert len(gate.kept) == 2


@pytest.mark.parametrize("needed", [{5}, {0, 1}, {3, 17}, {2, 3, 4, 30, 31}, set(range(8, 24)), set(range(32))])
def test_the_smallest_set_of_a_monotone_question(needed: set[int]) -> None:
    asked: list[Sequence[int]] = []

    def passes(items: Sequence[int]) -> bool:
        asked.append(items)
        return needed <= set(items)

    assert smallest_set(range(32), passes) == sorted(needed)
    assert len(asked) < 32 * 32


def test_the_smallest_set_passes_though_more_may_not() -> None:
    """An item whose presence spoils everything: the set that comes out was asked for and passed."""
    asked: dict[tuple[int, ...], bool] = {}

    def passes(items: Sequence[int]) -> bool:
        return asked.setdefault(tuple(items), {3, 9} <= set(items) and (7 not in items or len(items) == 12))

    found = smallest_set(range(12), passes)
    assert asked[tuple(found)] and {3, 9} <= set(found)


def test_a_recipe_for_another_network_is_refused(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = chain(tmp_path / "fp32.onnx")
    recipe = PrecisionRecipe(
        onnx_sha256=source.sha256, checkpoint_sha256="c" * 64, keep=(KeptNode(name="/part.1/block/Conv", reason="a"),)
    )
    fp16_from_fp32(source, tmp_path / "fp16.onnx", recipe=recipe)
    assert not caplog.records
    for name in ("/part.9/block/Conv", "/part.1/block/Conv_output_0/to_half"):
        other = replace(recipe, keep=(*recipe.keep, KeptNode(name=name, reason="b")))
        with pytest.raises(RefusedInput, match=f"1 nodes that should stay FP32 are not in the graph.*: {name}"):
            fp16_from_fp32(source, tmp_path / "other.onnx", recipe=other)
    assert not (tmp_path / "other.onnx").exists()
    # Another checkpoint of the same network: its nodes are the same, what was measured is not.
    trained_on = chain(tmp_path / "more.onnx", factors={1: 1.5})
    artifact, _ = fp16_from_fp32(trained_on, tmp_path / "more.fp16.onnx", recipe=recipe)
    assert "was found on another graph" in caplog.text
    assert read_onnx(artifact.path).facts["precision_recipe"] == {
        "sha256": recipe.sha256,
        "keep": [recipe.keep[0].name],
    }


def test_a_node_that_stays_fp32_by_rule_keeps_that_reason(narrow_onnx: OnnxArtifact) -> None:
    model = ir.load(narrow_onnx.path)
    by_rule = convert_to_fp16(ir.load(narrow_onnx.path)).float_nodes
    name = next(name for name, reason in by_rule.items() if reason.startswith("mean over voxels"))
    report = convert_to_fp16(model, keep={name: "mine", "/backbone/Add": "mine, too"})
    assert report.float_nodes == {**by_rule, "/backbone/Add": "mine, too"}


def test_a_network_that_overflows(overflowing_network: LHANet, tmp_path: Path) -> None:
    source = onnx_from_network(overflowing_network, CHECKPOINT, tmp_path / "fp32.onnx", PLAIN)
    cases = cases_for([(32, 35, 33)])
    reference = reference_for(EagerRunner(overflowing_network), cases)

    def judge(artifact: OnnxArtifact) -> Verification:
        return verify(OnnxRuntimeRunner(artifact), reference, TOLERANCES["fp16"])

    result = search_fp16(source, judge, [case.image for case in cases], tmp_path)
    branch = "/pmsa.1/scale_attentions.1"
    assert [node.name for node in result.recipe.keep] == [
        f"{branch}/context_conv/context_conv.0/Conv", f"{branch}/context_conv/context_conv.2/Relu",
        f"{branch}/organ_conv/Conv",
    ]  # fmt: skip
    assert not result.before.passed and result.after.passed and result.measured.trials == 2
    assert 0 < result.measured.cost.multiply_adds < 0.01 and 0 < result.measured.cost.weights < 0.01
    write_recipe(result.recipe, tmp_path / "recipe.yaml")
    recipe = read_recipe(tmp_path / "recipe.yaml")
    assert recipe == result.recipe
    once, _ = fp16_from_fp32(source, tmp_path / "once.onnx", recipe=result.recipe)
    again, _ = fp16_from_fp32(source, tmp_path / "again.onnx", recipe=recipe)
    assert again.path.read_bytes() == once.path.read_bytes()
    assert judge(read_onnx(again.path)).passed
    json.dumps(result.as_json(), allow_nan=False)


def test_the_command_writes_a_recipe(
    narrow_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    network, identity = open_checkpoint(str(narrow_checkpoint))
    source = onnx_from_network(network, identity.as_json(), tmp_path / "fp32.onnx", PLAIN)
    monkeypatch.setattr(verify_cases, "comparison_cases", lambda *spatial, **how: cases_for([(32, 35, 33)]))
    arguments = [str(source.path), "--checkpoint", str(narrow_checkpoint), "-o", str(tmp_path / "recipe.yaml")]
    search_command.main([*arguments, "--json", str(tmp_path / "facts.json")], standalone_mode=False)
    recipe = read_recipe(tmp_path / "recipe.yaml")
    assert recipe.keep == () and recipe.onnx_sha256 == source.sha256
    assert recipe.checkpoint_sha256 == identity.as_json()["sha256"]
    facts = json.loads((tmp_path / "facts.json").read_text(encoding="utf-8"))
    assert facts["after"]["passed"] and facts["trials"] == 1 and "1 trials" in capsys.readouterr().out
