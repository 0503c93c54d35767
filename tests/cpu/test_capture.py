"""Our layers as a CUDA graph has to find them: while they run, nothing of the host takes part.

A graph that is captured cannot hold copies from pageable memory or numbers that the host waits for. Tensors without
data stand in for a GPU's: what is made on the host in between shows by its device.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lhanet_export.inference.network import InferenceNetwork
from lhanet_export.inference.target import Target
from lhanet_export.model.network import LHANet

GPU = torch.device("meta")
WAITING = ("aten._local_scalar_dense.default", "aten.nonzero.default")


class _Watch(TorchDispatchMode):
    """Notes what happens on the host, and what makes it wait."""

    def __init__(self) -> None:
        super().__init__()
        self.operations = 0
        self.on_host: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        tensors = [one for one in tree_leaves((args, kwargs, result)) if isinstance(one, torch.Tensor)]
        self.operations += 1
        if str(func) in WAITING or any(tensor.device != GPU for tensor in tensors):
            self.on_host.append(str(func))
        return result


def _watched(layers: nn.Module) -> _Watch:
    # As they are captured; on tensors without data, autocast is that of a CPU.
    with torch.inference_mode(), torch.autocast("cpu", torch.float16), _Watch() as watch:
        logits = layers(torch.empty(1, 1, 48, 64, 48, device=GPU, dtype=torch.float16))
    assert logits.shape == (1, 14, 48, 64, 48)
    assert watch.operations > 1000
    return watch


def _made_there(preset: str) -> nn.Module:
    with GPU:
        network = LHANet.from_preset(preset, base_channels=8).eval()
    return InferenceNetwork(network, Target()).half()


def _brought_there(preset: str) -> nn.Module:
    network = LHANet.from_preset(preset, base_channels=8).eval()
    return InferenceNetwork(network, Target()).half().to(GPU)


@pytest.mark.parametrize("preset", ["lightweight", "standard"])
@pytest.mark.parametrize("made", [_made_there, _brought_there])
def test_nothing_of_the_host_takes_part(made: Callable[[str], nn.Module], preset: str) -> None:
    assert _watched(made(preset)).on_host == []


def test_what_stays_on_the_host_is_found() -> None:
    layers = _made_there("lightweight")
    layers.classifier.bias = nn.Parameter(torch.zeros(14, dtype=torch.float16))
    assert _watched(layers).on_host == ["aten.conv3d.default"]
