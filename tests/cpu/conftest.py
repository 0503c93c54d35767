"""Graphs that several tests look at: exported once a session from the narrow network."""

from pathlib import Path

import pytest
import torch

from lhanet_export.export.artifact import OnnxArtifact
from lhanet_export.export.onnx_from_network import onnx_from_network
from lhanet_export.model.network import LHANet
from lhanet_export.model.rule import rule_network
from lhanet_export.precision.convert import fp16_from_fp32

#: The manifest's checkpoint object, for graphs of networks that came from no file.
CHECKPOINT = {"sha256": "0" * 64, "preset": "lightweight", "num_classes": 5, "base_channels": 8, "epoch": None}


@pytest.fixture(scope="session")
def narrow_onnx(narrow_network: LHANet, tmp_path_factory: pytest.TempPathFactory) -> OnnxArtifact:
    """The narrow network as an FP32 graph of logits."""
    return onnx_from_network(narrow_network, CHECKPOINT, tmp_path_factory.mktemp("onnx") / "narrow.onnx")


@pytest.fixture
def overflowing_network() -> LHANet:
    """A network with one convolution scaled up and the next one down: the same in FP32, infinite in FP16."""
    network = rule_network("lightweight", base_channels=8, num_classes=5, seed=6)
    branch = network.hierarchical_pmsa.pmsa_modules["level_1"].scale_attentions[1]
    with torch.no_grad():
        # All weights stay in FP16's range; the activations, up to 1.17 before, do not.
        branch.context_conv[1].weight *= 6e4
        branch.context_conv[1].bias *= 6e4
        branch.organ_conv.weight /= 6e4
    return network


@pytest.fixture(scope="session")
def narrow_fp16(narrow_onnx: OnnxArtifact, tmp_path_factory: pytest.TempPathFactory) -> OnnxArtifact:
    """The same graph in FP16."""
    path: Path = tmp_path_factory.mktemp("fp16") / "narrow.fp16.onnx"
    return fp16_from_fp32(narrow_onnx, path)[0]
