"""What a graph computes and moves: counted by hand, by PyTorch's own counter, and against the measured facts."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch.utils.flop_counter import FlopCounterMode

from lhanet_export.cli.main import run
from lhanet_export.errors import RefusedInput
from lhanet_export.export import work as work_module
from lhanet_export.export.artifact import KNOWN_OPERATORS, OnnxArtifact
from lhanet_export.export.onnx_from_network import ExportOptions, onnx_from_network
from lhanet_export.export.work import (
    BRANCHES,
    FUSION,
    OTHER,
    PIECES,
    Amount,
    Place,
    Work,
    place_of,
    read_graph,
    work_of,
)
from lhanet_export.inference.as_trained import multiply_adds_as_trained
from lhanet_export.inference.network import InferenceNetwork
from lhanet_export.inference.target import Target
from lhanet_export.model.network import LHANet
from lhanet_export.model.rule import rule_network
from lhanet_export.shapes import SpatialRange
from tests.cpu.conftest import CHECKPOINT

ODD = (33, 50, 71)
STANDARD = {**CHECKPOINT, "preset": "standard"}


@pytest.fixture(scope="module")
def narrow_labels_onnx(tmp_path_factory: pytest.TempPathFactory) -> OnnxArtifact:
    """The narrow standard network as a graph of labels, for any batch, of small volumes only."""
    options = ExportOptions(
        target=Target(output="labels"), batch=None, spatial=SpatialRange((33, 33, 33), (48, 64, 64), (48, 96, 96))
    )
    path = tmp_path_factory.mktemp("standard") / "labels.onnx"
    return onnx_from_network(rule_network("standard", base_channels=8, num_classes=5), STANDARD, path, options)


def weightless(preset: str) -> LHANet:
    """A narrow network that has sizes, but no numbers."""
    with torch.device("meta"):
        return LHANet.from_preset(preset, base_channels=8, num_classes=5).eval()


def counted_by_torch(network: Callable[[torch.Tensor], torch.Tensor], batch: int = 1) -> FlopCounterMode:
    """PyTorch's own count of what runs for an odd volume; one multiply-add is two operations there."""
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        network(torch.zeros(batch, 1, *ODD, device="meta"))
    return counter


def convolutions_of(counter: FlopCounterMode) -> int:
    return counter.get_flop_counts()["Global"][torch.ops.aten.convolution] // 2


def places_besides_the_known(work: Work) -> list[Place]:
    return [place for place in work.amounts if OTHER in (place.part, place.branch, place.piece)]


# The count


def tiny_graph(opset: int = 18, *, batch: int | str = "N") -> ir.Model:
    """Convolutions, a matrix product with a matrix made from a shape, and a node of no known module."""
    weights = {
        "stem": np.zeros((4, 1, 3, 3, 3), np.float32),
        "organ": np.zeros((4, 2, 1, 1, 1), np.float32),
        "bias": np.zeros(4, np.float32),
        "zero": np.int64(0),
        "one": np.int64(1),
        "rows": np.array([0, -1], np.int64),
        "none": np.zeros(0, np.int64),
        "last": np.array([1], np.int64),
        "scale": np.float32(2),
    }
    nodes = [
        ("Conv", ["image", "stem"], "a", "/backbone/conv/Conv", {"strides": [2] * 3, "pads": [1] * 6}),
        ("Conv", ["a", "organ", "bias"], "b", "/pmsa.0/scale_attentions.4/organ_conv/Conv", {"group": 2}),
        ("Shape", ["b"], "width", "/Shape", {"start": 4}),
        ("Concat", ["rows", "width"], "sides", "/Concat", {"axis": 0}),
        ("Reshape", ["b", "sides"], "flat", "/Reshape", {}),
        ("Reshape", ["width", "none"], "side", "/Reshape_1", {}),
        ("Range", ["zero", "side", "one"], "range", "/Range", {}),
        ("Cast", ["range"], "column", "/Cast", {"to": TensorProto.FLOAT}),
        ("Mul", ["column", "scale"], "scaled", "/Mul", {}),
        ("Unsqueeze", ["scaled", "last"], "matrix", "/Unsqueeze", {}),
        ("MatMul", ["flat", "matrix"], "c", "/MatMul", {}),
        ("Cast", ["c"], "half", "/added_later/Cast", {"to": TensorProto.FLOAT16}),
    ]
    graph = helper.make_graph(
        [helper.make_node(op, reads, [write], name, **attributes) for op, reads, write, name, attributes in nodes],
        "tiny",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [batch, 1, "D", "H", "W"])],
        [helper.make_tensor_value_info("half", TensorProto.FLOAT16, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()],
    )
    return ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)]))


