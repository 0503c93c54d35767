"""The ten tests of the authors' model initialization test report, of networks that are given.

Each looks at what a network does, not at how it is written: shapes, which part sees which size, and what depends on
what, by gradients. It returns a line of what was seen, or raises `NotHeld`. Tensors are (N,C,D,H,W).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, nn

from lhanet_export.cli.show import format_bytes
from lhanet_export.errors import EnvironmentLacks
from lhanet_export.model.network import LHANet, LHANetWithAuxiliaryLoss
from lhanet_export.model.rule import rule_network
from lhanet_export.shapes import Shape, format_shape

CLASSES = 14
#: What the networks see: two or three voxels at the coarsest level, and sides that cannot all be halved evenly.
SMALL: dict[str, Shape] = {"lightweight": (17, 22, 19), "standard": (36, 48, 40)}
SCALES = tuple(map(Fraction, ("1/2", "3/4", "1", "5/4", "3/2")))
LEVELS = 4
#: What training leaves without a gradient, in upstream's networks too: no path goes there.
UNUSED = ("decoder.size_specific_decoders.", "decoder.routing_gate.", "final_conv.")


class NotHeld(Exception):
    """A network does not do what the report says of it."""


@dataclass(frozen=True, kw_only=True)
class Networks:
    """What is tested, in eval mode; `auxiliary` has the weights of `lightweight`, the same tensors."""

    lightweight: LHANet
    standard: LHANet
    auxiliary: LHANetWithAuxiliaryLoss


Check = Callable[[Networks], str]


def make_networks(width: int | None, device: str) -> Networks:
    """Both presets with weights by rule, as wide as they are or with `width` base channels."""
    lightweight, standard_network = (
        rule_network(name, num_classes=CLASSES, base_channels=width).to(device) for name in SMALL
    )
    auxiliary = LHANetWithAuxiliaryLoss.from_state_dict(
        lightweight.state_dict(), lightweight.preset, num_classes=CLASSES, base_channels=lightweight.base_channels
    )
    assert isinstance(auxiliary, LHANetWithAuxiliaryLoss)
    return Networks(lightweight=lightweight, standard=standard_network, auxiliary=auxiliary)


def ten_tests(parameters: Sequence[Mapping[str, Any]], memory: Sequence[Mapping[str, Any]]) -> list[tuple[str, Check]]:
    """The tests in the report's order; the ninth is of `parameters` and `memory` as they were found."""
    return [
        ("lightweight backbone", lightweight_backbone),
        ("ResNet3D backbone", resnet_backbone),
        ("PMSA over 5 scales", pmsa),
        ("hierarchical PMSA over 4 levels", hierarchical_pmsa),
        ("organ-size-aware decoder", decoder),
        ("LHA-Net lightweight with deep supervision", deep_supervision),
        ("LHA-Net standard", standard),
        ("LHA-Net with auxiliary loss", auxiliary_loss),
        ("memory usage and parameter counts", lambda networks: memory_and_parameters(parameters, memory)),
        ("gradient flow", gradient_flow),
    ]


def outcome(name: str, check: Check, networks: Networks) -> dict[str, Any]:
    """What came of one test: its name, whether it passed, what was seen; `EnvironmentLacks` if a GPU has no room."""
    torch.manual_seed(0)
    try:
        return {"name": name, "passed": True, "seen": check(networks)}
    except torch.OutOfMemoryError as error:
        raise EnvironmentLacks(f"this GPU has too little memory for the test '{name}': {error}") from error
    except NotHeld as error:
        return {"name": name, "passed": False, "seen": str(error)}
    except Exception as error:
        # A broken network may raise anything, and whatever it is, the test has not passed.
        first_line = str(error).partition("\n")[0]
        return {"name": name, "passed": False, "seen": f"{type(error).__name__}: {first_line}"}


def lightweight_backbone(networks: Networks) -> str:
    """Five maps: full resolution, then four times half the size and twice the channels."""
    return _backbone(networks.lightweight, widths=(1, 2, 4, 8, 16), strides=(1, 2, 4, 8, 16))


def resnet_backbone(networks: Networks) -> str:
    """Five maps: the stem's, then those of the four stages."""
    return _backbone(networks.standard, widths=(1, 1, 2, 4, 8), strides=(2, 4, 8, 16, 32))


