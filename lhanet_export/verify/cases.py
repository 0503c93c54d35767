"""Which volumes an artifact is compared on: by rule at every size asked for, and windows of scans."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from lhanet_export.conventions import AMOS_LABELS, DEFAULT_WINDOWS
from lhanet_export.errors import RefusedInput
from lhanet_export.progress import SILENT, Progress
from lhanet_export.shapes import Shape, SpatialRange
from lhanet_export.verify.inputs import PUBLIC_PATCH, Case, cases_for, shapes_in
from lhanet_export.verify.volumes import VERIFICATION_SEEDS, ScanCase, scan_cases


def comparison_cases(
    spatial: SpatialRange,
    classes: int,
    *,
    precision: str = "fp32",
    shapes: Sequence[Shape] = (),
    batch: int | None = 1,
    data: Path | None = None,
    assume_hu: bool = False,
    windows: int = DEFAULT_WINDOWS,
    seed: int = 0,
    progress: Progress = SILENT,
) -> list[Case]:
    """Volumes by rule, then `windows` windows of the scans in `data`, or of phantoms for AMOS22's classes.

    A network of another class count has no phantoms: nobody knows what its classes are. Windows have the size
    of the public patch, or the nearest that is in range. INT8 has scales for scans and for nothing else, so there
    windows of scans take the place of volumes by rule; without any `RefusedInput` says so. `batch` as in `cases_for`.
    """
    sizes = list(shapes) or shapes_in(spatial)
    has_scans = data is not None or classes == len(AMOS_LABELS)
    if precision == "int8" and not has_scans:
        raise RefusedInput(
            f"INT8 is judged on scans, and there are no phantoms for {classes} classes; name a folder with --data"
        )

    def scans(shape: Shape, count: int, first_seed: int) -> list[ScanCase]:
        return scan_cases(
            data, shape, -(-count // (batch or 1)), classes=classes, batch=batch or 1, assume_hu=assume_hu,
            first_seed=first_seed, progress=progress,
        )  # fmt: skip

    first_seed = VERIFICATION_SEEDS + 100 * seed
    cases: list[Case] = []
    if precision == "int8":
        # Two unlike volumes of one size come first, as in `cases_for`; phantoms of their own keep the sizes apart.
        for index, shape in enumerate(sorted(set(sizes))):
            # Organs are judged on the same windows as for every other precision.
            sized = scans(shape, 2 * (batch or 1), first_seed + 50 + index)
            cases += [replace(case, is_scan=False) for case in sized]
    else:
        cases += cases_for(sizes, batch, seed)
    if has_scans:
        cases += scans(window_in(spatial), windows, first_seed)
    return cases


def window_in(spatial: SpatialRange) -> Shape:
    """The public patch, each side moved into the range."""
    depth, height, width = (
        min(high, max(low, side)) for low, side, high in zip(spatial.min, PUBLIC_PATCH, spatial.max, strict=True)
    )
    return depth, height, width
