"""Whether a row computes the network that was trained: held to what `verify` asks of its number format."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lhanet_export.bench.units import number
from lhanet_export.verify.gate import TOLERANCES, Tolerance

#: Said of rows without their own entry there: BF16, TF32, and mixtures with FP32.
_HALF = "fp16"


def tolerance_of(precision: str) -> Tolerance:
    """What may differ in a number format; those that `verify` does not know have to be as near to FP32 as FP16."""
    return TOLERANCES.get(precision, TOLERANCES[_HALF])


def said_of(row: Mapping[str, Any]) -> str:
    """The answer of `agrees` as a word of a table."""
    return {True: "yes", False: "no", None: "not compared"}[agrees(row)]


def agrees(row: Mapping[str, Any]) -> bool | None:
    """Whether a row's error and its share of equal labels, as JSON values, are both within its format's tolerance.

    None where neither is known; one that is not a number is out of tolerance. `verify` looks at more than these two.
    """
    error, labels = number(row["relative_l2"]), number(row["label_agreement"])
    if error is None and labels is None:
        return None
    if error is None or labels is None:
        return False
    allowed = tolerance_of(row["precision"])
    return error <= allowed.relative_l2 and labels >= allowed.label_agreement
