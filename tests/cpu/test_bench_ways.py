"""The ways in which PyTorch runs the network for a benchmark."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from lhanet_export.bench import torch_ways
from lhanet_export.bench.candidates import Candidate, TorchKind
from lhanet_export.bench.torch_ways import TorchWay
from lhanet_export.cli.main import run
from lhanet_export.engine.gpu import find_gpus
from lhanet_export.errors import EnvironmentLacks
from lhanet_export.model.checkpoint import load_checkpoint
from lhanet_export.verify.inputs import RuleCase


@pytest.mark.parametrize("kind", ["eager", "tf32", "autocast-bf16", "channels-last-fp16", "ours"])
def test_each_way_of_pytorch_computes_the_network(kind: TorchKind, narrow_checkpoint: Path) -> None:
    """On a CPU, which takes its time for FP16; `torch.compile` takes a compiler and minutes there."""
    first, other = (RuleCase(shape=(24, 24, 24), kind="bodies", seed=seed).image for seed in range(2))
    reference = load_checkpoint(narrow_checkpoint).eval()
    with torch.inference_mode():
        expected = reference(torch.from_numpy(other)).numpy()
    way = TorchWay(Candidate(name="", precision="", kind=kind), narrow_checkpoint, first, "cpu")
    try:
        logits = way.infer(other)
        assert logits.dtype == np.float32
        error = np.linalg.norm(logits - expected) / np.linalg.norm(expected)
        assert error == 0 if kind in ("eager", "tf32") else 1e-5 < error < 0.05
        assert way.seconds() > 0 and way.copy_seconds() is None and way.allocator_bytes() is None
    finally:
        way.close()
    assert not torch.is_autocast_enabled("cpu")


def test_autocast_is_held_open_and_brings_weights_to_their_type_once() -> None:
    """As over the windows of a scan."""
    layer = torch.nn.Conv3d(1, 2, 3)
    image = torch.randn(1, 1, 6, 6, 6)
    with ExitStack() as stack:
        forward = torch_ways._WAYS["autocast-bf16"](layer, image, stack)  # type: ignore[arg-type]
        casts = []
        for _ in range(2):
            with torch.inference_mode(), _Casts() as watch:
                assert forward(image).dtype is torch.bfloat16
            casts.append(watch.shapes.count(layer.weight.shape))
    assert casts == [1, 0]
    assert layer(image).dtype is torch.float32


class _Casts(TorchDispatchMode):
    """Shapes of the tensors that are brought to another type."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[torch.Size] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if str(func) == "aten._to_copy.default":
            self.shapes.append(args[0].shape)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("kind", "mode"), [("compiled-fp16", "default"), ("graphed-fp16", "reduce-overhead")])
def test_what_is_compiled_has_run_before_it_is_timed(
    kind: TorchKind, mode: str, narrow_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The compiler itself takes minutes on a CPU; what it is given, and how often that runs, is seen without it."""
    runs: list[torch.Tensor] = []

    def compiled(forward: Any, **given: Any) -> Any:
        assert given == {"dynamic": False, "mode": mode}
        assert forward(torch.zeros(1, 1, 24, 24, 24)).dtype is torch.float16
        return lambda x: runs.append(x) or torch.zeros(1)

    monkeypatch.setattr(torch, "compile", compiled)
    image = np.zeros((1, 1, 24, 24, 24), np.float32)
    way = TorchWay(Candidate(name="", precision="", kind=kind), narrow_checkpoint, image, "cpu")
    assert len(runs) == 3
    way.seconds()
    assert len(runs) == 4


def test_without_a_cuda_build_the_reference_says_what_helps(narrow_checkpoint: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("PyTorch can use the GPU here")
    with pytest.raises(EnvironmentLacks, match=r"install a CUDA build of it.*--device cpu"):
        TorchWay(Candidate(name="", precision="", kind="eager"), narrow_checkpoint, np.zeros(1), "cuda")
    if not find_gpus():
        assert run(["bench", "--checkpoint", str(narrow_checkpoint), "--device", "cuda"]) == 3
