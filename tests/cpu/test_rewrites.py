"""Every rewrite of the inference network: where it fires, where it refuses, and that the network means the same."""

import copy
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lhanet_export.errors import RefusedInput
from lhanet_export.inference.fold import folded
from lhanet_export.inference.network import InferenceNetwork
from lhanet_export.inference.rewrites.depth import DepthConvolution
from lhanet_export.inference.rewrites.fusion import StackedPMSA
from lhanet_export.inference.rewrites.logits import resize_by_reading
from lhanet_export.inference.rewrites.names import PURPOSES, REWRITES
from lhanet_export.inference.rewrites.registry import RESIZE_ORDERS, SHORT_STRIDES, Applied
from lhanet_export.inference.rewrites.short_convolution import FACTORS, Factors, short_convolution
from lhanet_export.inference.rewrites.stem import SplitStemBackbone, SplitStemResNet
from lhanet_export.inference.target import Target
from lhanet_export.model.backbone import LightweightBackbone, ResNet3DBackbone
from lhanet_export.model.network import LHANet
from lhanet_export.model.pmsa import PMSA, ScaleBranch
from lhanet_export.model.resize import resize_by_scale, resize_to_size
from lhanet_export.model.rule import rule_network

#: Relative L2 error of FP32 arithmetic in another order, a few units in the last place.
ROUNDING = 2e-6


def relative_l2(value: torch.Tensor, reference: torch.Tensor) -> float:
    return float((value - reference).norm() / reference.norm())


def applied(network: InferenceNetwork, name: str) -> Applied:
    (result,) = (one for one in network.rewrites if one.name == name)
    return result


@pytest.fixture(scope="module")
def standard_network() -> LHANet:
    return rule_network("standard", base_channels=8, num_classes=5, seed=7)


# The algebra


@pytest.mark.parametrize("taps", FACTORS)
def test_a_short_convolution_is_the_correlation(taps: int) -> None:
    short = short_convolution(taps)
    random = np.random.default_rng(0)
    for _ in range(20):
        kernel, window = random.standard_normal(taps), random.standard_normal(taps + short.samples - 1)
        direct = [kernel @ window[place : place + taps] for place in range(short.samples)]
        np.testing.assert_allclose(
            short.inverse @ ((short.kernel @ kernel) * (short.data @ window)), direct, atol=1e-11
        )


def test_seven_taps_take_a_third_of_the_products_and_amplify_little() -> None:
    short = short_convolution(7)
    assert (short.samples, short.products, short.taps) == (6, 14, 7)
    assert short.products * 3 == short.samples * short.taps
    # What the docstring says; FP16 could not stand the 24 of linear factors alone.
    assert short.amplification == pytest.approx(2.5, abs=0.05)
    np.testing.assert_allclose((short.data**2).sum(1), 1)


def test_the_amplification_for_five_taps_is_little_too() -> None:
    assert short_convolution(5).products == 11
    assert short_convolution(5).amplification == pytest.approx(2.8, abs=0.05)


def test_linear_factors_alone_amplify_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    points = (0, 1, -1, 1 / 3, -1 / 3, 2 / 3, -2 / 3, 1.5, -1.5, 3, -3)
    monkeypatch.setitem(FACTORS, 7, Factors(points=points, quadratics=()))
    assert short_convolution(7).amplification > 20


def test_other_taps_have_no_short_convolution() -> None:
    with pytest.raises(ValueError, match="no short convolution for 3 taps"):
        short_convolution(3)


# The modules


@settings(max_examples=25, deadline=None)
@given(
    shape=st.tuples(*[st.integers(1, 30)] + [st.integers(1, 9)] * 2),
    size=st.tuples(*[st.integers(1, 20)] * 3),
    batch=st.integers(1, 2),
    slabs=st.integers(1, 4),
)
def test_a_depth_convolution_is_convolution_and_resize_at_every_size(
    shape: tuple[int, int, int], size: tuple[int, int, int], batch: int, slabs: int
) -> None:
    torch.manual_seed(0)
    branch = ScaleBranch(8, Fraction(3, 2), 7).double()
    x = torch.randn(batch, 8, *shape, dtype=torch.float64)
    module = DepthConvolution(branch.organ_conv, slabs=slabs)
    with torch.no_grad():
        # The matrices are FP32 in any case, and so is the reference's resize.
        assert relative_l2(module(x, size), branch.organ_features(x, size)) < ROUNDING


def test_a_depth_convolution_refuses_what_it_has_no_algorithm_for() -> None:
    with pytest.raises(ValueError, match="3 taps"):
        DepthConvolution(ScaleBranch(8, Fraction(1, 2), 3).organ_conv)