@pytest.mark.parametrize("opset", [18, 20])
def test_a_tiny_graph_counted_by_hand(opset: int) -> None:
    """The image has 4 * 6 * 8 = 192 voxels; both convolutions give 4 channels of 2 * 3 * 4 voxels, 96 values."""
    work = work_of(tiny_graph(opset), (4, 6, 8))
    assert work.amounts == {
        Place(part="backbone"): Amount(
            multiply_adds=96 * 27, moved_bytes=4 * (192 + 96), weight_bytes=4 * 4 * 27
        ),
        Place(part="level 0", branch="1.5x", piece="organ convolution"): Amount(
            multiply_adds=96 * 2, moved_bytes=4 * (96 + 96), weight_bytes=4 * (8 + 4)
        ),
        # (1,24,4) times (4,1): reads both, of which the matrix was made from a shape. The reshape moves nothing.
        Place(part="across levels", branch="resizes, output"): Amount(
            multiply_adds=24 * 4, moved_bytes=4 * (96 + 4 + 24), weight_bytes=4
        ),
        Place(part=OTHER): Amount(moved_bytes=24 * 4 + 24 * 2),
    }  # fmt: skip
    assert list(work.amounts)[-1] == Place(part=OTHER)
    assert work.total() == Amount(multiply_adds=2880, moved_bytes=2560, weight_bytes=484)
    assert work.total("level 0", "1.5x") == work.total(piece="organ convolution")


def test_a_graph_for_several_volumes_is_counted_for_them() -> None:
    one, two = (work_of(tiny_graph(batch=batch), (4, 6, 8)) for batch in (1, 2))
    assert (one.batch, two.batch) == (1, 2)
    assert two.total().multiply_adds == 2 * one.total().multiply_adds


@pytest.mark.parametrize("shape", [(3, 5, 7), (4, 6, 8)])
def test_graphs_of_another_kind_are_refused(shape: tuple[int, int, int]) -> None:
    strange, two_inputs, static = tiny_graph(), tiny_graph(), tiny_graph()
    strange.graph[0].op_type = "ConvTranspose"
    two_inputs.graph.inputs.append(ir.Value(name="second", shape=ir.Shape([1]), type=ir.TensorType(ir.DataType.FLOAT)))
    static.graph.inputs[0].shape = ir.Shape(["N", 1, 8, 8, 8])
    for model, words in ((strange, "ConvTranspose"), (two_inputs, "one input"), (static, "does not take volumes")):
        with pytest.raises(RefusedInput, match=words):
            work_of(model, shape)


def test_every_known_operator_with_products_is_counted() -> None:
    """An operator that multiplies matrices and is counted as nothing would make a graph look cheap."""
    products = {"Conv", "ConvInteger", "ConvTranspose", "DFT", "Einsum", "Gemm", "GRU", "LSTM", "MatMul"}
    assert products & KNOWN_OPERATORS == {"Conv", "MatMul"}


# Graphs of the network


def test_the_narrow_graph_is_counted_as_torch_counts_it(narrow_onnx: OnnxArtifact) -> None:
    work = work_of(narrow_onnx.path, ODD)
    counter = counted_by_torch(InferenceNetwork(weightless("lightweight"), Target()))
    assert 2 * work.total().multiply_adds == counter.get_total_flops()
    assert places_besides_the_known(work) == []
    assert {place.branch for place in work.amounts if place.part == "level 3"} == {*BRANCHES, FUSION}
    assert {place.piece for place in work.amounts if place.branch == "1.5x"} == set(PIECES)
    stored = [
        tensor for tensor in onnx.load(narrow_onnx.path).graph.initializer if tensor.data_type == TensorProto.FLOAT
    ]
    assert work.total().weight_bytes == sum(4 * math.prod(tensor.dims) for tensor in stored)


