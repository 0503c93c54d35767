"""Which way to INT8 is best for a network, found by measuring: on windows of scans that gave no ranges.

A trial is the FP32 graph with Q/DQ, which computes what INT8 would, against the FP32 graph. First every method for
activations is tried, then the best of them with clipped weights, then the best so far with corrected biases. Organs
decide, by the mean Dice between the two label maps to two digits; the logits' relative error where that is equal.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import onnx_ir as ir

from lhanet_export.errors import RefusedInput
from lhanet_export.export.artifact import OnnxArtifact
from lhanet_export.export.work import multiply_adds_of
from lhanet_export.precision.calibrate import CalibrationImage, Ranges
from lhanet_export.precision.int8 import SMALLEST_SCALE, Int8Options, convolutions, quantize
from lhanet_export.precision.refine import corrected_biases
from lhanet_export.precision.scales import LEVELS, METHODS
from lhanet_export.precision.sessions import GraphSession
from lhanet_export.precision.silent import silent_bounds
from lhanet_export.progress import SILENT, Progress

#: Dice by class between two label maps (N,D,H,W), the first of them the reference.
Dice = Callable[[np.ndarray, np.ndarray], Mapping[int, float]]
#: The mean Dice from which on INT8 keeps the organs, and no layer has to stay in FP16 for them.
ENOUGH_DICE = 0.97
#: The share of the multiply-adds that should be INT8, and that stays it whatever a layer loses.
LEAST_SHARE = 0.9
#: Fewer voxels of an organ, over all held-out windows, are none: single ones would decide.
_FEWEST_VOXELS = 200
#: Sensitive layers are put back into FP16 in so many steps at most.
_MOST_STEPS = 8


@dataclass(frozen=True, kw_only=True)
class Error:
    """What quantization changes: the logits, the share of the voxels with another label, the organs.

    `dice` is the mean over the organs of which FP32 finds at least `_FEWEST_VOXELS`, 0 where there are none.
    """

    relative_l2: float
    labels_changed: float
    dice: float


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One way to INT8 and what it changes on the held-out windows."""

    method: str
    clip: str
    corrected: bool
    kept: int
    error: Error

    @property
    def rank(self) -> tuple[float, float]:
        """The larger the better; Dice to two digits, because the third is a matter of which windows these are."""
        return round(self.error.dice, 2), -self.error.relative_l2

    def as_json(self) -> dict[str, Any]:
        """The same facts as JSON values."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True, eq=False)
class Choice:
    """The best way that was found, the biases that belong to it, and every trial in order."""

    options: Int8Options
    biases: Mapping[str, np.ndarray]
    best: Trial
    trials: tuple[Trial, ...]


class Judge:
    """Says what quantization changes on held-out windows; the FP32 graph runs once."""

    def __init__(self, source: OnnxArtifact, held_out: Sequence[CalibrationImage], dice: Dice) -> None:
        if source.facts["output"] == "labels":
            raise RefusedInput(f"{source.path} gives labels; INT8 is chosen by logits, so export it with those")
        if not held_out:
            raise RefusedInput("no windows are left to choose the method on")
        self.images = tuple(held_out)
        self._source, self._dice = source, dice
        self._wanted = self._outputs(ir.load(source.path))

    def error(self, model: ir.Model) -> Error:
        """Of a graph that `quantize` made, on all windows."""
        return self.error_of(self._outputs(model))

    def error_of(self, found: np.ndarray) -> Error:
        """Of logits (N,K,D,H,W) of the first N windows."""
        wanted = self._wanted[: len(found)]
        labels, reference = found.argmax(1), wanted.argmax(1)
        counts = np.bincount(reference.ravel())
        dice = self._dice(reference, labels)
        organs = [dice[index] for index in np.flatnonzero(counts >= _FEWEST_VOXELS).tolist() if index]
        return Error(
            relative_l2=float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted)),
            labels_changed=float((labels != reference).mean()),
            dice=float(np.mean(organs)) if organs else 0.0,
        )

    def _outputs(self, model: ir.Model) -> np.ndarray:
        session = GraphSession(model, self._source)
        return np.concatenate([session.output(image.voxels) for image in self.images])


def choose(
    source: OnnxArtifact,
    ranges: Ranges,
    images: Sequence[CalibrationImage],
    judge: Judge,
    methods: Sequence[str] = tuple(METHODS),
    progress: Progress = SILENT,
) -> Choice:
    """Try every method of `methods`, then clipped weights and corrected biases with the best of them.

    `images` are for the biases, the judge's windows for the choice. Convolutions whose input gives no
    scale stay FP16, and so does the stem unless `needs_stem`. Refuses what `quantize` refuses.
    """
    trials: dict[Trial, tuple[Int8Options, Mapping[str, np.ndarray]]] = {}
    stem = needs_stem(source)
    kept = without_scale(source, ranges, Int8Options(stem=stem))

    def tried(options: Int8Options, biases: Mapping[str, np.ndarray]) -> None:
        model = ir.load(source.path)
        quantize(model, ranges, options, biases=biases)
        trial = Trial(
            method=options.method, clip=options.clip, corrected=bool(biases), kept=len(options.keep),
            error=judge.error(model),
        )  # fmt: skip
        trials[trial] = options, biases

    def best() -> Trial:
        return max(trials, key=lambda trial: trial.rank)

    with progress.step("compare methods", total=len(methods) + 2) as advance:
        for method in methods:
            tried(Int8Options(method=method, stem=stem, keep=kept), {})
            advance(1)
        tried(replace(trials[best()][0], clip="mse"), {})
        advance(1)
        options, _ = trials[best()]
        tried(options, corrected_biases(source, ranges, options, images, progress))
        advance(1)
    options, biases = trials[best()]
    return Choice(options=options, biases=biases, best=best(), trials=tuple(trials))


def needs_stem(source: OnnxArtifact) -> bool:
    """Whether the stem has to be INT8 for `LEAST_SHARE` of the multiply-adds to be; so it is in narrow networks."""
    amounts = multiply_adds_of(source.path, source.spatial.opt)
    quantized = [conv.name for conv in convolutions(ir.load(source.path)) if conv.reason is None]
    return sum(amounts[name] for name in quantized) < LEAST_SHARE * sum(amounts.values())


def without_scale(source: OnnxArtifact, ranges: Ranges, options: Int8Options) -> dict[str, str]:
    """For `Int8Options.keep`: the convolutions whose input gives no scale on the calibration volumes, with the reason.

    A trained network may have branches that are nearly 0 everywhere; one of them is no reason to refuse the others.
    """
    model = ir.load(source.path)
    silent = silent_bounds(model, ranges.tensors)
    kept = {}
    for conv in convolutions(model, options):
        if conv.reason is not None:
            continue
        largest = silent.get(conv.tensor, ranges.tensors[conv.tensor].largest)
        if largest < 2 * SMALLEST_SCALE * LEVELS:
            kept[conv.name] = f"no scale: its input goes up to {largest:.2g} on the calibration volumes"
    return kept


def keep_sensitive(
    source: OnnxArtifact,
    ranges: Ranges,
    choice: Choice,
    judge: Judge,
    sensitivity: Mapping[str, float],
    progress: Progress = SILENT,
) -> Choice:
    """The choice with the most sensitive layers put back into FP16, until the organs are kept (`ENOUGH_DICE`).

    At least `LEAST_SHARE` of the multiply-adds stays INT8, and only what helps is returned: the best of all
    that was measured.
    """
    amounts = multiply_adds_of(source.path, source.spatial.opt)
    left, total = sum(amounts[name] for name in sensitivity), sum(amounts.values())
    trials, best = list(choice.trials), choice
    keep = dict(choice.options.keep)
    with progress.step("keep sensitive layers", total=_MOST_STEPS) as advance:
        for name in sorted(sensitivity, key=lambda name: -sensitivity[name]):
            if best.best.error.dice >= ENOUGH_DICE or len(trials) - len(choice.trials) == _MOST_STEPS:
                break
            if (left - amounts[name]) / total < LEAST_SHARE:
                continue
            left -= amounts[name]
            keep[name] = f"sensitive: INT8 here alone changes the logits by {sensitivity[name]:.1%}"
            options = replace(choice.options, keep=dict(keep))
            model = ir.load(source.path)
            quantize(model, ranges, options, biases=choice.biases)
            trial = replace(choice.best, kept=len(keep), error=judge.error(model))
            trials.append(trial)
            if trial.rank > best.best.rank:
                best = replace(best, options=options, best=trial)
            advance(1)
    return replace(best, trials=tuple(trials))
