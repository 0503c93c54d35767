"""NIfTI files of phantoms."""

from pathlib import Path

import nibabel

from lhanet_export.files import staged
from lhanet_export.volume.phantom import Phantom


def write_phantom(phantom: Phantom, image: Path, labels: Path) -> None:
    """Write a phantom as two NIfTI files (`.nii` or `.nii.gz`): int16 HU and uint8 AMOS labels.

    Axes are stored as in the phantom, (X,Y,Z) along RAS, with its affine in mm. Both files get their
    names at the end, the labels first: an image without them is not left behind.
    """
    with staged(image) as (image_file,), staged(labels) as (labels_file,):
        for array, path in ((phantom.hu, image_file), (phantom.labels, labels_file)):
            volume = nibabel.Nifti1Image(array, phantom.affine)
            volume.set_data_dtype(array.dtype)
            volume.header.set_slope_inter(1, 0)
            volume.header.set_xyzt_units("mm")
            # 1: these are the scanner's coordinates, up to the patient's pose.
            volume.set_qform(phantom.affine, code=1)
            volume.set_sform(phantom.affine, code=1)
            nibabel.save(volume, path)
