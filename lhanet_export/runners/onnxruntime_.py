"""ONNX Runtime on the CPU.

FP16 and INT8 graphs run with their rounding written out (`precision.rounding`), because ONNX Runtime
itself would compute them in FP32 there.
"""

from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Any

import numpy as np
import onnx_ir as ir
from typing_extensions import Self

from lhanet_export.errors import RefusedInput
from lhanet_export.export.artifact import OnnxArtifact, external_data_of
from lhanet_export.precision.rounding import is_half, with_rounding
from lhanet_export.runners.base import HostRunner
from lhanet_export.runners.onnxruntime_library import load_onnxruntime, open_session


class OnnxRuntimeRunner(HostRunner):
    """Runs a checked ONNX file; the session exists inside the `with` block only."""

    def __init__(self, artifact: OnnxArtifact) -> None:
        self._artifact = artifact
        self._onnxruntime = load_onnxruntime()
        self._session: Any = None
        self._open = ExitStack()
        self.name = "onnxruntime cpu"
        if artifact.precision != "fp32":
            self.name += f", rounding to {artifact.precision}"

    def infer(self, image: np.ndarray) -> np.ndarray:
        """The graph's output for volumes (N,1,D,H,W); sizes outside the graph's range raise `RefusedInput`."""
        if self._session is None:
            raise ValueError("the runner is closed; use it inside its with block")
        shape = (int(image.shape[2]), int(image.shape[3]), int(image.shape[4]))
        self._artifact.check_size(shape)
        if self._artifact.facts.get("half_io"):
            image = image.astype(np.float16)
        output: np.ndarray = self._session.run(None, {"image": image})[0]
        return output

    def __enter__(self) -> Self:
        path = self._artifact.path
        if self._artifact.precision != "fp32":
            path = self._rounding_graph(Path(self._open.enter_context(TemporaryDirectory())))
        options = self._onnxruntime.SessionOptions()
        # What a graph quantizes is computed as it stands, not by kernels that round elsewhere.
        options.add_session_config_entry("session.disable_quant_qdq", "1")
        try:
            self._session = open_session(path, options, str(self._artifact.path))
        except RefusedInput:
            self._open.close()
            raise
        return self

    def _rounding_graph(self, folder: Path) -> Path:
        """The graph with its rounding written out, as a file: with large weights it is too large for one message."""
        model = ir.load(self._artifact.path)
        if not is_half(model):
            raise RefusedInput(
                f"{self._artifact.path} says it is {self._artifact.precision}, but computes nothing in FP16; "
                "export it again"
            )
        path = folder / "rounding.onnx"
        ir.save(with_rounding(model), path, external_data=external_data_of(path).name)
        return path

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._session = None
        self._open.close()
