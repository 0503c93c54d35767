"""How verifications and engines look in a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lhanet_export.cli.show import Show, format_bytes
from lhanet_export.shapes import format_shape

if TYPE_CHECKING:
    from lhanet_export.verify.gate import Verification
    from lhanet_export.verify.organs import Organs

_ORGAN_COLUMNS = ("organ", "network to truth", "artifact to truth", "artifact to network")
_COLUMNS = ("size", "volume", "relative L2", "max abs", "labels equal", "worst Dice", "NaN/Inf", "verdict")


def show_verification(show: Show, title: str, verification: Verification, labels: Sequence[str]) -> None:
    """A row a case, the tolerances, the organs by their names, and what the reference's own outputs are worth."""
    rows = []
    for case in verification.differences:
        failed = any(f"at {format_shape(case.shape)} ({case.kind})" in failure for failure in verification.failures)
        rows.append((
            format_shape(case.shape), case.kind, _number(case.relative_l2), _number(case.max_abs),
            f"{case.label_agreement:.4%}", f"{min(case.dice.values()):.4f}", str(case.nonfinite),
            "failed" if failed else "passed",
        ))  # fmt: skip
    allowed = verification.tolerance
    rows.append((
        "allowed", "", f"{allowed.relative_l2:.0e}", f"{allowed.absolute:.0e} + {allowed.relative:.0e} peak",
        f"{allowed.label_agreement:.2%}", "", "0", "passed" if verification.passed else "failed",
    ))  # fmt: skip
    show.table(f"{title} against the eager network (run by {verification.runner})", rows, _COLUMNS)
    if verification.organs is not None:
        _show_organs(show, verification.organs, labels)
    show.line(
        f"What the comparison is worth: {verification.logit_dependence:.0%} of the logits' norm depends on the volume, "
        f"and {verification.label_variety:.0%} of the voxels do not have the most frequent label."
    )
    for failure in verification.failures:
        show.line(f"failed: {failure}")


def _show_organs(show: Show, organs: Organs, labels: Sequence[str]) -> None:
    """Dice of each organ over all scans: between the two, and of each to the truth where that is known."""
    rows = [
        (labels[score.index], _share(score.reference_to_truth), _share(score.candidate_to_truth), _share(score.dice))
        for score in organs.scores
    ]
    known = organs.reference_to_truth
    rows.append((
        "mean", _share(known), _share(None if known is None else known - organs.loss), _share(organs.mean_dice)
    ))  # fmt: skip
    show.table("Dice over all scans", rows, _ORGAN_COLUMNS)
    if known is not None and not organs.truth_counts:
        show.line("The network does not find these organs; what it loses against the truth is not judged.")


def engine_rows(manifest: dict[str, Any]) -> list[tuple[str, str]]:
    """What an engine is, as names and values; memory as the builder planned it, which is not a measurement."""
    engine = manifest["engine"]
    weights, activations = (engine["device_memory"][key] for key in ("weights_bytes", "activation_bytes"))
    profiles = [
        ":".join("x".join(map(str, profile[key])) for key in ("min", "opt", "max")) for profile in engine["profiles"]
    ]
    return [
        ("backend", f"{engine['backend']} {engine['backend_version']}"),
        ("for compute capability", ", ".join(engine["compute_capabilities"])),
        ("precision", engine["precision"]),
        ("sizes", "; ".join(profiles)),
        ("file", format_bytes(engine["bytes"])),
        *_planned(weights, activations),
        ("built in", f"{manifest['build']['seconds']:.0f} s"),
    ]


def _planned(weights: int | None, activations: int | None) -> list[tuple[str, str]]:
    """Device memory; a backend need not say what it planned."""
    if weights is None or activations is None:
        return [("planned by the builder", "the backend does not say")]
    return [
        ("planned by the builder: weights", format_bytes(weights)),
        ("planned by the builder: activations", format_bytes(activations)),
        ("planned by the builder: together", format_bytes(weights + activations)),
    ]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2e}"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
