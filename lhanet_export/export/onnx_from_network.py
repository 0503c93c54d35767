"""From the network to an ONNX file with dynamic depth, height and width."""

from __future__ import annotations

import tempfile
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import torch
from onnx_ir import tensor_adapters

from lhanet_export.conventions import Preprocessing, default_labels
from lhanet_export.export.artifact import SCHEMA, OnnxArtifact, save_onnx
from lhanet_export.export.tidy import tidy
from lhanet_export.inference.network import InferenceNetwork
from lhanet_export.inference.target import Target
from lhanet_export.model.network import LHANet
from lhanet_export.progress import SILENT, Progress
from lhanet_export.shapes import SpatialRange

#: Read by TensorRT 10, 11 and TensorRT-RTX; the first with reduction axes as inputs.
OPSET = 18
IR_VERSION = 10
#: Traced with sides that differ from each other and from any channel count, so that no two dimensions are confused.
#: Small, because the trace runs the whole network once.
_TRACED_SHAPE = (34, 36, 38)


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """What graph to write: head and output, the sizes it is for, the batch (None: dynamic), and the class names.

    `purpose` (`engine` or `cpu`) decides how much memory the rewrites of the inference network may spend for less
    arithmetic; `without` names rewrites to leave out.
    """

    target: Target = field(default_factory=Target)
    spatial: SpatialRange | None = None
    batch: int | None = 1
    labels: tuple[str, ...] | None = None
    preprocessing: Preprocessing = field(default_factory=Preprocessing)
    purpose: str = "engine"
    without: tuple[str, ...] = ()


def default_range(network: LHANet) -> SpatialRange:
    """Every size from the smallest useful one to 256 voxels a side; the graph itself has no upper limit."""
    smallest = max(32, network.preset.smallest_side)
    return SpatialRange((smallest,) * 3, (64, 128, 128), (256, 256, 256))


def onnx_from_network(
    network: LHANet,
    checkpoint: dict[str, Any],
    path: Path,
    options: ExportOptions = ExportOptions(),
    progress: Progress = SILENT,
) -> OnnxArtifact:
    """Write the inference part of `network` as an FP32 ONNX file with its sidecar.

    Input `image` (N,1,D,H,W) float32; one output named like its kind (`logits`, `labels`, ...). D, H and W
    are dynamic; N as the options say. `checkpoint` is the manifest's object for where the weights come
    from. A range with sizes that the network cannot take raises `RefusedInput`; nothing is written then.
    """
    spatial = options.spatial or default_range(network)
    spatial.check_network(network.preset.smallest_side)
    labels = options.labels or default_labels(network.num_classes)
    with progress.step("export to ONNX"):
        inference = InferenceNetwork(network, options.target, purpose=options.purpose, without=options.without)
        model = traced_graph(inference, options.batch)
        tidy(model)
        facts = {
            "schema": SCHEMA,
            "precision": "fp32",
            "head": options.target.head,
            "output": options.target.output,
            "batch": options.batch,
            "spatial": spatial.as_json(),
            "checkpoint": checkpoint,
            "labels": list(labels),
            "preprocessing": options.preprocessing.as_json(),
            "purpose": options.purpose,
            "rewrites": [applied.name for applied in inference.rewrites if applied.places],
        }
        return save_onnx(model, path, facts)


def traced_graph(network: InferenceNetwork, batch: int | None) -> ir.Model:
    """The traced graph of a network, with its weights referenced, not copied."""
    output = network.target.output
    shape = (1 if batch is None else batch, 1, *_TRACED_SHAPE)
    image = torch.from_numpy(np.random.default_rng(0).standard_normal(shape, dtype=np.float32))
    names = {name: ("N" if batch is None else batch, *rest) for name, rest in _axes(network).items()}
    with warnings.catch_warnings(), tempfile.TemporaryDirectory() as folder:
        # The tracing exporter is deprecated in favour of the torch.export one, which needs 23 to 93 s for this network
        # where tracing needs 4 to 10. What tracing can get wrong, a frozen size, the gate shows at other sizes.
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        graph = Path(folder) / "graph.onnx"
        torch.onnx.export(
            network, (image,), graph, dynamo=False, opset_version=OPSET, export_params=False,
            do_constant_folding=False, input_names=["image"], output_names=[output],
            dynamic_axes={name: {axis: side for axis, side in enumerate(sides) if isinstance(side, str)}
                          for name, sides in names.items()},
        )  # fmt: skip
        model = ir.from_proto(onnx.load(graph))
    model.ir_version = IR_VERSION
    # The tracer loses what it does not infer: the batch and the classes behind a reshape.
    model.graph.outputs[0].shape = ir.Shape(names[output])
    _attach_weights(model.graph, network)
    return model


def _axes(network: InferenceNetwork) -> dict[str, tuple[int | str, ...]]:
    """Names of the dynamic axes and sizes of the others, without the batch, for input and output."""
    output, classes = network.target.output, network.classifier.out_channels
    space: tuple[str, ...] = ("D", "H", "W")
    result: tuple[int | str, ...] = (classes, *space)
    if output == "coarse":
        result = (classes, *(f"coarse_{axis}" for axis in space))
    elif output == "labels":
        result = space
    return {"image": (1, *space), output: result}


def _attach_weights(graph: ir.Graph, network: InferenceNetwork) -> None:
    """Turn the graph's weight inputs into initializers that refer to the network's own tensors."""
    weights = dict(network.named_parameters())
    for value in list(graph.inputs):
        if value.name != "image":
            value.const_value = tensor_adapters.TorchTensor(weights[str(value.name)].detach(), name=value.name)
            graph.inputs.remove(value)
            graph.register_initializer(value)
