"""The fusions of five branches taken in branch by branch, so that the branches need not live together.

The progressive fusions p_i = ReLU(conv1([f_0..f_i])), i = 1..4, are linear in each branch f_j before their ReLU.
One 1x1x1 convolution a branch computes what f_j adds to several of them at once,

    [p_2; p_3; p_4] = ReLU(sum over j of W_j f_j + b),   W_j (3C, C), 0 where f_j does not enter,

so a branch can be let go as soon as it is added, and no concatenation is made. Three fusions are stacked because
three tensors of a level are a little smaller than one of its 1.5x branch (1.5^3 = 3.4): they fit where those were.
The branches are written largest first: a builder that follows the operands then computes the 1.5x branch,
whose tensors are the largest, while nothing else is alive. Equal up to the rounding of sums in another order.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import reduce
from operator import add
from typing import cast

import torch
from torch import Tensor, nn

from lhanet_export.inference.convolution import convolution_like
from lhanet_export.model.pmsa import PMSA

#: Which progressive fusions p_i are computed as one tensor.
STACKS = ((2, 3, 4), (1,))
#: The fusions, and p_0 = f_0 itself, in the order in which they are read: the reverse of that in which they are made.
_LAST_TO_FIRST = ((0,), *reversed(STACKS))


class StackedPMSA(nn.Module):
    """A PMSA level (N,C,D,H,W) whose fusions are sums over its branches; shares the other weights.

    `ValueError` for a level with batch norms: they would act on a part of the sum.
    """

    def __init__(self, pmsa: PMSA) -> None:
        super().__init__()
        progressive = [_folded_conv(fusion) for fusion in pmsa.progressive_fusion]
        whole = _folded_conv(pmsa.final_fusion)
        self.scale_attentions = pmsa.scale_attentions
        self.gate_conv = pmsa.gate_conv
        self.progressive_fusion = nn.ModuleList(
            # From the largest branch that enters down to the smallest.
            nn.ModuleList(_part(progressive, stack, branch) for branch in range(max(stack), -1, -1))
            for stack in STACKS
        )
        # One bias is enough for a sum.
        biases = (whole.bias, *(None for _ in STACKS))
        self.final_fusion = nn.ModuleList(
            _columns(whole, stack, bias) for stack, bias in zip(_LAST_TO_FIRST, biases, strict=True)
        )

    def forward(self, x: Tensor) -> Tensor:
        branches = [branch(x) for branch in reversed(list(self.scale_attentions))]
        stacks = [
            torch.relu(_sum(conv(y) for conv, y in zip(convs, branches[-len(convs) :], strict=True)))
            for convs in cast(Iterable[nn.ModuleList], self.progressive_fusion)
        ]
        stacks.append(branches[-1])
        # The large stack last: what it adds to is then made, and the branches of the small one are gone, before it.
        fused = torch.relu(_sum(conv(y) for conv, y in zip(self.final_fusion, reversed(stacks), strict=True)))
        gates = self.gate_conv(fused).mean((2, 3, 4), keepdim=True)
        width = x.shape[1]
        return _sum(
            y[:, place * width : (place + 1) * width] * gates[:, index : index + 1]
            for stack, y in zip(_LAST_TO_FIRST, reversed(stacks), strict=True)
            for place, index in enumerate(stack)
        )


def _sum(terms: Iterable[Tensor]) -> Tensor:
    return reduce(add, terms)


def _folded_conv(fusion: nn.Module) -> nn.Conv3d:
    assert isinstance(fusion, nn.Sequential)
    if not isinstance(fusion[1], nn.Identity):
        raise ValueError("fusions can be stacked after their batch norms are folded only")
    return cast(nn.Conv3d, fusion[0])


def _part(convs: list[nn.Conv3d], stack: Sequence[int], branch: int) -> nn.Conv3d:
    """What one branch adds to the fusions p_i, i in `stack`; the largest branch brings their biases along."""
    width = convs[0].out_channels
    blocks = [
        convs[index - 1].weight[:, branch * width : (branch + 1) * width]
        if branch <= index
        else torch.zeros_like(convs[index - 1].weight[:, :width])
        for index in stack
    ]
    biases = torch.cat([cast(Tensor, convs[index - 1].bias) for index in stack]) if branch == max(stack) else None
    return convolution_like(convs[0], torch.cat(blocks), biases)


def _columns(conv: nn.Conv3d, stack: Sequence[int], bias: Tensor | None) -> nn.Conv3d:
    """The part of a fusion that reads the features `stack`."""
    width = conv.out_channels
    weight = torch.cat([conv.weight[:, index * width : (index + 1) * width] for index in stack], 1)
    return convolution_like(conv, weight, bias)
