"""Writes docs/demo.md and docs/precision.md from the figures in docs/measurements, and from nothing else.

python scripts/render_precision.py
"""

from __future__ import annotations

import json
import textwrap
from pathlib import Path
from typing import Any

import click
from render_measurements import table

from lhanet_export.conventions import AMOS_LABELS

DOCS = Path(__file__).resolve().parents[1] / "docs"
FIGURES = DOCS / "measurements"
#: What the reference network should reach: the final head as a share of its ceiling, and the finest head's Dice.
FINAL_GOAL, FINE_GOAL = 0.9, 0.75
HEADS = {"ceiling of the final head": "ceiling", "final": "final head", "deep0": "finest deep-supervision head"}
#: Layers that the page lists, of those that cost most.
SHOWN_LAYERS = 12


def demo_page() -> str:
    """The card of the reference network."""
    figures, training = _figures("demo.json"), _figures("demo-training.json")
    settings, dice = training["training"], figures["dice"]
    patch = "x".join(map(str, settings["patch"]))
    rows = [
        (organ, *(f"{dice[head]['organs'][organ]:.3f}" for head in HEADS))
        for organ in dice["ceiling of the final head"]["organs"]
    ]
    rows.append(("**mean**", *(f"**{dice[head]['mean']:.3f}**" for head in HEADS)))
    note = f"; {training['note']}" if "note" in training else ""
    share, fine = figures["final_of_ceiling"], dice["deep0"]["mean"]
    return "\n".join([
        "# `demo`, the reference network",
        "",
        _paragraph(
            "A small LHA-Net that comes with the package, trained on synthetic CT. It exists so that precision can be",
            "judged on a network that has learned something, on any machine and without a download.",
            "**It is not for clinical use: it has never seen a patient.**",
        ),
        "",
        "```sh",
        "lhanet-export deploy demo -o build/demo/",
        "```",
        "",
        "## Data",
        "",
        _paragraph(
            f"{settings['phantoms']} synthetic abdominal scans (`lhanet_export/volume/`), each of another patient, in",
            "HU, with the 15 organs of AMOS22 as labels, rendered at 1.5 mm. Anatomy, contrast phase and noise vary",
            f"with the seed. Training has the seeds 0 to {settings['phantoms'] - 1}, calibration those from 1,000 on,",
            f"and what is measured here those from {figures['first_seed']:,} on.",
        ),
        "",
        "## Training",
        "",
        _paragraph(
            f"`python scripts/train_demo.py`: preset {settings['preset']}, width {settings['width']},",
            f"{settings['steps']:,} steps of {settings['batch']} windows of {patch} voxels, AdamW, cross-entropy and",
            "Dice on the final head and the four deep-supervision heads; batch norms fixed after",
            f"{settings['fixed_norms_from']:.0%} of the steps. It took {training['seconds'] / 60:.0f} minutes on",
            f"{training['machine']['cpu']}, {settings['threads']} threads ({training['date']}, torch",
            f"{training['machine']['torch']}{note}). The weights are stored in FP16,",
            f"{training['bytes'] / 1e6:.1f} MB.",
        ),
        "",
        "## Dice on unseen phantoms",
        "",
        _paragraph(
            f"{figures['windows']} windows of {'x'.join(map(str, figures['patch']))} voxels around every organ, by",
            f"`python scripts/evaluate_demo.py`. The final head's logits are made at stride {figures['stride']} and",
            "resized, so the best that any network could reach has a ceiling. It was measured by fitting such logits",
            "to the truth directly.",
        ),
        "",
        *table(("organ", *HEADS.values()), rows),
        "",
        _paragraph(
            f"The final head reaches {share:.0%} of its ceiling ({_verdict(share, FINAL_GOAL)}), the finest head a",
            f"mean of {fine:.2f} ({_verdict(fine, FINE_GOAL)}).",
        ),
        "",
        "## Limits",
        "",
        _paragraph(
            "Phantoms are simpler than patients: smooth organs, no disease, no artefacts. Size classifiers and size",
            "heads were not trained; no output depends on them. Scans of thick slices were not in the training.",
        ),
        "",
    ])  # fmt: skip


