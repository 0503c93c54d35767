"""Segment a CT scan with an engine of LHA-Net: manifest, engine and scan become a label map on the scan's own grid.

    python segment.py [--null] [--assume-hu] [--largest-component] [--patch DxHxW] [--overlap S]
                      [--blending gaussian|constant] model.engine scan.nii.gz labels.nii.gz

Read from top to bottom, this is what an application does with an engine. It needs numpy, nibabel, and the Python
package of TensorRT-RTX or TensorRT, whichever made the engine. What lies beside it says how an engine is trusted
(`manifest.py`), how a scan is read (`ct_scan.py`) and how a GPU is kept busy (`tensorrt_engine.py`, `cuda_driver.py`).
The labels are those of `lhanet-export predict`, voxel for voxel.
"""

from __future__ import annotations

import argparse
import math
import re
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Any, NoReturn, Protocol

import numpy as np
from base import Lacks, Refused, need
from ct_scan import MOST_VOXELS, Header, opened, planes_of, read_header, write_labels
from cuda_driver import Cuda
from largest import keep_largest
from manifest import Size, batch_of, engine_bytes, profile_of, read_manifest
from tensorrt_engine import TensorRTEngine, tensorrt_for

# 1. Preprocessing, as the network was trained: the file's axes X, Y, Z become D, H, W.


def resized(array: np.ndarray, count: int, axis: int) -> np.ndarray:
    """An axis interpolated linearly to `count` samples over the same extent; samples are the middles of voxels."""
    n = array.shape[axis]
    if n == count:
        return array
    source = np.clip((np.arange(count) + 0.5) * n / count - 0.5, 0, n - 1)
    first = source.astype(np.intp)
    share = (source - first).astype(array.dtype).reshape([-1 if a == axis else 1 for a in range(array.ndim)])
    low, high = array.take(first, axis), array.take(np.minimum(first + 1, n - 1), axis)
    return low + (high - low) * share


def network_input(path: Path, how: dict[str, Any], assume_hu: bool) -> tuple[Header, np.ndarray]:
    """A scan's header and the network's input, float32 (D,H,W): resampled, clipped, mean 0 and deviation 1."""
    with opened(path) as stream, np.errstate(all="ignore"):
        header = read_header(path, stream)
        depth, height, width = (
            side if abs(step / target - 1) <= 1e-3 else max(1, round(side * step / target))
            for side, step, target in zip(header.shape, header.spacing, how["spacing_mm"], strict=True)
        )
        need(depth * height * width <= MOST_VOXELS, f"{path} has too many voxels at {how['spacing_mm']} mm; crop it")
        stack = np.empty((header.shape[2], height, depth), np.float32)
        for plane, target in zip(planes_of(path, header, stream, assume_hu), stack, strict=True):
            target[:] = resized(resized(plane, depth, 1), height, 0)
        image = np.empty((depth, height, width), np.float32)
        for row in range(height):
            image[:, row] = np.clip(resized(stack[:, row], width, 0), *how["clip_hu"]).T
    mean = float(image.mean(dtype=np.float64))
    deviation = math.sqrt(sum(float(np.square(part - mean, dtype=np.float64).sum()) for part in image) / image.size)
    need(deviation >= 1e-3, f"{path} is constant or not a number within {how['clip_hu']} HU; is it a CT in HU?")
    image -= np.float32(mean)
    image /= np.float32(deviation)
    return header, image


# 2. Windows and their blending. Windows, weights and interpolation are products of the three axes, so an axis says
#    all: where its windows lie, their shares, and the matrix that takes it onto the scan.


