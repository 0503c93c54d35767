"""The gate passes the network that was trained, and refuses everything else it is there for."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from lhanet_export.errors import EnvironmentLacks, GateFailed
from lhanet_export.export.artifact import OnnxArtifact
from lhanet_export.export.onnx_from_network import onnx_from_network
from lhanet_export.model import pmsa
from lhanet_export.model.network import LHANet
from lhanet_export.model.resize import resize_to_size
from lhanet_export.model.rule import rule_network
from lhanet_export.precision.convert import fp16_from_fp32
from lhanet_export.runners.eager import EagerRunner
from lhanet_export.runners.onnxruntime_ import OnnxRuntimeRunner
from lhanet_export.verify.gate import TOLERANCES, Reference, Verification, reference_for, verify
from lhanet_export.verify.inputs import cases_for
from lhanet_export.verify.metrics import dice_per_class, label_variety, logit_dependence
from tests.cpu.conftest import CHECKPOINT

PATCH = (48, 96, 96)


@pytest.fixture(scope="module")
def reference(narrow_network: LHANet) -> Reference:
    return reference_for(EagerRunner(narrow_network), cases_for([(33, 50, 71), PATCH]))


def verify_onnx(artifact: OnnxArtifact, reference: Reference) -> Verification:
    return verify(OnnxRuntimeRunner(artifact), reference, TOLERANCES[artifact.precision])


def verify_changed(change: Callable[[LHANet], None], reference: Reference, folder: Path) -> Verification:
    """Export the narrow network after a change and compare it with the unchanged one."""
    network = rule_network("lightweight", base_channels=8, num_classes=5, seed=6)
    with torch.no_grad():
        change(network)
    return verify_onnx(onnx_from_network(network, CHECKPOINT, folder / "changed.onnx"), reference)


def test_the_right_graphs_pass(narrow_onnx: OnnxArtifact, narrow_fp16: OnnxArtifact, reference: Reference) -> None:
    for artifact in (narrow_onnx, narrow_fp16):
        verification = verify_onnx(artifact, reference)
        assert verification.passed, verification.failures
        verification.require("the graph")
        facts = verification.as_json()
        assert facts["passed"] is True and facts["failures"] == []
        assert {"shape", "relative_l2", "max_abs", "label_agreement", "nonfinite"} <= facts["cases"][0].keys()


def test_one_changed_weight_is_refused(reference: Reference, tmp_path: Path) -> None:
    def change(network: LHANet) -> None:
        network.hierarchical_pmsa.pmsa_modules["level_2"].scale_attentions[4].organ_conv.weight[3, 5, 2, 2, 2] += 1

    verification = verify_changed(change, reference, tmp_path)
    assert not verification.passed and "relative L2" in verification.failures[0]
    with pytest.raises(GateFailed, match="not the network that was trained"):
        verification.require("changed.onnx")


def test_resize_by_size_is_refused_at_the_training_patch(
    narrow_network: LHANet, reference: Reference, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:

    def by_size(x: Tensor, scale: Fraction, order: Sequence[int]) -> Tensor:
        return resize_to_size(x, [side * scale.numerator // scale.denominator for side in x.shape[-3:]])

    monkeypatch.setattr(pmsa, "resize_by_scale", by_size)
    artifact = onnx_from_network(narrow_network, CHECKPOINT, tmp_path / "by_size.onnx")
    verification = verify_onnx(artifact, reference)
    assert any("at 48x96x96" in failure and "relative L2" in failure for failure in verification.failures)


def test_fp16_overflow_is_refused(overflowing_network: LHANet, tmp_path: Path) -> None:
    reference = reference_for(EagerRunner(overflowing_network), cases_for([(33, 50, 71)]))
    whole = onnx_from_network(overflowing_network, CHECKPOINT, tmp_path / "fp32.onnx")
    half, _ = fp16_from_fp32(whole, tmp_path / "fp16.onnx")
    assert verify_onnx(whole, reference).passed
    verification = verify_onnx(half, reference)
    assert any("NaN or infinite" in failure for failure in verification.failures), verification.failures


def test_permuted_labels_are_refused(reference: Reference, tmp_path: Path) -> None:
    def change(network: LHANet) -> None:
        order = torch.tensor([1, 2, 3, 4, 0])
        classifier = network.decoder.final_classifier
        classifier.weight.copy_(classifier.weight[order])
        classifier.bias.copy_(classifier.bias[order])

    verification = verify_changed(change, reference, tmp_path)
    assert any("labels agree" in failure for failure in verification.failures)


def test_nan_is_refused(reference: Reference, tmp_path: Path) -> None:
    def change(network: LHANet) -> None:
        network.decoder.final_classifier.bias[2] = float("nan")

    verification = verify_changed(change, reference, tmp_path)
    assert any("NaN or infinite" in failure for failure in verification.failures)
    assert verification.as_json()["cases"][0]["relative_l2"] is None


class StubRunner:
    """Answers with a function of the image; counts how often it was opened and closed."""

    name = "stub"

    def __init__(self, answer: Callable[[np.ndarray], np.ndarray]) -> None:
        self._answer = answer

    def infer(self, image: np.ndarray) -> np.ndarray:
        return self._answer(image)

    def __enter__(self) -> "StubRunner":
        return self

    def __exit__(self, *error: object) -> None:
        pass


def _answers(reference: Reference) -> dict[bytes, np.ndarray]:
    return {case.image.tobytes(): logits for case, logits in zip(reference.cases, reference.logits, strict=True)}


def verify_answer(
    reference: Reference, change: Callable[[np.ndarray], np.ndarray], output: str = "logits"
) -> Verification:
    answers = _answers(reference)
    runner = StubRunner(lambda image: change(answers[image.tobytes()]))
    return verify(runner, reference, TOLERANCES["fp32"], output=output)


def test_an_exact_answer_passes_and_a_broken_one_does_not(reference: Reference) -> None:
    assert verify_answer(reference, lambda logits: logits).passed
    assert not verify_answer(reference, lambda logits: logits[:, :-1]).passed
    assert not verify_answer(reference, lambda logits: logits[:, :1]).passed

    def broken(logits: np.ndarray) -> np.ndarray:
        raise RuntimeError("the device fell off the bus")

    verification = verify_answer(reference, broken)
    assert "the device fell off the bus" in verification.failures[0]


def test_one_wild_voxel_is_refused(reference: Reference) -> None:
    """An error in one place is invisible in the norm; the largest error is watched, too."""

    def wild(logits: np.ndarray) -> np.ndarray:
        changed = logits.copy()
        changed[0, 0, 0, 0, 0] += 2e-3
        return changed

    verification = verify_answer(reference, wild)
    assert all("largest error" in failure for failure in verification.failures) and verification.failures


def test_label_maps_and_probabilities_are_compared_as_such(reference: Reference) -> None:
    def softmax(logits: np.ndarray) -> np.ndarray:
        return torch.from_numpy(logits).softmax(1).numpy()

    assert verify_answer(reference, lambda logits: logits.argmax(1).astype(np.uint8), "labels").passed
    assert verify_answer(reference, softmax, "probabilities").passed
    assert not verify_answer(reference, lambda logits: (logits.argmax(1) + 1) % 5, "labels").passed
    assert not verify_answer(reference, lambda logits: softmax(2 * logits), "probabilities").passed


def test_a_reference_that_ignores_its_input_proves_nothing(reference: Reference) -> None:
    constant = replace(reference, logits=(reference.logits[0], reference.logits[0], *reference.logits[2:]))
    flat = replace(
        reference,
        logits=tuple(
            np.broadcast_to(logits.mean((2, 3, 4), keepdims=True), logits.shape) for logits in reference.logits
        ),
    )
    one_label = replace(
        reference,
        logits=tuple(logits + 1e3 * (np.arange(5) == 2).reshape(1, 5, 1, 1, 1) for logits in reference.logits),
    )
    for useless in (constant, flat, one_label):
        for output, answer in (("logits", lambda logits: logits), ("labels", lambda logits: logits.argmax(1))):
            verification = verify_answer(useless, answer, output)
            assert not verification.passed
            assert any("prove nothing" in failure for failure in verification.failures)


def test_a_reference_that_is_not_finite_is_no_reference(reference: Reference) -> None:
    broken = replace(reference, logits=tuple(logits * np.nan for logits in reference.logits))
    verification = verify_answer(broken, lambda logits: logits)
    assert "nothing can be compared" in verification.failures[0]
    json.dumps(verification.as_json(), allow_nan=False)


def test_a_vanished_organ_is_refused(reference: Reference) -> None:
    """A class of half a per cent of the voxels can go without moving the share of equal labels much."""
    logits = tuple(volume.copy() for volume in reference.logits)
    for volume in logits:
        volume[:, :, 10:15, 10:20, 10:20] = 20 * (np.arange(5) == 3).reshape(1, 5, 1, 1, 1)
    planted = replace(reference, logits=logits)

    def vanish(volume: np.ndarray) -> np.ndarray:
        without = volume.copy()
        without[:, 3] = -100
        return without.argmax(1)

    changed = tuple(volume.copy() for volume in logits)
    for volume in changed:
        # Nowhere else is class 3 the largest, so that it is as small as planted.
        volume[:, 3][volume[:, 3] < 20] = -100
    planted = replace(planted, logits=changed)
    answers = _answers(planted)
    runner = StubRunner(lambda image: vanish(answers[image.tobytes()]))
    verification = verify(runner, planted, TOLERANCES["fp16"], output="labels")
    assert all(case.label_agreement >= 0.99 for case in verification.differences)
    assert any("class 3 has a Dice of 0.000" in failure for failure in verification.failures)


def test_a_machine_that_cannot_run_the_artifact_says_nothing_about_it(reference: Reference) -> None:
    def lacking(logits: np.ndarray) -> np.ndarray:
        raise EnvironmentLacks("no GPU")

    with pytest.raises(EnvironmentLacks, match="no GPU"):
        verify_answer(reference, lacking)


def test_untrained_weights_are_not_called_a_pass(tmp_path: Path) -> None:
    """With the weights a network starts from, every comparison passes; the verdict must not be 'passed'."""
    torch.manual_seed(1)
    network = LHANet.from_preset("lightweight", base_channels=8).eval()
    reference = reference_for(EagerRunner(network), cases_for([(48, 64, 64)]))
    verification = verify_onnx(onnx_from_network(network, CHECKPOINT, tmp_path / "untrained.onnx"), reference)
    assert all(case.label_agreement == 1 for case in verification.differences)
    assert not verification.passed and "prove nothing" in verification.failures[0]


def test_metrics() -> None:
    one, other = np.array([[0, 0, 1, 1]]), np.array([[0, 1, 1, 2]])
    assert dice_per_class(one, other) == {0: pytest.approx(2 / 3), 1: pytest.approx(0.5)}
    first = np.zeros((1, 2, 1, 1, 4))
    first[0, 0, 0, 0] = [1, -1, 1, -1]
    assert logit_dependence(first, -first) == pytest.approx(1) and label_variety([first, -first]) == pytest.approx(0.5)
    assert logit_dependence(first, first) == 0 and logit_dependence(0 * first, first) == 0


def test_volumes_are_seeded_unlike_and_standardized() -> None:
    cases = cases_for([(33, 50, 71), (48, 64, 64)])
    assert [case.shape for case in cases] == [(33, 50, 71), (33, 50, 71), (48, 64, 64)]
    assert {case.kind for case in cases} == {"bodies", "texture"}
    for case in cases:
        assert case.image.shape == (1, 1, *case.shape) and case.image.dtype == np.float32
        assert abs(case.image.mean()) < 1e-4 and abs(case.image.std() - 1) < 1e-3
        np.testing.assert_array_equal(case.image, case.image)
    assert not np.array_equal(cases[0].image, cases[1].image)
    assert [case.batch for case in cases_for([(33, 50, 71), (48, 64, 64)], batch=None)] == [2, 2, 1]
    pair = cases_for([(33, 50, 71)], batch=2)[0].image
    assert pair.shape[0] == 2 and not np.array_equal(pair[0], pair[1])
