"""A scan becomes the network's input by the written formulas, on the grid that its labels get, too."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from lhanet_export.conventions import Preprocessing
from lhanet_export.errors import RefusedInput
from lhanet_export.volume import preprocess as module
from lhanet_export.volume.phantom import anatomy_from_seed, render
from lhanet_export.volume.preprocess import grid_shape, preprocess, resample_labels

PUBLIC = Preprocessing()
SHAPE = (20, 18, 16)
#: Spacings that shrink, grow and keep axes of the public 1.5 mm, in several orders.
SPACINGS = [(0.8, 0.8, 5.0), (3.0, 1.5, 0.7), (1.5, 2.0, 1.0), (2.9, 0.75, 1.5), (0.2, 0.2, 0.2)]


def noise(shape: tuple[int, int, int] = SHAPE) -> np.ndarray:
    """HU beyond both ends of the window, in the order of a file that was read."""
    return np.asfortranarray(np.random.default_rng(0).normal(40, 250, shape).astype(np.float32))


def by_formula(hu: np.ndarray, spacing_mm: tuple[float, float, float], how: Preprocessing) -> np.ndarray:
    """The same in float64 with NumPy's own interpolation, an axis at a time."""
    volume = hu.astype(np.float64)
    for axis, (step, target) in enumerate(zip(spacing_mm, how.spacing_mm, strict=True)):
        n = hu.shape[axis]
        m = max(1, round(n * step / target))
        places = (np.arange(m) + 0.5) * n / m - 0.5
        volume = np.apply_along_axis(lambda line, at=places: np.interp(at, np.arange(len(line)), line), axis, volume)
    volume = np.clip(volume, *how.clip_hu)
    return (volume - volume.mean()) / volume.std()


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("spacing", SPACINGS, ids=str)
def test_resampling_clipping_and_normalization_are_the_written_formulas(
    spacing: tuple[float, float, float], order: Any
) -> None:
    result = preprocess(np.array(noise(), order=order), spacing, PUBLIC)
    expected = by_formula(noise(), spacing, PUBLIC)
    assert result.shape == expected.shape == grid_shape(SHAPE, spacing, PUBLIC)
    assert result.dtype == np.float32 and result.flags.c_contiguous
    assert np.abs(result - expected).max() < 5e-6


def test_every_option_counts() -> None:
    how = Preprocessing(spacing_mm=(1.0, 2.0, 3.0), clip_hu=(-50.0, 60.0))
    result = preprocess(noise(), (1.5, 1.5, 1.5), how)
    assert result.shape == (30, 14, 8)
    assert np.abs(result - by_formula(noise(), (1.5, 1.5, 1.5), how)).max() < 5e-6


def test_the_right_spacing_is_not_interpolated() -> None:
    clipped = np.clip(noise().astype(np.float64), -200, 300)
    expected = (clipped - clipped.mean()) / clipped.std()
    for spacing in ((1.5, 1.5, 1.5), (1.5014, 1.4986, 1.5)):
        # A thousand samples of 1.5014 mm would be 1001 of 1.5.
        assert grid_shape((1000, 1000, 500), spacing, PUBLIC) == (1000, 1000, 500)
        assert np.abs(preprocess(noise(), spacing, PUBLIC) - expected).max() < 2e-6
    assert grid_shape((1000, 1000, 500), (1.503, 1.5, 1.5), PUBLIC) == (1002, 1000, 500)


def test_axes_stay_in_the_order_of_the_file() -> None:
    ramp = np.broadcast_to(np.arange(20, dtype=np.float32)[:, None, None], SHAPE)
    result = preprocess(ramp, (1.5, 1.5, 1.5), PUBLIC)
    assert result.shape == SHAPE
    assert (np.diff(result, axis=0) > 0).all() and not np.diff(result, axis=1).any()


