"""Weights and inputs by rule: a full network and a test volume without a file, the same on every machine.

Each tensor is drawn from a generator of its own, seeded by the CRC-32 of its state-dict key and a
seed, so the order of the keys does not matter. All values are float32:

    convolution and linear weights   normal, std = gain * sqrt(2 / fan_in); gain 3 for organ_conv, else 1
    their biases                     normal, std 0.1
    batch-norm weight, running_var   uniform in [0.5, 1.5)
    batch-norm bias, running_mean    normal, std 0.2
    num_batches_tracked              0, int64

The batch-norm statistics are as uneven as those of a trained network, so the logits depend on the
input everywhere; with PyTorch's initial weights they hardly do, and every comparison passes.
"""

import zlib
from collections.abc import Mapping

import numpy as np
import torch

from lhanet_export.model.network import LHANet
from lhanet_export.model.presets import preset_named

#: Seed of the weights that `preset:NAME` stands for.
RULE_SEED = 8


def rule_network(
    name: str, *, num_classes: int = 14, base_channels: int | None = None, seed: int = RULE_SEED
) -> LHANet:
    """A network of a named preset in eval mode, with weights by rule."""
    preset = preset_named(name)
    width = base_channels if base_channels is not None else preset.base_channels
    with torch.device("meta"):
        blueprint = LHANet(preset, num_classes=num_classes, base_channels=width)
    shapes = {key: tuple(tensor.shape) for key, tensor in blueprint.state_dict().items()}
    state = {key: torch.from_numpy(value) for key, value in rule_state_dict(shapes, seed).items()}
    return LHANet.from_state_dict(state, preset, num_classes=num_classes, base_channels=width)


def rule_state_dict(shapes: Mapping[str, tuple[int, ...]], seed: int) -> dict[str, np.ndarray]:
    """All tensors of a network, given the shape of each key."""
    norms = {
        key.removesuffix(".weight") for key, shape in shapes.items() if key.endswith(".weight") and len(shape) == 1
    }
    return {key: _tensor(key, shape, seed, in_norm=key.rpartition(".")[0] in norms) for key, shape in shapes.items()}


def _tensor(key: str, shape: tuple[int, ...], seed: int, *, in_norm: bool) -> np.ndarray:
    leaf = key.rpartition(".")[2]
    if leaf == "num_batches_tracked":
        return np.zeros((), np.int64)
    generator = np.random.default_rng([seed, zlib.crc32(key.encode())])
    if leaf == "running_var" or (in_norm and leaf == "weight"):
        return generator.uniform(0.5, 1.5, shape).astype(np.float32)
    values = generator.standard_normal(shape)
    if leaf == "running_mean" or (in_norm and leaf == "bias"):
        values *= 0.2
    elif leaf == "bias":
        values *= 0.1
    else:
        gain = 3.0 if key.endswith("organ_conv.weight") else 1.0
        values *= gain * np.sqrt(2.0 / int(np.prod(shape[1:])))
    return values.astype(np.float32)


def rule_image(shape: tuple[int, int, int], seed: int, batch: int = 1) -> np.ndarray:
    """A volume (N,1,D,H,W), float32, about zero mean and unit variance: smooth ramps under white noise."""
    depth, height, width = shape
    ramp = (
        np.linspace(-1, 1, depth)[:, None, None] * np.linspace(1, -1, height)[None, :, None]
        + np.sin(np.linspace(0, 6, width))[None, None, :]
    )
    noise = np.random.default_rng([seed, 7]).standard_normal((batch, 1, depth, height, width))
    return (0.7 * noise + 0.7 * ramp).astype(np.float32)