class Axis:
    """`side` voxels of the network's grid, covered by windows of `patch` that share at least the overlap of a side.

    Scores are collected on an axis of planes: the voxels themselves, or, if `coarse`, the cells of all windows, one
    window's after the other's. Those of window i go to `places[i]`, times `factors[i]`; after it `known[i]` planes are
    final. `matrix` (scan's side, planes) float64 takes them onto the scan.
    """

    def __init__(self, side: int, scan_side: int, patch: int, cells: int, coarse: bool, how: dict[str, Any]) -> None:
        self.patch, room = patch, max(0, side - patch)
        # The small number keeps what is a rounding error below a whole.
        gaps = -(-room // max(1, math.floor(patch * (1 - how["overlap"]) + 1e-6)))
        self.starts = [(2 * index * room + gaps) // max(1, 2 * gaps) for index in range(gaps + 1)]
        distance = (np.arange(patch) - (patch - 1) / 2) / (patch / how["blending_sigma_divisor"])
        weights = np.exp(-0.5 * distance**2) if how["blending"] == "gaussian" else np.ones(patch)
        total = np.zeros(max(side, patch))
        for start in self.starts:
            total[start : start + patch] += weights
        shares = [(weights / total[start : start + patch])[:side] for start in self.starts]
        ends = [min(start + patch, side) for start in self.starts]
        if coarse:
            self.places = [slice(i * cells, (i + 1) * cells) for i in range(len(self.starts))]
            self.factors = [np.ones(cells) for _ in self.starts]
            self.known = [place.stop for place in self.places]
            blended = np.zeros((side, self.known[-1]))
            for start, end, place, share in zip(self.starts, ends, self.places, shares, strict=True):
                blended[start:end, place] = share[:, None] * resized(np.eye(cells), patch, 0)[:side]
        else:
            self.places = [slice(start, end) for start, end in zip(self.starts, ends, strict=True)]
            self.factors = shares
            self.known = [*self.starts[1:], side]
            blended = np.eye(side)
        self.matrix = resized(blended, scan_side, 0)


class Blend:
    """Scores of windows, row after row along W, become slices of labels as soon as no further window changes them."""

    def __init__(self, axes: list[Axis], classes: int) -> None:
        self.x, self.y, self.z = axes
        across, reach = [axis.known[-1] for axis in axes[:2]], len(self.z.factors[0])
        self.sums = np.zeros((classes, *across, reach), np.float32)
        self.planes: dict[int, np.ndarray] = {}
        self.known = self.next = 0

    def add(self, window: tuple[int, int, int], scores: np.ndarray) -> None:
        """Take the scores (K,d,h,w) of a window, given by its number along D, H and W."""
        i, j, row = window
        d, h, w = self.x.factors[i], self.y.factors[j], self.z.factors[row].astype(np.float32)
        factors = np.outer(d, h).astype(np.float32)[:, :, None] * w
        self.sums[:, self.x.places[i], self.y.places[j]] += scores[:, : len(d), : len(h), : len(w)] * factors

    def finish(self, row: int) -> Iterator[np.ndarray]:
        """End a row; the labels (Y,X) of the scan's slices that are complete now and were not before."""
        fresh = self.z.known[row] - self.known
        done, rest = self.sums[..., :fresh], self.sums[..., fresh:]
        self.planes |= enumerate(np.moveaxis(done, 3, 0).copy(), start=self.known)
        self.sums = np.concatenate((rest, np.zeros_like(done)), axis=3)
        self.known += fresh
        while self.next < len(self.z.matrix):
            weights = self.z.matrix[self.next]
            read = np.flatnonzero(weights)
            if read[-1] >= self.known:
                break
            self.planes = {at: plane for at, plane in self.planes.items() if at >= read[0]}
            yield self.labels(sum(weights[at] * self.planes[int(at)].astype(np.float64) for at in read))
            self.next += 1

    def labels(self, scores: Any) -> np.ndarray:
        """A slice (K,D',H') on the scan's grid: the class of the highest score, the first of equal ones."""
        best = np.full((len(self.y.matrix), len(self.x.matrix)), -np.inf)
        labels = np.zeros(best.shape, np.uint8)
        for index, one in enumerate(scores):
            found = self.y.matrix @ (self.x.matrix @ one).T
            labels[found > best] = index
            np.maximum(best, found, out=best)
        return labels


# 3. An engine takes windows and gives their scores. It has two slots, each with memory for a batch of windows: while it
#    works on one of them, the other one is filled or read.


class Engine(Protocol):
    """Fill `windows(slot)`, `start(slot)`, and later `wait(slot)`; slots are 0 and 1, for one thread."""

    batch: int
    #: Of one window: classes and the grid (K,d,h,w), that of the window's voxels or a coarser one.
    scores_shape: tuple[int, ...]

    def windows(self, slot: int) -> np.ndarray:
        """Where the windows (N,1,D,H,W) of a slot are to be put; not to be written between `start` and `wait`."""

    def start(self, slot: int) -> None:
        """Begin with the windows of a slot."""

    def wait(self, slot: int) -> np.ndarray:
        """The scores (N,K,d,h,w) of a slot that was started, valid until it is started again."""


class NullEngine:
    """No network: scores by a voxel's brightness and its place in the window, for testing where there is no GPU.

    The rule is that of `lhanet-export predict --null`, float32 after every operation.
    """

    def __init__(self, facts: dict[str, Any], patch: Size) -> None:
        classes, coarse = len(facts["labels"]), facts["engine"]["outputs"][0]["name"] == "coarse"
        depth, height, width = (-(-side // 16) if coarse else side for side in patch)
        self.batch = batch_of(facts)
        self.scores_shape: tuple[int, ...] = (classes, depth, height, width)
        self._windows = np.zeros((2, self.batch, 1, *patch), np.float32)
        self._scores = np.zeros((2, self.batch, *self.scores_shape), np.float32)

    def windows(self, slot: int) -> np.ndarray:
        return self._windows[slot]

    def start(self, slot: int) -> None:
        windows, (classes, *grid) = self._windows[slot, :, 0], self.scores_shape
        read = [
            (2 * np.arange(cells) + 1) * side // (2 * cells)
            for cells, side in zip(grid, windows.shape[1:], strict=True)
        ]
        found = windows[(slice(None), *np.ix_(*read))]
        d, h, w = np.ogrid[: grid[0], : grid[1], : grid[2]]
        place = (5 * d + 3 * h + w) % 7
        for k in range(classes):
            away = found - np.float32(-1.7 + 3.4 * k / (classes - 1))
            self._scores[slot, :, k] = -(away * away) + (place * (k % 3)).astype(np.float32) * np.float32(0.03125)

    def wait(self, slot: int) -> np.ndarray:
        return self._scores[slot]


@contextmanager
def open_engine(path: Path, facts: dict[str, Any], patch: Size, null: bool) -> Iterator[Engine]:
    """An engine for windows of one size (D,H,W); its file is checked, even if no network is run."""
    profile, raw = profile_of(path, facts, patch), engine_bytes(path, facts)
    if null:
        yield NullEngine(facts, patch)
        return
    with Cuda() as cuda:
        trt = tensorrt_for(path, facts["engine"], cuda)
        shape = (batch_of(facts), 1, *patch)
        with TensorRTEngine(trt, path, facts["engine"], raw, shape, profile, cuda) as engine:
            classes = engine.scores_shape[0]
            need(classes == len(facts["labels"]), f"{path} gives {classes} classes, its manifest names others")
            yield engine


# 4. All of it together.


def scores_of(engine: Engine, image: np.ndarray, axes: list[Axis]) -> Iterator[tuple[Size, np.ndarray]]:
    """Each window's number along D, H, W and its scores (K,d,h,w) float32, row after row along W.

    While a window's scores are used, the next batch is under way. What lies beyond the image is as its darkest voxel.
    """
    air, patch = image.min(), tuple(axis.patch for axis in axes)
    d, h, w = (range(len(axis.starts)) for axis in axes)
    rows = [[(i, j, row) for i, j in product(d, h)] for row in w]
    batches = [row[first : first + engine.batch] for row in rows for first in range(0, len(row), engine.batch)]
    for number in range(len(batches) + 1):
        if number < len(batches):
            batch, target = batches[number], engine.windows(number % 2)
            for index in range(engine.batch):
                # A batch that is not full has its last window more than once.
                window = batch[min(index, len(batch) - 1)]
                starts = [axis.starts[i] for axis, i in zip(axes, window, strict=True)]
                part = image[tuple(slice(start, start + side) for start, side in zip(starts, patch, strict=True))]
                target[index, 0] = air
                target[index, 0][tuple(map(slice, part.shape))] = part
            engine.start(number % 2)
        if number > 0:
            batch = batches[number - 1]
            found = engine.wait((number - 1) % 2)[: len(batch)].astype(np.float32, copy=False)
            yield from zip(batch, found, strict=True)


def segment(
    path: Path, engine: Engine, how: dict[str, Any], assume_hu: bool, advance: Callable[[int, int], None]
) -> tuple[Header, np.ndarray]:
    """A scan's header and its labels uint8 (Z,Y,X). `how` is the manifest's `preprocessing`, with the engine's patch.

    `advance` is told how many windows are done, and of how many. Memory holds the scan on the network's grid, its
    labels, and as many slices of scores as windows overlap.
    """
    header, image = network_input(path, how, assume_hu)
    classes, *grid = engine.scores_shape
    coarse = grid != list(how["patch"])
    sizes = zip(image.shape, header.shape, how["patch"], grid, strict=True)
    axes = [Axis(side, onto, patch, cells, coarse, how) for side, onto, patch, cells in sizes]
    blend, labels, slices = Blend(axes, classes), np.zeros(header.shape[::-1], np.uint8), 0
    low, high = np.full(classes, np.inf), np.full(classes, -np.inf)
    in_row = len(axes[0].starts) * len(axes[1].starts)
    windows = in_row * len(axes[2].starts)
    for number, (window, scores) in enumerate(scores_of(engine, image, axes), start=1):
        bad = f"{path}: the network gives NaN or infinity in window {number}; no labels are made of that"
        need(np.isfinite(scores).all(), bad)
        low, high = np.minimum(low, scores.min((1, 2, 3))), np.maximum(high, scores.max((1, 2, 3)))
        blend.add(window, scores)
        if number % in_row == 0:
            for found in blend.finish(window[2]):
                labels[slices] = found
                slices += 1
        advance(number, windows)
    varies = (low < high).any() or windows * math.prod(grid) == 1
    same = f"the network gives the same scores everywhere in {path}; the engine is broken, no labels are made of that"
    need(varies, same)
    return header, labels


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, as everything else does."""

    def error(self, message: str) -> NoReturn:
        raise Refused(f"{message}; see --help")


def parsed(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""

    def size(words: str) -> Size:
        if not re.fullmatch("[0-9]{1,4}x[0-9]{1,4}x[0-9]{1,4}", words):
            raise argparse.ArgumentTypeError(f"'{words}' is not a size; write depth x height x width, as in 64x128x128")
        depth, height, width = (int(side) for side in words.split("x"))
        return depth, height, width

    def share(words: str) -> float:
        if not 0 <= float(words) <= 0.95:
            raise argparse.ArgumentTypeError(f"'{words}' is no share of a window; give 0 to 0.95, often 0.5")
        return float(words)

    parser = Parser(
        description="Segment a CT with an engine of LHA-Net.",
        allow_abbrev=False,
        epilog="Exit codes: 0 done; 1 a fault of this program; 2 refused input; 3 the machine lacks something.",
    )
    parser.add_argument("engine", type=Path, help="the engine; its manifest lies beside it as <engine>.json")
    parser.add_argument("scan", type=Path, help="a CT in HU, .nii or .nii.gz")
    parser.add_argument("labels", type=Path, help="the segmentation to be written, .nii or .nii.gz")
    parser.add_argument("--patch", type=size, metavar="DxHxW", help="size of a window; default: the manifest's")
    parser.add_argument("--overlap", type=share, metavar="SHARE", help="what neighbouring windows share of a side")
    parser.add_argument("--blending", choices=("gaussian", "constant"), help="how windows share voxels")
    parser.add_argument("--largest-component", action="store_true", help="of each organ keep the largest piece only")
    parser.add_argument("--assume-hu", action="store_true", help="take values that do not look like HU")
    parser.add_argument("--null", action="store_true", help="no network: labels by brightness, to test without a GPU")
    return parser.parse_args(arguments)


def run(options: argparse.Namespace) -> None:
    """What the command line asks for; nothing is written before all is done."""
    target = options.labels
    need(target.name.lower().endswith((".nii", ".nii.gz")), f"{target} should be a file that ends in .nii or .nii.gz")
    need(not target.exists() or target.is_file(), f"{target} exists and is not a regular file; name another output")
    for given in (options.scan, options.engine, options.engine.with_name(options.engine.name + ".json")):
        same = target.exists() and given.exists() and target.samefile(given)
        need(not same, f"{target} is an input of this command; name another output")
    facts = read_manifest(options.engine)
    how = facts["preprocessing"]
    how |= {key: value for key in ("patch", "overlap", "blending") if (value := getattr(options, key)) is not None}

    def show(progress: str) -> None:
        if sys.stderr.isatty():
            print(f"\r{progress}\033[K", end="", file=sys.stderr, flush=True)

    def advance(done: int, windows: int) -> None:
        show(f"{done} of {windows} windows")

    # Before the engine, which takes seconds to open.
    with opened(options.scan) as stream:
        read_header(options.scan, stream)
    try:
        with open_engine(options.engine, facts, tuple(how["patch"]), options.null) as engine:
            header, labels = segment(options.scan, engine, how, options.assume_hu, advance)
    finally:
        show("")
    if options.largest_component:
        keep_largest(labels)
    write_labels(target, header, labels)


def main(arguments: list[str] | None = None) -> int:
    """The exit code of a command line; a fault of this program has a traceback, and code 1 from Python itself."""
    try:
        run(parsed(arguments))
        return 0
    except (Refused, Lacks, MemoryError, OSError) as error:
        reason = "not enough memory; crop the scan" if isinstance(error, MemoryError) else str(error)
        print("error: " + "".join(letter if letter.isprintable() else "?" for letter in reason), file=sys.stderr)
        return 2 if isinstance(error, Refused) else 3
    except KeyboardInterrupt:
        print("error: interrupted; nothing half-written is left behind", file=sys.stderr)
        return 128 + signal.SIGINT


if __name__ == "__main__":
    # As an exception, so that nothing half-written stays behind.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    sys.exit(main())