@torch.no_grad()
def _backbone(network: LHANet, *, widths: Sequence[int], strides: Sequence[int]) -> str:
    shape = SMALL[network.preset.name]
    features = network.backbone(_noise(network, 1, 1, *shape))
    wanted = [
        (1, network.base_channels * width, *_divided(shape, stride))
        for width, stride in zip(widths, strides, strict=True)
    ]
    _expect("feature maps", _shapes(features), wanted)
    for level, feature in enumerate(features, start=1):
        _expect_varied(f"feature map {level}", feature)
    channels = ", ".join(str(feature.shape[1]) for feature in features)
    return f"{len(features)} feature maps of {channels} channels, {_sides(features[0])} to {_sides(features[-1])}"


def pmsa(networks: Networks) -> str:
    """Every branch sees its own scale of the features, and the result depends on each."""
    network = networks.lightweight
    module: Any = network.hierarchical_pmsa.pmsa_modules["level_0"]
    feature = _noise(network, 2, network.channels[0], 8, 12, 10)
    inputs: list[Shape] = []
    outputs: list[Tensor] = []
    hooks = [
        hook
        for branch in module.scale_attentions
        for hook in (
            branch.organ_conv.register_forward_pre_hook(lambda _, given: inputs.append(given[0].shape[-3:])),
            branch.register_forward_hook(lambda _, given, result: outputs.append(result)),
        )
    ]
    try:
        result = module(feature)
    finally:
        for hook in hooks:
            hook.remove()
    wanted = [tuple(math.floor(side * scale) for side in feature.shape[-3:]) for scale in SCALES]
    _expect("what the organ kernels see", [tuple(shape) for shape in inputs], wanted)
    _expect("the branches' results", _shapes(outputs), [tuple(feature.shape)] * len(SCALES))
    _expect("the result", _shapes([result]), [tuple(feature.shape)])
    for number, output in enumerate(outputs, start=1):
        _expect_varied(f"the result of branch {number}", output)
    _expect_varied("the result", result)
    _expect("branches that count", _counts_in(result, outputs), [True] * len(SCALES))
    scales = ", ".join(f"{float(scale):g}" for scale in SCALES)
    return f"{_sides(feature)} at scales {scales}; the result depends on all {len(outputs)}"


def hierarchical_pmsa(networks: Networks) -> str:
    """Four levels keep their shapes; each depends on itself and all finer ones, and on no coarser one."""
    network = networks.lightweight
    features = [feature.requires_grad_() for feature in _pyramid(network, batch=1)]
    results = network.hierarchical_pmsa(features)
    _expect("levels", _shapes(results), _shapes(features))
    for level, result in enumerate(results):
        _expect_varied(f"level {level}", result)
        reached = [finer <= level for finer in range(LEVELS)]
        _expect(f"input levels that count in level {level}", _counts_in(result, features), reached)
    return f"{len(results)} levels of {', '.join(str(result.shape[1]) for result in results)} channels, fine to coarse"


def decoder(networks: Networks) -> str:
    """Logits from all levels, logits of each level, and probabilities of organ sizes and of routing."""
    network, size = networks.lightweight, SMALL["lightweight"]
    features = [feature.requires_grad_() for feature in _pyramid(network, batch=2)]
    results = network.decoder(features, size)
    logits = [results["final_output"], *results["level_outputs"]]
    _expect("logits", _shapes(logits), [(2, CLASSES, *size)] * (1 + LEVELS))
    for tensor in logits:
        _expect_varied("logits", tensor)
    _expect("levels that count in the logits", _counts_in(logits[0], features), [True] * LEVELS)
    routing = results["routing_weights"]
    _expect("routing", _shapes([routing]), [(2, 3, *features[-1].shape[-3:])])
    _expect_probabilities("routing", routing)
    _expect_size_predictions(results["size_predictions"])
    return (
        f"logits {_shape(logits[0])} from {LEVELS} levels, {LEVELS} level outputs, {LEVELS} size predictions, routing"
    )


def deep_supervision(networks: Networks) -> str:
    """Logits alone in eval mode; in training mode four more, each made by its own head."""
    network, size = networks.lightweight, SMALL["lightweight"]
    volume = _noise(network, 2, 1, *size)
    with torch.no_grad():
        logits = network(volume)
    _expect("logits", _shapes([logits]), [(2, CLASSES, *size)])
    _expect_varied("logits", logits)
    with _training(network):
        results = network(volume)
        _expect("outputs in training", set(results), {"final_prediction", "deep_supervision_outputs"})
        deep = results["deep_supervision_outputs"]
        shapes = _shapes([results["final_prediction"], *deep])
        _expect("logits in training", shapes, [(2, CLASSES, *size)] * (1 + LEVELS))
        heads: list[Any] = [head.weight for head in network.deep_supervision_heads]
        for level, output in enumerate(deep):
            own = [index == level for index in range(LEVELS)]
            _expect(f"heads that count in deep output {level}", _counts_in(output, heads), own)
    return f"logits {_shape(logits)}; in training {len(deep)} more, each of its own head"


