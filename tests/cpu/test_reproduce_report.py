"""The authors' report, made again: its checks find what is broken, and what it says is what was found."""

from __future__ import annotations

import copy
import importlib
import json
from collections.abc import Callable, Iterator
from concurrent.futures.process import BrokenProcessPool
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from torch import nn

from lhanet_export.errors import EnvironmentLacks
from lhanet_export.model.network import LHANet, LHANetWithAuxiliaryLoss
from lhanet_export.model.presets import PRESETS
from lhanet_export.model.rule import rule_network
from lhanet_export.progress import SILENT

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
WIDTH = 8
VOLUME = ((33, 48, 40), 1)


@pytest.fixture(scope="module")
def report() -> Iterator[Any]:
    """The program as a module; on the path while its children import it, too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(SCRIPTS)
        yield importlib.import_module("reproduce_report")


@pytest.fixture(scope="module")
def ten(report: Any) -> Any:
    return importlib.import_module("_ten_tests")


@pytest.fixture(scope="module")
def networks(ten: Any) -> Any:
    """As narrow as they can be, because many tests break a copy of them."""
    lightweight = rule_network("lightweight", base_channels=4)
    state, preset = lightweight.state_dict(), lightweight.preset
    auxiliary = LHANetWithAuxiliaryLoss.from_state_dict(state, preset, num_classes=14, base_channels=4)
    standard = rule_network("standard", base_channels=8)
    return ten.Networks(lightweight=lightweight, standard=standard, auxiliary=auxiliary)


@pytest.fixture(scope="module")
def narrow(report: Any) -> dict[str, Any]:
    """What is found for narrow networks, measured for real."""
    return report.measure(WIDTH, [VOLUME])


@pytest.fixture
def full(report: Any, narrow: dict[str, Any]) -> dict[str, Any]:
    """Figures as those of a run at full width: its counts, with the narrow ones' memory."""
    plans = json.loads(report.PLANS.read_text(encoding="utf-8"))
    rows = [
        {"preset": preset, "shape": list(shape), "batch": batch, "ready_bytes": 2_000_000_000, "peak_bytes": peak}
        for preset in ("lightweight", "standard")
        for (shape, batch), peak in zip(report.VOLUMES, (3e9, 9e9, 5e9), strict=True)
    ]
    return {
        **copy.deepcopy(narrow),
        "width": None,
        "engine": {"date": plans["date"], "tensorrt_rtx": plans["machine"]["tensorrt-rtx"]},
        "parameters": [count(report, preset) for preset in ("lightweight", "standard")],
        "memory": [row | report.beside(row, plans) for row in rows],
    }


def count(report: Any, preset: str, change: Callable[[LHANet], object] = lambda network: None) -> dict[str, Any]:
    """The counts of a network of full width without values, changed before."""
    with torch.device("meta"):
        network = LHANet.from_preset(preset)
        change(network)
    return report.count(network, compare=True)


def test_narrow_networks_pass_and_are_set_beside_nothing(narrow: dict[str, Any], ten: Any) -> None:
    assert [(row["name"], row["passed"]) for row in narrow["tests"]] == [
        (name, True) for name, _ in ten.ten_tests([], [])
    ], narrow["tests"]
    assert len(narrow["tests"]) == 10 and "not compared" in narrow["tests"][8]["seen"]
    assert narrow["width"] == WIDTH and narrow["engine"] is None
    assert narrow["command"] == f"python scripts/reproduce_report.py --width {WIDTH}"
    assert [row["reported"] for row in narrow["parameters"]] == [None, None]
    for row, counted in zip(narrow["memory"], narrow["parameters"], strict=True):
        assert row["preset"] == counted["preset"] and set(row) == {
            "preset", "shape", "batch", "ready_bytes", "peak_bytes",
        }  # fmt: skip
        assert counted["weights_bytes"] < row["ready_bytes"] < row["peak_bytes"] < 4e9
    json.dumps(narrow, allow_nan=False)


