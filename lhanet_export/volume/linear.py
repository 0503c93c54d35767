"""Linear interpolation of an axis between two grids of the same extent."""

import numpy as np


def linear_taps(n: int, m: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Which of `n` samples each of `m` results reads: the indices of both taps and the share (float64) of the second.

    Result i reads at (i + 0.5) * n / m - 0.5, held within 0 to n - 1: samples are the middles of voxels. With n = m
    it reads sample i alone.
    """
    source = np.clip((np.arange(m) + 0.5) * n / m - 0.5, 0, n - 1)
    first = source.astype(np.intp)
    return first, np.minimum(first + 1, n - 1), source - first
