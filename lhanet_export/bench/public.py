"""The network as the public implementation runs it, with PyTorch's own resize: what others run and export.

On a GPU that resize has the meaning that networks are trained with. On a CPU it means something else at some sizes
(`model.resize` says which), so there the reference does without it.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

from torch import Tensor
from torch.nn import functional

from lhanet_export.model import decoder, network, pmsa


def use_torchs_resize() -> None:
    """From now on, and for good, LHA-Net in this process resizes by `torch.nn.functional.interpolate`.

    For processes of a benchmark alone, which have one network and end with it. `InferenceNetwork` stays as it is only
    where it was made before.
    """
    for module in (pmsa, decoder, network):
        for name, function in (("resize_by_scale", _by_scale), ("resize_to_size", _to_size)):
            if hasattr(module, name):
                setattr(module, name, function)


def _by_scale(x: Tensor, scale: Fraction, order: Sequence[int] = ()) -> Tensor:
    return functional.interpolate(x, scale_factor=float(scale), mode="trilinear", align_corners=False)


def _to_size(x: Tensor, size: Sequence[int], axes: Sequence[int] = ()) -> Tensor:
    return functional.interpolate(x, size=list(size), mode="trilinear", align_corners=False)