def test_testing_leaves_the_networks_as_they_were(ten: Any, networks: Any) -> None:
    """Those that train it, that is; `lightweight` and `auxiliary` are the same tensors."""
    before = copy.deepcopy(networks.lightweight.state_dict())
    for check in (ten.deep_supervision, ten.auxiliary_loss, ten.gradient_flow):
        check(networks)
    for network in (networks.lightweight, networks.auxiliary):
        assert not network.training and all(parameter.grad is None for parameter in network.parameters())
        for key, value in network.state_dict().items():
            assert torch.equal(value, before[key]), key


class _Copies:
    """A copy of each network that is asked for: to copy them all takes longer than a test."""

    def __init__(self, networks: Any) -> None:
        self._networks = networks

    def __getattr__(self, name: str) -> LHANet:
        network = copy.deepcopy(getattr(self._networks, name))
        setattr(self, name, network)
        return network


def _level(networks: Any) -> Any:
    return networks.lightweight.hierarchical_pmsa.pmsa_modules["level_0"]


def _branch(networks: Any) -> Any:
    return networks.auxiliary.hierarchical_pmsa.pmsa_modules["level_2"].scale_attentions[4]


def _zero(tensor: torch.Tensor) -> None:
    with torch.no_grad():
        tensor.zero_()


def _drop_a_level(networks: Any) -> None:
    networks.lightweight.backbone.encoder_blocks = networks.lightweight.backbone.encoder_blocks[:-1]


def _keep_full_size(networks: Any) -> None:
    networks.lightweight.backbone.encoder_blocks[3][0].stride = (1, 1, 1)


def _drop_a_stage(networks: Any) -> None:
    networks.standard.backbone.stages = 3


def _not_a_number(networks: Any) -> None:
    networks.standard.backbone.layer2[0].bn1.bias.data[0] = float("nan")


def _drop_a_branch(networks: Any) -> None:
    _level(networks).scale_attentions = _level(networks).scale_attentions[:4]


def _wrong_scale(networks: Any) -> None:
    _level(networks).scale_attentions[3].scale = Fraction(1)


def _silent_branch(networks: Any) -> None:
    _zero(_level(networks).scale_attentions[3].organ_conv.weight)


def _unheard_branch(networks: Any) -> None:
    _zero(_level(networks).progressive_fusion[3][0].weight[:, -networks.lightweight.channels[0] :])


def _unheard_finer_level(networks: Any) -> None:
    _zero(networks.lightweight.hierarchical_pmsa.cross_scale_fusion[1][0].weight[:, : networks.lightweight.channels[1]])


def _coarser_first(networks: Any) -> None:
    """Features that reach finer levels, too: the mean of the coarsest in all of them."""
    module = networks.lightweight.hierarchical_pmsa
    before = module.forward
    module.forward = lambda features: before([feature + features[-1].mean() for feature in features])


def _unheard_decoder_level(networks: Any) -> None:
    _zero(networks.lightweight.decoder.feature_fusion[2][0].weight[:, networks.lightweight.channels[3] :])


def _routing_of_anything(networks: Any) -> None:
    networks.lightweight.decoder.routing_gate[3] = nn.Identity()


def _sizes_of_anything(networks: Any) -> None:
    networks.lightweight.decoder.size_classifiers[2].classifier[4] = nn.Identity()


def _a_class_less(networks: Any) -> None:
    classifier = networks.lightweight.decoder.final_classifier
    networks.lightweight.decoder.final_classifier = nn.Conv3d(classifier.in_channels, 13, 1)


def _one_head_for_two(networks: Any) -> None:
    heads = networks.lightweight.deep_supervision_heads
    heads[1].forward = lambda feature: heads[0](feature[:, : heads[0].in_channels])


def _no_deep_supervision(networks: Any) -> None:
    before = networks.lightweight.forward
    networks.lightweight.forward = lambda *of, **more: (
        {"final_prediction": before(*of)["final_prediction"]} if networks.lightweight.training else before(*of)
    )


def _constant_logits(networks: Any) -> None:
    _zero(networks.standard.decoder.final_classifier.weight)


def _coarser_levels(networks: Any) -> None:
    networks.standard.backbone.layer3[0].conv1.stride = (4, 4, 4)
    networks.standard.backbone.layer3[0].downsample[0].stride = (4, 4, 4)
    networks.standard.backbone.layer4[0].conv1.stride = (1, 1, 1)
    networks.standard.backbone.layer4[0].downsample[0].stride = (1, 1, 1)


