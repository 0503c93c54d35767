"""How far one output is from another, in numbers that mean something for a segmentation."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from lhanet_export.shapes import Shape
from lhanet_export.verify.inputs import Case
from lhanet_export.verify.organs import Overlap, dice_of, overlaps


@dataclass(frozen=True, kw_only=True)
class Difference:
    """A candidate's output against the reference's, for one volume.

    `relative_l2`, `max_abs` and `mean_abs` compare logits or probabilities and are None for label maps.
    `peak` is the reference's largest magnitude. Dice is given for each class that the reference finds.
    """

    shape: Shape
    kind: str
    relative_l2: float | None
    max_abs: float | None
    mean_abs: float | None
    peak: float | None
    label_agreement: float
    dice: dict[int, float]
    #: The share of the voxels that each of these classes has in the reference.
    shares: dict[int, float]
    nonfinite: int
    seconds: float
    #: Voxel counts by class, from which organs are judged over all scans; None for volumes by rule.
    overlaps: dict[int, Overlap] | None = None

    def as_json(self) -> dict[str, Any]:
        """The same facts as JSON values; a number that is not finite becomes null."""
        facts = asdict(self)
        facts["shape"] = list(self.shape)
        for key in ("dice", "shares"):
            facts[key] = {str(index): value for index, value in facts[key].items()}
        if self.overlaps is None:
            del facts["overlaps"]
        else:
            facts["overlaps"] = {str(index): value for index, value in facts["overlaps"].items()}
        return {
            key: None if isinstance(value, float) and not np.isfinite(value) else value for key, value in facts.items()
        }


def difference(case: Case, logits: np.ndarray, candidate: np.ndarray, output: str, seconds: float) -> Difference:
    """Compare a candidate's output of a kind with reference logits (N,K,D,H,W).

    A candidate of another shape than the reference implies raises ValueError.
    """
    labels = logits.argmax(1)
    if output == "labels":
        _check_shape(candidate, labels)
        return Difference(
            shape=case.shape, kind=case.kind, relative_l2=None, max_abs=None, mean_abs=None, peak=None,
            label_agreement=float((candidate == labels).mean()), dice=dice_per_class(labels, candidate),
            shares=class_shares(labels),
            nonfinite=0, seconds=seconds, overlaps=overlaps(case, labels, candidate),
        )  # fmt: skip
    reference = _softmax(logits) if output == "probabilities" else logits
    _check_shape(candidate, reference)
    candidate = candidate.astype(np.float64)
    error = candidate - reference
    candidate_labels = candidate.argmax(1)
    return Difference(
        shape=case.shape,
        kind=case.kind,
        relative_l2=float(np.linalg.norm(error) / np.linalg.norm(reference.astype(np.float64))),
        max_abs=float(np.abs(error).max()),
        mean_abs=float(np.abs(error).mean()),
        peak=float(np.abs(reference).max()),
        label_agreement=float((candidate_labels == labels).mean()),
        dice=dice_per_class(labels, candidate_labels),
        shares=class_shares(labels),
        nonfinite=int(np.count_nonzero(~np.isfinite(candidate))),
        seconds=seconds,
        overlaps=overlaps(case, labels, candidate_labels),
    )


def _check_shape(candidate: np.ndarray, reference: np.ndarray) -> None:
    if candidate.shape != reference.shape:
        raise ValueError(f"the output has shape {candidate.shape}, the reference {reference.shape}")


def _softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp((logits - logits.max(1, keepdims=True)).astype(np.float64))
    return powers / powers.sum(1, keepdims=True)


def dice_per_class(reference: np.ndarray, candidate: np.ndarray) -> dict[int, float]:
    """2 |A and B| / (|A| + |B|) of two label maps, for each class of the first (Dice 1945)."""
    result = {}
    for index in np.unique(reference):
        mine, other = reference == index, candidate == index
        result[int(index)] = dice_of(*(int(np.count_nonzero(mask)) for mask in (mine & other, mine, other)))
    return result


def class_shares(labels: np.ndarray) -> dict[int, float]:
    """The share of the voxels that each class of a label map has."""
    classes, counts = np.unique(labels, return_counts=True)
    return dict(zip(classes.tolist(), (counts / labels.size).tolist(), strict=True))


def logit_dependence(first: np.ndarray, second: np.ndarray) -> float:
    """How much of the logits follows the input, from the logits of two volumes of one size.

    The smaller of two numbers, both relative to the logits' norm: the change between the volumes, and
    the variation over the voxels of the first around the mean of each class.
    """
    first, second = first.astype(np.float64), second.astype(np.float64)
    norm = np.linalg.norm(first)
    if norm == 0:
        return 0.0
    between = np.linalg.norm(first - second) / norm
    within = np.linalg.norm(first - first.mean((2, 3, 4), keepdims=True)) / norm
    return float(min(between, within))


def label_variety(logits: Sequence[np.ndarray]) -> float:
    """The share of voxels, over several volumes, whose label is not the most frequent one."""
    counts: Counter[int] = Counter()
    for volume in logits:
        labels, numbers = np.unique(volume.argmax(1), return_counts=True)
        counts.update(dict(zip(labels.tolist(), numbers.tolist(), strict=True)))
    return 1 - max(counts.values()) / counts.total()