@torch.no_grad()
def standard(networks: Networks) -> str:
    """Logits, and on request the features of four levels with what the decoder says of them."""
    network, size = networks.standard, SMALL["standard"]
    volume = _noise(network, 1, 1, *size)
    logits = network(volume)
    _expect("logits", _shapes([logits]), [(1, CLASSES, *size)])
    _expect_varied("logits", logits)
    results = network(volume, return_features=True)
    wanted = {"final_prediction", "size_predictions", "routing_weights", "pmsa_features", "backbone_features"}
    _expect("outputs with features", set(results), wanted)
    base = network.base_channels
    levels = [(1, base * 2**level, *_divided(size, 4 * 2**level)) for level in range(LEVELS)]
    _expect("levels", _shapes(results["pmsa_features"]), levels)
    _expect_probabilities("routing", results["routing_weights"])
    return f"logits {_shape(logits)}; {LEVELS} levels, {_sides(results['pmsa_features'][-1])} the coarsest"


def auxiliary_loss(networks: Networks) -> str:
    """Logits alone in eval mode; in training mode all that the losses need, and their weights."""
    network, size = networks.auxiliary, SMALL["lightweight"]
    volume = _noise(network, 2, 1, *size)
    with torch.no_grad():
        logits = network(volume)
        _expect("logits", _shapes([logits]), [(2, CLASSES, *size)])
        with _training(network):
            results = network(volume)
    tensors = ["final_prediction", "deep_supervision_outputs", "size_predictions"]
    weights = {name: value for name, value in results.items() if name not in tensors}
    _expect("outputs in training", set(results) - set(weights), set(tensors))
    _expect("weights of the losses", weights, {"auxiliary_weight": 0.4, "size_prediction_weight": 0.1})
    outputs = [results["final_prediction"], *results["deep_supervision_outputs"]]
    _expect("logits in training", _shapes(outputs), [(2, CLASSES, *size)] * (1 + LEVELS))
    _expect_size_predictions(results["size_predictions"])
    return (
        f"in training {len(outputs)} logits {_shape(logits)} and {LEVELS} size predictions; in eval mode logits alone"
    )


def memory_and_parameters(parameters: Sequence[Mapping[str, Any]], memory: Sequence[Mapping[str, Any]]) -> str:
    """Parameters are the report's, where they are compared; memory holds the weights, and then the logits at least.

    No more is asked of memory: what a convolution sets aside for itself, which a library chooses by the size, can be
    larger than the difference that a larger volume makes.
    """
    if found := [line for row in parameters for line in mismatches(row)]:
        raise NotHeld("; ".join(found))
    for counted in parameters:
        rows = [row for row in memory if row["preset"] == counted["preset"]]
        if not rows:
            raise NotHeld(f"{counted['preset']}: no memory was measured")
        for row in rows:
            logits = row["batch"] * CLASSES * math.prod(row["shape"]) * torch.float32.itemsize
            ready, peak, weights = row["ready_bytes"], row["peak_bytes"], counted["weights_bytes"]
            if ready < weights or peak - ready < logits:
                raise NotHeld(
                    f"{counted['preset']}: {format_bytes(ready)}, then {format_bytes(peak)} cannot hold weights of "
                    f"{format_bytes(weights)}, then logits of {format_bytes(logits)}"
                )
    totals = " and ".join(f"{row['total']:,}" for row in parameters)
    compared = "as reported" if all(row["reported"] for row in parameters) else "not compared"
    low, high = (format_bytes(pick(row["peak_bytes"] for row in memory)) for pick in (min, max))
    return f"{totals} parameters, {compared}; peaks of {low} to {high}"


def mismatches(row: Mapping[str, Any]) -> list[str]:
    """Where the counts of a network differ from the authors'; nothing where they are not compared."""
    found = {**row, "weights_mb": round(row["weights_bytes"] / 2**20)}
    return [
        f"{row['preset']}: {key} is {found[key]:,}, in the report {wanted:,}"
        for key, wanted in (row["reported"] or {}).items()
        if found[key] != wanted
    ]


