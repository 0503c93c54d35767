"""BF16 where it is fast and harmless, FP32 elsewhere: which nodes, how their weights are rounded, how OpenVINO is told.

Told to compute in BF16, OpenVINO leaves a node in FP32 if it has the attribute `precise`. Its Python interface
cannot set that attribute, but reads it from its own file format (IR). So the graph is written into a temporary
folder without its weights, a few megabytes, marked there, read again, and given the weights in memory.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np

from lhanet_export.errors import EnvironmentLacks, RefusedInput
from lhanet_export.export.artifact import OnnxArtifact

#: What computes in BF16, by scope and name in the graph. Levels 0 and 1 are averaged when they are resized to the
#: head's grid, and their rounding errors with them. Of the coarse levels only the branch that enters one fusion
#: does: the other branches enter up to five. Never attention, fusions, backbone, and the matrices of resizes and
#: short convolutions: alone, the backbone in BF16 brings a relative error of 3.7e-3, the fusions between levels 2.8e-3
#: and the matrices of level 2 1.0e-3, where everything below together brings 5.2e-4.
BF16_NODES = (
    r"^/pmsa\.[01]/scale_attentions\.\d/context_conv/",
    r"^/pmsa\.[01]/scale_attentions\.\d/(organ_conv|short_conv)/Conv(_\d+)?(/|$)",
    r"^/pmsa\.[23]/scale_attentions\.4/(organ_conv|short_conv)/Conv(_\d+)?(/|$)",
)
#: Of these, the weights are rounded here (`rounded`). The coarse levels' are rounded to nearest by OpenVINO: they
#: are 0.6 GB, which would stay in memory beside OpenVINO's own copy, and the rounding matters little there.
CARRIED = r"^/pmsa\.[01]/"

#: The one preset and head that the choice was measured on.
PRESET, HEAD = "lightweight", "final"

#: Constants of this size go by the file.
_SMALL = 4096
#: Kernels rounded at a time: as many as stay in the cache.
_CHUNK = 4096


def check_mixed(artifact: OnnxArtifact) -> None:
    """Refuse a graph that the choice of nodes was not measured on."""
    preset, head = artifact.facts["checkpoint"].get("preset"), artifact.facts["head"]
    if (preset, head) != (PRESET, HEAD):
        raise RefusedInput(
            f"{artifact.path} is {preset} with its {head} head; which nodes may compute in BF16 is known for "
            f"{PRESET} with its {HEAD} head only; run in fp32"
        )


def in_bf16(name: str) -> bool:
    """Whether a node of this name computes in BF16."""
    return any(re.search(pattern, name) for pattern in BF16_NODES)


def mixed(model: Any, openvino: Any, core: Any, ops: Any) -> Any:
    """A model that OpenVINO, told to compute in BF16, computes so in the chosen nodes only; takes the old one apart."""
    for node in model.get_ordered_ops():
        name = node.get_friendly_name()
        if node.get_type_name() != "Convolution" or not in_bf16(name) or not re.search(CARRIED, name):
            continue
        weights = node.input_value(1).get_node()
        if weights.get_type_name() == "Constant":
            node.input(1).replace_source_output(ops.constant(rounded(weights.data)).output(0))
    constants = _take_constants(model, ops)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "graph.xml"
        openvino.serialize(model, path)
        tree = ElementTree.parse(path)
        for layer in tree.iter("layer"):
            if layer.get("type") not in ("Const", "Parameter", "Result") and not in_bf16(layer.get("name", "")):
                marks = layer.find("rt_info")
                marks = ElementTree.SubElement(layer, "rt_info") if marks is None else marks
                ElementTree.SubElement(marks, "attribute", name="precise", version="0")
        weights = openvino.Tensor(np.fromfile(path.with_suffix(".bin"), np.uint8))
        marked = core.read_model(ElementTree.tostring(tree.getroot()), weights)
    for parameter in list(marked.get_parameters()):
        if (constant := constants.get(parameter.get_friendly_name())) is not None:
            for reader in list(parameter.output(0).get_target_inputs()):
                reader.replace_source_output(constant.output(0))
            marked.remove_parameter(parameter)
    marked.validate_nodes_and_infer_types()
    return marked


def _take_constants(model: Any, ops: Any) -> dict[str, Any]:
    """Put a parameter in the place of every large constant; the constants by the parameters' names."""
    constants: dict[str, Any] = {}
    parameters = []
    for node in model.get_ordered_ops():
        if node.get_type_name() == "Constant" and node.get_byte_size() > _SMALL:
            name = f"constant {len(constants)}"
            parameter = ops.parameter(list(node.shape), node.get_element_type(), name=name)
            for reader in list(node.output(0).get_target_inputs()):
                reader.replace_source_output(parameter.output(0))
            constants[name] = node
            parameters.append(parameter)
    model.add_parameters(parameters)
    return constants


def rounded(weights: np.ndarray) -> np.ndarray:
    """Convolution weights (O,I,...) as BF16 can hold them, float32; the taps of each kernel (...) keep their sum.

    What one tap loses is added to the next before that is rounded. Maps are smooth, so neighbouring taps read nearly
    the same, and errors that sum up to nothing cancel: over levels 0 and 1 the error is a third of that of rounding
    each tap to nearest.
    """
    kernels = weights.reshape(weights.shape[0] * weights.shape[1], -1)
    result = np.empty(kernels.shape, np.float32)
    for start in range(0, len(kernels), _CHUNK):
        taps = np.ascontiguousarray(kernels[start : start + _CHUNK].T)
        lost = np.zeros(taps.shape[1], np.float32)
        for tap in taps:
            wanted = tap + lost
            tap[:] = _nearest(wanted)
            lost = wanted - tap
        result[start : start + _CHUNK] = taps.T
    return result.reshape(weights.shape)


def _nearest(values: np.ndarray) -> np.ndarray:
    """The nearest BF16 numbers, ties to even: the upper 16 bits of a float32."""
    bits = values.view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)).view(np.float32)


def check_computed(compiled: Any) -> None:
    """Make sure that OpenVINO computes as it was told: another version may know other attributes."""
    names = list(_computed_in_bf16(compiled))
    others = [name for name in names if not in_bf16(name)]
    if others or not names:
        what = f"computes {others[0]} in BF16, too" if others else "computes nothing in BF16"
        raise EnvironmentLacks(f"this version of OpenVINO does not mix precisions as asked: it {what}; run in fp32")


def _computed_in_bf16(compiled: Any) -> Iterator[str]:
    for node in compiled.get_runtime_model().get_ops():
        facts = {key: _text(node.get_rt_info()[key]) for key in ("layerType", "runtimePrecision")}
        if facts["runtimePrecision"].lower() == "bf16" and facts["layerType"] not in ("Reorder", "Const", "Input"):
            yield node.get_friendly_name()


def _text(value: Any) -> str:
    return value if isinstance(value, str) else str(value.astype(str))
