"""The ten tests of the public model initialization report, at a quarter of the width where values are computed."""

import pytest
import torch
from torch import Tensor

from lhanet_export.model.backbone import LightweightBackbone, ResNet3DBackbone
from lhanet_export.model.decoder import OrganSizeAwareDecoder
from lhanet_export.model.network import LHANet, LHANetWithAuxiliaryLoss
from lhanet_export.model.pmsa import PMSA, SCALES, HierarchicalPMSA
from lhanet_export.model.presets import PRESETS

CHANNELS = (16, 32, 64, 128)
SHAPE = (18, 32, 24)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def volume(batch: int = 1) -> Tensor:
    return torch.randn(batch, 1, *SHAPE)


def pyramid(batch: int = 1) -> list[Tensor]:
    """One random feature map per level, from fine to coarse."""
    return [
        torch.randn(batch, width, *(-(-side // 2**level) for side in SHAPE))
        for level, width in enumerate(CHANNELS, start=1)
    ]


def shapes(tensors: list[Tensor]) -> list[tuple[int, ...]]:
    return [tuple(tensor.shape) for tensor in tensors]


@torch.no_grad()
def test_lightweight_backbone_gives_five_feature_maps() -> None:
    features = LightweightBackbone(1, 8).eval()(volume())
    assert shapes(features) == [(1, 8, *SHAPE), *shapes(pyramid())]


@torch.no_grad()
def test_resnet3d_backbone_gives_five_feature_maps() -> None:
    features = ResNet3DBackbone(1, 16, PRESETS["standard"].residual_blocks).eval()(volume())
    assert shapes(features) == [
        (1, 16, 9, 16, 12),
        (1, 16, 5, 8, 6),
        (1, 32, 3, 4, 3),
        (1, 64, 2, 2, 2),
        (1, 128, 1, 1, 1),
    ]


@torch.no_grad()
def test_pmsa_over_five_scales() -> None:
    module = PMSA(16).eval()
    assert [float(scale) for scale, _ in SCALES] == [0.5, 0.75, 1, 1.25, 1.5]
    assert [kernel for _, kernel in SCALES] == [3, 3, 5, 5, 7]
    feature = torch.randn(2, 16, 8, 12, 10)
    result = module(feature)
    assert result.shape == feature.shape and result.isfinite().all()
    for branch in module.scale_attentions:
        assert branch(feature).shape == feature.shape


@torch.no_grad()
def test_hierarchical_pmsa_over_four_levels() -> None:
    features = HierarchicalPMSA(CHANNELS).eval()(pyramid())
    assert shapes(features) == shapes(pyramid())


@torch.no_grad()
def test_organ_size_aware_decoder() -> None:
    features = pyramid(batch=2)
    results = OrganSizeAwareDecoder(CHANNELS, num_classes=14).eval()(features, SHAPE)
    assert results["final_output"].shape == (2, 14, *SHAPE)
    assert shapes(results["level_outputs"]) == [(2, 14, *SHAPE)] * 4
    assert shapes(results["fused_features"]) == shapes(features)
    routing = results["routing_weights"]
    assert routing.shape == (2, 3, *features[-1].shape[-3:])
    torch.testing.assert_close(routing.sum(1), torch.ones_like(routing[:, 0]))
    for prediction in results["size_predictions"]:
        assert prediction.shape == (2, 3)
        torch.testing.assert_close(prediction.sum(1), torch.ones(2))


@torch.no_grad()
def test_lightweight_with_deep_supervision() -> None:
    network = LHANet.from_preset("lightweight", base_channels=4)
    results = network.train()(volume(batch=2))
    assert set(results) == {"final_prediction", "deep_supervision_outputs"}
    assert results["final_prediction"].shape == (2, 14, *SHAPE)
    assert shapes(results["deep_supervision_outputs"]) == [(2, 14, *SHAPE)] * 4
    assert network.eval()(volume()).shape == (1, 14, *SHAPE)


@torch.no_grad()
def test_standard() -> None:
    network = LHANet.from_preset("standard", base_channels=8).eval()
    results = network(torch.randn(1, 1, 36, 48, 40), return_features=True)
    assert results["final_prediction"].shape == (1, 14, 36, 48, 40)
    assert set(results) == {
        "final_prediction",
        "size_predictions",
        "routing_weights",
        "pmsa_features",
        "backbone_features",
    }


@torch.no_grad()
def test_auxiliary_loss_gives_several_outputs_in_training() -> None:
    network = LHANetWithAuxiliaryLoss.from_preset("lightweight", base_channels=4, auxiliary_weight=0.3)
    results = network.train()(volume(batch=2))
    assert set(results) == {
        "final_prediction",
        "deep_supervision_outputs",
        "size_predictions",
        "auxiliary_weight",
        "size_prediction_weight",
    }
    assert (results["auxiliary_weight"], results["size_prediction_weight"]) == (0.3, 0.1)
    assert shapes(results["size_predictions"]) == [(2, 3)] * 4
    assert network.eval()(volume()).shape == (1, 14, *SHAPE)


@pytest.mark.parametrize(
    ("preset", "parameters", "megabytes"), [("lightweight", 311_237_575, 1187), ("standard", 330_290_375, 1260)]
)
def test_memory_usage_and_parameter_counts(preset: str, parameters: int, megabytes: int) -> None:
    with torch.device("meta"):
        network = LHANet.from_preset(preset)
    tensors = list(network.parameters())
    assert sum(tensor.numel() for tensor in tensors) == parameters
    assert round(sum(tensor.numel() * tensor.element_size() for tensor in tensors) / 2**20) == megabytes


def test_gradient_flow() -> None:
    network = LHANetWithAuxiliaryLoss.from_preset("lightweight", base_channels=4, num_classes=3).train()
    results = network(volume(batch=2))
    outputs = [results["final_prediction"], *results["deep_supervision_outputs"], *results["size_predictions"]]
    torch.stack([output.square().mean() for output in outputs]).sum().backward()
    unused = ("decoder.size_specific_decoders.", "decoder.routing_gate.", "final_conv.")
    for name, parameter in network.named_parameters():
        if name.startswith(unused):
            assert parameter.grad is None, name
        else:
            assert parameter.grad is not None and parameter.grad.isfinite().all(), name
    for name in (
        "backbone.initial_conv.0.weight",
        "hierarchical_pmsa.pmsa_modules.level_0.scale_attentions.4.organ_conv.weight",
        "decoder.feature_fusion.0.0.weight",
        "decoder.size_classifiers.0.classifier.0.weight",
    ):
        gradient = network.get_parameter(name).grad
        assert gradient is not None and gradient.abs().max() > 0, name