def _no_auxiliary_outputs(networks: Any) -> None:
    networks.auxiliary.forward = partial(LHANet.forward, networks.auxiliary)


def _another_weight(networks: Any) -> None:
    networks.auxiliary.auxiliary_weight = 0.3


def _cut_gradient(networks: Any) -> None:
    _branch(networks).register_forward_hook(lambda *of: of[-1].detach())


def _zero_gradient(networks: Any) -> None:
    _branch(networks).context_conv.register_forward_hook(lambda *of: of[-1].detach() + 0 * of[-1])


def _gradient_of_no_number(networks: Any) -> None:
    _branch(networks).register_forward_hook(lambda *of: of[-1] + 0 * (0 * of[-1]).sqrt())


def _gradient_where_none_goes(networks: Any) -> None:
    gate = networks.auxiliary.decoder.routing_gate
    networks.auxiliary.decoder.final_classifier.register_forward_hook(lambda _, given, of: of + gate(given[0])[:, :1])


def _dead_attention(networks: Any) -> None:
    for branch in networks.auxiliary.hierarchical_pmsa.pmsa_modules["level_1"].scale_attentions:
        _zero(branch.spatial_attention.fc[0].weight)


@pytest.mark.parametrize(
    ("name", "broken", "seen"),
    [
        ("lightweight backbone", _drop_a_level, "feature maps: "),
        ("lightweight backbone", _keep_full_size, "feature maps: "),
        ("ResNet3D backbone", _drop_a_stage, "feature maps: "),
        ("ResNet3D backbone", _not_a_number, "feature map 3: not finite everywhere"),
        ("PMSA over 5 scales", _drop_a_branch, "RuntimeError: "),
        ("PMSA over 5 scales", _wrong_scale, "what the organ kernels see: [(4, 6, 5), (6, 9, 7), (8, 12, 10), (8, 12"),
        ("PMSA over 5 scales", _silent_branch, "the result of branch 4: the same in all voxels"),
        ("PMSA over 5 scales", _unheard_branch, "branches that count: [True, True, True, True, False]"),
        ("hierarchical PMSA over 4 levels", _unheard_finer_level, "in level 2: [False, False, True, False] instead"),
        ("hierarchical PMSA over 4 levels", _coarser_first, "in level 0: [True, False, False, True] instead"),
        ("organ-size-aware decoder", _unheard_decoder_level, "in the logits: [False, False, False, True] instead"),
        ("organ-size-aware decoder", _routing_of_anything, "routing: no probabilities"),
        ("organ-size-aware decoder", _sizes_of_anything, "size predictions: no probabilities"),
        ("organ-size-aware decoder", _a_class_less, "logits: [(2, 13, 17, 22, 19), (2, 14"),
        ("LHA-Net lightweight with deep supervision", _one_head_for_two, "in deep output 1: [True, False,"),
        ("LHA-Net lightweight with deep supervision", _no_deep_supervision, "training: {'final_prediction'} instead"),
        ("LHA-Net standard", _constant_logits, "logits: the same in all voxels"),
        ("LHA-Net standard", _coarser_levels, "levels: "),
        ("LHA-Net with auxiliary loss", _no_auxiliary_outputs, "outputs in training: "),
        ("LHA-Net with auxiliary loss", _another_weight, "weights of the losses: {'auxiliary_weight': 0.3"),
        ("gradient flow", _cut_gradient, "without a gradient: hierarchical_pmsa.pmsa_modules.level_2.scale"),
        ("gradient flow", _dead_attention, "zero in all of the gradient of: hierarchical_pmsa.pmsa_modules.level_1"),
        ("gradient flow", _zero_gradient, "zero in all of the gradient of: "),
        ("gradient flow", _gradient_of_no_number, "not finite in the gradient of: "),
        ("gradient flow", _gradient_where_none_goes, "unused and yet with a gradient: decoder.routing_gate.0.weight"),
    ],
)  # fmt: skip
def test_a_broken_network_fails(
    name: str, broken: Callable[[Any], None], seen: str, ten: Any, networks: Any
) -> None:  # fmt: skip
    subjects = _Copies(networks)
    broken(subjects)
    result = ten.outcome(name, dict(ten.ten_tests([], []))[name], subjects)
    assert not result["passed"] and seen in result["seen"], result


