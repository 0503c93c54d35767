"""A scan becomes labels on its own grid: for every size, orientation and encoding, or not at all.

The network is a stand-in whose answer is known: each voxel gets the class whose level is nearest to it, so labels can
be computed from the preprocessed scan without windows.
"""

from __future__ import annotations

import gzip
from collections.abc import Callable
from dataclasses import replace
from itertools import permutations, product
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from nibabel.orientations import apply_orientation, inv_ornt_aff

from lhanet_export.conventions import Preprocessing
from lhanet_export.errors import EnvironmentLacks, GpuFailed, RefusedInput
from lhanet_export.predict import run
from lhanet_export.predict.run import predict
from lhanet_export.predict.task import Outcome, Prediction, Task
from lhanet_export.runners.base import HostRunner
from lhanet_export.volume.preprocess import preprocess
from lhanet_export.volume.read import read_scan

NAMES = ("background", "fat", "organ/one", "bone")
#: Of preprocessed values; each class's own.
LEVELS = np.array([-1.5, -0.4, 0.5, 2.0], np.float32)
RULES = Preprocessing(patch=(16, 16, 16))
HOW = Prediction(preprocessing=RULES)


class NearestLevel(HostRunner):
    """Scores of each voxel by how far it is from each class's level; `wrong` may change them."""

    name = "stand-in"

    def __init__(self, wrong: Callable[[np.ndarray], np.ndarray] = lambda scores: scores) -> None:
        self.batches: list[int] = []
        self._wrong = wrong

    def infer(self, image: np.ndarray) -> np.ndarray:
        assert image.ndim == 5 and image.dtype == np.float32 and image.flags.c_contiguous
        self.batches.append(len(image))
        return self._wrong(-((image - LEVELS[:, None, None, None]) ** 2))


def body(shape: tuple[int, int, int], seed: int = 0) -> np.ndarray:
    """Air around fat around soft tissue with a core of bone, int16 HU (X,Y,Z), different along every axis."""
    places = np.stack(np.meshgrid(*(np.linspace(-1, 1, side) for side in shape), indexing="ij"))
    radius = np.sqrt((places**2).sum(0)) + 0.2 * places[0] + 0.1 * places[1] - 0.15 * places[2]
    hu = np.select([radius > 1.1, radius > 0.9, radius > 0.3], [-1000, -100, 60], 290)
    return (hu + np.random.default_rng(seed).integers(-20, 21, shape)).astype(np.int16)


def saved(path: Path, hu: np.ndarray, affine: np.ndarray | None = None, kind: Any = nibabel.Nifti1Image) -> Path:
    image = kind(hu, np.diag([1.5, 1.5, 1.5, 1]) if affine is None else affine)
    image.header.set_xyzt_units("mm")
    image.header["descrip"] = b"made by a test"
    nibabel.save(image, path)
    return path


def outcome_of(scan: Path, target: Path, how: Prediction = HOW, runner: NearestLevel | None = None) -> Outcome:
    with runner or NearestLevel() as opened:
        (outcome,) = predict(opened, [Task(scan=scan, target=target)], NAMES, how)
    return outcome


def labels_of(scan: Path, how: Prediction = HOW, runner: NearestLevel | None = None) -> np.ndarray:
    target = scan.with_name("labels.nii")
    assert outcome_of(scan, target, how, runner).error is None
    return np.asarray(nibabel.load(target).dataobj)  # type: ignore[attr-defined]


def expected_labels(scan: Path) -> np.ndarray:
    """Without windows: the class of each voxel of the preprocessed scan, for a scan of the network's spacing."""
    read = read_scan(scan)
    image = preprocess(read.hu, read.spacing_mm, RULES)
    return (-((image[None] - LEVELS[:, None, None, None]) ** 2)).argmax(0)


