"""Windows of scans to compare networks on: synthetic CT, or the user's own volumes.

A number about logits says little about organs. These cases are scans, preprocessed as for inference, and
where their labels are known, so is the truth.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lhanet_export.conventions import Preprocessing
from lhanet_export.errors import RefusedInput
from lhanet_export.progress import SILENT, Progress
from lhanet_export.shapes import Shape
from lhanet_export.volume.folder import entries_in
from lhanet_export.volume.phantom import anatomy_from_seed, render
from lhanet_export.volume.preprocess import preprocess, resample_labels
from lhanet_export.volume.read import read_label_map, read_scan

#: Phantoms to compare on have seeds from here on; the reference network was trained on those below 1,000, and
#: calibration takes them from `CALIBRATION_SEEDS` on.
VERIFICATION_SEEDS = 2000
CALIBRATION_SEEDS = 1000
#: Windows of a scan before the next one is taken.
_WINDOWS_OF_A_PHANTOM = 3
#: What an image is padded with where it is smaller than the window, in standard deviations: air.
_AIR = -1.0


@dataclass(frozen=True, kw_only=True)
class ScanCase:
    """A window of a scan, or a batch of them: `image` (N,1,D,H,W) float32, `truth` (N,D,H,W) uint8 or None.

    `is_scan` says whether its organs count; they do not where it stands for its size only.
    """

    kind: str
    image: np.ndarray
    truth: np.ndarray | None
    is_scan: bool = True

    @property
    def shape(self) -> Shape:
        """Size of the window (D,H,W)."""
        depth, height, width = self.image.shape[2:]
        return depth, height, width


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A scan as the network sees it: `image` (D,H,W) float32, `labels` (D,H,W) uint8 where they are known."""

    name: str
    image: np.ndarray
    labels: np.ndarray | None


def scan_cases(
    data: Path | None,
    shape: Shape,
    count: int,
    *,
    classes: int,
    batch: int = 1,
    assume_hu: bool = False,
    first_seed: int = VERIFICATION_SEEDS,
    how: Preprocessing | None = None,
    progress: Progress = SILENT,
) -> list[ScanCase]:
    """`count` cases of `batch` windows of `shape`, from the scans of a folder in turn or, without one, from phantoms.

    Where labels are known the windows go from organ to organ, so that a few of them show all; otherwise
    they spread over the scan. The same arguments give the same windows. A scan that is not usable, or labels
    beyond the network's `classes`, raise `RefusedInput` with the name of the file; `assume_hu` takes scans whose
    values do not look like HU.
    """
    how = how or Preprocessing()
    windows: list[tuple[str, np.ndarray, np.ndarray | None]] = []
    wanted = count * batch
    scans = phantoms(first_seed, how) if data is None else _repeated(data, how, classes, assume_hu)
    with progress.step("scans to compare on" if data else "phantoms to compare on", total=wanted) as advance:
        while len(windows) < wanted:
            scan = next(scans)
            for _ in range(min(_WINDOWS_OF_A_PHANTOM, wanted - len(windows))):
                windows.append(_window(scan, shape, index=len(windows)))
                advance(1)
    cases = []
    for first in range(0, wanted, batch):
        names, images, truths = zip(*windows[first : first + batch], strict=True)
        known = [truth for truth in truths if truth is not None]
        cases.append(
            ScanCase(
                kind=" ".join(dict.fromkeys(names)),
                image=np.stack(images)[:, None],
                truth=np.stack(known) if len(known) == batch else None,
            )
        )
    return cases


def phantoms(first_seed: int, how: Preprocessing) -> Iterator[Prepared]:
    """Endless phantoms, each of the next seed, rendered at the spacing that the network works in."""
    seed = first_seed
    while True:
        phantom = render(anatomy_from_seed(seed), how.spacing_mm)
        image = preprocess(phantom.hu, how.spacing_mm, how)
        yield Prepared(name=f"phantom {seed}", image=image, labels=np.ascontiguousarray(phantom.labels))
        seed += 1


def scans_of(data: Path, how: Preprocessing, classes: int, assume_hu: bool = False) -> Iterator[Prepared]:
    """Every scan of a folder once, preprocessed; `RefusedInput` names the first that is not usable."""
    for entry in entries_in(data):
        scan = read_scan(entry.image, assume_hu=assume_hu)
        labels = None
        if entry.labels is not None:
            labels = resample_labels(read_label_map(entry.labels, scan), scan.spacing_mm, how)
            if labels.max() >= classes:
                raise RefusedInput(
                    f"{entry.labels} holds the label {labels.max()}, but the network's {classes} classes end at "
                    f"{classes - 1}; are these labels of its classes?"
                )
        try:
            image = preprocess(scan.hu, scan.spacing_mm, how)
        except RefusedInput as error:
            raise RefusedInput(f"{entry.image}: {error}") from error
        yield Prepared(name=entry.image.name, image=image, labels=labels)


def _repeated(data: Path, how: Preprocessing, classes: int, assume_hu: bool) -> Iterator[Prepared]:
    while True:
        yield from scans_of(data, how, classes, assume_hu)


def _window(scan: Prepared, shape: Shape, index: int) -> tuple[str, np.ndarray, np.ndarray | None]:
    """The `index`-th window: around a voxel of an organ where labels are known, else anywhere."""
    generator = np.random.default_rng([index, 41])
    sides = np.array(shape)
    middle = (np.array(scan.image.shape) * generator.uniform(0.25, 0.75, 3)).astype(int)
    if scan.labels is not None:
        organs = [label for label in np.unique(scan.labels).tolist() if label]
        if organs:
            # Organs in turn; a stride prime to their number keeps one phantom's windows apart.
            places = np.flatnonzero(scan.labels == organs[index * 4 % len(organs)])
            middle = np.array(np.unravel_index(places[generator.integers(places.size)], scan.image.shape))
    room = np.maximum(np.array(scan.image.shape) - sides, 0)
    first = np.clip(middle - sides // 2, 0, room)
    where = tuple(slice(start, start + side) for start, side in zip(first, sides, strict=True))
    image = _filled(scan.image[where], shape, _AIR)
    return scan.name, image, None if scan.labels is None else _filled(scan.labels[where], shape, 0)


def _filled(window: np.ndarray, shape: Sequence[int], value: float) -> np.ndarray:
    """The window, with `value` behind it where the scan is smaller."""
    if window.shape == tuple(shape):
        return np.ascontiguousarray(window)
    widths = [(0, side - has) for side, has in zip(shape, window.shape, strict=True)]
    return np.pad(window, widths, constant_values=value)
