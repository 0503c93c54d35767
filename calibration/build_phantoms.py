"""Write synthetic abdominal CT as a folder of NIfTI volumes with labels, for `calibrate --data` and `verify --data`.

    python calibration/build_phantoms.py -o build/phantoms --count 8

Each volume is another patient with a spacing of its own (about 0.8 mm in plane, slices of 2 to 5 mm), or all have
the spacing of `--spacing-mm`. Volumes are HU in int16, labels are AMOS22's. The same seeds give the same files.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.progress import track

from lhanet_export.verify.volumes import CALIBRATION_SEEDS
from lhanet_export.volume.nifti import write_phantom
from lhanet_export.volume.phantom import anatomy_from_seed, render


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", dest="folder", type=Path, required=True, help="folder for images/ and labels/")
    parser.add_argument("--count", type=int, default=8, help="how many patients")
    parser.add_argument("--first-seed", type=int, default=CALIBRATION_SEEDS)
    parser.add_argument("--spacing-mm", type=float, help="one spacing for all axes, instead of each patient's own")
    arguments = parser.parse_args()
    for kind in ("images", "labels"):
        (arguments.folder / kind).mkdir(parents=True, exist_ok=True)
    spacing = (arguments.spacing_mm,) * 3 if arguments.spacing_mm else None
    seeds = range(arguments.first_seed, arguments.first_seed + arguments.count)
    for seed in track(seeds, "phantoms"):
        name = f"phantom_{seed}.nii.gz"
        phantom = render(anatomy_from_seed(seed), spacing)
        write_phantom(phantom, arguments.folder / "images" / name, arguments.folder / "labels" / name)
    print(f"{arguments.folder}: {arguments.count} volumes with labels")


if __name__ == "__main__":
    main()