@pytest.mark.parametrize(
    "shape", [(16, 16, 16), (2, 2, 2), (40, 17, 33), (5, 50, 16), (16, 3, 70), (31, 32, 47), (2, 90, 2)], ids=str
)
def test_labels_are_the_networks_for_every_size(tmp_path: Path, shape: tuple[int, int, int]) -> None:
    hu = body(shape)
    hu[0, 0, 0] = 60
    scan = saved(tmp_path / "scan.nii.gz", hu)
    labels = labels_of(scan, replace(HOW, assume_hu=True))
    assert labels.shape == shape and labels.dtype == np.uint8
    assert np.array_equal(labels, expected_labels(scan))


@pytest.mark.parametrize("blending", ["gaussian", "constant"])
@pytest.mark.parametrize("overlap", [0.0, 0.3, 0.75])
def test_labels_do_not_depend_on_windows_where_the_network_does_not(
    tmp_path: Path, overlap: float, blending: str
) -> None:
    scan = saved(tmp_path / "scan.nii.gz", body((40, 17, 33)))
    how = replace(HOW, preprocessing=replace(RULES, overlap=overlap, blending=blending, patch=(11, 7, 20)))
    assert np.array_equal(labels_of(scan, how), expected_labels(scan))


def test_the_geometry_is_the_scans(tmp_path: Path) -> None:
    affine = np.array([[0, 0, -1.2, 90], [1.4, 0, 0, -120], [0, -2.5, 0, 33], [0, 0, 0, 1.0]])
    for kind, name in ((nibabel.Nifti1Image, "one.nii.gz"), (nibabel.Nifti2Image, "two.nii")):
        scan = saved(tmp_path / name, body((30, 20, 25)), affine, kind)
        target = tmp_path / f"labels of {name}"
        assert outcome_of(scan, target).error is None
        before, after = nibabel.load(scan), nibabel.load(target)
        assert type(after) is kind
        assert after.shape == (30, 20, 25) and after.get_data_dtype() == np.uint8
        assert np.array_equal(after.affine, before.affine)
        for key in ("sform_code", "qform_code", "xyzt_units", "pixdim", "descrip", "dim"):
            assert np.array_equal(after.header[key], before.header[key]), key
        assert set(np.unique(after.dataobj)) == {0, 1, 2, 3}


def test_a_big_endian_scan_has_a_big_endian_segmentation(tmp_path: Path) -> None:
    hu = body((20, 20, 20))
    header = nibabel.Nifti1Header(endianness=">")
    header.set_data_dtype(hu.dtype.newbyteorder(">"))
    big = nibabel.Nifti1Image(hu.astype(">i2"), np.diag([1.5, 1.5, 1.5, 1]), header)
    nibabel.save(big, tmp_path / "big.nii")
    small = saved(tmp_path / "small.nii", hu)
    assert (tmp_path / "big.nii").read_bytes()[:4] == (348).to_bytes(4, "big")
    assert np.array_equal(labels_of(tmp_path / "big.nii"), labels_of(small))


def test_twins_of_one_scan_have_one_segmentation(tmp_path: Path) -> None:
    hu = body((30, 20, 25))
    affine = np.diag([0.8, 0.9, 2.5, 1])
    shifted = nibabel.Nifti1Image((hu + 1024).astype(np.uint16), affine)
    shifted.header.set_slope_inter(1, -1024)
    nibabel.save(shifted, tmp_path / "unsigned.nii.gz")
    scans = [
        tmp_path / "unsigned.nii.gz",
        saved(tmp_path / "int16.nii.gz", hu, affine),
        saved(tmp_path / "float.nii", hu.astype(np.float32), affine),
        saved(tmp_path / "double.nii.gz", hu.astype(np.float64), affine, nibabel.Nifti2Image),
        saved(tmp_path / "int32.nii", hu.astype(np.int32), affine),
    ]
    first, *others = (labels_of(scan) for scan in scans)
    assert len(np.unique(first)) == 4
    for labels in others:
        assert np.array_equal(labels, first)