def test_the_narrow_standard_graph_of_labels(narrow_labels_onnx: OnnxArtifact) -> None:
    work = work_of(narrow_labels_onnx.path, ODD)
    counter = counted_by_torch(InferenceNetwork(weightless("standard"), Target(output="labels")))
    assert 2 * work.total().multiply_adds == counter.get_total_flops()
    assert work.batch == 1
    assert places_besides_the_known(work) == []


def test_an_fp16_graph_moves_about_half(narrow_onnx: OnnxArtifact, narrow_fp16: OnnxArtifact) -> None:
    whole, half = (work_of(artifact.path, ODD) for artifact in (narrow_onnx, narrow_fp16))
    assert half.total().multiply_adds == whole.total().multiply_adds
    assert half.total("level 0", "1.5x", "organ convolution").moved_bytes * 2 == (
        whole.total("level 0", "1.5x", "organ convolution").moved_bytes
    )
    assert half.total().weight_bytes == pytest.approx(whole.total().weight_bytes / 2, rel=0.01)
    assert places_besides_the_known(half) == []


def test_no_weight_is_read(narrow_onnx: OnnxArtifact, tmp_path: Path) -> None:
    external = tmp_path / "external.onnx"
    onnx.save_model(onnx.load(narrow_onnx.path), external, save_as_external_data=True, location="external.onnx.data")
    (tmp_path / "external.onnx.data").unlink()
    assert work_of(external, ODD) == work_of(narrow_onnx.path, ODD)


@pytest.mark.parametrize(
    ("name", "part", "branch", "piece"),
    [
        ("/backbone/layer1/layer1.0/conv1/Conv", "backbone", "", ""),
        ("/pmsa.2/scale_attentions.4/organ_conv/Conv", "level 2", "1.5x", "organ convolution"),
        ("/pmsa.2/scale_attentions.4/organ_conv/lines/MatMul_7", "level 2", "1.5x", "organ convolution"),
        ("/pmsa.0/scale_attentions.0/context_conv/context_conv.0/Conv", "level 0", "0.5x", "context convolution"),
        ("/pmsa.0/scale_attentions.1/spatial_attention/fc/fc.0_1/Conv", "level 0", "0.75x", "attention"),
        ("/pmsa.0/scale_attentions.1/channel_attention/ReduceMean", "level 0", "0.75x", "attention"),
        ("/pmsa.0/scale_attentions.3/Mul_7", "level 0", "1.25x", "attention"),
        ("/pmsa.0/scale_attentions.3/MatMul", "level 0", "1.25x", "resizes"),
        ("/pmsa.0/scale_attentions.3/Reshape_1_output_0/to_half", "level 0", "1.25x", "resizes"),
        ("/pmsa.0/scale_attentions.3/Conv", "level 0", "1.25x", OTHER),
        ("/pmsa.0/scale_attentions.3/unheard_of/Conv", "level 0", "1.25x", OTHER),
        ("/pmsa.0/scale_attentions.5/organ_conv/Conv", "level 0", OTHER, ""),
        ("/pmsa.3/progressive_fusion.0/progressive_fusion.0.0/Conv", "level 3", FUSION, ""),
        ("/pmsa.3/Concat", "level 3", FUSION, ""),
        ("/pmsa.3/unheard_of/Conv", "level 3", OTHER, ""),
        ("/cross_scale_fusion.1/cross_scale_fusion.1.0/Conv", "across levels", "hierarchy", ""),
        ("/feature_fusion.1/feature_fusion.1.0/Conv", "across levels", "decoder", ""),
        ("/classifier/Conv", "across levels", "classifier", ""),
        ("/MatMul_2", "across levels", "resizes, output", ""),
        ("logits/output", "across levels", "resizes, output", ""),
        ("/unheard_of/Conv", OTHER, "", ""),
        ("", OTHER, "", ""),
    ],
)
def test_places(name: str, part: str, branch: str, piece: str) -> None:
    assert place_of(name) == Place(part=part, branch=branch, piece=piece)


# The network as trained


