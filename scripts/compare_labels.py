"""Whether a scan's labels are those of blending the whole volume at once, and whether all runtimes agree on them.

    python scripts/compare_labels.py     # a phantom of 512x512x120 with demo: some minutes, 6 GB of memory

The whole volume at once means: every window's coarse logits resized by PyTorch to the window, added up over the whole
volume with their weights, divided by the sum of weights, resized by PyTorch to the scan's grid; all in float64.
Figures go to docs/measurements/labels.json.
"""

from __future__ import annotations

import json
import tempfile
from datetime import date
from pathlib import Path
from typing import Any

import click
import nibabel
import numpy as np
import torch
from _machine import machine
from measure_predict import IN_PLANE, SPACING_MM, write_phantom
from torch.nn.functional import interpolate

from lhanet_export.cli.main import run
from lhanet_export.conventions import Preprocessing
from lhanet_export.files import write_json
from lhanet_export.runners.opening import runner_for
from lhanet_export.volume.preprocess import preprocess, shape_of
from lhanet_export.volume.read import read_scan
from lhanet_export.volume.windows import tiling_of, window_of

FIGURES = Path(__file__).resolve().parents[1] / "docs" / "measurements" / "labels.json"
#: Name of a runtime: how its graph is exported, and how it is run; None for the eager network itself.
RUNTIMES: dict[str, tuple[list[str], list[str]] | None] = {
    "eager PyTorch FP32": None,
    "ONNX Runtime FP32, coarse logits": (["--output", "coarse"], []),
    "ONNX Runtime FP32, logits of every voxel": (["--output", "logits"], []),
    "OpenVINO FP32, coarse logits": (["--output", "coarse", "--for", "cpu"], ["--runtime", "openvino"]),
    "FP16 graph, coarse logits": (["--output", "coarse", "--precision", "fp16"], []),
}


@click.command(help=__doc__)
@click.option("--slices", type=int, default=120, show_default=True, help="Depth of the scan.")
@click.option("--json", "target", type=click.Path(path_type=Path), default=FIGURES, help="Where the figures go.")
def main(slices: int, target: Path) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        scan = folder / "scan.nii.gz"
        write_phantom(scan, (IN_PLANE, IN_PLANE, slices))
        found = {runtime: labels_by(options, scan, folder) for runtime, options in RUNTIMES.items()}
        first = found["eager PyTorch FP32"]
        whole = labels_at_once(scan)
    facts = {
        "date": date.today().isoformat(),
        "machine": machine("torch", "onnxruntime-gpu", "openvino", "numpy", "scipy"),
        "shape": [IN_PLANE, IN_PLANE, slices], "spacing_mm": SPACING_MM, "voxels": first.size,
        "organ_voxels": int((first > 0).sum()),
        "differ_from_whole_volume": int((first != whole).sum()),
        "differ_from_eager": {runtime: int((labels != first).sum()) for runtime, labels in found.items()},
    }  # fmt: skip
    write_json(target, facts)
    print(json.dumps(facts, indent=1))


def labels_by(options: tuple[list[str], list[str]] | None, scan: Path, folder: Path) -> np.ndarray:
    """What `predict` makes of the scan, (X,Y,Z)."""
    model, how = "demo", []
    if options is not None:
        model, how = str(folder / "model.onnx"), options[1]
        _succeed(["onnx", "demo", "-o", model, *options[0]])
    target = folder / "labels.nii"
    _succeed(["predict", model, str(scan), "-o", str(target), *how])
    return np.asarray(nibabel.load(target).dataobj).copy()  # type: ignore[attr-defined]


def _succeed(command: list[str]) -> None:
    if code := run(command):
        raise SystemExit(code)


def labels_at_once(path: Path) -> np.ndarray:
    """The scan's labels (X,Y,Z) by the definition, in as much memory as that takes."""
    how = Preprocessing()
    scan = read_scan(path)
    image = preprocess(scan.hu, scan.spacing_mm, how)
    tiling = tiling_of(shape_of(image), how)
    opened = runner_for("demo")
    weights = [
        np.exp(-0.5 * ((np.arange(side) - (side - 1) / 2) / (side / how.blending_sigma_divisor)) ** 2)
        for side in how.patch
    ]
    weight = torch.from_numpy(np.einsum("d,h,w->dhw", *weights))
    total: Any = torch.zeros(len(opened.labels), *image.shape, dtype=torch.float64)
    counted = torch.zeros(image.shape, dtype=torch.float64)
    with opened.runner as runner:
        for number in range(tiling.rows):
            for window in tiling.row(number):
                coarse = runner.infer(window_of(image, window, how.patch, float(image.min()))[None, None])
                logits = interpolate(torch.from_numpy(coarse).double(), how.patch, mode="trilinear")[0]
                ends = [min(at + side, n) for at, side, n in zip(window.start, how.patch, image.shape, strict=True)]
                where = tuple(slice(at, end) for at, end in zip(window.start, ends, strict=True))
                inside = tuple(slice(end - at) for at, end in zip(window.start, ends, strict=True))
                total[(slice(None), *where)] += (logits * weight)[(slice(None), *inside)]
                counted[where] += weight[inside]
    total /= counted
    best = torch.full(scan.hu.shape, -torch.inf, dtype=torch.float64)
    labels = torch.zeros(scan.hu.shape, dtype=torch.uint8)
    for index, one in enumerate(total):
        scores = interpolate(one[None, None], scan.hu.shape, mode="trilinear")[0, 0]
        labels[scores > best] = index
        torch.maximum(best, scores, out=best)
    return labels.numpy()


if __name__ == "__main__":
    main()
