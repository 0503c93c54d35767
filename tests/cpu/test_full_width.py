"""The full-size network: what its engine needs on the card is the promise of this toolkit."""

import math
from pathlib import Path

import onnx
import pytest

from lhanet_export.engine.build import engine_from_onnx
from lhanet_export.engine.plan import plan_engine
from lhanet_export.engine.recipes import recipe_named
from lhanet_export.export.onnx_from_network import onnx_from_network
from lhanet_export.model.checkpoint import open_checkpoint
from lhanet_export.precision.convert import fp16_from_fp32
from lhanet_export.shapes import SpatialRange


@pytest.mark.full
def test_planned_memory_of_the_lightweight_engine(tmp_path: Path) -> None:
    """A plain export plans 1,804 MB of activations for these sizes; eager FP32 takes 2,278 MB in all."""
    network, identity = open_checkpoint("preset:lightweight")
    whole = onnx_from_network(network, identity.as_json(), tmp_path / "fp32.onnx")
    del network
    weights = onnx.load(whole.path, load_external_data=False).graph.initializer
    parameters = sum(math.prod(one.dims) for one in weights)
    assert 294_000_000 < parameters <= 295_000_000
    half, _ = fp16_from_fp32(whole, tmp_path / "fp16.onnx")
    spatial = SpatialRange((48, 64, 64), (64, 128, 128), (64, 128, 128))
    plan = plan_engine(half.path, half.as_json(), recipe=recipe_named("rtx3060"), spatial=spatial)
    (tmp_path / "build").mkdir()
    built = engine_from_onnx(plan, tmp_path / "build")
    assert built.compute_capabilities == ("8.6",)
    assert built.activation_bytes is not None and built.activation_bytes <= 400e6
    assert built.weights_bytes is not None and built.weights_bytes <= 600e6