def test_every_test_was_seen_failing(ten: Any) -> None:
    """The ninth is of figures, and has tests of its own below."""
    (broken,) = (mark for mark in test_a_broken_network_fails.pytestmark if mark.name == "parametrize")
    names = [name for name, _ in ten.ten_tests([], [])]
    assert {name for name, _, _ in broken.args[1]} == set(names) - {"memory usage and parameter counts"}


@pytest.mark.parametrize("preset", ["lightweight", "standard"])
def test_parameters_are_those_of_the_report(report: Any, ten: Any, preset: str) -> None:
    row = count(report, preset)
    assert ten.mismatches(row) == []
    assert row["reported"]["total"] == row["total"] and row["weights_bytes"] == 4 * row["total"]
    assert row["total"] == row["backbone"] + row["pmsa"] + row["decoder"] + row["rest"]


def test_a_parameter_too_few_is_found(report: Any, ten: Any) -> None:
    def without_bias(network: LHANet) -> None:
        network.decoder.final_classifier.bias = None

    assert ten.mismatches(count(report, "standard", without_bias)) == [
        "standard: total is 330,290,361, in the report 330,290,375",
        "standard: decoder is 17,147,303, in the report 17,147,317",
    ]

    def wider(network: LHANet) -> None:
        network.final_conv = nn.Conv3d(256, 1_000_000, 1)

    found = ten.mismatches(count(report, "standard", wider))
    assert [line.partition(" is ")[0] for line in found] == [
        "standard: total", "standard: rest", "standard: weights_mb",
    ]  # fmt: skip


def test_the_ninth_test_is_of_counts_and_memory(ten: Any, full: dict[str, Any]) -> None:
    def ninth(figures: dict[str, Any]) -> dict[str, Any]:
        name, check = ten.ten_tests(figures["parameters"], figures["memory"])[8]
        return ten.outcome(name, check, None)

    passed = ninth(full)
    assert passed["passed"] and "311,237,575 and 330,290,375 parameters, as reported" in passed["seen"]
    for change, seen in (
        (lambda figures: figures["parameters"][1].update(pmsa=1), "standard: pmsa is 1, in the report 279,965,964"),
        (lambda figures: figures["memory"][0].update(ready_bytes=1.2e9), "lightweight: 1,200 MB, then 3,000 MB cannot"),
        (lambda figures: figures["memory"][4].update(peak_bytes=2.1e9), "of 1,321 MB, then logits of 198 MB"),
        (lambda figures: figures["memory"][5].update(peak_bytes=2.1e9), "of 1,321 MB, then logits of 117 MB"),
        (lambda figures: figures.update(memory=figures["memory"][:3]), "standard: no memory was measured"),
    ):
        figures = copy.deepcopy(full)
        change(figures)
        failed = ninth(figures)
        assert not failed["passed"] and seen in failed["seen"], failed


def test_planned_memory_is_that_of_fp16_engines(report: Any) -> None:
    plans = {
        "rows": [
            {"preset": "standard", "precision": precision, "batch": batch, "max": "64x128x128",
             "weights_bytes": weights, "activation_bytes": 10}
            for precision, batch, weights in (("int8", 1, 1), ("fp16", 1, 2), ("fp16", 2, 3))
        ]
    }  # fmt: skip
    row = {"preset": "standard", "shape": [64, 128, 128], "batch": 1}
    assert report.beside(row, plans) == {"reported_mb": 1851, "engine_bytes": 12}
    assert report.beside({**row, "batch": 2}, plans) == {"reported_mb": None, "engine_bytes": 13}
    assert report.beside({**row, "shape": [96, 192, 192]}, plans) == {"reported_mb": None, "engine_bytes": None}