def precision_page() -> str:
    """What FP16 and INT8 cost, organ by organ."""
    figures = _figures("precision.json")
    calibration = figures["calibration"]
    scores = {
        precision: {one["index"]: one for one in figures[precision]["organs"]} for precision in ("fp32", "fp16", "int8")
    }
    rows = []
    for index, one in scores["fp32"].items():
        truths = [_number(scores[precision].get(index, {}).get("candidate_to_truth")) for precision in scores]
        equal = [_number(scores[precision].get(index, {}).get("dice")) for precision in ("fp16", "int8")]
        rows.append((AMOS_LABELS[index], _number(one["reference_to_truth"]), *truths, *equal))
    network = figures["fp32"]["reference_to_truth"]
    truths = [f"**{network - figures[precision]['loss']:.4f}**" for precision in scores]
    equal = [f"**{figures[precision]['mean_dice']:.4f}**" for precision in ("fp16", "int8")]
    rows.append(("**mean**", f"**{network:.4f}**", *truths, *equal))
    summary = [
        (
            precision.upper(), f"{facts['relative_l2']:.1e}", f"{facts['label_agreement']:.3%}",
            f"{facts['mean_dice']:.5f}", f"{facts['loss']:+.5f}", "yes" if facts["passed"] else "**no**",
        )
        for precision, facts in ((precision, figures[precision]) for precision in scores)
    ]  # fmt: skip
    layers = sorted(calibration["layers"], key=lambda layer: -layer["sensitivity"]["relative_l2"])[:SHOWN_LAYERS]
    costs = [
        (
            layer["name"],
            f"{layer['sensitivity']['relative_l2']:.1e}",
            f"{layer['clipped']:.2%}",
            f"{layer['weight_noise']:.1e}",
        )
        for layer in layers
    ]
    ways = [
        (
            way["method"], way["clip"], "yes" if way["corrected"] else "no", f"{way['error']['relative_l2']:.4f}",
            f"{1 - way['error']['labels_changed']:.3%}", f"{way['error']['dice']:.4f}",
        )
        for way in calibration["trials"]
    ]  # fmt: skip
    return "\n".join([
        "# What FP16 and INT8 cost, organ by organ",
        "",
        _paragraph(
            f"The trained reference network `demo` ([card](demo.md)) on {figures['windows']} windows of phantoms that",
            f"neither training nor calibration has seen, {figures['date']}, by `python scripts/measure_precision.py`",
            f"on a machine without a GPU ({figures['machine']['cpu']}). Graphs ran in ONNX Runtime, FP16 and INT8 ones",
            "with every tensor rounded as it is stored; no engine was run.",
        ),
        "",
        *table(
            ("graph", "relative L2, worst", "labels equal", "mean Dice to network", "Dice to truth lost", "passed"),
            summary,
        ),
        "",
        "Dice to the truth, and of FP16's and INT8's label maps to the network's:",
        "",
        *table(("organ", "network", "FP32", "FP16", "INT8", "FP16 to network", "INT8 to network"), rows),
        "",
        "![Dice to the truth of each organ, for FP32, FP16 and INT8](figures/precision-dice.svg)",
        "",
        "One slice: the scan, its truth, the three graphs, and the voxels where FP16 and INT8 differ from FP32.",
        "",
        "![a coronal slice segmented by the FP32, FP16 and INT8 graphs](figures/precision-slices.png)",
        "",
        "## Ways to INT8",
        "",
        _paragraph(
            "What `lhanet-export calibrate` compared on windows of its scans that gave no ranges; the best one is",
            "above. Biases are corrected by the mean error of each channel (Nagel et al. 2019).",
        ),
        "",
        *table(("activations", "weights", "biases corrected", "relative L2", "labels equal", "Dice to FP32"), ways),
        "",
        "## INT8, layer by layer",
        "",
        _paragraph(
            f"Scales by {calibration['method']}, {calibration['share_of_multiply_adds']:.1%} of the multiply-adds in",
            "INT8. The layers that cost most, each quantized alone:",
        ),
        "",
        *table(("layer", "error of the logits", "clipped", "weight noise"), costs),
        "",
    ])  # fmt: skip


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _verdict(reached: float, goal: float) -> str:
    return f"the goal of {goal:g} is reached" if reached >= goal else f"the goal of {goal:g} is **not** reached"


def _paragraph(*lines: str) -> str:
    return textwrap.fill(" ".join(lines), 120, break_long_words=False, break_on_hyphens=False)


def _figures(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((FIGURES / name).read_text(encoding="utf-8"))
    return found


@click.command(help=__doc__)
def main() -> None:
    (DOCS / "demo.md").write_text(demo_page(), encoding="utf-8")
    (DOCS / "precision.md").write_text(precision_page(), encoding="utf-8")


if __name__ == "__main__":
    main()
