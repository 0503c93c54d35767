"""The network is the public one: same keys, same shapes, same numbers."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lhanet_export.errors import RefusedInput
from lhanet_export.model.network import LHANet
from lhanet_export.model.presets import PRESETS
from lhanet_export.model.rule import rule_image, rule_network

DATA = Path(__file__).parents[1] / "data"
CASES = json.loads((DATA / "golden" / "cases.json").read_text())


def relative_l2(found: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.linalg.norm(found.astype(np.float64) - wanted) / np.linalg.norm(wanted.astype(np.float64)))


def on_meta(preset: str) -> LHANet:
    with torch.device("meta"):
        return LHANet.from_preset(preset)


def count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(
    ("preset", "total", "backbone"),
    [
        ("lightweight", 311_237_575, 14_107_200),
        ("standard", 330_290_375, 33_160_000),
        ("high_capacity", 360_600_007, 63_469_632),
    ],
)
def test_parameter_counts(preset: str, total: int, backbone: int) -> None:
    network = on_meta(preset)
    assert count(network) == total
    assert count(network.backbone) == backbone
    assert count(network.hierarchical_pmsa) == 279_965_964
    assert count(network.decoder) == 17_147_317


@pytest.mark.parametrize("preset", PRESETS)
def test_state_dict_is_that_of_public_checkpoints(preset: str) -> None:
    lines = (DATA / f"state_dict_{preset}.tsv").read_text().splitlines()[1:]
    found = [
        f"{key}\t{'x'.join(map(str, tensor.shape)) or 'scalar'}" for key, tensor in on_meta(preset).state_dict().items()
    ]
    assert found == lines


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, id=case["case"], marks=[pytest.mark.full] if case["base_channels"] == 32 else [])
        for case in CASES
    ],
)
def test_outputs_are_those_of_the_public_implementation(case: dict[str, Any]) -> None:
    golden = np.load(DATA / "golden" / f"{case['case']}.npz")
    network = rule_network(
        case["preset"], num_classes=case["num_classes"], base_channels=case["base_channels"], seed=case["seed"]
    )
    image = torch.from_numpy(rule_image(tuple(case["shape"]), case["seed"]))
    with torch.inference_mode():
        results = network(image, return_features=True)
    logits = results["final_prediction"].numpy()
    assert logits.shape == (1, case["num_classes"], *case["shape"])
    sampled = golden["logits_stride4"].reshape(1, case["num_classes"], *(-(-side // 4) for side in case["shape"]))
    assert relative_l2(logits[..., ::4, ::4, ::4], sampled) <= 1e-5
    assert (logits.argmax(1).ravel() == golden["labels"].ravel()).mean() >= 0.9999
    np.testing.assert_allclose(results["routing_weights"].numpy(), golden["routing_weights"], rtol=0, atol=1e-4)
    assert len(results["size_predictions"]) == len(results["pmsa_features"]) == 4
    for level in range(4):
        sizes, means = golden[f"size_prediction_{level}"], golden[f"pmsa_mean_{level}"]
        np.testing.assert_allclose(results["size_predictions"][level].numpy(), sizes, rtol=0, atol=1e-4)
        assert relative_l2(results["pmsa_features"][level].mean((2, 3, 4)).numpy(), means) <= 1e-4


def test_a_batch_is_its_volumes(narrow_network: LHANet) -> None:
    images = torch.from_numpy(rule_image((32, 33, 40), seed=3, batch=2))
    with torch.inference_mode():
        together = narrow_network(images)
        apart = torch.cat([narrow_network(image[None]) for image in images])
    assert relative_l2(together.numpy(), apart.numpy()) <= 1e-5
    assert relative_l2(together[0].numpy(), together[1].numpy()) > 0.01


@pytest.mark.parametrize(
    ("preset", "base_channels", "num_classes", "side"),
    [("lightweight", 4, 2, 17), ("lightweight", 6, 16, 20), ("standard", 12, 3, 33), ("high_capacity", 8, 5, 40)],
)
def test_other_widths_and_classes(preset: str, base_channels: int, num_classes: int, side: int) -> None:
    network = rule_network(preset, base_channels=base_channels, num_classes=num_classes)
    with torch.inference_mode():
        logits = network(torch.from_numpy(rule_image((side, side + 3, side + 8), seed=1)))
    assert logits.shape == (1, num_classes, side, side + 3, side + 8)
    assert logits.isfinite().all()
    assert logits.std(dim=(2, 3, 4)).min() > 0


@pytest.mark.parametrize("preset", PRESETS)
def test_too_small_a_volume_is_refused(preset: str) -> None:
    network = on_meta(preset)
    least = network.preset.smallest_side
    with pytest.raises(RefusedInput, match=f"at least {least} voxels"):
        network(torch.empty(1, 1, 64, least - 1, 64, device="meta"))


@pytest.mark.parametrize(("num_classes", "base_channels"), [(1, 32), (14, 3), (14, 0)])
def test_impossible_networks_are_refused(num_classes: int, base_channels: int) -> None:
    with pytest.raises(RefusedInput, match="at least 2 classes and 8 channels"):
        LHANet.from_preset("lightweight", num_classes=num_classes, base_channels=base_channels)


def test_unknown_preset_is_refused() -> None:
    with pytest.raises(RefusedInput, match="no preset 'huge'; known presets: lightweight, standard, high_capacity"):
        LHANet.from_preset("huge")
