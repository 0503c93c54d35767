"""Windows cover every voxel of every volume, and their shares sum up to one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lhanet_export.conventions import MOST_SIGMA_DIVISOR, Preprocessing
from lhanet_export.errors import RefusedInput
from lhanet_export.volume.windows import tiling_of, window_of

PUBLIC = Preprocessing()
sides = st.integers(1, 300)
patches = st.integers(1, 64)


@settings(deadline=None)
@given(
    side=sides, patch=patches, overlap=st.floats(0, 0.95), blending=st.sampled_from(["gaussian", "constant"]),
    divisor=st.floats(0.1, MOST_SIGMA_DIVISOR),
)  # fmt: skip
def test_every_voxel_is_covered_and_shared(
    side: int, patch: int, overlap: float, blending: str, divisor: float
) -> None:
    how = replace(PUBLIC, patch=(patch,) * 3, overlap=overlap, blending=blending, blending_sigma_divisor=divisor)
    axis = tiling_of((side,) * 3, how).axes[0]
    total = np.zeros(max(side, patch))
    for start, shares in zip(axis.starts, axis.shares, strict=True):
        assert (shares > 0).all()
        total[start : start + patch] += shares
    assert np.allclose(total, 1)
    assert axis.starts[0] == 0
    assert axis.starts[-1] == max(side - patch, 0)
    gaps = np.diff(axis.starts)
    # At least the overlap asked for, and no window more than that takes.
    step = max(1, int(patch * (1 - overlap) + 1e-6))
    if len(gaps):
        assert gaps.min() > 0 and gaps.max() <= step and np.ptp(gaps) <= 1
    assert len(axis.starts) == (1 if side <= patch else -(-(side - patch) // step) + 1)


def test_the_public_windows_of_a_known_volume() -> None:
    tiling = tiling_of((100, 96, 250), PUBLIC)
    assert [axis.starts for axis in tiling.axes] == [(0, 17, 35, 52), (0,), (0, 39, 77, 116, 154)]
    assert len(tiling) == 20 and tiling.rows == 5 and tiling.patch == (48, 96, 96)
    assert [window.start for window in tiling.row(1)] == [(0, 0, 39), (17, 0, 39), (35, 0, 39), (52, 0, 39)]
    assert [window.index for window in tiling.row(4)] == [(0, 0, 4), (1, 0, 4), (2, 0, 4), (3, 0, 4)]


def test_a_gaussian_has_its_formula() -> None:
    axis = tiling_of((96,) * 3, replace(PUBLIC, patch=(64,) * 3)).axes[0]
    assert axis.starts == (0, 32)
    weights = [np.exp(-0.5 * ((at - 31.5) / 16) ** 2) for at in (40, 8)]
    assert axis.shares[0, 40] == pytest.approx(weights[0] / sum(weights))
    assert axis.shares[1, 8] == pytest.approx(weights[1] / sum(weights))


def test_windows_are_copies_filled_beyond_the_end() -> None:
    image = np.arange(4 * 5 * 6, dtype=np.float32).reshape(4, 5, 6)
    (window,) = tiling_of((4, 5, 6), replace(PUBLIC, patch=(6, 5, 8))).row(0)
    found = window_of(image, window, (6, 5, 8), -7)
    assert np.array_equal(found[:4, :, :6], image)
    assert (found[4:] == -7).all() and (found[:, :, 6:] == -7).all()
    whole = window_of(image, window, (4, 5, 6), -7)
    whole += 1
    assert image[0, 0, 0] == 0


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"overlap": 1.0}, "overlap of 1.0 is no share"),
        ({"overlap": -0.1}, "overlap of -0.1"),
        ({"overlap": float("nan")}, "overlap of nan"),
        ({"blending": "linear"}, "blending 'linear' is not known"),
    ],
)
def test_rules_that_are_none_are_refused(changes: dict, match: str) -> None:
    with pytest.raises(RefusedInput, match=match):
        tiling_of((64, 96, 96), replace(PUBLIC, **changes))
