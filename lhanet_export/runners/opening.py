"""Which runner belongs to a file, and what the network behind it is compared as."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lhanet_export.engine.manifest import read_manifest
from lhanet_export.errors import RefusedInput
from lhanet_export.export.artifact import read_onnx
from lhanet_export.files import sidecar_of
from lhanet_export.inference.network import Target
from lhanet_export.runners.base import Runner
from lhanet_export.runners.onnxruntime_ import OnnxRuntimeRunner
from lhanet_export.runners.tensorrt_ import TensorRTRunner
from lhanet_export.shapes import SpatialRange


@dataclass(frozen=True, kw_only=True)
class Opened:
    """A runner, not yet started, and the facts that decide how it is judged."""

    runner: Runner
    target: Target
    precision: str
    spatial: SpatialRange
    batch: int | None
    checkpoint: dict[str, Any]


def runner_of(path: Path) -> Opened:
    """The runner of an ONNX file (ONNX Runtime) or of an engine with manifest (its own backend)."""
    if path.suffix == ".onnx":
        artifact = read_onnx(path)
        facts = artifact.facts
        return Opened(
            runner=OnnxRuntimeRunner(artifact), target=Target(head=facts["head"], output=facts["output"]),
            precision=artifact.precision, spatial=artifact.spatial, batch=facts["batch"], checkpoint=facts["checkpoint"],
        )  # fmt: skip
    raise RefusedInput(f"{path} is neither an ONNX file nor an engine with its manifest {sidecar_of(path).name}")
