"""What several kinds of tests share: narrow networks, checkpoint files of them, and the skip of GPU tests."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from lhanet_export.model.network import LHANet


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # Tests in `unit` do without torch, which takes seconds to import.
    if "torch" in sys.modules:
        # One thread a process where several processes run tests, else two.
        sys.modules["torch"].set_num_threads(1 if "PYTEST_XDIST_WORKER" in os.environ else 2)
    gpu_tests = [item for item in items if item.get_closest_marker("gpu")]
    if gpu_tests and not _has_gpu():
        for item in gpu_tests:
            item.add_marker(pytest.mark.skip(reason="needs an NVIDIA GPU"))


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


@pytest.fixture(scope="session")
def narrow_network() -> LHANet:
    """The lightweight network at a quarter of its width, five classes, weights by rule, in eval mode.

    With this seed its labels vary over a volume; with some others they do not, and would prove nothing.
    """
    from lhanet_export.model.rule import rule_network

    return rule_network("lightweight", base_channels=8, num_classes=5, seed=6)


@pytest.fixture(scope="session")
def narrow_checkpoint(narrow_network: LHANet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training checkpoint of the narrow network as the public implementation saves it; epoch 7."""
    return _save_checkpoint(narrow_network, tmp_path_factory.mktemp("checkpoint") / "narrow.pth")


@pytest.fixture(scope="session")
def narrow_resnet_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same of the standard preset at an eighth of its width."""
    from lhanet_export.model.rule import rule_network

    network = rule_network("standard", base_channels=8, num_classes=5, seed=7)
    return _save_checkpoint(network, tmp_path_factory.mktemp("checkpoint") / "narrow_resnet.pth")


def _save_checkpoint(network: LHANet, path: Path) -> Path:
    import numpy as np
    import torch

    state = network.state_dict()
    optimizer = {"state": {}, "param_groups": [{"lr": 1e-4, "betas": (0.9, 0.999), "params": [0, 1]}]}
    torch.save(
        {
            "epoch": 7,
            "model_state_dict": state,
            "optimizer_state_dict": optimizer,
            # The mean of a list of floats is a NumPy number, and upstream saves it so.
            "best_dice": np.mean([0.71, 0.73]),
        },
        path,
    )
    return path
