"""Measure what FP16 and INT8 cost the trained network `demo`, organ by organ, and draw it.

    python scripts/measure_precision.py

Writes docs/measurements/precision.json, and the pictures of docs/precision.md into docs/figures/. Graphs run on the
CPU, FP16 and INT8 ones with every tensor rounded as their engine would. The phantoms are of patients that neither
training nor calibration has seen. `scripts/render_precision.py` then writes docs/precision.md.
"""

from __future__ import annotations

from datetime import date
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click
import numpy as np
from _machine import machine
from _scans import write_scans
from phantom_picture import busiest_row, slice_labels

from lhanet_export.cli.main import run
from lhanet_export.conventions import AMOS_LABELS, Preprocessing
from lhanet_export.export.artifact import read_onnx
from lhanet_export.export.work import place_of
from lhanet_export.files import read_json, write_json
from lhanet_export.runners.onnxruntime_ import OnnxRuntimeRunner
from lhanet_export.verify.volumes import VERIFICATION_SEEDS, phantoms
from lhanet_export.volume.picture import Panel, coloured, grey, marked, save_panels, upright

ROOT = Path(__file__).resolve().parents[1]
FIGURES = ROOT / "docs" / "measurements" / "precision.json"
PICTURES = ROOT / "docs" / "figures"
PRECISIONS = ("fp32", "fp16", "int8")
CALIBRATION_PHANTOMS = 8


def command(*arguments: str, may_fail: bool = False) -> None:
    """Run a command of the toolkit; where a verdict against a graph is a result, it `may_fail` with code 2."""
    code = run(list(arguments))
    if code and not (may_fail and code == 2):
        raise SystemExit(code)


def make_graphs(folder: Path) -> dict[str, Path]:
    """The graphs of `demo` by precision."""
    paths = {precision: folder / f"demo.{precision}.onnx" for precision in PRECISIONS}
    source, scans = folder / "int8-source.onnx", folder / "scans"
    command("onnx", "demo", "-o", str(paths["fp32"]))
    command("onnx", "demo", "-o", str(paths["fp16"]), "--precision", "fp16")
    command("onnx", "demo", "-o", str(source), "--without", "short-convolutions")
    write_scans(scans, CALIBRATION_PHANTOMS)
    report = folder / "calibration.json"
    command("calibrate", str(source), "--data", str(scans), "-o", str(paths["int8"]), "--json", str(report))
    return paths


def calibration_facts(found: dict[str, Any]) -> dict[str, Any]:
    """What the page shows of `calibrate --json`."""
    chosen, report = found["trials"][found["chosen"]], found["report"]
    return {
        "method": f"{chosen['method']} (weights: {chosen['clip']})",
        "trials": found["trials"],
        "share_of_multiply_adds": report["share_of_multiply_adds"],
        "layers": [{**layer, "sensitivity": found["sensitivity"][layer["name"]]} for layer in report["layers"]],
        "kept": report["kept"],
    }


def draw_slices(paths: dict[str, Path], target: Path) -> None:
    """One phantom's slice with the truth, the three segmentations, and where INT8 differs from FP32."""
    how = Preprocessing()
    scan = next(phantoms(VERIFICATION_SEEDS, how))
    assert scan.labels is not None
    row = busiest_row(scan.labels)
    plane = upright(scan.image[:, row])
    panels = [Panel("scan", grey(plane)), Panel("truth", coloured(plane, upright(scan.labels[:, row])))]
    found = {}
    for precision, path in paths.items():
        with OnnxRuntimeRunner(read_onnx(path)) as runner:
            found[precision] = upright(slice_labels(runner, scan.image, row, how))
        panels.append(Panel(precision.upper(), coloured(plane, found[precision])))
    for precision in PRECISIONS[1:]:
        panels.append(Panel(f"{precision.upper()} differs", marked(plane, found[precision] != found["fp32"])))
    save_panels(panels, target, names=AMOS_LABELS, columns=4)


def draw_dice(precisions: dict[str, Any], target: Path) -> None:
    """Dice to the truth of each organ, a bar for each precision."""
    pyplot = _pyplot()
    organs = precisions["fp32"]["organs"]
    figure, axes = pyplot.subplots(figsize=(9, 4.2))
    places = np.arange(len(organs))
    for offset, precision in enumerate(PRECISIONS):
        found = {one["index"]: one["candidate_to_truth"] for one in precisions[precision]["organs"]}
        heights = [found.get(one["index"], 0.0) for one in organs]
        axes.bar(places + 0.27 * (offset - 1), heights, 0.25, label=precision.upper())
    axes.set_xticks(places, [AMOS_LABELS[one["index"]] for one in organs], rotation=40, ha="right")
    axes.set_ylabel("Dice to the truth")
    axes.set_ylim(0, 1)
    axes.grid(axis="y", alpha=0.3)
    axes.legend(frameon=False, ncols=3)
    _save(figure, target)


def draw_layers(layers: list[dict[str, Any]], target: Path) -> None:
    """The error of the logits with one layer in INT8, layer after layer as the graph has them."""
    pyplot = _pyplot()
    figure, axes = pyplot.subplots(figsize=(9, 3.6))
    parts = [place_of(layer["name"]).part for layer in layers]
    for part in dict.fromkeys(parts):
        places = [index for index, one in enumerate(parts) if one == part]
        errors = [layers[index]["sensitivity"]["relative_l2"] for index in places]
        axes.bar(places, errors, 0.8, label=part)
    axes.set_yscale("log")
    axes.set_xticks([])
    axes.set_xlabel("convolutions, in the order of the graph")
    axes.set_ylabel("relative L2 of the logits")
    axes.grid(axis="y", alpha=0.3)
    axes.legend(frameon=False, ncols=5, loc="lower center", bbox_to_anchor=(0.5, 1))
    _save(figure, target)


def _pyplot() -> Any:
    import matplotlib

    matplotlib.use("Agg")
    # Without it every run would name the parts of an SVG otherwise.
    matplotlib.rcParams["svg.hashsalt"] = "lhanet-export"
    from matplotlib import pyplot

    return pyplot


def _save(figure: Any, target: Path) -> None:
    figure.tight_layout()
    figure.savefig(target, metadata={"Date": None})


@click.command(help=__doc__)
@click.option("--windows", default=45, show_default=True, help="How many windows of phantoms to compare on.")
def main(windows: int) -> None:
    PICTURES.mkdir(parents=True, exist_ok=True)
    facts: dict[str, Any] = {
        "date": date.today().isoformat(),
        "machine": machine("torch", "onnxruntime-gpu", "numpy"),
        "windows": windows,
    }
    with TemporaryDirectory() as name:
        folder = Path(name)
        paths = make_graphs(folder)
        for precision, path in paths.items():
            report = folder / f"{precision}.json"
            options = ["--checkpoint", "demo", "--windows", str(windows), "--json", str(report)]
            command("verify", str(path), *options, may_fail=True)
            verification = read_json(report)
            cases = [case for case in verification["cases"] if "overlaps" in case]
            facts[precision] = {
                "passed": verification["passed"],
                "failures": verification["failures"],
                "relative_l2": max(case["relative_l2"] for case in cases),
                "tolerance": verification["tolerance"],
                **verification["organs"],
            }
        facts["calibration"] = calibration_facts(read_json(folder / "calibration.json"))
        draw_slices(paths, PICTURES / "precision-slices.png")
    draw_dice(facts, PICTURES / "precision-dice.svg")
    draw_layers(facts["calibration"]["layers"], PICTURES / "precision-layers.svg")
    write_json(FIGURES, facts)


if __name__ == "__main__":
    main()
