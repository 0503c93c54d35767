"""Write synthetic abdominal CT as a folder of NIfTI volumes with labels, for `calibrate --data` and `verify --data`.

    python calibration/build_phantoms.py -o build/phantoms --count 8

Each volume is another patient with a spacing of its own (about 0.8 mm in plane, slices of 2 to 5 mm), or all have
the spacing of `--spacing-mm`. Volumes are HU in int16, labels are AMOS22's. The same seeds give the same files.
"""

from __future__ import annotations

from pathlib import Path

import click
from rich.progress import track

from lhanet_export.verify.volumes import CALIBRATION_SEEDS
from lhanet_export.volume.nifti import write_phantom
from lhanet_export.volume.phantom import anatomy_from_seed, render


@click.command(help=__doc__)
@click.option("-o", "folder", type=click.Path(path_type=Path), required=True, help="Folder for images/ and labels/.")
@click.option("--count", default=8, show_default=True, help="How many patients.")
@click.option("--first-seed", default=CALIBRATION_SEEDS, show_default=True)
@click.option("--spacing-mm", type=float, help="One spacing for all axes, instead of each patient's own.")
def main(folder: Path, count: int, first_seed: int, spacing_mm: float | None) -> None:
    for kind in ("images", "labels"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    spacing = (spacing_mm,) * 3 if spacing_mm else None
    for seed in track(range(first_seed, first_seed + count), "phantoms"):
        name = f"phantom_{seed}.nii.gz"
        phantom = render(anatomy_from_seed(seed), spacing)
        write_phantom(phantom, folder / "images" / name, folder / "labels" / name)
    print(f"{folder}: {count} volumes with labels")


if __name__ == "__main__":
    main()
