"""Running graphs under construction in ONNX Runtime: in memory, with values of their inside as further outputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from lhanet_export.export.artifact import OnnxArtifact
from lhanet_export.runners.onnxruntime_library import load_onnxruntime

#: The graph's input, which can be asked for like any value inside it.
_IMAGE = "image"


class GraphSession:
    """A graph made from `source`, whose external weights it may still refer to; runs on the CPU.

    `values` names tensors of the graph that are handed out beside its output. Q/DQ pairs are computed as
    they stand: nothing is fused across them.
    """

    def __init__(self, model: ir.Model, source: OnnxArtifact, values: Sequence[str] = ()) -> None:
        onnxruntime = load_onnxruntime()
        proto = ir.to_proto(model)
        self._output = proto.graph.output[0].name
        for name in values:
            if name == _IMAGE:
                continue
            # Only named: ONNX Runtime infers what they are.
            proto.graph.output.append(onnx.ValueInfoProto(name=name))
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.add_session_config_entry("session.disable_quant_qdq", "1")
        options.add_session_config_entry(
            "session.model_external_initializers_file_folder_path", str(source.path.absolute().parent)
        )
        self._session: Any = onnxruntime.InferenceSession(
            proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        self._batch = source.facts["batch"] or 1

    def output(self, image: np.ndarray, **inputs: np.ndarray) -> np.ndarray:
        """The graph's output for one volume (1,1,D,H,W) float32, and for what else it takes, by name."""
        result: np.ndarray = self._run([self._output], image, **inputs)[0]
        return result[:1]

    def values(self, names: Sequence[str], image: np.ndarray) -> dict[str, np.ndarray]:
        """Values of the inside for one volume (1,1,D,H,W) float32, each of them named to the constructor."""
        inside = [name for name in names if name != _IMAGE]
        found = dict(zip(inside, self._run(inside, image), strict=True)) if inside else {}
        return {name: image if name == _IMAGE else found[name] for name in names}

    def _run(self, names: list[str], image: np.ndarray, **inputs: np.ndarray) -> list[np.ndarray]:
        # A graph for so many volumes at a time gets the same one as often; what is asked of it does not change.
        volumes = np.repeat(image, self._batch, axis=0)
        result: list[np.ndarray] = self._session.run(names, {_IMAGE: volumes, **inputs})
        return result
