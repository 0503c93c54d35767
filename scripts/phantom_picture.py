"""Draw what a network sees in a phantom: a coronal slice, its truth, and what an ONNX file says.

    python scripts/phantom_picture.py build/demo/lhanet.rtx3060.fp16.onnx -o build/phantom.png

The file is run as it would be used: in windows of the public patch that overlap by half and are blended with a
Gaussian; only the slice that is drawn is kept. FP16 graphs run with every tensor rounded to FP16.
"""

from __future__ import annotations

from itertools import product
from pathlib import Path

import click
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


def busiest_row(labels: np.ndarray) -> int:
    """The coronal slice of a scan (D,H,W) that shows most classes."""
    return int(np.argmax([np.unique(labels[:, row]).size for row in range(labels.shape[1])]))


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


@click.command(help=__doc__)
@click.argument("model", type=click.Path(exists=True, path_type=Path))
@click.option("-o", "target", type=click.Path(path_type=Path), required=True, help="The PNG file.")
@click.option("--seed", default=VERIFICATION_SEEDS, show_default=True, help="Which phantom.")
def main(model: Path, target: Path, seed: int) -> None:
    artifact = read_onnx(model)
    how = Preprocessing()
    scan = next(phantoms(seed, how))
    assert scan.labels is not None
    row = busiest_row(scan.labels)
    with OnnxRuntimeRunner(artifact) as runner:
        found = upright(slice_labels(runner, scan.image, row, how))
    plane, truth = upright(scan.image[:, row]), upright(scan.labels[:, row])
    panels = [
        Panel(f"phantom {seed}", grey(plane)),
        Panel("truth", coloured(plane, truth)),
        Panel(f"the {artifact.precision.upper()} graph", coloured(plane, found)),
    ]
    save_panels(panels, target, names=artifact.facts["labels"])
    print(f"{target}: labels equal to the truth on {(found == truth).mean():.1%} of the slice")


if __name__ == "__main__":
    main()