def test_at_the_same_size_there_is_no_resize() -> None:
    torch.manual_seed(0)
    conv = ScaleBranch(8, Fraction(1), 5).organ_conv
    x = torch.randn(2, 8, 7, 5, 6)
    with torch.no_grad():
        assert relative_l2(DepthConvolution(conv)(x, None), conv(x)) < ROUNDING


@pytest.mark.parametrize("shape", [(2, 8, 5, 6, 7), (1, 8, 2, 3, 2)])
def test_stacked_fusions_are_the_level(shape: tuple[int, ...], narrow_network: LHANet) -> None:
    torch.manual_seed(0)
    level = narrow_network.hierarchical_pmsa.pmsa_modules["level_0"]
    assert isinstance(level, PMSA)
    x = torch.rand(shape[0], narrow_network.channels[0], *shape[2:])
    with torch.no_grad():
        assert relative_l2(StackedPMSA(folded(level))(x), level(x)) < ROUNDING


def test_fusions_with_batch_norms_are_not_stacked(narrow_network: LHANet) -> None:
    level = narrow_network.hierarchical_pmsa.pmsa_modules["level_0"]
    with pytest.raises(ValueError, match="batch norms"):
        StackedPMSA(level)


def test_a_split_stem_is_the_backbone(narrow_network: LHANet) -> None:
    backbone = narrow_network.backbone
    assert isinstance(backbone, LightweightBackbone)
    x = torch.randn(2, 1, 17, 20, 18)
    with torch.no_grad():
        features = SplitStemBackbone(folded(backbone))(x)
        reference = backbone(x)[1:]
    assert len(features) == len(reference) == 4
    for ours, theirs in zip(features, reference, strict=True):
        assert relative_l2(ours, theirs) < ROUNDING


def test_a_split_stem_of_a_resnet_is_the_backbone(standard_network: LHANet) -> None:
    backbone = standard_network.backbone
    assert isinstance(backbone, ResNet3DBackbone)
    x = torch.randn(2, 1, 33, 36, 34)
    whole = folded(backbone)
    with torch.no_grad():
        features, reference = SplitStemResNet(whole)(x), whole(x)[1:]
    assert len(features) == len(reference) == 4
    for ours, theirs in zip(features, reference, strict=True):
        assert relative_l2(ours, theirs) < ROUNDING


@settings(max_examples=50, deadline=None)
@given(shape=st.tuples(*[st.integers(1, 9)] * 3), size=st.tuples(*[st.integers(1, 40)] * 3))
def test_logits_read_are_logits_multiplied(shape: tuple[int, int, int], size: tuple[int, int, int]) -> None:
    x = torch.randn(2, 3, *shape, generator=torch.Generator().manual_seed(0))
    reference = resize_to_size(x, size)
    found = resize_by_reading(x, size)
    assert found.shape == reference.shape
    torch.testing.assert_close(found, reference, rtol=0, atol=2e-6)


@pytest.mark.parametrize("order", RESIZE_ORDERS.values())
@pytest.mark.parametrize("scale", [Fraction(1, 2), Fraction(5, 4), Fraction(3, 2)])
def test_the_order_of_axes_is_rounding_only(order: tuple[int, ...], scale: Fraction) -> None:
    assert sorted(order) == [2, 3, 4]
    # 2x3x3: at 1.25x all sides are kept, the one case in which the axes know of each other.
    for shape in ((2, 3, 3), (5, 8, 3), (9, 6, 7)):
        x = torch.randn(1, 4, *shape, generator=torch.Generator().manual_seed(0))
        torch.testing.assert_close(resize_by_scale(x, scale, order), resize_by_scale(x, scale), rtol=0, atol=2e-6)


# Where they are applied


def test_lightweight_gets_every_rewrite(narrow_network: LHANet) -> None:
    network = InferenceNetwork(narrow_network, Target())
    assert [one.name for one in network.rewrites] == list(REWRITES)
    assert applied(network, "split-stem").places == ("backbone",)
    assert applied(network, "stacked-fusions").places == ("level 0", "level 1")
    assert applied(network, "short-convolutions").places == ("level 0, 1.5x", "level 1, 1.5x")
    assert applied(network, "slabs").places == ("level 0, 1.5x",)
    assert applied(network, "resize-order").places[:3] == ("level 0, 0.5x", "level 0, 0.75x", "level 0, 1.5x")
    assert applied(network, "read-logits").places == ("logits",)


def test_coarse_logits_are_not_resized(narrow_network: LHANet) -> None:
    network = InferenceNetwork(narrow_network, Target(output="coarse"))
    assert applied(network, "read-logits").refusals == {"logits": "coarse logits are not resized"}


