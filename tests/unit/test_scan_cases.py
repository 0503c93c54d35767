"""Windows of scans to compare on: from phantoms, and from a folder of NIfTI files."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lhanet_export.conventions import AMOS_LABELS, Preprocessing
from lhanet_export.errors import RefusedInput
from lhanet_export.shapes import SpatialRange
from lhanet_export.verify.cases import comparison_cases, window_in
from lhanet_export.verify.volumes import ScanCase, scan_cases
from lhanet_export.volume.nifti import write_phantom
from lhanet_export.volume.phantom import anatomy_from_seed, render

COARSE = Preprocessing(spacing_mm=(6.0, 6.0, 6.0))
SHAPE = (17, 24, 20)
CLASSES = len(AMOS_LABELS)


def windows(count: int, data: Path | None = None, **more: int) -> list[ScanCase]:
    return scan_cases(data, SHAPE, count, how=COARSE, **{"classes": CLASSES, **more})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two scans with labels, coarse."""
    path = tmp_path_factory.mktemp("scans")
    for kind in ("images", "labels"):
        (path / kind).mkdir()
    for seed in (5, 6):
        phantom = render(anatomy_from_seed(seed), (5.0, 5.0, 6.0))
        write_phantom(phantom, path / "images" / f"{seed}.nii.gz", path / "labels" / f"{seed}.nii.gz")
    return path


def test_phantoms_give_windows_with_truth() -> None:
    cases = windows(15)

    assert len(cases) == 15
    for case in cases:
        assert case.shape == SHAPE and case.image.shape == (1, 1, *SHAPE) and case.image.dtype == np.float32
        assert case.truth is not None and case.truth.shape == (1, *SHAPE) and case.truth.max() < CLASSES
        assert case.is_scan and case.kind.startswith("phantom 20")
    # A few windows show every organ.
    assert set(np.unique([case.truth for case in cases])) == set(range(CLASSES))


def test_the_same_arguments_give_the_same_windows() -> None:
    for one, other in zip(windows(4), windows(4), strict=True):
        assert np.array_equal(one.image, other.image)
    assert not np.array_equal(windows(1)[0].image, windows(1, first_seed=7)[0].image)


def test_a_batch_holds_windows_of_its_own() -> None:
    (case,) = windows(1, batch=2)

    assert case.image.shape == (2, 1, *SHAPE) and case.truth is not None and case.truth.shape == (2, *SHAPE)
    assert not np.array_equal(case.image[0], case.image[1])


def test_a_folder_gives_its_scans_in_turn(folder: Path) -> None:
    cases = windows(7, folder)

    assert [case.kind for case in cases] == ["5.nii.gz"] * 3 + ["6.nii.gz"] * 3 + ["5.nii.gz"]
    assert all(case.truth is not None and case.truth.max() > 0 for case in cases)


def test_scans_without_labels_have_no_truth(folder: Path) -> None:
    cases = windows(2, folder / "images")

    assert all(case.truth is None and case.is_scan for case in cases)
    assert not np.array_equal(cases[0].image, cases[1].image)


def test_labels_beyond_the_networks_classes_are_refused(folder: Path) -> None:
    with pytest.raises(RefusedInput, match=r"5\.nii\.gz holds the label 15, but the network's 4 classes end at 3"):
        windows(1, folder, classes=4)


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RefusedInput, match=str(tmp_path)):
        windows(1, tmp_path)


def test_a_scan_smaller_than_the_window_is_filled_with_air() -> None:
    (case,) = scan_cases(None, (17, 200, 17), 1, classes=CLASSES, how=COARSE)

    assert case.truth is not None
    assert (case.image[0, 0, :, -1] == -1.0).all() and (case.truth[0, :, -1] == 0).all()


def test_only_networks_with_amos_classes_are_compared_on_phantoms(folder: Path) -> None:
    spatial = SpatialRange((17, 24, 20), (20, 24, 20), (24, 32, 32))

    fourteen = comparison_cases(spatial, 14, shapes=[SHAPE], windows=2)
    assert {case.kind for case in fourteen} == {"bodies", "texture"}
    sixteen = comparison_cases(spatial, CLASSES, shapes=[SHAPE], windows=2)
    assert [case.is_scan for case in sixteen] == [False, False, True, True]
    assert sixteen[-1].shape == (24, 32, 32)


def test_windows_have_the_public_patch_or_the_nearest_size_in_range() -> None:
    whole = SpatialRange((32, 32, 32), (64, 128, 128), (96, 192, 192))

    assert window_in(whole) == (48, 96, 96)
    assert window_in(replace(whole, min=(64, 32, 32), max=(96, 128, 80), opt=(64, 64, 64))) == (64, 96, 80)
