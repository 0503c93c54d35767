"""Finding the nodes that have to stay FP32 for an FP16 graph to pass its gate.

Three kinds of nodes come into question, and they are tried in this order:

1. Nodes that overflow for certain: those whose weights FP16 cannot hold, and, if the gate fails without them,
   those that write or read a tensor that leaves FP16's range on the volumes. They all stay FP32.
2. If that is not enough, nodes whose tensors or weights lie among FP16's subnormal numbers; or, if those are
   not enough either, every node.
3. Of these a smallest set is found by delta debugging (A. Zeller, R. Hildebrandt, Simplifying and isolating
   failure-inducing input, IEEE TSE 28, 2002): first among parts of the network, then among modules of the
   parts that are left, then among their nodes (hierarchical: G. Misherghi, Z. Su, ICSE 2006). Smallest means
   that no node can be left out of it, not that no other set has fewer.

The gate judges every trial. What is returned passed it in just this form, so nothing depends on the
assumption that more FP32 is never worse; that only makes the search short.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain, pairwise
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import onnx_ir as ir

from lhanet_export.errors import GateFailed
from lhanet_export.export.artifact import OnnxArtifact
from lhanet_export.files import scratch_folder
from lhanet_export.precision.convert import fp16_from_fp32
from lhanet_export.precision.fp16 import (
    HALF_LARGEST,
    HALF_OVERFLOW,
    HALF_SMALLEST_NORMAL,
    convert_to_fp16,
    nodes_on_image_data,
)
from lhanet_export.precision.ranges import NodeRange, activation_ranges
from lhanet_export.precision.recipe import CaseError, Cost, KeptNode, Measured, PrecisionRecipe
from lhanet_export.progress import SILENT, Progress

T = TypeVar("T")

#: A part of the network is a module at this depth of names, as in `/pmsa.0/scale_attentions.4`.
_PART_DEPTH = 2
_LONGEST_REASON = 400


class Verdict(Protocol):
    """What the search needs to know of a `verify.gate.Verification`."""

    @property
    def passed(self) -> bool:
        """Whether nothing failed."""

    @property
    def runner(self) -> str:
        """What ran the graph."""

    @property
    def failures(self) -> tuple[str, ...]:
        """What failed, in words."""

    def as_json(self) -> dict[str, Any]:
        """All numbers; `cases` has an object for each volume."""


#: Runs the gate on an ONNX file, with the tolerances of FP16. It is also given the FP32 file itself.
Judge = Callable[[OnnxArtifact], Verdict]


@dataclass(frozen=True, kw_only=True)
class SearchResult:
    """A recipe that passes, with the verdicts without it and with it; `recipe.measured` has all numbers."""

    recipe: PrecisionRecipe
    measured: Measured
    before: Verdict
    after: Verdict

    def as_json(self) -> dict[str, Any]:
        """The recipe's nodes and both verdicts as JSON values."""
        return {
            "keep": [asdict(node) for node in self.recipe.keep],
            "trials": self.measured.trials,
            "seconds": self.measured.seconds,
            "cost": asdict(self.measured.cost),
            "before": self.before.as_json(),
            "after": self.after.as_json(),
        }

    def rows(self) -> list[tuple[str, str]]:
        """The result as names and values for a reader."""
        cost = self.measured.cost
        without = "passed" if self.before.passed else "; ".join(self.before.failures[:2])
        return [
            ("nodes kept in FP32", str(len(self.recipe.keep))),
            *((node.name, node.reason) for node in self.recipe.keep),
            ("share of multiply-adds", f"{cost.multiply_adds:.2%}"),
            ("share of weights", f"{cost.weights:.2%}"),
            ("share of activations", f"{cost.activations:.2%}"),
            ("without the recipe", without),
            ("with the recipe", ", ".join(map(_case_text, self.measured.after))),
            ("search", f"{self.measured.trials} trials, {self.measured.seconds:.0f} s"),
        ]


def search_fp16(
    source: OnnxArtifact,
    judge: Judge,
    images: Sequence[np.ndarray],
    folder: Path,
    *,
    most_trials: int = 200,
    progress: Progress = SILENT,
) -> SearchResult:
    """Find a precision recipe for an FP32 ONNX file with which its FP16 form passes `judge`.

    `images` are the volumes (N,1,D,H,W) that the judge runs on; from them come the activation ranges that
    guide the search. Trials are written into a temporary folder in `folder`. After `most_trials` the smallest set so
    far that passed is taken. `GateFailed` if the FP32 graph itself does not pass, and if only it does;
    `RefusedInput` for a graph that is not FP32, and for what `activation_ranges` refuses.
    """
    started = time.perf_counter()
    graph = _Graph(source)
    with scratch_folder(folder) as scratch:
        trials = _Trials(source, judge, scratch / "trial.onnx", most_trials, progress)
        reasons = graph.beyond_range()
        before = after = trials.judged(reasons)
        ranges: tuple[NodeRange, ...] = ()
        if not before.passed:
            ranges = activation_ranges(source, images, progress)
            reasons = {**graph.overflowing(ranges), **reasons}
            after = trials.judged(reasons)
        if not after.passed:
            trials.require_fp32()
            reasons = _found_by_bisection(graph, ranges, reasons, trials)
            after = trials.judged(reasons)
        if reasons and not ranges:
            ranges = activation_ranges(source, images, progress)
    measured = Measured(
        runner=after.runner,
        before=_case_errors(before),
        after=_case_errors(after),
        trials=trials.count,
        seconds=round(time.perf_counter() - started, 1),
        cost=graph.cost(reasons, ranges),
    )
    recipe = PrecisionRecipe(
        onnx_sha256=source.sha256,
        checkpoint_sha256=str(source.facts["checkpoint"]["sha256"]),
        keep=tuple(KeptNode(name=name, reason=reasons[name]) for name in graph.in_order(reasons)),
        measured=measured,
    )
    return SearchResult(recipe=recipe, measured=measured, before=before, after=after)


