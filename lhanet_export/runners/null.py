"""No network at all: scores that follow from the window by a rule, for testing everything around an engine.

The same rule is in the applications of `engines/embed`, so what they make of a scan can be compared voxel for voxel on
machines without a GPU.
"""

from __future__ import annotations

import numpy as np

from lhanet_export.runners.base import HostRunner, size_of_volumes
from lhanet_export.shapes import Shape

#: Voxels along an axis that a cell of coarse scores stands for.
_COARSE = 16


class NullRunner(HostRunner):
    """Scores each voxel by its brightness and its place in the window; it serves every size.

    Class k of K has, in cell (i_d, i_h, i_w) of the scores' grid of (g_d, g_h, g_w) cells, the score
    -(x - c)^2 + a (k mod 3) / 32. There x is the window's voxel (2 i + 1) p // (2 g) along each axis of p voxels,
    c = -1.7 + 3.4 k / (K - 1), and a = (5 i_d + 3 i_h + i_w) mod 7; all is float32, rounded after every operation. The
    grid is the window's own, or, if `coarse`, has a cell for every 16 voxels of an axis, rounded up.
    """

    def __init__(self, classes: int, *, coarse: bool) -> None:
        self._classes = classes
        self._coarse = coarse
        self.name = "null: no network, labels by brightness"

    def infer(self, image: np.ndarray) -> np.ndarray:
        """The scores (N,K,d,h,w) float32 of windows (N,1,D,H,W) float32."""
        grid = self._grid(size_of_volumes(image.shape, image.dtype))
        i_d, i_h, i_w = (np.arange(cells) for cells in grid)
        read = [(2 * np.arange(g) + 1) * p // (2 * g) for g, p in zip(grid, image.shape[2:], strict=True)]
        brightness = image[:, 0][(slice(None), *np.ix_(*read))]
        place = (5 * i_d[:, None, None] + 3 * i_h[:, None] + i_w) % 7
        scores = np.empty((len(image), self._classes, *grid), np.float32)
        for k in range(self._classes):
            away = brightness - np.float32(-1.7 + 3.4 * k / (self._classes - 1))
            scores[:, k] = -(away * away) + (place * (k % 3)).astype(np.float32) * np.float32(1 / 32)
        return scores

    def _grid(self, patch: Shape) -> Shape:
        if not self._coarse:
            return patch
        depth, height, width = (-(-side // _COARSE) for side in patch)
        return depth, height, width
