"""Precision recipes: which nodes of a graph stay FP32 beyond the rule of `precision.fp16`, and on what evidence.

A recipe is a small YAML file that `search` writes and the conversion to FP16 reads. It names nodes, not
weights, so it fits every graph of the same network that was exported in the same way. What it was measured on
is part of it; whether it fits another checkpoint is for the gate to say.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from lhanet_export.errors import RefusedInput
from lhanet_export.export.artifact import OnnxArtifact
from lhanet_export.files import staged
from lhanet_export.shapes import Shape
from lhanet_export.strict import Node
from lhanet_export.strict_yaml import read_yaml

logger = logging.getLogger(__name__)

SCHEMA = 1
_MOST_NODES = 1 << 16


@dataclass(frozen=True, kw_only=True)
class KeptNode:
    """A node that stays FP32, by its name in the graph, and why."""

    name: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class CaseError:
    """How far one volume's output (size D,H,W) was from the reference; None for a number that was not finite."""

    shape: Shape
    relative_l2: float | None
    label_agreement: float | None
    nonfinite: int


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a recipe keeps in FP32, as shares (0 to 1) of what the graph computes on image data.

    What is FP32 by rule is not part of it.
    """

    multiply_adds: float
    weights: float
    activations: float


@dataclass(frozen=True, kw_only=True)
class Measured:
    """On what evidence a recipe stands: the same volumes without it and with it, and what the search took."""

    runner: str
    before: tuple[CaseError, ...]
    after: tuple[CaseError, ...]
    trials: int
    seconds: float
    cost: Cost


@dataclass(frozen=True, kw_only=True)
class PrecisionRecipe:
    """Nodes that stay FP32, with the FP32 graph and the checkpoint that they were found on.

    A recipe that somebody wrote by hand may have nothing measured.
    """

    onnx_sha256: str
    checkpoint_sha256: str
    keep: tuple[KeptNode, ...]
    measured: Measured | None = None
    precision: str = "fp16"

    @property
    def reasons(self) -> Mapping[str, str]:
        """The reason of each node, by name."""
        return {node.name: node.reason for node in self.keep}

    @property
    def sha256(self) -> str:
        """The hash of the file that `write_recipe` writes."""
        return hashlib.sha256(_text_of(self)).hexdigest()


def read_recipe(path: Path) -> PrecisionRecipe:
    """Read a recipe file; whatever is not exactly a recipe raises `RefusedInput` with the place in the file."""
    document = Node(read_yaml(path), path).object()
    document.take("schema").integer(SCHEMA, SCHEMA)
    recipe = PrecisionRecipe(
        precision=document.take("precision").one_of(("fp16",)),
        onnx_sha256=document.take("onnx_sha256").sha256(),
        checkpoint_sha256=document.take("checkpoint_sha256").sha256(),
        keep=document.take("keep").list_of(_kept_node, at_least=0, at_most=_MOST_NODES),
        measured=document.take_if("measured", _measured),
    )
    document.finish()
    if len(recipe.reasons) != len(recipe.keep):
        raise RefusedInput(f"{path}: keep: a node is named twice")
    return recipe


def write_recipe(recipe: PrecisionRecipe, path: Path) -> None:
    """Write a recipe as YAML, whole or not at all; `read_recipe` gives an equal one back."""
    with staged(path) as (temporary,):
        temporary.write_bytes(_text_of(recipe))


def check_recipe(recipe: PrecisionRecipe, source: OnnxArtifact) -> None:
    """Warn where a recipe was found on another graph than `source`, the FP32 graph that it is applied to.

    That is allowed: another checkpoint of the same network has the same nodes. A node that `source` does not
    have is refused by the conversion itself; whether the result is right, the gate has to say again.
    """
    if recipe.onnx_sha256 != source.sha256:
        logger.warning(
            "the precision recipe was found on another graph (sha256 %s...) than %s (%s...); "
            "what it was measured on does not count here, so verify the result",
            recipe.onnx_sha256[:12], source.path, source.sha256[:12],
        )  # fmt: skip


def _kept_node(node: Node) -> KeptNode:
    values = node.object()
    kept = KeptNode(name=values.take("node").text(), reason=values.take("reason").text())
    values.finish()
    return kept


def _measured(node: Node) -> Measured:
    values = node.object()
    measured = Measured(
        runner=values.take("runner").text(),
        before=values.take("before").list_of(_case_error, at_least=0),
        after=values.take("after").list_of(_case_error),
        trials=values.take("trials").integer(1),
        seconds=values.take("seconds").number(0),
        cost=_cost(values.take("cost")),
    )
    values.finish()
    return measured


def _case_error(node: Node) -> CaseError:
    values = node.object()
    case = CaseError(
        shape=values.take("shape").shape(),
        relative_l2=values.take_if("relative_l2", lambda value: value.number(0)),
        label_agreement=values.take_if("label_agreement", lambda value: value.number(0, 1)),
        nonfinite=values.take("nonfinite").integer(0),
    )
    values.finish()
    return case


def _cost(node: Node) -> Cost:
    values = node.object()
    shares = {key: values.take(key).number(0, 1) for key in ("multiply_adds", "weights", "activations")}
    values.finish()
    return Cost(**shares)


def _text_of(recipe: PrecisionRecipe) -> bytes:
    document: dict[str, Any] = {
        "schema": SCHEMA,
        "precision": recipe.precision,
        "onnx_sha256": recipe.onnx_sha256,
        "checkpoint_sha256": recipe.checkpoint_sha256,
        "keep": [{"node": node.name, "reason": node.reason} for node in recipe.keep],
    }
    if recipe.measured is not None:
        document["measured"] = _measured_values(recipe.measured)
    text = yaml.safe_dump(document, sort_keys=False, allow_unicode=True, width=120)
    return text.encode("utf-8")


def _measured_values(measured: Measured) -> dict[str, Any]:
    return {
        "runner": measured.runner,
        "before": [_case_values(case) for case in measured.before],
        "after": [_case_values(case) for case in measured.after],
        "trials": measured.trials,
        "seconds": measured.seconds,
        "cost": {
            "multiply_adds": measured.cost.multiply_adds,
            "weights": measured.cost.weights,
            "activations": measured.cost.activations,
        },
    }


def _case_values(case: CaseError) -> dict[str, Any]:
    return {
        "shape": list(case.shape),
        "relative_l2": case.relative_l2,
        "label_agreement": case.label_agreement,
        "nonfinite": case.nonfinite,
    }