def test_all_48_orientations_have_one_segmentation(tmp_path: Path) -> None:
    """Axes in any order and direction; the network's grid is the scan's, so nothing is rounded."""
    hu = body((20, 26, 33))
    affine = np.diag([1.5, 1.5, 1.5, 1])
    expected = labels_of(saved(tmp_path / "scan.nii", hu, affine))
    for axes, flips in product(permutations(range(3)), product((1, -1), repeat=3)):
        turn = np.array(list(zip(axes, flips, strict=True)))
        scan = saved(tmp_path / "turned.nii", apply_orientation(hu, turn), affine @ inv_ornt_aff(turn, hu.shape))
        assert np.array_equal(labels_of(scan), apply_orientation(expected, turn))


def test_a_finer_scan_gets_smooth_labels_not_blocks(tmp_path: Path) -> None:
    """Scores are interpolated to the scan's grid, not labels: a ball's surface follows the scan's voxels."""
    places = np.stack(np.meshgrid(*(np.arange(60) - 29.5,) * 3, indexing="ij"))
    inside = np.sqrt((places**2).sum(0)) < 21.3
    hu = np.where(inside, 290, -190).astype(np.int16)
    labels = labels_of(saved(tmp_path / "ball.nii", hu, np.diag([0.5, 0.5, 0.5, 1])), replace(HOW, assume_hu=True))
    found = labels == 3
    wrong = np.mean(found != inside)
    blocks = found.reshape(20, 3, 20, 3, 20, 3).any((1, 3, 5)) != found.reshape(20, 3, 20, 3, 20, 3).all((1, 3, 5))
    # Labels by the nearest voxel would be wrong in 4.5 %, and no block of 3x3x3 would hold two classes.
    assert wrong < 0.03 and blocks.sum() > 500


