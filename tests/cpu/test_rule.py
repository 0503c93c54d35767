"""Weights and images by rule are the same numbers everywhere and forever: golden outputs depend on them."""

import zlib

import numpy as np
import pytest
import torch

from lhanet_export.model.network import LHANet
from lhanet_export.model.rule import rule_image, rule_network, rule_state_dict

SHAPES = {
    "conv.weight": (4, 3, 3, 3, 3),
    "conv.bias": (4,),
    "organ_conv.weight": (4, 3, 3, 3, 3),
    "norm.weight": (4,),
    "norm.bias": (4,),
    "norm.running_mean": (4,),
    "norm.running_var": (4,),
    "norm.num_batches_tracked": (),
    "fc.weight": (4, 3),
    "fc.bias": (4,),
}

#: For seed 8: the first value of each tensor, and the CRC-32 of its little-endian bytes.
PINNED = {
    "conv.weight": (-0.11059027165174484, 4104064597),
    "conv.bias": (0.0639440268278122, 2253095112),
    "organ_conv.weight": (-0.05241388455033302, 3230033309),
    "norm.weight": (0.7577189207077026, 3363848536),
    "norm.bias": (-0.16536980867385864, 276964212),
    "norm.running_mean": (0.18023903667926788, 4033979221),
    "norm.running_var": (0.6166445016860962, 2349300523),
    "norm.num_batches_tracked": (0, 1696784233),
    "fc.weight": (-0.39617830514907837, 4005489602),
    "fc.bias": (0.17017292976379395, 3003269148),
}


@pytest.mark.parametrize("key", SHAPES)
def test_tensors(key: str) -> None:
    tensor = rule_state_dict(SHAPES, seed=8)[key]
    assert tensor.shape == SHAPES[key]
    assert tensor.dtype == (np.int64 if key.endswith("tracked") else np.float32)
    assert (tensor.ravel()[0].item(), zlib.crc32(tensor.tobytes())) == PINNED[key]


def test_tensors_depend_on_seed_and_key_but_not_on_order() -> None:
    state = rule_state_dict(SHAPES, seed=8)
    for key, tensor in rule_state_dict(dict(reversed(SHAPES.items())), seed=8).items():
        np.testing.assert_array_equal(tensor, state[key])
    assert not np.array_equal(rule_state_dict(SHAPES, seed=9)["fc.bias"], state["fc.bias"])
    assert not np.array_equal(state["conv.bias"], state["fc.bias"])


def test_image() -> None:
    image = rule_image((4, 5, 6), seed=3, batch=2)
    assert image.shape == (2, 1, 4, 5, 6) and image.dtype == np.float32
    np.testing.assert_allclose(image.ravel()[:2], [-1.458349347114563, -0.8896071910858154], rtol=1e-6)
    volume = rule_image((48, 64, 56), seed=3)
    assert abs(volume.mean()) < 0.25 and 0.8 < volume.std() < 1.2


def test_network(narrow_network: LHANet) -> None:
    assert not narrow_network.training
    state = narrow_network.state_dict()
    assert {tensor.dtype for tensor in state.values()} == {torch.float32, torch.int64}
    assert narrow_network.base_channels == 8 and narrow_network.num_classes == 5
    again = rule_network("lightweight", base_channels=8, num_classes=5, seed=6).state_dict()
    assert all(torch.equal(tensor, again[key]) for key, tensor in state.items())
    # The statistics of a trained network are uneven; so are these.
    variances = torch.cat([tensor for key, tensor in state.items() if key.endswith("running_var")])
    assert variances.min() >= 0.5 and variances.max() < 1.5 and variances.std() > 0.2
