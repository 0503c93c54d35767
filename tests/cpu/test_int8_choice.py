"""The way to INT8 is chosen by what was measured, and what was measured is kept for the same graph and windows only."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import onnx
import onnx_ir as ir
import pytest

from lhanet_export.cli.calibrate import METHODS as COMMAND_METHODS
from lhanet_export.cli.calibrate import calibrate as calibrate_command
from lhanet_export.errors import RefusedInput
from lhanet_export.export.artifact import OnnxArtifact, read_onnx
from lhanet_export.export.onnx_from_network import ExportOptions, onnx_from_network
from lhanet_export.export.work import multiply_adds_of
from lhanet_export.files import read_json
from lhanet_export.inference.target import Target
from lhanet_export.model.rule import rule_network
from lhanet_export.precision import choose as choose_module
from lhanet_export.precision import decision as decision_module
from lhanet_export.precision.calibrate import CalibrationImage, Ranges, calibrate
from lhanet_export.precision.choose import Choice, Error, Judge, Trial, choose, keep_sensitive, needs_stem
from lhanet_export.precision.decision import Decision, decide
from lhanet_export.precision.int8 import Int8Options, convolutions, quantize, quantized_tensors
from lhanet_export.precision.refine import corrected_biases
from lhanet_export.precision.scales import METHODS
from lhanet_export.precision.sensitivity import Sensitivity, logit_sensitivities, output_sensitivities
from lhanet_export.precision.sessions import GraphSession
from lhanet_export.verify.inputs import bodies
from lhanet_export.verify.metrics import dice_per_class
from tests.cpu.conftest import CHECKPOINT
from tests.cpu.test_export import relative_l2

SHAPE = (33, 34, 36)
PLAIN = ExportOptions(without=("short-convolutions",))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> OnnxArtifact:
    network = rule_network("standard", base_channels=8, num_classes=5, seed=7)
    return onnx_from_network(network, CHECKPOINT, tmp_path_factory.mktemp("choice") / "fp32.onnx", PLAIN)


def _images(seeds: Sequence[int]) -> list[CalibrationImage]:
    return [CalibrationImage(name=f"bodies {seed}", voxels=bodies(SHAPE, seed)) for seed in seeds]


@pytest.fixture(scope="module")
def ranges(source: OnnxArtifact) -> Ranges:
    return calibrate(source, _images(range(4)), quantized_tensors(source))


@pytest.fixture(scope="module")
def judge(source: OnnxArtifact) -> Judge:
    return Judge(source, _images([8]), dice_per_class)


def test_residual_blocks_are_quantized_and_the_stem_is_not(source: OnnxArtifact) -> None:
    reasons = {conv.name: conv.reason for conv in convolutions(ir.load(source.path))}
    backbone = {name: reason for name, reason in reasons.items() if name.startswith("/backbone/")}
    assert sum(reason is None for reason in backbone.values()) == 16
    assert sum(reason is None for reason in reasons.values()) == 16 + 40
    assert all("stem" in (backbone[name] or "") for name in backbone if "/backbone/conv1" in name)
    assert sum("shortcut" in (reason or "") for reason in backbone.values()) == 3


def test_the_stem_is_quantized_where_it_is_much_of_the_work(source: OnnxArtifact, ranges: Ranges) -> None:
    # An eighth of the width: the stem does 9 % of the work, and without it 90 % cannot be INT8.
    assert needs_stem(source)
    model = ir.load(source.path)
    layers = quantize(model, ranges, Int8Options(stem=True))
    assert len(layers) == 4 + 16 + 40 and {layer.tensor for layer in layers[:4]} == {"image"}
    amounts = multiply_adds_of(source.path, source.spatial.opt)
    total = sum(amounts.values())
    assert sum(amounts[layer.name] for layer in layers) >= 0.9 * total


def test_multiply_adds_of_each_convolution(source: OnnxArtifact) -> None:
    found = multiply_adds_of(source.path, source.spatial.opt)
    of_convolutions = sum(found[conv.name] for conv in convolutions(ir.load(source.path)))
    assert of_convolutions < sum(found.values()) < 1.05 * of_convolutions
    # At 64x128x128 the finest level has 16x32x32 voxels, eight channels and a 5^3 kernel.
    depth, height, width = (-(-side // 4) for side in source.spatial.opt)
    assert found["/pmsa.0/scale_attentions.2/organ_conv/Conv"] == depth * height * width * 8 * 8 * 125
    assert found["/backbone/layers.0/layers.0.1/conv2/Conv"] == depth * height * width * 8 * 8 * 27


def _all_but(source: OnnxArtifact, *scopes: str) -> dict[str, str]:
    """What to keep so that only convolutions in these scopes are quantized."""
    names = [conv.name for conv in convolutions(ir.load(source.path)) if conv.reason is None]
    return {name: "a test" for name in names if not any(scope in name for scope in scopes)}


def test_corrected_biases_take_the_shift_back(source: OnnxArtifact, ranges: Ranges) -> None:
    # So coarse that there is a shift to correct: half of everything is clipped.
    coarse = Ranges(
        key=ranges.key,
        tensors={
            name: replace(seen, minimum=seen.minimum / 8, maximum=seen.maximum / 8)
            for name, seen in ranges.tensors.items()
        },
    )
    options, images = Int8Options(method="min-max", keep=_all_but(source, "/pmsa.0/", "/layers.0.1/")), _images([0])
    biases = corrected_biases(source, coarse, options, images)
    assert len(biases) == 2 + 10
    last = "/pmsa.0/scale_attentions.4/organ_conv"
    wanted = GraphSession(ir.load(source.path), source, [f"{last}/Conv_output_0"]).values(
        [f"{last}/Conv_output_0"], images[0].voxels
    )
    errors = {}
    for name, given in (("plain", {}), ("corrected", biases)):
        model = ir.load(source.path)
        quantize(model, coarse, options, biases=given)
        session = GraphSession(model, source, [f"{last}/Add_output_0"])
        found = session.values([f"{last}/Add_output_0"], images[0].voxels)
        difference = found[f"{last}/Add_output_0"] - wanted[f"{last}/Conv_output_0"]
        errors[name] = np.abs(difference.mean((0, 2, 3, 4))).mean()
    assert errors["corrected"] < errors["plain"] / 4


def test_the_best_of_all_methods_is_chosen(
    source: OnnxArtifact, ranges: Ranges, judge: Judge, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choose_module, "corrected_biases", lambda *_: {"/nowhere": np.zeros(1, np.float32)})
    choice = choose(source, ranges, _images(range(2)), judge, ("min-max", "percentile-99.99"))
    assert [(trial.method, trial.clip, trial.corrected) for trial in choice.trials[:2]] == [
        ("min-max", "max", False),
        ("percentile-99.99", "max", False),
    ]
    assert choice.trials[2].clip == "mse" and choice.trials[3].corrected and len(choice.trials) == 4
    assert choice.best == max(choice.trials, key=lambda trial: trial.rank)
    assert (choice.options.method, choice.options.clip) == (choice.best.method, choice.best.clip)
    # Organs come before the logits.
    worse = replace(choice.best, error=Error(relative_l2=0.0, labels_changed=0.0, dice=choice.best.error.dice - 0.1))
    assert worse.rank < choice.best.rank


def test_graphs_of_labels_are_refused(tmp_path: Path) -> None:
    network = rule_network("lightweight", base_channels=4, num_classes=3)
    options = ExportOptions(target=Target(output="labels"), without=("short-convolutions",))
    labels = onnx_from_network(network, CHECKPOINT, tmp_path / "labels.onnx", options)
    with pytest.raises(RefusedInput, match="gives labels; INT8 is chosen by logits"):
        Judge(labels, _images([0]), dice_per_class)


def test_sensitivity_of_layers(source: OnnxArtifact, ranges: Ranges, judge: Judge) -> None:
    options = Int8Options(method="mse", keep=_all_but(source, "/pmsa.0/scale_attentions.2/", "/layers.0.1/conv2/"))
    some = {conv.name for conv in convolutions(ir.load(source.path), options) if conv.reason is None}
    assert len(some) == 3
    found = logit_sensitivities(source, ranges, options, judge)
    assert found.keys() == some and all(0 < layer.size < 0.1 for layer in found.values())
    for name, layer in found.items():
        model = ir.load(source.path)
        quantize(model, ranges, options, only={name})
        alone = judge.error(model)
        assert layer.relative_l2 == pytest.approx(alone.relative_l2, rel=1e-3)
        assert layer.labels_changed == pytest.approx(alone.labels_changed, abs=1e-4)
    noise = output_sensitivities(source, ranges, options, _images([8])[0])
    assert noise.keys() == some and all(1e-3 < layer.size < 0.2 for layer in noise.values())
    # Of one of them, from the outputs themselves.
    name = "/pmsa.0/scale_attentions.2/organ_conv"
    model = ir.load(source.path)
    quantize(model, ranges, options, only={f"{name}/Conv"})
    image = bodies(SHAPE, 8)
    exact = GraphSession(ir.load(source.path), source, [f"{name}/Conv_output_0"]).values(
        [f"{name}/Conv_output_0"], image
    )
    rounded = GraphSession(model, source, [f"{name}/Add_output_0"]).values([f"{name}/Add_output_0"], image)
    expected = relative_l2(rounded[f"{name}/Add_output_0"], exact[f"{name}/Conv_output_0"])
    assert noise[f"{name}/Conv"].size == pytest.approx(expected, rel=1e-3)


class _Script:
    """A judge that says what it is told to, and counts."""

    def __init__(self, dice: Sequence[float]) -> None:
        self.dice = list(dice)

    def error(self, model: ir.Model) -> Error:
        return Error(relative_l2=0.1, labels_changed=0.1, dice=self.dice.pop(0))


def test_sensitive_layers_are_kept_while_enough_stays_int8(
    source: OnnxArtifact, ranges: Ranges, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [conv.name for conv in convolutions(ir.load(source.path)) if conv.reason is None]
    amounts = multiply_adds_of(source.path, source.spatial.opt)
    total = sum(amounts.values())
    large = max(names, key=lambda name: amounts[name])
    sensitivity = dict.fromkeys(names, 0.01) | {large: 0.9, names[3]: 0.5, names[7]: 0.4}
    first = Trial(
        method="mse", clip="max", corrected=False, kept=0, error=Error(relative_l2=0.2, labels_changed=0.1, dice=0.5)
    )
    before = Choice(options=Int8Options(), biases={}, best=first, trials=(first,))
    share = sum(amounts[name] for name in names) / total
    monkeypatch.setattr(choose_module, "LEAST_SHARE", share - 0.05)
    assert amounts[large] / total > 0.05, "it is too large to be kept"
    after = keep_sensitive(source, ranges, before, _Script([0.8, 0.98]), sensitivity)  # type: ignore[arg-type]
    assert list(after.options.keep) == [names[3], names[7]]
    assert after.options.keep[names[3]] == "sensitive: INT8 here alone changes the logits by 50.0%"
    assert after.best.kept == 2 and len(after.trials) == 3
    # What does not help is not kept.
    same = keep_sensitive(source, ranges, before, _Script([0.4] * 8), sensitivity)  # type: ignore[arg-type]
    assert same.options.keep == {} and same.best == first and len(same.trials) == 9
    monkeypatch.setattr(choose_module, "LEAST_SHARE", 1.0)
    nothing = keep_sensitive(source, ranges, before, _Script([]), sensitivity)  # type: ignore[arg-type]
    assert nothing.trials == before.trials


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> Decision:
    """A decision that is made without running anything."""
    trial = Trial(
        method="mse", clip="max", corrected=True, kept=1, error=Error(relative_l2=0.1, labels_changed=0.0, dice=0.99)
    )
    choice = Choice(
        options=Int8Options(keep={"/pmsa.0/scale_attentions.0/organ_conv/Conv": "a test"}),
        biases={"/pmsa.3/scale_attentions.2/organ_conv/Conv": np.arange(64, dtype=np.float32)},
        best=trial,
        trials=(trial,),
    )
    layers = {"/pmsa.3/scale_attentions.2/organ_conv/Conv": Sensitivity(relative_l2=0.5, labels_changed=0.25)}
    monkeypatch.setattr(decision_module, "Judge", lambda *_: None)
    monkeypatch.setattr(decision_module, "choose", lambda *_: choice)
    monkeypatch.setattr(decision_module, "logit_sensitivities", lambda *_: layers)
    return Decision(choice=choice, layers=layers)


def test_a_decision_is_kept(
    source: OnnxArtifact, ranges: Ranges, quick: Decision, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "choice.npz"
    images, held_out = _images(range(4)), _images([8])
    decide(source, ranges, images, held_out, dice_per_class, cache=cache)

    def nothing_runs(*_: object) -> None:
        raise AssertionError("it was chosen again")

    monkeypatch.setattr(decision_module, "choose", nothing_runs)
    again = decide(source, ranges, images, held_out, dice_per_class, cache=cache)
    assert again.layers == quick.layers and again.choice.best == quick.choice.best
    assert again.choice.options == quick.choice.options and again.choice.trials == quick.choice.trials
    for name, bias in quick.choice.biases.items():
        assert np.array_equal(again.choice.biases[name], bias) and again.choice.biases[name].dtype == np.float32
    before = cache.read_bytes()
    other = replace(ranges, key=replace(ranges.key, graph="0" * 64))
    for given, windows, options in (
        (other, held_out, {}),
        (ranges, _images([9]), {}),
        (ranges, held_out, {"method": "mse"}),
        (ranges, held_out, {"keep_organs": False}),
    ):
        with pytest.raises(RefusedInput, match="was made for another graph, other windows, another method"):
            decide(source, given, images, windows, dice_per_class, cache=cache, **options)  # type: ignore[arg-type]
    with pytest.raises(RefusedInput, match="no calibration method 'random'"):
        decide(source, ranges, images, held_out, dice_per_class, method="random", cache=cache)
    assert cache.read_bytes() == before


def test_layers_are_kept_for_the_organs_unless_told_otherwise(
    source: OnnxArtifact, ranges: Ranges, quick: Decision, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = replace(quick.choice, options=replace(quick.choice.options, keep={"a layer": "sensitive"}))
    monkeypatch.setattr(decision_module, "ENOUGH_DICE", 0.999)
    monkeypatch.setattr(decision_module, "keep_sensitive", lambda *_: kept)
    images, held_out = _images(range(4)), _images([8])
    assert decide(source, ranges, images, held_out, dice_per_class).choice is kept
    assert decide(source, ranges, images, held_out, dice_per_class, keep_organs=False).choice is quick.choice
    monkeypatch.setattr(decision_module, "ENOUGH_DICE", 0.9)
    assert decide(source, ranges, images, held_out, dice_per_class).choice is quick.choice


def test_files_that_are_no_decision_are_refused(
    source: OnnxArtifact, ranges: Ranges, quick: Decision, tmp_path: Path
) -> None:
    cache = tmp_path / "choice.npz"
    images, held_out = _images(range(4)), _images([8])
    decide(source, ranges, images, held_out, dice_per_class, cache=cache)
    whole = cache.read_bytes()
    with np.load(cache) as arrays:
        kept = dict(arrays)
    broken = [whole[: len(whole) // 2], b"", b"choice"]
    for change in ({"bias_0": np.full(64, np.nan, np.float32)}, {"bias_0": np.zeros((2, 2))}, {"facts": kept["key"]}):
        np.savez(cache, **{**kept, **change})
        broken.append(cache.read_bytes())
    for content in broken:
        cache.write_bytes(content)
        with pytest.raises(RefusedInput, match="holds no choice of a method, or it is damaged"):
            decide(source, ranges, images, held_out, dice_per_class, cache=cache)


def test_the_command_names_every_method() -> None:
    assert tuple(METHODS) == COMMAND_METHODS


def test_the_command(
    source: OnnxArtifact,
    quick: Decision,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    data = tmp_path / "scans"
    data.mkdir()
    generator = np.random.default_rng(0)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr("lhanet_export.verify.cases.PUBLIC_PATCH", SHAPE)
    target, facts = tmp_path / "int8.onnx", tmp_path / "facts.json"
    arguments = [str(source.path), "-o", str(target), "--data", str(data), "--json", str(facts)]
    for number in range(4):
        if number == 3:
            with pytest.raises(RefusedInput, match="holds 3 volumes; to calibrate on, give at least 4"):
                calibrate_command(arguments, standalone_mode=False)
        hu = np.where(generator.random((40, 40, 40)) < 0.5, -900, 40) + generator.integers(-50, 50, (40, 40, 40))
        _write(hu, data / f"{number}.nii.gz")
    assert not target.exists()
    calibrate_command(arguments, standalone_mode=False)
    # In a residual network some of what is quantized reads and gives FP32.
    onnx.checker.check_model(str(target), full_check=True)
    made = read_onnx(target)
    assert made.precision == "int8" and made.facts["parent_sha256"] == source.sha256
    assert (tmp_path / "int8.onnx.ranges.npz").exists() and (tmp_path / "int8.onnx.ranges.npz.choice.npz").exists()
    found = read_json(facts)
    assert found["scans"] == 4 and found["chosen"] == 0 and len(found["report"]["layers"]) == 55
    shown = " ".join(capsys.readouterr().out.split())
    assert "FP16: a test" in shown and "chosen" in shown
    assert re.search(r"level 3, 1x, organ convolution \S+% \S+ \S+% \S+ 50.00% INT8", shown)
    first = target.read_bytes()
    calibrate_command(arguments, standalone_mode=False)
    assert target.read_bytes() == first
    (data / "3.nii.gz").unlink()
    (data / "2.nii.gz").rename(data / "9.nii.gz")
    _write(hu[::-1], data / "8.nii.gz")
    with pytest.raises(RefusedInput, match="measured on other volumes"):
        calibrate_command(arguments, standalone_mode=False)


def _write(hu: np.ndarray, path: Path) -> None:
    nibabel.save(nibabel.Nifti1Image(hu.astype(np.int16), np.diag([1.5, 1.5, 1.5, 1])), path)