@pytest.mark.parametrize("changes", [{"batch": 3}, {"batch": 4, "fixed_batch": True}, {"mirrored": (0, 2)}], ids=str)
def test_batches_and_mirrors_change_nothing_for_a_network_that_has_no_sides(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    scan = saved(tmp_path / "scan.nii.gz", body((40, 17, 33)))
    runner = NearestLevel()
    assert np.array_equal(labels_of(scan, replace(HOW, **changes), runner), expected_labels(scan))
    if changes.get("fixed_batch"):
        assert set(runner.batches) == {4}
    elif "batch" in changes:
        assert max(runner.batches) == 3


def test_mirrored_windows_are_averaged(tmp_path: Path) -> None:
    """A network that adds to the scores along an axis: together with its mirror image, it adds the same everywhere."""
    scan = saved(tmp_path / "scan.nii.gz", body((16, 16, 16)))

    def slanted(scores: np.ndarray) -> np.ndarray:
        return scores + LEVELS[:, None, None, None] * np.arange(16, dtype=np.float32)[:, None, None]

    plain = labels_of(scan, HOW, NearestLevel(slanted))
    mirrored = labels_of(scan, replace(HOW, mirrored=(0,)), NearestLevel(slanted))

    def level(scores: np.ndarray) -> np.ndarray:
        return scores + LEVELS[:, None, None, None] * np.float32(7.5)

    assert np.array_equal(mirrored, labels_of(scan, HOW, NearestLevel(level)))
    assert not np.array_equal(mirrored, plain)


def test_organs_and_largest_pieces(tmp_path: Path) -> None:
    hu = np.full((30, 20, 20), -190, np.int16)
    hu[2:8, 2:8, 2:8] = 290
    hu[20:23, 2:8, 2:8] = 290
    hu[10:14, 12:16, 12:16] = -130
    scan = saved(tmp_path / "scan.nii", hu)
    how = replace(HOW, assume_hu=True)
    everything = labels_of(scan, how)
    assert (everything == 3).sum() == 6**3 + 3 * 36 and (everything == 2).sum() == 4**3
    assert set(np.unique(labels_of(scan, replace(how, organs=frozenset({3}))))) == {0, 3}
    largest = labels_of(scan, replace(how, largest=True))
    assert (largest == 3).sum() == 6**3 and (largest == 2).sum() == 4**3
    assert (largest[20:23] != 3).all()


def test_probabilities_and_the_picture(tmp_path: Path) -> None:
    scan = saved(tmp_path / "scan.nii.gz", body((30, 20, 25)), np.diag([0.8, 0.9, 2.5, 1]))
    task = Task(
        scan=scan, target=tmp_path / "labels.nii.gz", probabilities=tmp_path / "shares", picture=tmp_path / "look.png"
    )
    with NearestLevel() as runner:
        (outcome,) = predict(runner, [task], NAMES, HOW)
    files = sorted((tmp_path / "shares").iterdir())
    assert [path.name for path in files] == [
        "00-background.nii.gz", "01-fat.nii.gz", "02-organ-one.nii.gz", "03-bone.nii.gz"
    ]  # fmt: skip
    volumes = [nibabel.load(path) for path in files]
    shares = np.stack([np.asarray(volume.dataobj) for volume in volumes])  # type: ignore[attr-defined]
    assert np.abs(shares.sum(0) - 1).max() < 4 / 255
    labels = np.asarray(nibabel.load(task.target).dataobj)  # type: ignore[attr-defined]
    best = np.take_along_axis(shares, labels[None], 0)[0]
    assert (best >= shares.max(0) - 1 / 254).all()
    assert np.array_equal(volumes[0].affine, nibabel.load(scan).affine)  # type: ignore[attr-defined]
    assert task.picture is not None and task.picture.read_bytes().startswith(b"\x89PNG")
    millilitres = 0.8 * 0.9 * 2.5 / 1000
    assert outcome.facts["volumes_ml"]["bone"] == pytest.approx((labels == 3).sum() * millilitres, abs=1e-3)


def test_probabilities_of_a_model_that_gives_them_are_its_own(tmp_path: Path) -> None:
    scan = saved(tmp_path / "scan.nii.gz", body((16, 16, 16)))

    def softmax(scores: np.ndarray) -> np.ndarray:
        shares = np.exp(scores)
        return shares / shares.sum(1, keepdims=True)

    found = []
    for name, runner, logits in (("a", NearestLevel(), True), ("b", NearestLevel(softmax), False)):
        task = Task(scan=scan, target=tmp_path / f"{name}.nii", probabilities=tmp_path / name)
        with runner:
            predict(runner, [task], NAMES, replace(HOW, logits=logits))
        files = sorted((tmp_path / name).iterdir())
        found.append(np.stack([np.asarray(nibabel.load(path).dataobj) for path in files]))  # type: ignore[attr-defined]
    assert np.abs(found[0] - found[1]).max() < 1.1 / 255 and found[0].max() > 0.5


def test_one_result_has_one_file(tmp_path: Path) -> None:
    scan = saved(tmp_path / "scan.nii.gz", body((30, 20, 25)))
    for name in ("a.nii.gz", "b.nii.gz", "c.nii"):
        assert outcome_of(scan, tmp_path / name).error is None
    packed = (tmp_path / "a.nii.gz").read_bytes()
    assert packed == (tmp_path / "b.nii.gz").read_bytes()
    assert gzip.decompress(packed) == (tmp_path / "c.nii").read_bytes()


def test_a_bad_scan_does_not_stop_the_others(tmp_path: Path) -> None:
    tasks = []
    for index in range(4):
        scan = saved(tmp_path / f"{index}.nii.gz", body((20, 20, 20), seed=index))
        tasks.append(Task(scan=scan, target=tmp_path / "out" / scan.name))
    tasks[1].scan.write_bytes(tasks[1].scan.read_bytes()[:-20])
    saved(tasks[3].scan, np.full((20, 20, 20), 40, np.int16))
    with NearestLevel() as runner:
        outcomes = predict(runner, tasks, NAMES, HOW)
    assert [outcome.error is None for outcome in outcomes] == [True, False, True, False]
    assert "damaged or cut off" in str(outcomes[1].error)
    for outcome in (outcomes[1], outcomes[3]):
        assert str(outcome.error).count(str(outcome.task.scan)) == 1
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["0.nii.gz", "2.nii.gz"]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nothing_is_made_of_nan(tmp_path: Path, value: float) -> None:
    scan = saved(tmp_path / "scan.nii.gz", body((40, 20, 40)))

    def spoilt(scores: np.ndarray) -> np.ndarray:
        scores[:, 1, 3, 3, 3] = value if len(runner.batches) == 7 else 0
        return scores

    runner = NearestLevel(spoilt)
    task = Task(scan=scan, target=tmp_path / "out" / "a.nii", probabilities=tmp_path / "out" / "shares")
    with runner:
        (outcome,) = predict(runner, [task], NAMES, HOW)
    assert "NaN or infinity in the window at" in str(outcome.error)
    assert str(scan) in str(outcome.error)
    assert list(tmp_path.rglob("*")) == [scan]


def test_a_full_disk_ends_it_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scan = saved(tmp_path / "scan.nii.gz", body((20, 20, 20)))
    target = tmp_path / "labels.nii"
    target.write_bytes(b"old")

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("lhanet_export.predict.labels.slices_into", full)
    with pytest.raises(EnvironmentLacks, match="No space left"):
        outcome_of(scan, target)
    assert target.read_bytes() == b"old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["labels.nii", "scan.nii.gz"]


def test_too_little_memory_is_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scan = saved(tmp_path / "scan.nii.gz", body((20, 20, 20)))

    def none(*_: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(run, "blend_of", none)
    with pytest.raises(EnvironmentLacks, match="needs more memory than there is"):
        outcome_of(scan, tmp_path / "labels.nii")
    assert not (tmp_path / "labels.nii").exists()


def test_an_error_of_ours_is_not_hidden(tmp_path: Path) -> None:
    scan = saved(tmp_path / "scan.nii.gz", body((20, 20, 20)))

    def broken(scores: np.ndarray) -> np.ndarray:
        raise ZeroDivisionError("ours")

    with pytest.raises(ZeroDivisionError):
        outcome_of(scan, tmp_path / "labels.nii", HOW, NearestLevel(broken))
    assert not (tmp_path / "labels.nii").exists()


def test_a_gpu_that_fails_leaves_the_rest_to_another_process(tmp_path: Path) -> None:
    tasks = []
    for index in range(4):
        scan = saved(tmp_path / f"{index}.nii.gz", body((20, 20, 20), seed=index))
        tasks.append(Task(scan=scan, target=tmp_path / "out" / scan.name))

    def lost(scores: np.ndarray) -> np.ndarray:
        if len(runner.batches) == 12:  # of 8 windows a scan
            raise GpuFailed("the GPU has fallen off the bus")
        return scores

    runner = NearestLevel(lost)
    with runner:
        outcomes = predict(runner, tasks, NAMES, HOW)
    first, second = outcomes
    assert first.error is None and isinstance(second.error, GpuFailed)
    assert str(second.error) == f"{tasks[1].scan}: the GPU has fallen off the bus"
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["0.nii.gz"]


def test_rules_that_are_not_known_are_refused(tmp_path: Path) -> None:
    scan = saved(tmp_path / "scan.nii.gz", body((20, 20, 20)))
    how = replace(HOW, preprocessing=replace(RULES, orientation="RAS"))
    outcome = outcome_of(scan, tmp_path / "labels.nii", how)
    assert isinstance(outcome.error, RefusedInput) and "orientation 'RAS' is not known" in str(outcome.error)