@pytest.mark.parametrize("dtype", [np.float32, np.int16, np.float64])
@pytest.mark.parametrize("spacing", [(1.5, 1.5, 1.5), (0.8, 0.8, 5.0)])
def test_the_scan_is_not_changed(dtype: Any, spacing: tuple[float, float, float]) -> None:
    for order in ("C", "F"):
        hu = np.array(noise(), dtype=dtype, order=order)  # type: ignore[call-overload]
        before = hu.copy()
        preprocess(hu, spacing, PUBLIC)
        assert np.array_equal(hu, before)


@pytest.mark.parametrize("spacing", [(1.5, 1.5, 1.5), *SPACINGS], ids=str)
def test_mean_zero_and_deviation_one(spacing: tuple[float, float, float]) -> None:
    result = preprocess(noise(), spacing, PUBLIC).astype(np.float64)
    assert abs(result.mean()) < 1e-5
    assert result.std() == pytest.approx(1, abs=1e-5)


def test_a_side_of_at_least_one_voxel_is_left() -> None:
    assert grid_shape((100, 3, 100), (1.5, 0.1, 1.5), PUBLIC) == (100, 1, 100)
    assert preprocess(noise((20, 3, 20)), (1.5, 0.1, 1.5), PUBLIC).shape == (20, 1, 20)
    assert resample_labels(np.ones((20, 3, 20), np.uint8), (1.5, 0.1, 1.5), PUBLIC).shape == (20, 1, 20)


@pytest.mark.parametrize("voxels", [1, 700, 10**9])
def test_slabs_change_nothing(voxels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = [preprocess(noise(), spacing, PUBLIC) for spacing in SPACINGS]
    monkeypatch.setattr(module, "_SLAB_VOXELS", voxels)
    for spacing, expected in zip(SPACINGS, whole, strict=True):
        assert np.array_equal(preprocess(noise(), spacing, PUBLIC), expected)


@pytest.mark.parametrize("spacing", SPACINGS, ids=str)
def test_labels_are_the_nearest_voxels(spacing: tuple[float, float, float]) -> None:
    labels = np.random.default_rng(0).integers(0, 16, SHAPE).astype(np.uint8)
    result = resample_labels(np.asfortranarray(labels), spacing, PUBLIC)
    shape = grid_shape(SHAPE, spacing, PUBLIC)
    assert result.shape == shape and result.dtype == np.uint8 and result.flags.c_contiguous
    places = [(np.arange(m) + 0.5) * n / m - 0.5 for n, m in zip(SHAPE, shape, strict=True)]
    for d, h, w in np.ndindex(*shape):
        at = (places[0][d], places[1][h], places[2][w])
        near = [{int(np.floor(place + 0.5 - 1e-9)), int(np.floor(place + 0.5 + 1e-9))} for place in at]
        assert result[d, h, w] in {labels[i, j, k] for i in near[0] for j in near[1] for k in near[2]}


def test_labels_of_the_right_spacing_are_the_labels() -> None:
    labels = np.random.default_rng(0).integers(0, 16, SHAPE).astype(np.uint8)
    assert np.array_equal(resample_labels(labels, (1.5, 1.5, 1.5), PUBLIC), labels)


def test_a_coarse_scan_gives_the_fine_scans_input() -> None:
    """One phantom on two grids of the same extent: images and labels come out alike on a third."""
    anatomy = anatomy_from_seed(4)
    how = replace(PUBLIC, spacing_mm=(9.0, 9.0, 9.0))
    fine = render(anatomy, (6.0, 6.0, 6.0), (60, 42, 48), (0.0, 0.0, 60.0))
    coarse = render(anatomy, (9.0, 9.0, 9.0), (40, 28, 32), (0.0, 0.0, 60.0))
    images = [preprocess(scan.hu, spacing, how) for scan, spacing in ((fine, (6.0,) * 3), (coarse, (9.0,) * 3))]  # type: ignore[arg-type]
    assert np.corrcoef(images[0].ravel(), images[1].ravel())[0, 1] > 0.9
    labels = resample_labels(fine.labels, (6.0, 6.0, 6.0), how)
    organs = (labels > 0) | (coarse.labels > 0)
    assert np.mean(labels[organs] == coarse.labels[organs]) > 0.6
    # A grid that lay half a coarse voxel off would do much worse.
    assert np.mean(labels[organs] == coarse.labels[organs]) > np.mean(
        np.roll(labels, 1, 0)[organs] == coarse.labels[organs]
    )


@pytest.mark.parametrize("value", [-1000, 40, 500])
@pytest.mark.parametrize("spacing", [(1.5, 1.5, 1.5), (0.8, 0.8, 5.0)])
def test_constant_volumes_are_refused(value: float, spacing: tuple[float, float, float]) -> None:
    with pytest.raises(RefusedInput, match=r"constant or not a number within \(-200.0, 300.0\) HU"):
        preprocess(np.full(SHAPE, value, np.float32), spacing, PUBLIC)


def test_volumes_that_are_constant_once_clipped_are_refused() -> None:
    with pytest.raises(RefusedInput, match="constant"):
        preprocess(np.minimum(noise(), 0) - 300, (1.5, 1.5, 1.5), PUBLIC)


def test_nan_is_refused() -> None:
    hu = noise()
    hu[1, 2, 3] = np.nan
    with pytest.raises(RefusedInput, match="not a number"):
        preprocess(hu, (1.5, 1.5, 1.5), PUBLIC)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"orientation": "RAS"}, "orientation 'RAS' is not known"),
        ({"normalization": "min-max"}, "normalization 'min-max' is not known"),
        ({"clip_hu": (300.0, -200.0)}, "not a range"),
        ({"clip_hu": (-200.0, float("nan"))}, "not a range"),
        ({"spacing_mm": (0.0, 1.5, 1.5)}, "no length above 0"),
        ({"spacing_mm": (1.5, float("nan"), 1.5)}, "no length above 0"),
    ],
    ids=str,
)
def test_rules_that_are_not_known_are_refused(changes: dict[str, Any], match: str) -> None:
    how = replace(PUBLIC, **changes)
    with pytest.raises(RefusedInput, match=match):
        preprocess(noise(), (1.5, 1.5, 1.5), how)
    with pytest.raises(RefusedInput, match=match):
        resample_labels(np.ones(SHAPE, np.uint8), (1.5, 1.5, 1.5), how)


