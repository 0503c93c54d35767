"""The gate: an artifact passes when its outputs are those of the eager network, within stated tolerances.

A case fails on any number out of tolerance, on NaN or infinity, on an output of another shape, and on
an exception. The whole comparison fails when the reference does not depend on its input, because
then everything would pass.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import isfinite
from typing import Any

import numpy as np

from lhanet_export.errors import EnvironmentLacks, GateFailed
from lhanet_export.progress import SILENT, Progress
from lhanet_export.runners.base import Runner
from lhanet_export.shapes import format_shape
from lhanet_export.verify.inputs import Case
from lhanet_export.verify.metrics import Difference, difference, label_variety, logit_dependence
from lhanet_export.verify.organs import Organs, organs_of

#: Share of voxels that must not have the most frequent label for label agreement to mean anything.
LABEL_VARIETY = 0.01
#: The logits have to follow the input by at least this much of their norm, and by ten times what may be wrong.
LOGIT_DEPENDENCE = 0.02
#: Share of a volume's voxels from which on a class is judged by its Dice; smaller ones are a matter of single voxels.
SMALLEST_CLASS = 0.001


@dataclass(frozen=True, kw_only=True)
class Tolerance:
    """What may differ: the relative L2 error, the largest single error, and the labels.

    No value may be off by more than `absolute` + `relative` times the reference's peak. No class of at
    least `SMALLEST_CLASS` of the voxels may have a smaller Dice than `dice`: an organ is a small part of
    a volume, and could vanish without moving the share of equal labels.

    Over all scans, the organs' mean Dice between the two label maps may not be below `mean_dice`, and their
    labels have to agree on `scan_agreement` of the voxels. Where the truth is known and the reference finds the
    organs, the mean Dice to it may fall by `loss` at most, and that of one organ by `organ_loss`.
    """

    relative_l2: float
    absolute: float
    relative: float
    label_agreement: float
    dice: float
    mean_dice: float
    scan_agreement: float
    loss: float
    organ_loss: float


TOLERANCES = {
    "fp32": Tolerance(
        relative_l2=1e-5, absolute=1e-5, relative=1e-5, label_agreement=0.9999, dice=0.99,
        mean_dice=0.9999, scan_agreement=0.9999, loss=1e-4, organ_loss=1e-3,
    ),
    "fp16": Tolerance(
        relative_l2=5e-3, absolute=1e-2, relative=1e-2, label_agreement=0.99, dice=0.8,
        # What a trained network keeps is more (docs/precision.md); one that hardly knows its classes has many ties.
        mean_dice=0.99, scan_agreement=0.99, loss=1e-3, organ_loss=1e-2,
    ),
    # Logits carry INT8's noise, and a small part of an organ in one window may go; what counts are whole organs.
    "int8": Tolerance(
        relative_l2=0.03, absolute=0.0, relative=0.2, label_agreement=0.97, dice=0.0,
        mean_dice=0.97, scan_agreement=0.99, loss=1e-2, organ_loss=3e-2,
    ),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Reference:
    """What the eager network says about the cases; `cases[0]` and `cases[1]` are unlike volumes of one size."""

    runner: str
    cases: tuple[Case, ...]
    logits: tuple[np.ndarray, ...]

    @property
    def logit_dependence(self) -> float:
        """How much of the logits follows the input, as a share of their norm."""
        return logit_dependence(self.logits[0], self.logits[1])

    @property
    def label_variety(self) -> float:
        """Share of all cases' voxels that do not have the most frequent label."""
        return label_variety(self.logits)


@dataclass(frozen=True, kw_only=True)
class Verification:
    """The comparison of one artifact: every case, what was tolerated, and in words what failed."""

    runner: str
    output: str
    differences: tuple[Difference, ...]
    tolerance: Tolerance
    logit_dependence: float
    label_variety: float
    failures: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """Whether nothing failed."""
        return not self.failures

    @property
    def organs(self) -> Organs | None:
        """The organs over all scans that were compared; None without a scan."""
        return organs_of([found.overlaps for found in self.differences])

    def __bool__(self) -> bool:
        return self.passed

    def as_json(self) -> dict[str, Any]:
        """The verification as `verify --json` and manifests hold it."""
        return {
            "passed": self.passed,
            "runner": self.runner,
            "output": self.output,
            "cases": [case.as_json() for case in self.differences],
            "organs": organs.as_json() if (organs := self.organs) else None,
            "tolerance": asdict(self.tolerance),
            "reference": {
                "logit_dependence": self.logit_dependence if isfinite(self.logit_dependence) else None,
                "label_variety": self.label_variety,
            },
            "failures": list(self.failures),
        }

    def require(self, what: str) -> None:
        """Raise `GateFailed` with every failure unless the comparison passed."""
        if not self.passed:
            raise GateFailed(f"{what} is not the network that was trained: " + "; ".join(self.failures))


def reference_for(runner: Runner, cases: Sequence[Case], progress: Progress = SILENT) -> Reference:
    """Run the reference once for every case; its logits serve all artifacts of the network."""
    logits = []
    with runner, progress.step(f"reference logits ({runner.name})", total=_voxels(cases)) as advance:
        for case in cases:
            logits.append(runner.infer(case.image))
            advance(float(np.prod(case.shape)))
    return Reference(runner=runner.name, cases=tuple(cases), logits=tuple(logits))


