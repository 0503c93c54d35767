"""Activation ranges: what the numbers in a graph are on data, and how near they come to the ends of FP16."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from lhanet_export.cli.ranges import ranges as ranges_command
from lhanet_export.errors import RefusedInput
from lhanet_export.export.artifact import OnnxArtifact
from lhanet_export.precision.convert import fp16_from_fp32
from lhanet_export.precision.ranges import (
    NodeRange,
    accumulation_error,
    activation_ranges,
    deepest,
    nearest_to_overflow,
    nearest_to_underflow,
)
from lhanet_export.runners.onnxruntime_library import load_onnxruntime
from lhanet_export.verify import volumes
from lhanet_export.verify.inputs import bodies
from lhanet_export.verify.volumes import ScanCase
from tests.cpu.chains import chain

IMAGES = [bodies((8, 9, 10), 1), 3 * bodies((5, 6, 7), 2)]


@pytest.fixture(scope="module")
def skewed(tmp_path_factory: pytest.TempPathFactory) -> OnnxArtifact:
    """Stage 1 scaled up and stage 4 scaled down, each undone by the next stage."""
    factors = {1: 3e5, 2: 1 / 3e5, 3: 1e-6, 4: 1e6}
    return chain(tmp_path_factory.mktemp("skewed") / "chain.onnx", factors=factors)


@pytest.fixture(scope="module")
def found(skewed: OnnxArtifact) -> tuple[NodeRange, ...]:
    return activation_ranges(skewed, IMAGES)


def _tensors(artifact: OnnxArtifact, image: np.ndarray) -> dict[str, np.ndarray]:
    """Every node's output, by the node's name: as graph outputs, without any probe."""
    model = ir.load(artifact.path)
    nodes = list(model.graph)
    for node in nodes:
        node.outputs[0].dtype = ir.DataType.FLOAT
    model.graph.outputs[:] = [node.outputs[0] for node in nodes]
    session = load_onnxruntime().InferenceSession(
        ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"]
    )
    values = session.run(None, {"image": image})
    return {str(node.name): value for node, value in zip(nodes, values, strict=True)}


def test_ranges_are_those_of_numpy(skewed: OnnxArtifact, found: tuple[NodeRange, ...]) -> None:
    volumes = [_tensors(skewed, image) for image in IMAGES]
    assert [node.name for node in found] == list(volumes[0])
    for node in found:
        values = np.concatenate([volume[node.name].ravel() for volume in volumes]).astype(np.float64)
        others = np.abs(values[values != 0])
        assert node.elements == values.size
        np.testing.assert_allclose(node.largest, np.abs(values).max(), rtol=1e-5)
        np.testing.assert_allclose(node.rms, np.sqrt((values**2).mean()), rtol=1e-4)
        assert node.subnormal == pytest.approx((others < 2.0**-14).mean(), abs=2e-3)
        assert node.vanishing == pytest.approx((others <= 2.0**-25).mean(), abs=2e-3)
        assert node.largest_in == 1 + int(np.argmax([np.abs(volume[node.name]).max() for volume in volumes]))
    # The second volume is the larger one, so it decides somewhere.
    assert {node.largest_in for node in found} == {2}


def test_layers_nearest_to_the_ends_come_first(found: tuple[NodeRange, ...]) -> None:
    worst = nearest_to_overflow(found, 2)
    assert worst[0].name == "/part.1/block/Conv" and worst[0].headroom < 1 < worst[1].headroom
    smallest = nearest_to_underflow(found, 2)
    assert smallest[0].name == "/part.3/block/Conv" and smallest[0].rms < 6.1e-5 < smallest[1].rms
    assert smallest[0].subnormal > 0.9 and smallest[1].subnormal < 0.1
    # A ReLU has the numbers of its convolution; one row says it.
    assert all(node.op_type == "Conv" for node in nearest_to_overflow(found, 100))


def test_depth_is_how_many_products_are_summed(found: tuple[NodeRange, ...]) -> None:
    depths = {node.name: node.depth for node in found}
    assert depths["/part.0/block/Conv"] == 27 and depths["/part.1/block/Conv"] == 6 * 27
    assert depths["/classifier/Conv"] == 6 and depths["/part.1/block/Relu"] is None
    assert [node.depth for node in deepest(found, 9)] == [162, 27, 6]
    assert found[0].multiply_adds == (8 * 9 * 10 + 5 * 6 * 7) * 6 * 27


def test_why_depth_matters() -> None:
    # A 7^3 kernel over 64 channels, added up one by one in FP16: numbers of NumPy's own half type.
    depth = 64 * 343
    likely, worst = accumulation_error(depth)
    assert likely == pytest.approx(0.0723, abs=1e-4) and worst == pytest.approx(10.72, abs=0.01)
    generator = np.random.default_rng(3)
    products = (generator.standard_normal((depth, 64)) * generator.standard_normal((depth, 64))).astype(np.float16)
    summed = np.zeros(64, np.float16)
    for row in products:
        summed += row
    exact = products.astype(np.float64).sum(0)
    error = np.linalg.norm(summed - exact) / np.linalg.norm(exact)
    assert likely / 10 < error < likely


def test_matrix_products_and_views(tmp_path: Path) -> None:
    artifact = chain(tmp_path / "chain.onnx")
    model = ir.load(artifact.path)
    last = model.graph.outputs[0]
    matrix = ir.Value(
        name="matrix", shape=ir.Shape([10, 4]), type=ir.TensorType(ir.DataType.FLOAT),
        const_value=ir.tensor(np.ones((10, 4), np.float32), name="matrix"),
    )  # fmt: skip
    model.graph.register_initializer(matrix)
    product = ir.node("MatMul", [last, matrix], name="/resize/MatMul")
    turned = ir.node("Transpose", [product.outputs[0]], attributes={"perm": [0, 1, 2, 4, 3]}, name="/resize/Transpose")
    for node, name in ((product, "product"), (turned, "turned")):
        node.outputs[0].name, node.outputs[0].dtype = name, ir.DataType.FLOAT
    model.graph.extend([product, turned])
    model.graph.outputs[0] = turned.outputs[0]
    ir.save(model, artifact.path)
    *_, one, other = activation_ranges(artifact, [IMAGES[0]])
    assert (one.name, one.depth, one.elements) == ("/resize/MatMul", 10, 3 * 8 * 9 * 4)
    assert other == replace(one, name="/resize/Transpose", op_type="Transpose", depth=None)
    assert other not in nearest_to_overflow([one, other], 2)


def test_ranges_need_data(skewed: OnnxArtifact, tmp_path: Path) -> None:
    with pytest.raises(RefusedInput, match="there are no volumes"):
        activation_ranges(skewed, [])
    with pytest.raises(RefusedInput, match=r"volume 2 is 0\.5 everywhere"):
        activation_ranges(skewed, [IMAGES[0], np.full((1, 1, 8, 8, 8), 0.5, np.float32)])
    with pytest.raises(RefusedInput, match="17x8x8 is outside the range"):
        activation_ranges(skewed, [bodies((17, 8, 8), 0)])
    with pytest.raises(RefusedInput, match="takes 1 volumes at a time, not 2"):
        activation_ranges(skewed, [np.concatenate([IMAGES[0], IMAGES[0]])])
    half, _ = fp16_from_fp32(chain(tmp_path / "chain.onnx"), tmp_path / "half.onnx")
    with pytest.raises(RefusedInput, match="is fp16; ranges are measured on the FP32 graph"):
        activation_ranges(half, IMAGES)
    infinite = chain(tmp_path / "infinite.onnx", factors={0: 1e30, 1: 1e30})
    with pytest.raises(RefusedInput, match=r"/part\.0/block/Conv leaves the range of FP32 already"):
        activation_ranges(infinite, IMAGES)


def test_the_command_lists_both_ends(
    skewed: OnnxArtifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def cases(data: Path | None, shape: tuple[int, int, int], count: int, **how: object) -> list[ScanCase]:
        return [ScanCase(kind=f"scan {index}", image=bodies(shape, index), truth=None) for index in range(count)]

    monkeypatch.setattr(volumes, "scan_cases", cases)
    facts = tmp_path / "ranges.json"
    arguments = [str(skewed.path), "--shape", "8x9x10", "--windows", "2", "--rows", "3", "--json", str(facts)]
    ranges_command.main(arguments, standalone_mode=False)
    said = capsys.readouterr().out
    assert said.index("Nearest to overflow") < said.index("/part.1/block/Conv") < said.index("Nearest to underflow")
    assert "What adds up in what" in said and "162" in said
    written = json.loads(facts.read_text(encoding="utf-8"))
    assert written["volumes"] == [{"shape": [8, 9, 10], "what": f"scan {index}"} for index in range(2)]
    assert len(written["nodes"]) == 13 and written["nodes"][0]["depth"] == 27
