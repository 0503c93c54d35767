"""The labels of one scan while they are made, and the files that they become."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress

import numpy as np

from lhanet_export.conventions import MOST_LABELS
from lhanet_export.files import staged, staging_folder
from lhanet_export.predict.task import Prediction, Task
from lhanet_export.volume.blend import Blend, best_class, on_scan
from lhanet_export.volume.clean import keep_largest
from lhanet_export.volume.header import Header, spacing_of
from lhanet_export.volume.preprocess import resample_labels
from lhanet_export.volume.views import save_views
from lhanet_export.volume.write import slices_into

#: Slices that are written at a time.
_SLICES = 16
#: What a file name had better not hold.
_SIGNS = re.compile(r"[^\w .+-]")


class LabelsOfScan:
    """Collects the slices of a scan's segmentation; `finish` writes all files or, as `discard`, none of them."""

    def __init__(self, header: Header, names: Sequence[str], how: Prediction, task: Task) -> None:
        self._header, self._names, self._how, self._task = header, names, how, task
        self._labels = np.zeros(header.shape, np.uint8, order="F")
        self._done = 0
        self._open = ExitStack()
        self._probabilities: list[Callable[[np.ndarray], None]] = []
        kept = how.organs if how.organs is not None else frozenset(range(len(names)))
        #: What each class becomes.
        self._table = np.array([index if index in kept else 0 for index in range(len(names))], np.uint8)
        with ExitStack() as opened:
            if task.probabilities is not None:
                folder = opened.enter_context(staging_folder(task.probabilities))
                for index, name in enumerate(names):
                    path = folder / f"{index:02d}-{_SIGNS.sub('-', name)}.nii.gz"
                    self._probabilities.append(opened.enter_context(slices_into(path, header, slope=1 / 255)))
            self._open = opened.pop_all()

    def take(self, blend: Blend, slices: Iterator[np.ndarray]) -> None:
        """Make labels of the next slices of a blend."""
        for one in slices:
            scores = on_scan(one, blend.along_x, blend.along_y)
            self._labels.T[self._done] = self._table[best_class(scores)]
            self._done += 1
            if self._probabilities:
                shares = _softmax(scores) if self._how.logits else scores
                for write, share in zip(self._probabilities, shares, strict=True):
                    write(np.rint(255 * share))

    def finish(self, image: np.ndarray) -> dict[str, object]:
        """Write the files and say what is in them; `image` is the network's input, for the picture."""
        with self._open:
            assert self._done == self._header.shape[2], "a slice was not completed"
            removed = keep_largest(self._labels) if self._how.largest else 0
            counts = np.zeros(MOST_LABELS, np.int64)
            with staged(self._task.target) as (path,), slices_into(path, self._header) as write:
                for first in range(0, self._done, _SLICES):
                    slab = self._labels.T[first : first + _SLICES]
                    counts += np.bincount(slab.ravel(), minlength=MOST_LABELS)
                    write(slab)
            millilitres = math.prod(spacing_of(self._header.affine)) / 1000
            volumes = {
                name: round(int(count) * millilitres, 3)
                for name, count in zip(self._names[1:], counts[1:], strict=False)
            }
            if self._task.picture is not None:
                self._save_picture(image, volumes)
            return {"volumes_ml": volumes, "removed_voxels": removed}

    def discard(self) -> None:
        """Leave nothing behind."""
        with suppress(_GivenUp), self._open:
            raise _GivenUp

    def _save_picture(self, image: np.ndarray, volumes: dict[str, float]) -> None:
        affine, how = self._header.affine, self._how.preprocessing
        assert self._task.picture is not None
        labels = resample_labels(self._labels, spacing_of(affine), how)
        names = [self._names[0], *(f"{name} {volume:,.0f} ml" for name, volume in volumes.items())]
        save_views(image, labels, affine, names, self._task.picture)


class _GivenUp(Exception):
    """Makes staged files vanish."""


def _softmax(scores: np.ndarray) -> np.ndarray:
    """Over the first axis."""
    shares = np.exp(scores - scores.max(0))
    return shares / shares.sum(0)