def smallest_set(items: Sequence[T], passes: Callable[[Sequence[T]], bool]) -> list[T]:
    """A subset of `items`, which pass, that passes and of which no item can be left out (delta debugging, ddmin).

    The items keep their order; neighbours are tried together, so a cause that is a stretch of the order is
    found soon. The empty set is not tried.
    """
    kept, parts = list(items), 2
    while len(kept) > 1:
        bounds = [len(kept) * index // parts for index in range(parts + 1)]
        stretches = list(pairwise(bounds))
        one = next((kept[low:high] for low, high in stretches if passes(kept[low:high])), None)
        if one is not None:
            kept, parts = one, 2
            continue
        rest = next((kept[:low] + kept[high:] for low, high in stretches if passes(kept[:low] + kept[high:])), None)
        if rest is not None:
            kept, parts = rest, max(parts - 1, 2)
        elif parts < len(kept):
            parts = min(2 * parts, len(kept))
        else:
            break
    return kept


def _found_by_bisection(
    graph: _Graph, ranges: Sequence[NodeRange], certain: Mapping[str, str], trials: _Trials
) -> dict[str, str]:
    """Reasons of the certain nodes and of the fewest others that make the graph pass."""
    others = [name for name in graph.half_nodes if name not in certain]
    small = graph.among_subnormals(ranges)
    suspects = [name for name in others if name in small]
    if not suspects or not trials.judged({*certain, *suspects}).passed:
        # All of them pass: nothing is FP16 then, and the FP32 graph has passed.
        suspects = others
    found = suspects
    for key in (_part_of, _module_of, str):
        groups: dict[str, list[str]] = {}
        for name in found:
            groups.setdefault(key(name), []).append(name)
        chosen = smallest_set(list(groups.values()), lambda some: trials.passes({*certain, *chain.from_iterable(some)}))
        found = list(chain.from_iterable(chosen))
    if len(found) == len(others):
        raise GateFailed(
            f"in {trials.count} trials the FP16 form of {trials.source.path} passed with nothing in FP16 only; "
            "use --precision fp32"
        )
    reasons = dict(certain)
    for name in found:
        without = trials.known({*certain, *found} - {name})
        why = f"without it {without.failures[0]}" if without else "found by bisection, together with the others"
        reasons[name] = f"{small[name]}; {why}"[:_LONGEST_REASON] if name in small else why[:_LONGEST_REASON]
    return reasons


def _part_of(name: str) -> str:
    return "/".join(_module_of(name).split("/")[: 1 + _PART_DEPTH])


def _module_of(name: str) -> str:
    return name.rpartition("/")[0]


class _Trials:
    """Judges sets of nodes that stay FP32, each once."""

    def __init__(self, source: OnnxArtifact, judge: Judge, path: Path, most: int, progress: Progress) -> None:
        self.source = source
        self.count = 0
        self._judge = judge
        self._path = path
        self._most = most
        self._progress = progress
        self._known: dict[frozenset[str], Verdict] = {}

    def judged(self, keep: Iterable[str]) -> Verdict:
        """The verdict on the FP16 graph with these nodes in FP32."""
        key = frozenset(keep)
        if key not in self._known:
            self.count += 1
            with self._progress.step(f"trial {self.count}: {len(key)} more nodes in FP32"):
                recipe = PrecisionRecipe(
                    onnx_sha256=self.source.sha256,
                    checkpoint_sha256=str(self.source.facts["checkpoint"]["sha256"]),
                    keep=tuple(KeptNode(name=name, reason="trial") for name in sorted(key)),
                )
                artifact, _ = fp16_from_fp32(self.source, self._path, recipe=recipe)
                self._known[key] = self._judge(artifact)
        return self._known[key]

    def passes(self, keep: Iterable[str]) -> bool:
        """Whether a set passes; when the trials are used up, only what is known already does."""
        key = frozenset(keep)
        if self.count >= self._most and key not in self._known:
            return False
        return self.judged(key).passed

    def known(self, keep: Iterable[str]) -> Verdict | None:
        """The verdict on a set if it was tried and failed."""
        verdict = self._known.get(frozenset(keep))
        return verdict if verdict is not None and not verdict.passed else None

    def require_fp32(self) -> None:
        """Raise `GateFailed` unless the FP32 graph itself passes."""
        self.count += 1
        with self._progress.step(f"trial {self.count}: everything in FP32"):
            verdict = self._judge(self.source)
        if not verdict.passed:
            raise GateFailed(
                f"{self.source.path} does not pass in FP32 either, so no precision recipe can help: "
                + "; ".join(verdict.failures)
            )


class _Graph:
    """What the search asks about the FP32 graph."""

    def __init__(self, source: OnnxArtifact) -> None:
        # What the conversion does is read off a graph of its own: it changes what it is given.
        report = convert_to_fp16(ir.load(source.path))
        graph = ir.load(source.path).graph
        on_image = nodes_on_image_data(graph)
        self._nodes = {str(node.name): node for node in graph if node in on_image}
        self.half_nodes = [name for name in self._nodes if name not in report.float_nodes]
        self._losses = {loss.name: loss for loss in report.weight_losses}
        self._losing = {loss.name for loss in report.losing}

    def in_order(self, names: Iterable[str]) -> list[str]:
        """Names in the graph's order."""
        chosen = set(names)
        return [name for name in self._nodes if name in chosen]

    def beyond_range(self) -> dict[str, str]:
        """FP16 nodes whose weights FP16 cannot hold."""
        reasons = {}
        for name in self.half_nodes:
            for read in self._reads(name):
                if read in self._losses and self._losses[read].overflowing:
                    reasons[name] = f"weights reach {self._losses[read].largest:.3g}, beyond FP16's range of 65,504"
        return reasons

    def overflowing(self, ranges: Sequence[NodeRange]) -> dict[str, str]:
        """FP16 nodes that write or read a tensor that leaves FP16's range."""
        beyond = {
            str(self._nodes[found.name].outputs[0].name): found for found in ranges if found.largest >= HALF_OVERFLOW
        }
        reasons = {}
        for name in self.half_nodes:
            for word, tensors in (("reads", self._reads(name)), ("gives", self._writes(name))):
                for found in (beyond[tensor] for tensor in tensors if tensor in beyond):
                    reasons[name] = (
                        f"{word} values up to {found.largest:,.0f} (volume {found.largest_in}), "
                        f"beyond FP16's range of {HALF_LARGEST:,.0f}"
                    )
        return reasons

    def among_subnormals(self, ranges: Sequence[NodeRange]) -> dict[str, str]:
        """FP16 nodes whose weights or tensors have fewer digits in FP16 than they should."""
        small = {
            str(self._nodes[found.name].outputs[0].name): found
            for found in ranges
            if 0 < found.rms < HALF_SMALLEST_NORMAL
        }
        reasons = {}
        for name in self.half_nodes:
            for read in self._reads(name):
                if read in self._losing:
                    loss = self._losses[read]
                    share = (loss.subnormal + loss.vanishing) / loss.size
                    reasons[name] = f"{share:.0%} of its weights lie below FP16's smallest normal number"
            for word, tensors in (("reads", self._reads(name)), ("gives", self._writes(name))):
                for found in (small[tensor] for tensor in tensors if tensor in small):
                    reasons[name] = (
                        f"{word} values of RMS {found.rms:.2g}, below FP16's smallest normal number of "
                        f"{HALF_SMALLEST_NORMAL:.2g}"
                    )
        return reasons

    def cost(self, keep: Iterable[str], ranges: Sequence[NodeRange]) -> Cost:
        """The shares of kept nodes in what is computed and stored, over all volumes."""
        chosen = set(keep)
        kept = [found for found in ranges if found.name in chosen]
        return Cost(
            multiply_adds=_share(sum(found.multiply_adds for found in kept), sum(f.multiply_adds for f in ranges)),
            weights=_share(self._weights(chosen), self._weights(self._nodes)),
            activations=_share(sum(found.elements for found in kept), sum(found.elements for found in ranges)),
        )

    def _weights(self, names: Iterable[str]) -> int:
        read = {value for name in names for value in self._nodes[name].inputs if value is not None}
        weights = (value.const_value for value in read if value.is_initializer())
        return sum(weight.size for weight in weights if weight is not None and weight.dtype is ir.DataType.FLOAT)

    def _reads(self, name: str) -> list[str]:
        return [str(value.name) for value in self._nodes[name].inputs if value is not None]

    def _writes(self, name: str) -> list[str]:
        return [str(value.name) for value in self._nodes[name].outputs]


def _share(part: int, whole: int) -> float:
    return round(part / whole, 6) if whole else 0.0


def _case_errors(verdict: Verdict) -> tuple[CaseError, ...]:
    return tuple(
        CaseError(
            shape=tuple(case["shape"]),
            relative_l2=case["relative_l2"],
            label_agreement=case["label_agreement"],
            nonfinite=case["nonfinite"],
        )
        for case in verdict.as_json()["cases"]
    )


def _case_text(case: CaseError) -> str:
    size = "x".join(map(str, case.shape))
    if case.relative_l2 is None:
        return f"{size}: labels equal on {case.label_agreement:.3%}"
    return f"{size}: relative L2 {case.relative_l2:.1e}"
