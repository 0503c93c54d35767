"""Windows through a runner: what is under way, what fits a GPU, and what no labels are made of."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from lhanet_export.conventions import Preprocessing
from lhanet_export.errors import OutOfMemory, RefusedInput
from lhanet_export.predict.scores import WindowScores
from lhanet_export.predict.task import Prediction
from lhanet_export.runners.base import HostRunner, Slot
from lhanet_export.runners.null import NullRunner
from lhanet_export.volume.windows import Tiling, tiling_of

HOW = Prediction(preprocessing=Preprocessing(patch=(8, 8, 8)))
IMAGE = np.random.default_rng(0).normal(size=(20, 13, 30)).astype(np.float32)


class SmallGpu(HostRunner):
    """Doubles each window in two classes; has room for batches of `room`, noticed when memory is asked for or used."""

    name = "small"

    def __init__(self, room: int, *, late: bool = False) -> None:
        self._room, self._late = room, late
        self.log: list[str] = []

    def infer(self, image: np.ndarray) -> np.ndarray:
        return np.concatenate([image, 2 * image], 1)

    def slots(self, shape: tuple[int, ...], count: int) -> list[Slot]:
        if shape[0] > self._room and not self._late:
            raise OutOfMemory(f"no room for {shape}")
        return [_Slot(self, shape, index) for index in range(count)]

    def check(self, batch: int) -> None:
        if batch > self._room and len(self.log) > 4:
            raise OutOfMemory(f"no room for {batch}")


class _Slot:
    """Its memory is overwritten as soon as it may be."""

    def __init__(self, runner: SmallGpu, shape: tuple[int, ...], index: int) -> None:
        self._runner, self._index = runner, index
        self.image = np.full(shape, np.nan, np.float32)
        self._scores = np.full((shape[0], 2, *shape[2:]), np.nan, np.float32)

    def start(self) -> None:
        self._runner.check(len(self.image))
        self._runner.log.append(f"start {self._index}")
        self._scores[:] = np.nan

    def wait(self) -> np.ndarray:
        self._runner.log.append(f"wait {self._index}")
        self._scores[:] = self._runner.infer(self.image)
        self.image[:] = np.nan
        return self._scores


def tiling(how: Prediction = HOW) -> Tiling:
    return tiling_of((20, 13, 30), how.preprocessing)


def check(found: list[tuple[Any, np.ndarray]]) -> None:
    """Every window once, in order, with its own scores."""
    expected = [window for number in range(tiling().rows) for window in tiling().row(number)]
    assert [window for window, _ in found] == expected
    for window, scores in found:
        part = IMAGE[tuple(slice(start, start + 8) for start in window.start)]
        assert np.array_equal(scores, np.stack([part, 2 * part]))


def scores_of(runner: SmallGpu, how: Prediction) -> list[tuple[Any, np.ndarray]]:
    return [(window, scores.copy()) for window, scores in WindowScores(runner, IMAGE, tiling(), how)]


def test_the_next_batch_is_under_way_while_one_is_awaited() -> None:
    runner = SmallGpu(1)
    check(scores_of(runner, HOW))
    assert runner.log[:6] == ["start 0", "start 1", "wait 0", "start 0", "wait 1", "start 1"]
    assert runner.log[-2:] in (["wait 0", "wait 1"], ["wait 1", "wait 0"])


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("mirrored", [(), (0, 2)])
def test_a_gpu_without_room_gets_smaller_batches(
    late: bool, mirrored: tuple[int, ...], caplog: pytest.LogCaptureFixture
) -> None:
    runner = SmallGpu(3, late=late)
    check(scores_of(runner, replace(HOW, batch=8, mirrored=mirrored)))
    assert "going on with 4 windows at a time" in caplog.text
    assert "going on with 2 windows at a time" in caplog.text


def test_one_window_that_does_not_fit_ends_it() -> None:
    with pytest.raises(OutOfMemory, match="no room"):
        scores_of(SmallGpu(0), HOW)
    with pytest.raises(OutOfMemory, match="no room"):
        scores_of(SmallGpu(2), replace(HOW, batch=4, fixed_batch=True))


def test_a_network_that_says_the_same_everywhere_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def constant(runner: SmallGpu, image: np.ndarray) -> np.ndarray:
        return np.stack([np.full(image.shape[2:], k, np.float32) for k in (3, 4)])[None].repeat(len(image), 0)

    monkeypatch.setattr(SmallGpu, "infer", constant)
    with pytest.raises(RefusedInput, match="the same scores everywhere"):
        scores_of(SmallGpu(1), HOW)


@pytest.mark.parametrize("coarse", [False, True])
def test_the_null_runner_follows_its_rule(coarse: bool) -> None:
    image = np.random.default_rng(1).normal(size=(2, 1, 40, 17, 33)).astype(np.float32)
    with NullRunner(5, coarse=coarse) as runner:
        scores = runner.infer(image)
    grid = (3, 2, 3) if coarse else (40, 17, 33)
    assert scores.shape == (2, 5, *grid) and scores.dtype == np.float32
    for n, k, d, h, w in ((0, 0, 0, 0, 0), (1, 4, 2, 1, 2), (0, 2, 1, 1, 0), (1, 3, 2, 0, 1)):
        at = tuple((2 * i + 1) * p // (2 * g) for i, p, g in zip((d, h, w), (40, 17, 33), grid, strict=True))
        away = image[(n, 0, *at)] - np.float32(-1.7 + 3.4 * k / 4)
        expected = -(away * away) + np.float32((5 * d + 3 * h + w) % 7 * (k % 3)) * np.float32(0.03125)
        assert scores[n, k, d, h, w] == expected
    with pytest.raises(RefusedInput, match="expected volumes"):
        runner.infer(image[0])
