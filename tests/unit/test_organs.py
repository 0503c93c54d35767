"""Organs as the judge: Dice from counts over all scans, and what the gate makes of it."""

from dataclasses import dataclass, replace

import numpy as np
import pytest

from lhanet_export.verify.gate import TOLERANCES, Tolerance, _organ_failures
from lhanet_export.verify.organs import FEWEST_VOXELS, Organs, organs_of, overlaps

SHAPE = (1, 12, 12, 12)


@dataclass(frozen=True)
class Scan:
    """A case of which only the truth matters here."""

    truth: np.ndarray | None
    is_scan: bool = True


def cube(first: int, last: int, label: int = 1) -> np.ndarray:
    labels = np.zeros(SHAPE, np.uint8)
    labels[:, first:last] = label
    return labels


def judged(truth: np.ndarray | None, reference: np.ndarray, candidate: np.ndarray) -> Organs:
    found = organs_of([overlaps(Scan(truth), reference, candidate)])
    assert found is not None
    return found


def failures(organs: Organs | None, **changes: float) -> str:
    tolerance: Tolerance = replace(TOLERANCES["fp16"], **changes)
    return "; ".join(_organ_failures(organs, tolerance))


def test_dice_of_two_slabs_is_that_of_the_formula() -> None:
    found = judged(cube(0, 6), reference=cube(0, 5), candidate=cube(1, 6))

    (organ,) = found.scores
    assert organ.index == 1
    assert organ.dice == pytest.approx(2 * 4 / 10)
    assert organ.reference_to_truth == organ.candidate_to_truth == pytest.approx(2 * 5 / 11)
    assert organ.loss == 0
    assert found.label_agreement == pytest.approx(10 / 12)


def test_counts_are_summed_over_scans_before_dice_is_taken() -> None:
    # Per scan Dice would be 1 and 0, their mean 0.5; over both it is 2*5 / (5 + 6).
    whole = overlaps(Scan(None), cube(0, 5), cube(0, 5))
    stray = overlaps(Scan(None), cube(0, 0), cube(0, 1))
    found = organs_of([whole, stray])

    assert found is not None
    assert found.mean_dice == pytest.approx(10 / 11)


def test_an_organ_that_only_the_candidate_finds_is_not_hidden() -> None:
    truth = cube(0, 6)
    candidate = cube(0, 6)
    candidate[:, 8:10] = 2
    found = judged(truth, reference=cube(0, 6), candidate=candidate)

    assert [(score.index, score.dice) for score in found.scores] == [(1, 1.0), (2, 0.0)]
    assert "the worst is class 2 with 0.0000" in failures(found)
    assert "labels agree on 83.333%" in failures(found)


def test_volumes_by_rule_have_no_organs() -> None:
    assert overlaps(Scan(None, is_scan=False), cube(0, 5), cube(0, 5)) is None
    assert organs_of([None, None]) is None
    assert failures(None) == ""


def test_an_organ_of_a_few_voxels_is_not_judged() -> None:
    few = np.zeros(SHAPE, np.uint8)
    few.reshape(-1)[: FEWEST_VOXELS - 1] = 1
    assert organs_of([overlaps(Scan(few), few, few)]) is None
    few.reshape(-1)[:FEWEST_VOXELS] = 1
    assert organs_of([overlaps(Scan(few), few, few)]) is not None


def test_label_maps_are_not_judged_by_an_organ_that_both_hardly_show() -> None:
    truth, reference, candidate = cube(0, 6), cube(0, 0), cube(0, 0)
    reference.reshape(-1)[: FEWEST_VOXELS - 1] = 1
    candidate.reshape(-1)[: FEWEST_VOXELS - 20] = 1
    found = judged(truth, reference, candidate)

    assert found.scores[0].dice is None and found.worst is None and found.mean_dice == 1
    candidate.reshape(-1)[:FEWEST_VOXELS] = 1
    assert judged(truth, reference, candidate).scores[0].dice == pytest.approx(398 / 399)


def test_equal_label_maps_pass() -> None:
    assert failures(judged(cube(0, 6), cube(0, 6), cube(0, 6))) == ""


def test_a_lost_organ_fails() -> None:
    text = failures(judged(cube(0, 6), cube(0, 6), cube(0, 0)))

    assert "organs' mean Dice to the reference is 0.00000" in text
    assert "class 1 has a Dice to the truth 1.0000 below the reference's, allowed 0.01" in text


def test_a_loss_against_the_truth_fails_although_label_maps_agree_well_enough() -> None:
    found = judged(cube(0, 6), reference=cube(0, 6), candidate=cube(0, 5))

    text = failures(found, mean_dice=0.5, scan_agreement=0.5)
    assert "mean Dice to the truth is 0.0909 below the reference's" in text
    assert "allowed 0.001" in text


def test_a_gain_against_the_truth_is_no_failure() -> None:
    found = judged(cube(0, 6), reference=cube(0, 5), candidate=cube(0, 6))

    assert found.loss < 0
    assert failures(found, mean_dice=0.5, scan_agreement=0.5) == ""


def test_a_reference_that_does_not_find_the_organs_has_nothing_to_lose() -> None:
    found = judged(cube(0, 6), reference=cube(5, 12), candidate=cube(6, 12))

    assert not found.truth_counts
    assert failures(found, mean_dice=0.5, scan_agreement=0.5) == ""


def test_without_truth_the_label_maps_are_judged_alone() -> None:
    found = judged(None, reference=cube(0, 6), candidate=cube(0, 5))

    assert found.reference_to_truth is None
    assert "mean Dice to the reference is 0.90909" in failures(found)
    assert "truth" not in failures(found)
