"""Organs as the judge: Dice of each, over all scans that were compared.

Single windows show an organ in part, and an organ of a few voxels in one of them would decide on its own. So voxels
are counted first, over all windows, and Dice comes from the sums.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np

from lhanet_export.verify.inputs import Case

#: A reference whose organs' mean Dice to the truth is below this does not know them, and has nothing to lose.
KNOWS_ORGANS = 0.3
#: Organs of fewer voxels, over all scans, are not judged: a voxel of them would count for too much.
FEWEST_VOXELS = 200


@dataclass(frozen=True, kw_only=True)
class Overlap:
    """Voxels of one class: those of the reference's labels, of the candidate's and of the truth, and what they share.

    The truth's counts are 0 where it is not known.
    """

    reference: int
    candidate: int
    both: int
    truth: int = 0
    reference_and_truth: int = 0
    candidate_and_truth: int = 0

    def __add__(self, other: Overlap) -> Overlap:
        return Overlap(**{one.name: getattr(self, one.name) + getattr(other, one.name) for one in fields(Overlap)})


def overlaps(case: Case, reference: np.ndarray, candidate: np.ndarray) -> dict[int, Overlap] | None:
    """Voxel counts of every class that occurs in two label maps (N,D,H,W) or in the truth; None for volumes by rule."""
    if not case.is_scan:
        return None
    truth = case.truth
    found = {}
    for index in sorted({*np.unique(reference).tolist(), *np.unique(candidate).tolist(), *_classes(truth)}):
        mine, other = reference == index, candidate == index
        counts = {
            "reference": int(mine.sum()), "candidate": int(other.sum()), "both": int((mine & other).sum())
        }  # fmt: skip
        if truth is not None:
            true = truth == index
            counts |= {
                "truth": int(true.sum()),
                "reference_and_truth": int((mine & true).sum()),
                "candidate_and_truth": int((other & true).sum()),
            }
        found[index] = Overlap(**counts)
    return found


def _classes(truth: np.ndarray | None) -> list[int]:
    return [] if truth is None else np.unique(truth).tolist()


@dataclass(frozen=True, kw_only=True)
class OrganScore:
    """One organ over all scans: Dice between the two label maps, and of each to the truth where that is known.

    `dice` is None for an organ that neither label map shows in more than a few voxels.
    """

    index: int
    dice: float | None
    reference_to_truth: float | None
    candidate_to_truth: float | None

    @property
    def loss(self) -> float:
        """By how much the candidate's Dice to the truth is below the reference's; 0 where the truth is not known."""
        if self.reference_to_truth is None or self.candidate_to_truth is None:
            return 0.0
        return self.reference_to_truth - self.candidate_to_truth


@dataclass(frozen=True, kw_only=True)
class Organs:
    """All organs of the scans that were compared, and whether the truth says anything about them."""

    scores: tuple[OrganScore, ...]
    #: The share of all voxels of the scans with equal labels.
    label_agreement: float

    @property
    def mean_dice(self) -> float:
        """Mean over the organs of Dice between the two label maps."""
        shown = [score.dice for score in self.scores if score.dice is not None]
        return float(np.mean(shown)) if shown else 1.0

    @property
    def worst(self) -> OrganScore | None:
        """The organ with the smallest Dice between the two label maps."""
        shown = [(score.dice, score.index, score) for score in self.scores if score.dice is not None]
        return min(shown)[2] if shown else None

    @property
    def reference_to_truth(self) -> float | None:
        """Mean over the organs of the reference's Dice to the truth; None where that is not known."""
        known = [score.reference_to_truth for score in self.scores if score.reference_to_truth is not None]
        return float(np.mean(known)) if known else None

    @property
    def loss(self) -> float:
        """By how much the candidate's mean Dice to the truth is below the reference's."""
        known = [score.loss for score in self.scores if score.reference_to_truth is not None]
        return float(np.mean(known)) if known else 0.0

    @property
    def truth_counts(self) -> bool:
        """Whether the reference finds the organs, so that its Dice to the truth can be lost at all."""
        return (self.reference_to_truth or 0.0) >= KNOWS_ORGANS

    def as_json(self) -> dict[str, Any]:
        """The same facts as JSON values."""
        return {
            "label_agreement": self.label_agreement,
            "mean_dice": self.mean_dice,
            "reference_to_truth": self.reference_to_truth,
            "loss": self.loss,
            "truth_counts": self.truth_counts,
            "organs": [asdict(score) for score in self.scores],
        }


def organs_of(counts: Sequence[dict[int, Overlap] | None]) -> Organs | None:
    """Organs over all scans, from the counts of each; None if no scan shows an organ that can be judged."""
    sums: dict[int, Overlap] = {}
    for one in counts:
        for index, overlap in (one or {}).items():
            sums[index] = sums[index] + overlap if index in sums else overlap
    with_truth = any(overlap.truth for overlap in sums.values())
    scores = tuple(
        OrganScore(
            index=index,
            dice=dice_of(overlap.both, overlap.reference, overlap.candidate)
            if max(overlap.reference, overlap.candidate) >= FEWEST_VOXELS
            else None,
            reference_to_truth=dice_of(overlap.reference_and_truth, overlap.reference, overlap.truth)
            if with_truth
            else None,
            candidate_to_truth=dice_of(overlap.candidate_and_truth, overlap.candidate, overlap.truth)
            if with_truth
            else None,
        )
        for index, overlap in sorted(sums.items())
        if index and max(overlap.reference, overlap.candidate, overlap.truth) >= FEWEST_VOXELS
    )
    if not scores:
        return None
    voxels = sum(overlap.reference for overlap in sums.values())
    return Organs(scores=scores, label_agreement=sum(overlap.both for overlap in sums.values()) / voxels)


def dice_of(both: int, one: int, other: int) -> float:
    """2 |A and B| / (|A| + |B|) (Dice 1945); 1 where both are empty."""
    return 2 * both / (one + other) if one + other else 1.0
