"""Time and memory of `predict` on large scans, and what of it is not the network.

    python scripts/measure_predict.py     # about six minutes, 1.7 GB of disk

Each scan is a phantom of 0.8 x 0.8 x 1.0 mm, segmented by the command line in a process of its own, whose peak
resident memory the kernel reports: by demo, and by the full-size lightweight network (weights by rule) in OpenVINO.
Figures go to docs/measurements/predict.json.
"""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path
from typing import Any

import click
import numpy as np
from _machine import machine
from nibabel import Nifti1Header

from lhanet_export.files import write_json
from lhanet_export.volume.phantom import anatomy_from_seed, grid_of, slabs

REPOSITORY = Path(__file__).resolve().parents[1]
FIGURES = REPOSITORY / "docs" / "measurements" / "predict.json"
SPACING_MM = (0.8, 0.8, 1.0)
IN_PLANE = 512


#: Networks, and the depths of the scans that they segment.
RUNS = (("demo", 200), ("demo", 600), ("lightweight, full size", 200))


@click.command(help=__doc__)
@click.option("--json", "target", type=click.Path(path_type=Path), default=FIGURES, help="Where the figures go.")
def main(target: Path) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = [measure(network, slices, folder) for network, slices in RUNS]
    facts = {
        "date": date.today().isoformat(),
        "machine": machine("torch", "numpy", "scipy", "openvino"),
        "spacing_mm": SPACING_MM, "scans": rows,
    }  # fmt: skip
    write_json(target, facts)
    for row in rows:
        print(json.dumps(row))


def measure(network: str, slices: int, folder: Path) -> dict[str, Any]:
    """Segment a phantom of that depth, and say what it took."""
    scan = folder / f"{slices}.nii.gz"
    if not scan.exists():
        write_phantom(scan, (IN_PLANE, IN_PLANE, slices))
    ours = [sys.executable, "-m", "lhanet_export"]
    model = ["demo"]
    if network != "demo":
        model = [str(folder / "full.onnx"), "--runtime", "openvino"]
        options = ["-o", model[0], "--for", "cpu", "--output", "coarse"]
        subprocess.run([*ours, "onnx", "preset:lightweight", *options], check=True)
    report = folder / "report.json"
    command = [*ours, "predict", *model, str(scan), "-o", str(folder / "labels.nii.gz"), "--json", str(report)]
    start = time.perf_counter()
    with subprocess.Popen(command) as process:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(process.returncode)
    (facts,) = json.loads(report.read_text(encoding="utf-8"))["scans"]
    return {
        "network": network,
        "shape": facts["shape"], "network_shape": facts["network_shape"], "windows": facts["windows"],
        "seconds": facts["seconds"] | {"command": time.perf_counter() - start},
        "peak_rss_bytes": usage.ru_maxrss * 1024, "scan_file_bytes": scan.stat().st_size,
        "volumes_ml": facts["volumes_ml"],
    }  # fmt: skip


def write_phantom(path: Path, shape: tuple[int, int, int]) -> None:
    """A phantom as int16 NIfTI, rendered and written piece by piece."""
    anatomy = anatomy_from_seed(3)
    grid = grid_of(anatomy, SPACING_MM, shape)
    header = Nifti1Header()
    header.set_data_dtype(np.int16)
    header.set_data_shape(shape)
    header.set_sform(grid.affine, 1)
    header.set_qform(grid.affine, 1)
    header.set_xyzt_units("mm")
    header["vox_offset"], header["scl_slope"], header["scl_inter"] = 352, 1, 0
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(header.binaryblock + bytes(4))
        for _, hu, _ in slabs(anatomy, grid):
            file.write(hu.astype("<i2").tobytes(order="F"))


if __name__ == "__main__":
    main()