def test_the_page_is_made_of_the_figures(report: Any, full: dict[str, Any]) -> None:
    full["tests"][3] |= {"passed": False, "seen": "one | two"}
    lines = report.section(json.loads(json.dumps(full)))
    page = "\n".join(lines)
    assert [line for line in lines if line.startswith("#")] == [
        "## The report that started the project, again",
        "### Parameters",
        "### Memory of one eager FP32 inference",
        "### The ten tests",
    ]
    assert "| total | 311,237,575 | 311,237,575 | 330,290,375 | 330,290,375 |" in lines
    assert "Every count equals the report's." in lines
    plan = next(row for row in full["memory"] if row["engine_bytes"])
    engine = f"{plan['engine_bytes'] / 1e6:,.0f} MB"
    assert f"| lightweight | 64x128x128 | 1 | 2,000 MB | 3,000 MB | ~2,278 MB | {engine} |" in lines
    assert "| standard | 96x192x192 | 1 | 2,000 MB | 9,000 MB | not reported | not planned |" in lines
    assert "resident memory of a process on a CPU, not GPU memory" in page
    assert f"planned by the builder for an RTX 3060 (TensorRT-RTX {full['engine']['tensorrt_rtx']}, " in page
    assert "9 of 10 pass" in page and r"| failed | one \| two |" in page
    for table in (group.splitlines() for group in page.split("\n\n") if group.startswith("| ")):
        assert len({line.replace(r"\|", "").count("|") for line in table}) == 1

    full["parameters"][0]["backbone"] += 1
    assert "Not equal: lightweight: backbone is 14,107,201, in the report 14,107,200." in report.section(full)
    full |= {"memory_kind": "allocator", "machine": {**full["machine"], "gpu": "Card"}}
    page = "\n".join(report.section(full))
    assert "PyTorch's allocator held at once on Card" in page and "CPU, not GPU" not in page


def test_the_page_of_narrow_networks_compares_nothing(report: Any, narrow: dict[str, Any]) -> None:
    page = "\n".join(report.section(narrow))
    assert page.count(f"Networks of {WIDTH} base channels instead of their own: nothing is compared") == 3
    assert "311,237,575" not in page and "2,278" not in page and "equals" not in page and "planned by" not in page


def test_exit_codes(
    report: Any, full: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    out = tmp_path / "made" / "report.json"
    monkeypatch.setattr(report, "measure", lambda width, progress: full)
    done = CliRunner().invoke(report.main, ["--out", str(out)])
    assert done.exit_code == 0 and "311,237,575" in done.stdout and "10 of 10 pass" in done.stdout
    assert json.loads(out.read_text()) == full

    full["tests"][8] |= {"passed": False, "seen": "standard: total is 1, in the report 330,290,375"}
    done = CliRunner().invoke(report.main, ["--out", str(out)])
    assert done.exit_code == 2 and "the report does not hold here; memory usage" in done.stderr
    assert json.loads(out.read_text()) == full

    def fail(width: int | None, progress: object) -> dict[str, Any]:
        raise EnvironmentLacks("no room")

    monkeypatch.setattr(report, "measure", fail)
    done = CliRunner().invoke(report.main, ["--out", str(tmp_path / "never" / "report.json")])
    assert done.exit_code == 3 and "no room" in done.stderr and not (tmp_path / "never").exists()


def test_a_killed_child_is_want_of_memory(report: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    class Pool:
        def __init__(self, *of: object) -> None: ...

        def __enter__(self) -> Pool:
            return self

        def __exit__(self, *of: object) -> None: ...

        def submit(self, *of: object) -> None:
            raise BrokenProcessPool("terminated abruptly")

    monkeypatch.setattr(report, "ProcessPoolExecutor", Pool)
    with pytest.raises(EnvironmentLacks, match=r"standard, 64x128x128, batch 2: .*want of it"):
        report.memory_row("standard", None, (64, 128, 128), 2, SILENT)


@pytest.mark.gpu
def test_memory_on_a_gpu_is_the_allocators(report: Any) -> None:
    row = report.memory_row("lightweight", WIDTH, (32, 48, 40), 1, SILENT)
    weights = report.count(LHANet(PRESETS["lightweight"], base_channels=WIDTH), compare=False)["weights_bytes"]
    # The batch norms' statistics and the volume are there, too; a process as a whole would take hundreds of MB more.
    assert weights < row["ready_bytes"] < 1.1 * weights < row["peak_bytes"] < weights + 200e6