def gradient_flow(networks: Networks) -> str:
    """A loss of all outputs reaches every tensor that a path uses, and with numbers."""
    network = networks.auxiliary
    with _training(network):
        results = network(_noise(network, 2, 1, *SMALL["lightweight"]))
        outputs = [results["final_prediction"], *results["deep_supervision_outputs"], *results["size_predictions"]]
        torch.stack([output.square().mean() for output in outputs]).sum().backward()
        gradients = {name: parameter.grad for name, parameter in network.named_parameters()}
        network.zero_grad()
    there = {name: gradient for name, gradient in gradients.items() if gradient is not None}
    _expect_none("without a gradient", [name for name in gradients if name not in there and not _unused(name)])
    _expect_none("unused and yet with a gradient", [name for name in there if _unused(name)])
    _expect_none("not finite in the gradient of", [name for name, one in there.items() if not one.isfinite().all()])
    largest: dict[str, float] = {}
    for name, gradient in there.items():
        largest[_layer(name)] = max(largest.get(_layer(name), 0.0), float(gradient.abs().max()))
    _expect_none("zero in all of the gradient of", [layer for layer, value in largest.items() if value == 0])
    return f"a finite gradient in {len(there)} tensors of {len(largest)} layers, zero in no layer"


def _unused(name: str) -> bool:
    return name.startswith(UNUSED)


def _layer(name: str) -> str:
    """The layer of a parameter. Those behind a ReLU that sees only means, all of which can be off, count together."""
    return re.sub(r"\.scale_attentions\.\d+\.spatial_attention\..*|\.classifier\..*|\.[^.]*$", "", name, count=1)


def _counts_in(result: Tensor, sources: Sequence[Tensor]) -> list[bool]:
    """For each source whether `result` depends on it: whether a gradient gets there that is not zero."""
    if not result.requires_grad:
        return [False] * len(sources)
    gradients = torch.autograd.grad(result.square().sum(), sources, retain_graph=True, allow_unused=True)
    return [gradient is not None and bool(gradient.abs().max() > 0) for gradient in gradients]


@contextmanager
def _training(network: nn.Module) -> Iterator[None]:
    """Training mode, without a trace of it in the batch norms' statistics afterwards."""
    before = [buffer.clone() for buffer in network.buffers()]
    network.train()
    try:
        yield
    finally:
        network.eval()
        for buffer, value in zip(network.buffers(), before, strict=True):
            buffer.copy_(value)


def _noise(network: LHANet, *shape: int) -> Tensor:
    # Drawn on the CPU: the same on every device.
    return torch.randn(shape).to(next(network.parameters()).device)


def _pyramid(network: LHANet, *, batch: int) -> list[Tensor]:
    """Noise in place of the lightweight backbone's four levels."""
    return [
        _noise(network, batch, channels, *_divided(SMALL["lightweight"], 2**level))
        for level, channels in enumerate(network.channels, start=1)
    ]


def _divided(shape: Shape, stride: int) -> Shape:
    depth, height, width = (-(-side // stride) for side in shape)
    return depth, height, width


def _expect(what: str, found: object, wanted: object) -> None:
    if found != wanted:
        raise NotHeld(f"{what}: {found} instead of {wanted}")


def _expect_none(what: str, names: Sequence[str]) -> None:
    if names:
        raise NotHeld(f"{what}: {names[0]}" + (f" and {len(names) - 1} more" if names[1:] else ""))


def _expect_varied(what: str, tensor: Tensor) -> None:
    """Finite, and not the same in all voxels: channels may be, behind a ReLU, but not all of them."""
    if not tensor.isfinite().all():
        raise NotHeld(f"{what}: not finite everywhere")
    spread = tensor.amax((2, 3, 4)) - tensor.amin((2, 3, 4))
    # More than the rounding of a resize leaves of a constant.
    if spread.max() <= 1e-3 * tensor.abs().max():
        raise NotHeld(f"{what}: the same in all voxels")


def _expect_probabilities(what: str, tensor: Tensor) -> None:
    """Along the channels."""
    total = tensor.sum(1)
    if not (tensor.min() >= 0 and torch.allclose(total, torch.ones_like(total))):
        raise NotHeld(f"{what}: no probabilities, they add up to {total.min().item():g} to {total.max().item():g}")


def _expect_size_predictions(predictions: Sequence[Tensor]) -> None:
    _expect("size predictions", _shapes(predictions), [(2, 3)] * LEVELS)
    for prediction in predictions:
        _expect_probabilities("size predictions", prediction)


def _shapes(tensors: Sequence[Tensor]) -> list[tuple[int, ...]]:
    return [tuple(tensor.shape) for tensor in tensors]


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape))


def _sides(tensor: Tensor) -> str:
    depth, height, width = tensor.shape[-3:]
    return format_shape((depth, height, width))
