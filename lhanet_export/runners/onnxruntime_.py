"""ONNX Runtime, on a CPU or a CUDA device.

On a CPU an FP16 graph runs with its rounding written out (`precision.rounding`), because ONNX Runtime
itself would compute it in FP32.
"""

from types import TracebackType

import numpy as np
import onnx_ir as ir
import onnxruntime
from typing_extensions import Self

from lhanet_export.errors import EnvironmentLacks, RefusedInput
from lhanet_export.export.artifact import OnnxArtifact
from lhanet_export.precision.rounding import is_half, with_rounding
from lhanet_export.shapes import format_shape

_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


class OnnxRuntimeRunner:
    """Runs a checked ONNX file; the session exists inside the `with` block only."""

    def __init__(self, artifact: OnnxArtifact, device: str = "cpu") -> None:
        if _PROVIDERS[device] not in onnxruntime.get_available_providers():
            raise EnvironmentLacks(f"ONNX Runtime has no {device} provider here; see: lhanet-export doctor")
        self._artifact = artifact
        self._device = device
        self._session: onnxruntime.InferenceSession | None = None
        self.name = f"onnxruntime {device}"
        if self._emulates_half:
            self.name += ", rounding to fp16"

    @property
    def _emulates_half(self) -> bool:
        return self._device == "cpu" and self._artifact.precision == "fp16"

    def infer(self, image: np.ndarray) -> np.ndarray:
        """The graph's output for a volume (N,1,D,H,W); sizes outside the graph's range raise `RefusedInput`."""
        if self._session is None:
            raise ValueError("the runner is closed; use it inside its with block")
        shape = (int(image.shape[2]), int(image.shape[3]), int(image.shape[4]))
        if shape not in self._artifact.spatial:
            raise RefusedInput(
                f"a volume of {format_shape(shape)} is outside the range {self._artifact.spatial} "
                f"of {self._artifact.path}"
            )
        if self._artifact.facts.get("half_io"):
            image = image.astype(np.float16)
        (output,) = self._session.run(None, {"image": image})
        return output

    def __enter__(self) -> Self:
        options = onnxruntime.SessionOptions()
        # Warnings of the optimizer about constants that it folds or not; errors are raised anyway.
        options.log_severity_level = 3
        model = self._rounding_model() if self._emulates_half else str(self._artifact.path)
        try:
            self._session = onnxruntime.InferenceSession(model, options, providers=[_PROVIDERS[self._device]])
        except Exception as error:
            # ONNX Runtime's exceptions have no common base below Exception.
            raise RefusedInput(f"ONNX Runtime cannot load {self._artifact.path}: {error}") from error
        return self

    def _rounding_model(self) -> bytes:
        model = ir.load(self._artifact.path)
        if not is_half(model):
            raise RefusedInput(f"{self._artifact.path} says it is fp16, but computes nothing in FP16; export it again")
        ir.external_data.load_to_model(model)
        return ir.to_proto(with_rounding(model)).SerializeToString()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._session = None
