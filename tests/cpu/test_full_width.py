"""The full-size network: what its engine needs on the card is the promise of this toolkit."""

from pathlib import Path

import pytest

from lhanet_export.engine.build import engine_from_onnx
from lhanet_export.engine.plan import plan_engine
from lhanet_export.engine.recipes import recipe_named
from lhanet_export.export.onnx_from_network import onnx_from_network
from lhanet_export.export.work import work_of
from lhanet_export.inference.as_trained import multiply_adds_as_trained
from lhanet_export.inference.network import InferenceNetwork
from lhanet_export.inference.rewrites.names import REWRITES
from lhanet_export.inference.target import Target
from lhanet_export.model.checkpoint import open_checkpoint
from lhanet_export.precision.convert import fp16_from_fp32
from lhanet_export.shapes import SpatialRange


@pytest.mark.full
def test_planned_memory_of_the_lightweight_engine(tmp_path: Path) -> None:
    """A plain export plans 2,395 MB for these sizes; eager FP32 takes 2,278 MB."""
    network, identity = open_checkpoint("preset:lightweight")
    live = InferenceNetwork(network, Target(), without=tuple(REWRITES))
    assert 294_000_000 < sum(weight.numel() for weight in live.parameters()) <= 295_000_000
    whole = onnx_from_network(network, identity.as_json(), tmp_path / "fp32.onnx")
    del network, live
    half, _ = fp16_from_fp32(whole, tmp_path / "fp16.onnx")
    spatial = SpatialRange((48, 64, 64), (64, 128, 128), (64, 128, 128))
    plan = plan_engine(half.path, half.as_json(), recipe=recipe_named("rtx3060"), spatial=spatial)
    (tmp_path / "build").mkdir()
    built = engine_from_onnx(plan, tmp_path / "build")
    assert built.compute_capabilities == ("8.6",)
    assert built.activation_bytes is not None and built.weights_bytes is not None
    assert built.activation_bytes + built.weights_bytes <= 850e6
    trained = multiply_adds_as_trained("lightweight", (64, 128, 128), base_channels=32, num_classes=14)
    assert work_of(half.path, (64, 128, 128)).total().multiply_adds <= 0.75 * trained
