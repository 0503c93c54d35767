"""Ranges are what the volumes give, and of these volumes and this graph only."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from lhanet_export.errors import RefusedInput
from lhanet_export.export.artifact import OnnxArtifact
from lhanet_export.export.onnx_from_network import ExportOptions, onnx_from_network
from lhanet_export.model.network import LHANet
from lhanet_export.model.rule import rule_network
from lhanet_export.precision import calibrate as module
from lhanet_export.precision.calibrate import CalibrationImage, calibrate, read_ranges
from lhanet_export.precision.int8 import quantized_tensors
from lhanet_export.precision.scales import BINS, LEVELS, METHODS, Magnitudes, bound_of
from lhanet_export.precision.sessions import GraphSession
from lhanet_export.verify.inputs import bodies
from tests.cpu.conftest import CHECKPOINT


def _seen(values: np.ndarray) -> Magnitudes:
    counts = module._histogram(values, float(np.abs(values).max()))
    return Magnitudes(minimum=float(values.min()), maximum=float(values.max()), counts=counts)


def _error(values: np.ndarray, bound: float) -> float:
    step = bound / LEVELS
    return float(np.square(np.clip(np.rint(values / step), -LEVELS, LEVELS) * step - values).mean())


@pytest.fixture(scope="module")
def with_outliers() -> np.ndarray:
    values = np.random.default_rng(0).standard_normal(1_000_000).astype(np.float32)
    values[:4] = (60, -60, 55, 58)
    return values


def test_min_max_clips_nothing(with_outliers: np.ndarray) -> None:
    seen = _seen(with_outliers)
    assert bound_of("x", seen, "min-max") == 60
    assert seen.clipped(60) == 0


@pytest.mark.parametrize("method", [name for name in METHODS if name != "min-max"])
def test_outliers_are_clipped_and_the_rest_is_not(method: str, with_outliers: np.ndarray) -> None:
    seen = _seen(with_outliers)
    bound = bound_of("x", seen, method)
    assert 2 < bound < 30
    assert 4e-6 <= seen.clipped(bound) < 0.05
    assert _error(with_outliers[4:], bound) < _error(with_outliers[4:], 60) / 4


def test_mse_is_the_least_squared_error(with_outliers: np.ndarray) -> None:
    for values in (with_outliers, np.random.default_rng(1).laplace(size=100_000).astype(np.float32)):
        seen = _seen(values)
        tried = [_error(values, share * seen.largest) for share in np.linspace(0.02, 1, 99)]
        assert _error(values, bound_of("x", seen, "mse")) <= 1.02 * min(tried)


def test_percentiles_are_of_what_is_not_zero() -> None:
    values = np.zeros(1_000_000, np.float32)
    values[:100_000] = np.linspace(0, 1, 100_000)
    assert bound_of("x", _seen(values), "percentile-99.99") == pytest.approx(0.9999, abs=1 / BINS)


def test_no_scale_is_invented() -> None:
    nothing = Magnitudes(minimum=0, maximum=0, counts=np.zeros(BINS))
    broken = Magnitudes(minimum=0, maximum=float("nan"), counts=np.ones(BINS))
    for method in METHODS:
        with pytest.raises(RefusedInput, match="x is 0 everywhere"):
            bound_of("x", nothing, method)
        with pytest.raises(RefusedInput, match="x NaN or infinite"):
            bound_of("x", broken, method)
    with pytest.raises(RefusedInput, match="no calibration method 'random'"):
        bound_of("x", nothing, "random")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> OnnxArtifact:
    return _graph(rule_network("lightweight", base_channels=4, num_classes=3), tmp_path_factory.mktemp("calibrate"))


def _graph(network: LHANet, folder: Path) -> OnnxArtifact:
    return onnx_from_network(network, CHECKPOINT, folder / "fp32.onnx", ExportOptions(without=("short-convolutions",)))


@pytest.fixture(scope="module")
def images() -> list[CalibrationImage]:
    return [CalibrationImage(name=f"bodies {seed}", voxels=bodies((32, 33, 36), seed)) for seed in range(4)]


def test_ranges_are_those_of_the_tensors(
    source: OnnxArtifact, images: list[CalibrationImage], monkeypatch: pytest.MonkeyPatch
) -> None:
    names = quantized_tensors(source)[:5]
    ranges = calibrate(source, images, names)
    session = GraphSession(ir.load(source.path), source, names)
    everything = [session.values(names, image.voxels) for image in images]
    for name in names:
        values = np.concatenate([one[name].ravel() for one in everything])
        seen = ranges.tensors[name]
        assert (seen.minimum, seen.maximum) == (values.min(), values.max())
        assert seen.counts.sum() == np.count_nonzero(values)
        counts, _ = np.histogram(np.abs(values[values != 0]), BINS, (0, seen.largest))
        # A value on the edge of two bins may fall on either side of it.
        assert np.abs(np.cumsum(counts) - np.cumsum(seen.counts)).max() <= 5
    # Tensors one at a time give the same.
    monkeypatch.setattr(module, "_FETCHED_BYTES", 1)
    again = calibrate(source, images, names)
    assert all(np.array_equal(again.tensors[name].counts, ranges.tensors[name].counts) for name in names)


def test_a_second_run_reads_the_file(
    source: OnnxArtifact, images: list[CalibrationImage], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "ranges.npz"
    names = quantized_tensors(source)[1:3]
    first = calibrate(source, images, names, cache=cache)

    def nothing_runs(*_: object) -> None:
        raise AssertionError("the graph was run again")

    monkeypatch.setattr(module, "GraphSession", nothing_runs)
    # The order of the volumes does not matter.
    second = calibrate(source, images[::-1], names, cache=cache)
    assert second.key == first.key
    for name in names:
        mine, other = first.tensors[name], second.tensors[name]
        assert (mine.minimum, mine.maximum) == (other.minimum, other.maximum)
        assert np.array_equal(mine.counts, other.counts)


def test_ranges_of_something_else_are_refused(
    source: OnnxArtifact, images: list[CalibrationImage], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "ranges.npz"
    names = quantized_tensors(source)[1:2]
    calibrate(source, images, names, cache=cache)
    before = cache.read_bytes()
    other_images = [*images, CalibrationImage(name="another", voxels=bodies((32, 33, 36), 9))]
    # Another seed: the same graph but for its weights.
    other_graph = _graph(rule_network("lightweight", base_channels=4, num_classes=3, seed=2), tmp_path / "other")
    with pytest.raises(RefusedInput, match="measured on other volumes; name another file"):
        calibrate(source, other_images, names, cache=cache)
    with pytest.raises(RefusedInput, match="measured for another graph or other weights"):
        calibrate(other_graph, images, names, cache=cache)
    with pytest.raises(RefusedInput, match="measured for other tensors"):
        calibrate(source, images, quantized_tensors(source)[1:3], cache=cache)
    monkeypatch.setattr(module, "VERSION", 2)
    with pytest.raises(RefusedInput, match="by another version of this toolkit"):
        calibrate(source, images, names, cache=cache)
    assert cache.read_bytes() == before


def test_files_that_are_no_ranges_are_refused(
    source: OnnxArtifact, images: list[CalibrationImage], tmp_path: Path
) -> None:
    cache = tmp_path / "ranges.npz"
    calibrate(source, images, quantized_tensors(source)[1:2], cache=cache)
    whole = cache.read_bytes()
    pickled = tmp_path / "pickled.npz"
    np.savez(pickled, key=np.array([{}], dtype=object), names=[], ends=[], counts=[])
    short = tmp_path / "short.npz"
    with np.load(cache) as arrays:
        np.savez(short, **{**arrays, "counts": arrays["counts"][:, :5]})
    negative = tmp_path / "negative.npz"
    with np.load(cache) as arrays:
        np.savez(negative, **{**arrays, "counts": -arrays["counts"]})
    for name, content in (("cut", whole[: len(whole) // 2]), ("empty", b""), ("text", b"ranges")):
        (tmp_path / name).write_bytes(content)
    for path in (pickled, short, negative, *(tmp_path / name for name in ("cut", "empty", "text"))):
        with pytest.raises(RefusedInput, match="holds no ranges, or it is damaged"):
            read_ranges(path)
    with pytest.raises(RefusedInput, match="cannot read"):
        read_ranges(tmp_path / "missing.npz")


def test_volumes_that_say_nothing_are_refused(
    source: OnnxArtifact, images: list[CalibrationImage], tmp_path: Path
) -> None:
    cache, names = tmp_path / "ranges.npz", quantized_tensors(source)[1:2]
    good = images[0].voxels
    holed = good.copy()
    holed[0, 0, 3, 4, 5] = np.nan
    cases = (
        ([], "0 different volumes are too few"),
        (images[:3], "3 different volumes are too few"),
        (images[:3] * 2, "3 different volumes are too few"),
        ([*images, _named(np.full_like(good, 0.5))], "bad is 0.5 everywhere"),
        ([*images, _named(holed)], "bad holds NaN"),
        ([*images, _named(good.astype(np.float64))], r"bad should be \(1,1,D,H,W\) float32"),
        ([*images, _named(good[0])], r"bad should be \(1,1,D,H,W\) float32"),
        ([*images, _named(bodies((20, 40, 40), 1))], "20x40x40 is outside the range"),
        ([*images, _named(good * 1e38)], "bad makes .* NaN or infinite"),
    )
    for given, message in cases:
        with pytest.raises(RefusedInput, match=message):
            calibrate(source, given, names, cache=cache)
    with pytest.raises(RefusedInput, match="has no value named nowhere"):
        calibrate(source, images, ["nowhere"], cache=cache)
    assert not cache.exists()


def _named(voxels: np.ndarray) -> CalibrationImage:
    return CalibrationImage(name="bad", voxels=voxels)
