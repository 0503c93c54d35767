"""Writes docs/demo.md and docs/precision.md from the figures in other folders of docs, and from nothing else.

python scripts/render_precision.py
"""

from __future__ import annotations

import textwrap
from collections import Counter
from typing import Any

import click
from _pages import BENCHMARKS, DOCS, MEASUREMENTS, figures_in, table

from lhanet_export.conventions import AMOS_LABELS
from lhanet_export.export.work import title_of

#: What the reference network should reach: the final head as a share of its ceiling, and the finest head's Dice.
FINAL_GOAL, FINE_GOAL = 0.9, 0.75
HEADS = {"ceiling of the final head": "ceiling", "final": "final head", "deep0": "finest deep-supervision head"}
#: What INT8 should need at full width: bytes of weights, and memory as a share of FP16's.
INT8_WEIGHTS_GOAL, INT8_MEMORY_GOAL = 330e6, 0.75


def demo_page() -> str:
    """The card of the reference network."""
    figures, training = figures_in(MEASUREMENTS / "demo.json"), figures_in(MEASUREMENTS / "demo-training.json")
    settings, heads, dice = training["training"], training["head_losses"], figures["dice"]
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
            "Dice on the final head and the four deep-supervision heads; the final head counts",
            f"{heads[0]['weight'] / heads[1]['weight']:g} times as much as the finest one, with a cross-entropy of",
            f"weight {heads[0]['cross_entropy']:g}. Dice is counted over the last windows together. Batch norms are "
            "fixed after",
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
    figures = figures_in(MEASUREMENTS / "precision.json")
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
        *layer_section(calibration),
        *full_width_section(figures_in(BENCHMARKS / "memory_plans.json")),
    ])  # fmt: skip


def layer_section(calibration: dict[str, Any]) -> list[str]:
    """What INT8 in each layer alone does, and which convolutions stay in FP16."""
    total = sum(layer["multiply_adds"] for layer in calibration["layers"]) / calibration["share_of_multiply_adds"]
    quantized = [
        (
            title_of(layer["name"]), f"{layer['multiply_adds'] / total:.1%}",
            f"{layer['sensitivity']['relative_l2']:.1e}", f"{layer['sensitivity']['labels_changed']:.3%}",
            f"{layer['clipped']:.2%}", f"{layer['weight_noise']:.1e}",
        )
        for layer in sorted(calibration["layers"], key=lambda layer: -layer["sensitivity"]["relative_l2"])
    ]  # fmt: skip
    kept = Counter(calibration["kept"].values())
    return [
        "## INT8, layer by layer",
        "",
        _paragraph(
            f"Scales by {calibration['method']}, {calibration['share_of_multiply_adds']:.1%} of the multiply-adds in",
            f"INT8: {len(quantized)} convolutions, each of them here the only one that is quantized, on one window.",
            "One without a bar changes nothing: what it reads is 0.",
        ),
        "",
        "![relative error of the logits with one convolution in INT8](figures/precision-layers.svg)",
        "",
        f"<details><summary>All {len(quantized)} convolutions in INT8, those that cost most first</summary>",
        "",
        *table(
            ("layer", "multiply-adds", "error of the logits", "labels changed", "inputs clipped", "weight noise"),
            quantized,
        ),
        "",
        "</details>",
        "",
        "What stays in FP16:",
        "",
        *table(("convolutions", "why"), [(str(count), reason) for reason, count in kept.items()]),
        "",
    ]


def full_width_section(plans: dict[str, Any]) -> list[str]:
    """Planned memory of INT8 engines beside FP16 ones of the same network and sizes."""
    halves = {(row["preset"], row["max"], row["batch"]): row for row in plans["rows"] if row["precision"] == "fp16"}
    rows = []
    for row in plans["rows"]:
        if row["precision"] != "int8":
            continue
        half = halves[row["preset"], row["max"], row["batch"]]
        both = [one["weights_bytes"] + one["activation_bytes"] for one in (half, row)]
        light, share = row["weights_bytes"] <= INT8_WEIGHTS_GOAL, both[1] / both[0]
        rows.append((
            row["preset"], f"{row['min']} to {row['max']}", f"{row['share_of_multiply_adds']:.1%}",
            f"{both[0] / 1e6:,.0f} MB", f"{both[1] / 1e6:,.0f} MB", f"{row['weights_bytes'] / 1e6:,.0f} MB",
            f"{share:.1%}", "yes" if light and share <= INT8_MEMORY_GOAL else "**no**",
        ))  # fmt: skip
    calibrated = next(row for row in plans["rows"] if row["precision"] == "int8")
    names = (
        "preset", "volumes", "multiply-adds in INT8", "FP16 engine", "INT8 engine", "of it weights",
        "INT8 of FP16", f"weights up to {INT8_WEIGHTS_GOAL / 1e6:.0f} MB and memory up to {INT8_MEMORY_GOAL:.0%}",
    )  # fmt: skip
    return [
        "## Memory at full width",
        "",
        _paragraph(
            f"Engines for an RTX 3060 as TensorRT-RTX {plans['machine']['tensorrt-rtx']} plans them; not run. Weights",
            "by rule, calibrated on phantoms: what INT8 does to the organs at full width was not measured, because no",
            "trained network of that size was at hand. So nothing went back to FP16 for the organs' sake (`calibrate",
            "--keep none`), as nothing does for `demo`; each weight that does takes a byte more. Calibrating took",
            f"{calibrated['calibration_seconds'] / 60:.0f} minutes, and {calibrated['again_seconds']:.0f} seconds the",
            f"second time, from its cache. `python scripts/memory_plans.py`, {plans['date']}.",
        ),
        "",
        *table(names, rows),
        "",
    ]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _verdict(reached: float, goal: float) -> str:
    return f"the goal of {goal:g} is reached" if reached >= goal else f"the goal of {goal:g} is **not** reached"


def _paragraph(*lines: str) -> str:
    return textwrap.fill(" ".join(lines), 120, break_long_words=False, break_on_hyphens=False)


@click.command(help=__doc__)
def main() -> None:
    (DOCS / "demo.md").write_text(demo_page(), encoding="utf-8")
    (DOCS / "precision.md").write_text(precision_page(), encoding="utf-8")


if __name__ == "__main__":
    main()
