"""Batch norm folded into the convolution before it.

In eval mode batch norm is y = (x - mean) * weight / sqrt(var + eps) + bias, per channel, so after a
convolution it is that convolution with scaled weights and a shifted bias (Jacob et al. 2017,
arXiv:1712.05877, section 3.2). Exact up to rounding; computed in float64. In training mode the
statistics come from the batch and nothing can be folded: `folded` refuses.
"""

import copy
from itertools import pairwise

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from lhanet_export.inference.convolution import convolution_like
from lhanet_export.model.backbone import BasicBlock, ResNet3DBackbone


def folded(module: nn.Module) -> nn.Module:
    """A copy of `module` without batch norms; tensors that folding leaves alone are shared with the original."""
    if module.training:
        raise ValueError("batch norm can be folded in eval mode only")
    clone = copy.copy(module)
    # The shallow copy still shares its table of children; give it one of its own before changing entries.
    clone._modules = dict(module._modules)
    for conv, norm in _pairs(module):
        clone._modules[conv] = _folded_conv(module.get_submodule(conv), module.get_submodule(norm))
        clone._modules[norm] = nn.Identity()
    for name, child in clone._modules.items():
        if child is module._modules[name] and child is not None:
            clone._modules[name] = folded(child)
    return clone


def _pairs(module: nn.Module) -> list[tuple[str, str]]:
    """Names of the children that are a convolution and the batch norm which reads nothing but its output."""
    if isinstance(module, BasicBlock):
        return [("conv1", "bn1"), ("conv2", "bn2")]
    if isinstance(module, ResNet3DBackbone):
        return [("conv1", "bn1")]
    if isinstance(module, nn.Sequential):
        children = list(module.named_children())
        return [
            (name, after_name)
            for (name, child), (after_name, after) in pairwise(children)
            if isinstance(child, nn.Conv3d) and isinstance(after, nn.BatchNorm3d)
        ]
    return []


def _folded_conv(conv: nn.Module, norm: nn.Module) -> nn.Conv3d:
    assert isinstance(conv, nn.Conv3d) and isinstance(norm, nn.BatchNorm3d)
    assert norm.running_mean is not None and norm.running_var is not None
    weight, bias = fuse_conv_bn_weights(
        conv.weight.detach().double(),
        None if conv.bias is None else conv.bias.detach().double(),
        norm.running_mean.double(),
        norm.running_var.double(),
        norm.eps,
        norm.weight.detach().double(),
        norm.bias.detach().double(),
    )
    return convolution_like(conv, weight.to(conv.weight.dtype), bias.to(conv.weight.dtype))
