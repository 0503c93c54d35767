"""Eager PyTorch: the reference. Runs the whole network as trained, with batch norms unfolded."""

import numpy as np
import torch
from torch import Tensor

from lhanet_export.inference.target import Target
from lhanet_export.model.network import LHANet
from lhanet_export.model.resize import resize_to_size
from lhanet_export.runners.base import HostRunner


class EagerRunner(HostRunner):
    """Gives what `target` names, computed by `LHANet` itself on the device of its weights."""

    def __init__(self, network: LHANet, target: Target | None = None) -> None:
        self._network = network.eval()
        self._target = target or Target()
        self.name = f"eager {next(network.parameters()).device.type}"

    def infer(self, image: np.ndarray) -> np.ndarray:
        """The output for a volume (N,1,D,H,W) float32."""
        device = next(self._network.parameters()).device
        with torch.inference_mode():
            return self._output(torch.from_numpy(image).to(device)).cpu().numpy()

    def _output(self, image: Tensor) -> Tensor:
        network, size = self._network, image.shape[-3:]
        if self._target.head == "final" and self._target.output != "coarse":
            logits = network(image)
        else:
            coarse = self._coarse(network(image, return_features=True)["pmsa_features"])
            if self._target.output == "coarse":
                return coarse
            logits = resize_to_size(coarse, size)
        if self._target.output == "labels":
            return logits.argmax(1).to(torch.uint8)
        return logits.softmax(1) if self._target.output == "probabilities" else logits

    def _coarse(self, features: list[Tensor]) -> Tensor:
        if self._target.head == "final":
            return self._network.decoder.final_classifier(self._network.decoder.fuse(features)[-1])
        level = self._target.levels - 1
        return self._network.deep_supervision_heads[level](features[level])