def verify(
    runner: Runner, reference: Reference, tolerance: Tolerance, *, output: str = "logits", progress: Progress = SILENT
) -> Verification:
    """Hold a runner's outputs of a kind against the reference; never raises for what the gate is there to find.

    `EnvironmentLacks` where this machine cannot run the artifact (no GPU, no memory).
    For the output `coarse` the reference's logits have to be those of the coarse grid, too.
    """
    differences, failures = [], _reference_failures(reference, tolerance, output)
    with progress.step(f"compare {runner.name}", total=_voxels(reference.cases)) as advance:
        try:
            with runner:
                for case, logits in zip(reference.cases, reference.logits, strict=True):
                    start = time.perf_counter()
                    candidate = runner.infer(case.image)
                    seconds = time.perf_counter() - start
                    differences.append(difference(case, logits, candidate, output, seconds))
                    advance(float(np.prod(case.shape)))
        except (EnvironmentLacks, MemoryError):
            # Says nothing about the artifact: it was not run.
            raise
        except Exception as error:
            # Whatever goes wrong while running an artifact, it did not pass; the words go into the report.
            failures.append(f"{runner.name} failed: {type(error).__name__}: {error}")
    for found in differences:
        failures += _case_failures(found, tolerance)
    failures += _organ_failures(organs_of([found.overlaps for found in differences]), tolerance)
    return Verification(
        runner=runner.name,
        output=output,
        differences=tuple(differences),
        tolerance=tolerance,
        logit_dependence=reference.logit_dependence,
        label_variety=reference.label_variety,
        failures=tuple(failures),
    )


def _voxels(cases: Sequence[Case]) -> float:
    return float(sum(np.prod(case.shape) for case in cases))


def _reference_failures(reference: Reference, tolerance: Tolerance, output: str) -> list[str]:
    if any(not np.isfinite(logits).all() for logits in reference.logits):
        return ["the reference itself gives NaN or infinity, so nothing can be compared with it"]
    failures = []
    needed = max(LOGIT_DEPENDENCE, 10 * tolerance.relative_l2)
    if reference.logit_dependence < needed:
        failures.append(
            f"the reference's logits hardly depend on its input (by {reference.logit_dependence:.2g} of their norm, "
            f"{needed:.2g} needed): parity would prove nothing"
        )
    # Of a label map the labels are all there is to compare: what may differ has to be small against what varies.
    variety = LABEL_VARIETY if output != "labels" else max(LABEL_VARIETY, 10 * (1 - tolerance.label_agreement))
    if reference.label_variety < variety:
        failures.append(
            f"the reference gives all but {reference.label_variety:.2%} of the voxels the same label "
            f"({variety:.0%} needed): equal labels would prove nothing. Untrained weights do this; "
            "if these are trained, try other volumes with --seed"
        )
    return failures


def _case_failures(found: Difference, tolerance: Tolerance) -> list[str]:
    """What is out of tolerance in one case; written so that a NaN fails every comparison."""
    where = f"at {format_shape(found.shape)} ({found.kind})"
    failures = []
    if found.nonfinite:
        failures.append(f"{where} {found.nonfinite} values are NaN or infinite")
    if found.relative_l2 is not None and found.max_abs is not None and found.peak is not None:
        if not found.relative_l2 <= tolerance.relative_l2:
            failures.append(f"{where} relative L2 is {found.relative_l2:.2e}, allowed {tolerance.relative_l2:.0e}")
        limit = tolerance.absolute + tolerance.relative * found.peak
        if not found.max_abs <= limit:
            failures.append(f"{where} the largest error is {found.max_abs:.2e}, allowed {limit:.2e}")
    if not found.label_agreement >= tolerance.label_agreement:
        failures.append(
            f"{where} labels agree on {found.label_agreement:.3%} of the voxels, needed {tolerance.label_agreement:.2%}"
        )
    for index, dice in found.dice.items():
        if found.shares[index] >= SMALLEST_CLASS and not dice >= tolerance.dice:
            failures.append(f"{where} class {index} has a Dice of {dice:.3f}, needed {tolerance.dice}")
    return failures


def _organ_failures(organs: Organs | None, tolerance: Tolerance) -> list[str]:
    """What is out of tolerance over all scans; written so that a NaN fails every comparison."""
    if organs is None:
        return []
    failures = []
    if not organs.mean_dice >= tolerance.mean_dice:
        worst = f"; the worst is class {organs.worst.index} with {organs.worst.dice:.4f}" if organs.worst else ""
        failures.append(
            f"over all scans the organs' mean Dice to the reference is {organs.mean_dice:.5f}, needed "
            f"{tolerance.mean_dice}{worst}"
        )
    if not organs.label_agreement >= tolerance.scan_agreement:
        failures.append(
            f"over all scans labels agree on {organs.label_agreement:.3%} of the voxels, "
            f"needed {tolerance.scan_agreement:.2%}"
        )
    if not organs.truth_counts:
        return failures
    if not organs.loss <= tolerance.loss:
        failures.append(
            f"over all scans the mean Dice to the truth is {organs.loss:.4f} below the reference's, "
            f"allowed {tolerance.loss}"
        )
    for score in organs.scores:
        if not score.loss <= tolerance.organ_loss:
            failures.append(
                f"class {score.index} has a Dice to the truth {score.loss:.4f} below the reference's, "
                f"allowed {tolerance.organ_loss}"
            )
    return failures
