"""The rewrites of the inference network: where each is applied, and why not elsewhere.

A rewrite gives the same function in another order of operations. Each can be left out (`--without NAME`), to check
what it brings and that the network means the same without it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any, cast

from torch import nn

from lhanet_export.errors import RefusedInput
from lhanet_export.inference.rewrites.depth import ShortBranch
from lhanet_export.inference.rewrites.fusion import StackedPMSA
from lhanet_export.inference.rewrites.logits import resize_by_reading
from lhanet_export.inference.rewrites.names import REWRITES
from lhanet_export.inference.rewrites.stem import SplitStemBackbone, SplitStemResNet
from lhanet_export.model.backbone import LightweightBackbone, ResNet3DBackbone
from lhanet_export.model.pmsa import PMSA, ScaleBranch

if TYPE_CHECKING:
    from lhanet_export.inference.network import InferenceNetwork

#: The finest levels have 80 % of the multiply-adds and of the memory, and 6 % of the weights.
FINE_LEVELS = 2
#: Parts by depth of the largest convolution. Two hold more products at a time; four would leave two tiles of
#: eight empty at the public training patch, 48 voxels deep.
SLABS = 3
#: By purpose and number of taps: up to which stride of a level (input voxels per feature voxel) its convolutions are
#: made short. Each costs as many weights again and some activations, and the coarser the grid, the less work it
#: saves: an engine gets those that save most, a CPU what pays in time.
SHORT_STRIDES = {"engine": {7: 4}, "cpu": {5: 8, 7: 8}}
#: The axes (2 depth, 3 height, 4 width) in the order in which a branch resizes them. For its first product a builder
#: copies the level's map, and keeps one copy for all branches that begin with the same axis, from the first
#: to the last of them. The 1.5x branch, which comes first and needs the most, begins with another axis than those after
#: it, and those that make the map smaller begin with depth, like each other.
RESIZE_ORDERS = {Fraction(3, 2): (3, 4, 2), Fraction(3, 4): (2, 4, 3), Fraction(1, 2): (2, 4, 3)}
#: What a rewrite looked at, and the reason if it left it as it was.
Outcomes = Iterator[tuple[str, str | None]]


@dataclass(frozen=True, kw_only=True)
class Applied:
    """What one rewrite did: the places that it changed, and the reason for each that it left as it was."""

    name: str
    places: tuple[str, ...]
    refusals: dict[str, str]

    def as_json(self) -> dict[str, Any]:
        """The same facts as JSON values."""
        return {"name": self.name, "places": list(self.places), "refusals": self.refusals}


def check_names(names: Collection[str]) -> None:
    """Refuse names that no rewrite has."""
    unknown = sorted(set(names) - set(REWRITES))
    if unknown:
        raise RefusedInput(f"there is no rewrite {', '.join(unknown)}; rewrites: {', '.join(REWRITES)}")


def rewrite(
    network: InferenceNetwork, strides: Sequence[int], *, purpose: str = "engine", without: Collection[str] = ()
) -> tuple[Applied, ...]:
    """Apply every rewrite but those in `without` to a network with folded batch norms, in place.

    `strides` are input voxels per feature voxel, by level from the finest. `purpose` is what the graph
    is for, `engine` or `cpu`. An unknown purpose or name raises `RefusedInput` and nothing is changed.
    """
    check_names(without)
    if purpose not in SHORT_STRIDES:
        raise RefusedInput(f"there is no purpose '{purpose}'; purposes: {', '.join(SHORT_STRIDES)}")
    functions = {
        "split-stem": _split_stem,
        "stacked-fusions": _stack_fusions,
        "short-convolutions": _shorten_convolutions,
        "slabs": _cut_into_slabs,
        "resize-order": _order_resizes,
        "read-logits": _read_logits,
    }
    applied = []
    for name in REWRITES:
        if name not in without:
            outcomes = dict(functions[name](network, strides, purpose))
            places = tuple(place for place, reason in outcomes.items() if reason is None)
            refusals = {place: reason for place, reason in outcomes.items() if reason is not None}
            applied.append(Applied(name=name, places=places, refusals=refusals))
    return tuple(applied)


def _split_stem(network: InferenceNetwork, strides: Sequence[int], purpose: str) -> Outcomes:
    if isinstance(network.backbone, LightweightBackbone):
        network.backbone = SplitStemBackbone(network.backbone)
    else:
        network.backbone = SplitStemResNet(cast(ResNet3DBackbone, network.backbone))
    yield "backbone", None


def _stack_fusions(network: InferenceNetwork, strides: Sequence[int], purpose: str) -> Outcomes:
    for index in range(len(strides)):
        if index < FINE_LEVELS:
            network.pmsa[index] = StackedPMSA(cast(PMSA, network.pmsa[index]))
        yield f"level {index}", None if index < FINE_LEVELS else "its tensors are small, and its stacked weights large"


def _shorten_convolutions(network: InferenceNetwork, strides: Sequence[int], purpose: str) -> Outcomes:
    for place, index, branches, at in _branches(network):
        branch = cast(ScaleBranch, branches[at])
        taps = branch.organ_conv.kernel_size[0]
        if taps not in SHORT_STRIDES[purpose]:
            yield place, f"{taps} taps, not {' or '.join(map(str, SHORT_STRIDES[purpose]))}"
        elif strides[index] > SHORT_STRIDES[purpose][taps]:
            yield place, "a coarse level: little work, and weights that would double"
        else:
            branches[at] = ShortBranch(branch, joint=purpose == "cpu")
            yield place, None


def _cut_into_slabs(network: InferenceNetwork, strides: Sequence[int], purpose: str) -> Outcomes:
    for place, index, branches, at in _branches(network):
        branch = branches[at]
        if not isinstance(branch, ShortBranch):
            yield place, "not a short convolution"
        elif purpose == "cpu":
            yield place, "slabs save memory, which a CPU has, and cost time"
        elif strides[index] > 2:
            yield place, "its tensors are a small part of the memory"
        else:
            branch.short_conv.slabs = SLABS
            yield place, None


def _order_resizes(network: InferenceNetwork, strides: Sequence[int], purpose: str) -> Outcomes:
    for place, _, branches, at in _branches(network):
        branch = cast(ScaleBranch, branches[at])
        if branch.scale not in RESIZE_ORDERS:
            yield place, "nothing is resized" if branch.scale == 1 else "the usual order, by itself"
        elif purpose == "cpu":
            yield place, "it saves memory, which a CPU has"
        else:
            branch.resize_order = RESIZE_ORDERS[branch.scale]
            yield place, None


def _read_logits(network: InferenceNetwork, strides: Sequence[int], purpose: str) -> Outcomes:
    if network.target.output == "coarse":
        yield "logits", "coarse logits are not resized"
    elif purpose == "cpu":
        yield "logits", "it saves memory, which a CPU has"
    else:
        network.resize_logits = resize_by_reading
        yield "logits", None


def _branches(network: InferenceNetwork) -> Iterator[tuple[str, int, nn.ModuleList, int]]:
    """Every branch: its name, its level, and where it stands in which list."""
    for index, level in enumerate(network.pmsa):
        branches = cast(nn.ModuleList, level.scale_attentions)
        for at, branch in enumerate(branches):
            yield f"level {index}, {float(cast(ScaleBranch, branch).scale):g}x", index, branches, at
