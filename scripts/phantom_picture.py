"""Draw what a network sees in a phantom: a coronal slice, its truth, and what an ONNX file says.

    python scripts/phantom_picture.py build/demo/lhanet.rtx3060.fp16.onnx -o build/phantom.png

The file is run as it would be used: in windows of the public patch that overlap by half and are blended with a
Gaussian; only the slice that is drawn is kept. FP16 graphs run with every tensor rounded to FP16.
"""

from __future__ import annotations

import argparse
from itertools import product
from pathlib import Path

import numpy as np
from rich.progress import track

from lhanet_export.conventions import Preprocessing
from lhanet_export.export.artifact import read_onnx
from lhanet_export.runners.base import Runner
from lhanet_export.runners.onnxruntime_ import OnnxRuntimeRunner
from lhanet_export.verify.volumes import VERIFICATION_SEEDS, phantoms
from lhanet_export.volume.picture import Panel, coloured, grey, save_panels, upright


def starts(side: int, window: int, overlap: float) -> list[int]:
    """Where windows begin so that they cover a side, evenly spaced, overlapping by at least `overlap`."""
    if side <= window:
        return [0]
    count = int(np.ceil((side - window) / (window * (1 - overlap)))) + 1
    return np.linspace(0, side - window, count).round().astype(int).tolist()


def slice_labels(runner: Runner, image: np.ndarray, row: int, how: Preprocessing) -> np.ndarray:
    """Labels (D,W) of the coronal slice `row` of a scan (D,H,W), from blended windows around it."""
    depth, height, width = image.shape
    first = int(np.clip(row - how.patch[1] // 2, 0, height - how.patch[1]))
    weights = _blending(how.patch[0], how)[:, None] * _blending(how.patch[2], how)[None, :]
    sums: np.ndarray | None = None
    places = list(product(starts(depth, how.patch[0], how.overlap), starts(width, how.patch[2], how.overlap)))
    for z, x in track(places, "windows"):
        where = (slice(z, z + how.patch[0]), slice(first, first + how.patch[1]), slice(x, x + how.patch[2]))
        logits = runner.infer(np.ascontiguousarray(image[where])[None, None])[0, :, :, row - first]
        if sums is None:
            sums = np.zeros((len(logits), depth, width), np.float32)
        sums[:, where[0], where[2]] += logits * weights
    assert sums is not None
    return sums.argmax(0)


def _blending(side: int, how: Preprocessing) -> np.ndarray:
    away = (np.arange(side) - (side - 1) / 2) / (side / how.blending_sigma_divisor)
    return np.exp(-0.5 * away**2).astype(np.float32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="an ONNX file that gives logits")
    parser.add_argument("-o", dest="target", type=Path, required=True, help="the PNG file")
    parser.add_argument("--seed", type=int, default=VERIFICATION_SEEDS, help="which phantom")
    arguments = parser.parse_args()
    artifact = read_onnx(arguments.model)
    how = Preprocessing()
    scan = next(phantoms(arguments.seed, how))
    assert scan.labels is not None
    # The slice that shows most organs.
    variety = [np.unique(scan.labels[:, row]).size for row in range(scan.labels.shape[1])]
    row = int(np.argmax(variety))
    with OnnxRuntimeRunner(artifact) as runner:
        found = slice_labels(runner, scan.image, row, how)
    plane, truth = upright(scan.image[:, row]), upright(scan.labels[:, row])
    panels = [
        Panel(f"phantom {arguments.seed}", grey(plane)),
        Panel("truth", coloured(plane, truth)),
        Panel(f"the {artifact.precision} graph", coloured(plane, upright(found))),
    ]
    save_panels(panels, arguments.target, names=artifact.facts["labels"])
    print(f"{arguments.target}: labels equal to the truth on {(upright(found) == truth).mean():.1%} of the slice")


if __name__ == "__main__":
    main()