@pytest.mark.parametrize("preset", ["lightweight", "standard"])
def test_as_trained_is_what_torch_counts_without_the_resizes(preset: str) -> None:
    counted = convolutions_of(counted_by_torch(weightless(preset)))
    assert multiply_adds_as_trained(preset, ODD, base_channels=8, num_classes=5) == counted


def test_as_trained_counts_what_a_deep_head_reads() -> None:
    """The finest head reads the backbone's first steps and the finest level."""
    network = weightless("lightweight")

    def finest(image: torch.Tensor) -> torch.Tensor:
        feature = network.backbone.encoder_blocks[0](network.backbone.initial_conv(image))
        return network.deep_supervision_heads[0](network.hierarchical_pmsa.pmsa_modules["level_0"](feature))

    counted = convolutions_of(counted_by_torch(finest, batch=2))
    found = multiply_adds_as_trained("lightweight", ODD, base_channels=8, num_classes=5, head="deep0", batch=2)
    assert found == counted


def test_as_trained_at_full_width_is_the_figure_that_was_measured() -> None:
    """1.8 T, of which C^2 * voxels * 1,727 in the branches of each level."""
    counted = multiply_adds_as_trained("lightweight", (64, 128, 128), base_channels=32, num_classes=14)
    assert counted == pytest.approx(1.8e12, rel=0.002)
    levels = [(64 * 2**level) ** 2 * (32 * 64 * 64 // 8**level) * 1727 for level in range(4)]
    assert 0.96 < sum(levels) / counted < 0.97


# The command


def test_the_command_shows_every_level_and_the_comparison(
    narrow_onnx: OnnxArtifact, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    report = tmp_path / "work.json"
    command = ["work", str(narrow_onnx.path), "--shape", "64x128x128", "--shape", "33x50x71", "--json", str(report)]
    assert run(command) == 0
    said = capsys.readouterr().out
    assert max(map(len, said.splitlines())) <= 80
    for words in ("level 3", "1.25x", FUSION, "together", "the network as trained", "saved", "33x50x71"):
        assert words in said
    facts = json.loads(report.read_text())
    large, odd = facts["sizes"]
    assert (large["shape"], odd["shape"]) == ([64, 128, 128], [33, 50, 71])
    assert odd["together"] == work_of(narrow_onnx.path, ODD).total().as_json()
    assert sum(place["multiply_adds"] for place in odd["places"]) == odd["together"]["multiply_adds"]
    trained = multiply_adds_as_trained("lightweight", ODD, base_channels=8, num_classes=5)
    assert odd["multiply_adds_as_trained"] == trained
    assert odd["saved"] == pytest.approx(1 - odd["together"]["multiply_adds"] / trained)


def test_the_command_shows_what_it_cannot_place(
    narrow_onnx: OnnxArtifact, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(work_module._BRANCH_MODULES, "organ_conv")
    assert run(["work", str(narrow_onnx.path), "--shape", "33x50x71"]) == 0
    assert OTHER in capsys.readouterr().out.split()


def test_the_command_takes_the_size_that_a_graph_is_best_at(
    narrow_labels_onnx: OnnxArtifact, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["work", str(narrow_labels_onnx.path)]) == 0
    assert "labels.onnx at 48x64x64" in capsys.readouterr().out


def test_what_the_command_refuses(
    narrow_onnx: OnnxArtifact, narrow_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    foreign = tmp_path / "foreign.onnx"
    ir.save(tiny_graph(), foreign)
    for arguments, words in (
        ([str(narrow_onnx.path), "--shape", "16x64x64"], "outside the range"),
        ([str(narrow_checkpoint)], "not an ONNX file"),
        ([str(foreign)], "not an ONNX file of this toolkit"),
    ):
        assert run(["work", *arguments]) == 2
        assert words in capsys.readouterr().err


def test_facts_are_read_from_the_file(narrow_labels_onnx: OnnxArtifact) -> None:
    graph = read_graph(narrow_labels_onnx.path)
    assert (graph.preset, graph.base_channels, graph.num_classes, graph.head) == ("standard", 8, 5, "final")
    assert graph.spatial == narrow_labels_onnx.spatial
