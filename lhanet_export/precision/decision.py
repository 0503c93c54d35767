"""How a network becomes INT8, decided once and kept: method, biases, what stays FP16, and what each layer costs.

The file beside the ranges names all that the decision depends on by its hash. It is read again for the same
graph, windows and method, and refused for any other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lhanet_export.errors import RefusedInput
from lhanet_export.export.artifact import OnnxArtifact
from lhanet_export.export.work import multiply_adds_of
from lhanet_export.precision.arrays import fact_in, read_arrays, save_arrays
from lhanet_export.precision.calibrate import CalibrationImage, Ranges
from lhanet_export.precision.choose import ENOUGH_DICE, Choice, Dice, Error, Judge, Trial, choose, keep_sensitive
from lhanet_export.precision.int8 import Int8Options
from lhanet_export.precision.scales import METHODS
from lhanet_export.precision.sensitivity import Sensitivity, logit_sensitivities, output_sensitivities
from lhanet_export.progress import SILENT, Progress

#: Goes up whenever the same windows would give another decision.
VERSION = 3
AUTO = "auto"
#: Larger networks get their layers' own errors instead of the logits': a run a layer would take them an hour.
_MOST_MULTIPLY_ADDS = 60 * 10**9


@dataclass(frozen=True, kw_only=True, eq=False)
class Decision:
    """The way to INT8 that was chosen, and the sensitivity of each layer by name."""

    choice: Choice
    layers: Mapping[str, Sensitivity]


def decide(
    source: OnnxArtifact,
    ranges: Ranges,
    images: Sequence[CalibrationImage],
    held_out: Sequence[CalibrationImage],
    dice: Dice,
    *,
    method: str = AUTO,
    keep_organs: bool = True,
    cache: Path | None = None,
    progress: Progress = SILENT,
) -> Decision:
    """Choose on `held_out`, windows that `ranges` were not measured on, with biases from `images`.

    `method` is one of `scales.METHODS`, or `auto`: the best of them. With `keep_organs`, sensitive layers go back to
    FP16 where the organs would be lost otherwise (`keep_sensitive`). With `cache` the decision is read from that
    file if it exists, and written there if not. Refuses what `choose` refuses, and a file of another graph,
    other windows, another method or another version.
    """
    if method not in (AUTO, *METHODS):
        raise RefusedInput(f"there is no calibration method '{method}'; methods: {AUTO}, {', '.join(METHODS)}")
    key = {
        "version": VERSION,
        "ranges": ranges.key.sha256,
        "held_out": [image.sha256 for image in held_out],
        "method": method,
        "keep_organs": keep_organs,
    }
    if cache is not None and cache.exists():
        return _read(cache, key)
    judge = Judge(source, held_out, dice)
    choice = choose(source, ranges, images, judge, tuple(METHODS) if method == AUTO else (method,), progress)
    if sum(multiply_adds_of(source.path, source.spatial.opt).values()) <= _MOST_MULTIPLY_ADDS:
        layers = logit_sensitivities(source, ranges, choice.options, judge, progress)
    else:
        layers = output_sensitivities(source, ranges, choice.options, held_out[0], progress)
    if keep_organs and choice.best.error.dice < ENOUGH_DICE:
        sizes = {name: layer.size for name, layer in layers.items()}
        choice = keep_sensitive(source, ranges, choice, judge, sizes, progress)
    decision = Decision(choice=choice, layers=layers)
    if cache is not None:
        _write(cache, key, decision)
    return decision


def _write(path: Path, key: dict[str, Any], decision: Decision) -> None:
    choice = decision.choice
    facts = {
        "options": {**asdict(choice.options), "keep": dict(choice.options.keep)},
        "best": choice.trials.index(choice.best),
        "trials": [trial.as_json() for trial in choice.trials],
        "layers": {name: layer.as_json() for name, layer in decision.layers.items()},
        "biases": list(choice.biases),
    }
    biases = {f"bias_{index}": bias for index, bias in enumerate(choice.biases.values())}
    save_arrays(path, {"key": key, "facts": facts}, biases)


def _read(path: Path, key: dict[str, Any]) -> Decision:
    """A decision from a file that may be anything."""
    with read_arrays(path, "holds no choice of a method, or it is damaged; delete it to choose again") as arrays:
        found, facts = fact_in(arrays, "key"), fact_in(arrays, "facts")
        biases = {name: arrays[f"bias_{index}"] for index, name in enumerate(facts["biases"])}
        trials = tuple(Trial(**{**trial, "error": Error(**trial["error"])}) for trial in facts["trials"])
        decision = Decision(
            choice=Choice(
                options=Int8Options(**facts["options"]), biases=biases, best=trials[facts["best"]], trials=trials
            ),
            layers={name: Sensitivity(**layer) for name, layer in facts["layers"].items()},
        )
        if any(bias.ndim != 1 or bias.dtype != np.float32 or not np.isfinite(bias).all() for bias in biases.values()):
            raise ValueError("no biases")
    if found != key:
        raise RefusedInput(
            f"the choice in {path} was made for another graph, other windows, another method or by another version "
            "of this toolkit; name another file, or delete this one to choose again"
        )
    return decision
