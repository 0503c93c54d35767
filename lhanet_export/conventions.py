"""What an application must know besides the engine: what the classes are called and how a scan becomes an input."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lhanet_export.errors import RefusedInput
from lhanet_export.shapes import Shape
from lhanet_export.strict import Node

#: The classes of AMOS22 in the order of its labels (https://amos22.grand-challenge.org).
AMOS_LABELS = (
    "background", "spleen", "right kidney", "left kidney", "gall bladder", "esophagus", "liver", "stomach",
    "aorta", "postcava", "pancreas", "right adrenal gland", "left adrenal gland", "duodenum", "bladder",
    "prostate/uterus",
)  # fmt: skip
#: A label map has 8 bits a voxel.
MOST_LABELS = 256
#: Number formats of a graph, and of the engine that is built from it.
PRECISIONS = ("fp32", "fp16", "int8")
#: What runs ONNX files; engines have their own library.
RUNTIMES = ("onnxruntime", "onnxruntime-cuda", "openvino")
#: How windows that overlap share their voxels.
BLENDINGS = ("gaussian", "constant")
#: More windows along an axis than any overlap that helps would make.
MOST_OVERLAP = 0.95
#: A Gaussian that is narrower still has weights at the window's edge that a double rounds to 0, from 77 on.
MOST_SIGMA_DIVISOR = 64
#: Windows of scans that precision is judged on unless asked otherwise.
DEFAULT_WINDOWS = 6
#: Windows of scans that INT8 is calibrated on unless asked otherwise, and at least.
CALIBRATION_WINDOWS = 16


def default_labels(num_classes: int) -> tuple[str, ...]:
    """AMOS22's names for 16 classes; a checkpoint of another class count does not say what its classes are."""
    if num_classes == len(AMOS_LABELS):
        return AMOS_LABELS
    return ("background", *(f"class {index}" for index in range(1, num_classes)))


def read_labels(path: Path, num_classes: int) -> tuple[str, ...]:
    """Class names from a text file, one a line, background first; as many as the network has classes."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise RefusedInput(f"cannot read class names from {path}: {error}") from error
    names = tuple(Node(line.strip(), path, f"line {index}").label() for index, line in enumerate(lines, start=1))
    if len(names) != num_classes or len(set(names)) != len(names):
        raise RefusedInput(
            f"{path} must hold {num_classes} different class names, one a line, background first; "
            f"found {len(names)} lines"
        )
    return names


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """How a CT volume in HU becomes the network's input; the defaults are the public configuration's.

    Resample to `spacing_mm` (D,H,W), clip to `clip_hu`, subtract the mean of the clipped volume and
    divide by its standard deviation. Windows of `patch` voxels overlap by `overlap` of their side
    and are blended with a Gaussian of sigma = side / `blending_sigma_divisor`.
    """

    spacing_mm: tuple[float, float, float] = (1.5, 1.5, 1.5)
    clip_hu: tuple[float, float] = (-200.0, 300.0)
    normalization: str = "z-score"
    #: The public loader feeds the array axes in the order of the NIfTI file, without reorienting.
    orientation: str = "as stored"
    patch: Shape = (48, 96, 96)
    overlap: float = 0.5
    blending: str = "gaussian"
    blending_sigma_divisor: float = 4.0

    @classmethod
    def from_node(cls, node: Node) -> Preprocessing:
        """What a manifest or a graph's facts say; a rule that is not known could not be followed, so it is refused."""
        known = node.object()
        clip = known.take("clip_hu")
        low, high = clip.list_of(lambda bound: bound.number(-1e6, 1e6), at_least=2, at_most=2)
        if not low < high:
            raise clip.refused(f"expected the lower bound first, found {low}, {high}")
        x, y, z = known.take("spacing_mm").list_of(lambda side: side.number(1e-3, 1e3), at_least=3, at_most=3)
        found = cls(
            spacing_mm=(x, y, z),
            clip_hu=(low, high),
            normalization=known.take("normalization").label(),
            orientation=known.take("orientation").label(),
            patch=known.take("patch").shape(),
            overlap=known.take("overlap").number(0, MOST_OVERLAP),
            blending=known.take("blending").one_of(BLENDINGS),
            blending_sigma_divisor=known.take("blending_sigma_divisor").number(0.1, MOST_SIGMA_DIVISOR),
        )
        known.finish()
        return found

    def as_json(self) -> dict[str, Any]:
        """The same facts as JSON values; inverse of `from_node`."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}