def test_scans_that_no_grid_fits_are_refused() -> None:
    for spacing in ((0.0, 1.5, 1.5), (1.5, -1.0, 1.5), (1.5, 1.5, float("inf"))):
        with pytest.raises(RefusedInput, match="no length above 0"):
            preprocess(noise(), spacing, PUBLIC)
    tracemalloc.start()
    with pytest.raises(RefusedInput, match=r"more than 536,870,912 voxels; check its spacing"):
        preprocess(noise(), (50.0, 50.0, 5000.0), PUBLIC)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1 << 20


def test_arrays_of_another_kind_are_the_callers_fault() -> None:
    for volume in (noise()[None], noise()[:, :0]):
        with pytest.raises(ValueError, match="three axes and a voxel"):
            preprocess(volume, (1.5, 1.5, 1.5), PUBLIC)
    with pytest.raises(ValueError, match="uint8, not int64"):
        resample_labels(np.ones(SHAPE, np.int64), (1.5, 1.5, 1.5), PUBLIC)


@pytest.mark.parametrize("spacing", [(1.5, 1.5, 1.5), (0.75, 0.75, 3.0), (3.0, 1.5, 1.5)])
def test_memory_is_the_result_and_one_array_between_two_axes(
    spacing: tuple[float, float, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_SLAB_VOXELS", 1 << 14)
    hu = np.tile(noise(), (8, 8, 4))
    tracemalloc.start()
    result = preprocess(hu, spacing, PUBLIC)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    between = 0 if spacing == (1.5, 1.5, 1.5) else result.nbytes // 2
    assert result.nbytes <= peak < result.nbytes + between + (1 << 20)