def test_refusals_say_why(narrow_network: LHANet) -> None:
    network = InferenceNetwork(narrow_network, Target())
    assert "small" in applied(network, "stacked-fusions").refusals["level 2"]
    refusals = applied(network, "short-convolutions").refusals
    assert refusals["level 0, 1.25x"] == "5 taps, not 7"
    assert "coarse" in refusals["level 2, 1.5x"]
    refusals = applied(network, "slabs").refusals
    assert "small part" in refusals["level 1, 1.5x"]
    assert "not a short convolution" in refusals["level 0, 1x"]
    assert applied(network, "resize-order").refusals["level 0, 1x"] == "nothing is resized"
    assert "usual" in applied(network, "resize-order").refusals["level 0, 1.25x"]
    assert applied(network, "slabs").as_json()["refusals"] == refusals


def test_for_a_cpu_more_convolutions_are_short_and_none_is_cut(narrow_network: LHANet) -> None:
    network = InferenceNetwork(narrow_network, Target(), purpose="cpu")
    short = applied(network, "short-convolutions")
    assert short.places == tuple(f"level {level}, {scale}" for level in range(3) for scale in ("1x", "1.25x", "1.5x"))
    assert short.refusals["level 0, 0.5x"] == "3 taps, not 5 or 7"
    assert applied(network, "slabs").places == ()
    assert "cost time" in applied(network, "slabs").refusals["level 0, 1.5x"]
    for name in ("resize-order", "read-logits"):
        assert applied(network, name).places == ()
        assert "it saves memory, which a CPU has" in applied(network, name).refusals.values()
    image = torch.randn(1, 1, 50, 35, 41, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert relative_l2(network(image), narrow_network(image)) < 1e-5


def test_without_short_convolutions_there_is_nothing_to_cut(narrow_network: LHANet) -> None:
    network = InferenceNetwork(narrow_network, Target(), without=("short-convolutions",))
    slabs = applied(network, "slabs")
    assert slabs.places == ()
    assert set(slabs.refusals.values()) == {"not a short convolution"}


def test_standard_keeps_whole_convolutions(standard_network: LHANet) -> None:
    network = InferenceNetwork(standard_network, Target())
    assert applied(network, "split-stem").places == ("backbone",)
    assert applied(network, "slabs").places == ()
    # Its finest level has the stride of lightweight's second.
    assert applied(network, "short-convolutions").places == ("level 0, 1.5x",)


def test_commands_and_rewrites_know_the_same_purposes() -> None:
    assert set(PURPOSES) == set(SHORT_STRIDES)


def test_unknown_rewrites_are_refused(narrow_network: LHANet) -> None:
    with pytest.raises(RefusedInput, match=r"no rewrite faster; rewrites: split-stem, .*read-logits"):
        InferenceNetwork(narrow_network, Target(), without=("faster",))
    with pytest.raises(RefusedInput, match="no purpose 'phone'; purposes: engine, cpu"):
        InferenceNetwork(narrow_network, Target(), purpose="phone")


@pytest.mark.parametrize("without", [(), *((name,) for name in REWRITES), tuple(REWRITES)], ids="-".join)
@pytest.mark.parametrize("preset", ["lightweight", "standard"])
def test_the_network_means_the_same_without_any(preset: str, without: tuple[str, ...]) -> None:
    network = rule_network(preset, base_channels=8, num_classes=5, seed={"lightweight": 6, "standard": 7}[preset])
    image = torch.randn(1, 1, 50, 35, 41, generator=torch.Generator().manual_seed(1))
    inference = InferenceNetwork(network, Target(), without=without)
    assert not {one.name for one in inference.rewrites} & set(without)
    with torch.no_grad():
        assert relative_l2(inference(image), network(image)) < 1e-5


@pytest.mark.parametrize("head", ["deep0", "deep2"])
def test_other_heads_mean_the_same(head: str, narrow_network: LHANet) -> None:
    target = Target(head=head, output="coarse")
    image = torch.randn(1, 1, 34, 40, 33, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        plain = InferenceNetwork(narrow_network, target, without=tuple(REWRITES))(image)
        assert relative_l2(InferenceNetwork(narrow_network, target)(image), plain) < ROUNDING


def test_rewrites_leave_the_network_as_it_was(narrow_network: LHANet) -> None:
    before = copy.deepcopy(narrow_network.state_dict())
    names = [name for name, _ in narrow_network.named_modules()]
    InferenceNetwork(narrow_network, Target())
    assert [name for name, _ in narrow_network.named_modules()] == names
    after = narrow_network.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)
