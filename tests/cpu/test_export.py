"""The exported graph is the network, at every size, with nothing frozen and nothing dead in it."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from lhanet_export.conventions import AMOS_LABELS
from lhanet_export.errors import RefusedInput
from lhanet_export.export import artifact as artifact_module
from lhanet_export.export.artifact import METADATA_KEY, OnnxArtifact, external_data_of, read_onnx
from lhanet_export.export.onnx_from_network import ExportOptions, onnx_from_network
from lhanet_export.files import sidecar_of
from lhanet_export.inference.network import InferenceNetwork
from lhanet_export.inference.rewrites.names import REWRITES
from lhanet_export.inference.target import HEADS, OUTPUTS, Target
from lhanet_export.model import pmsa
from lhanet_export.model.network import LHANet
from lhanet_export.model.rule import rule_image, rule_network
from lhanet_export.runners.eager import EagerRunner
from lhanet_export.runners.onnxruntime_ import OnnxRuntimeRunner
from lhanet_export.shapes import Shape, SpatialRange
from lhanet_export.verify.gate import TOLERANCES, reference_for, verify
from lhanet_export.verify.inputs import cases_for
from tests.cpu.conftest import CHECKPOINT

SIZES: list[Shape] = [
    (48, 96, 96), (64, 64, 64), (64, 80, 64), (65, 72, 81), (33, 50, 71), (32, 32, 32), (32, 48, 48), (47, 33, 40),
    (34, 65, 130), (96, 32, 64), (37, 41, 43), (128, 48, 33), (256, 32, 32), (32, 32, 256), (63, 127, 65),
]  # fmt: skip


def relative_l2(candidate: np.ndarray, reference: np.ndarray) -> float:
    return float(np.linalg.norm((candidate - reference).astype(np.float64)) / np.linalg.norm(reference))


def test_one_graph_serves_every_size(narrow_network: LHANet, narrow_onnx: OnnxArtifact) -> None:
    eager = EagerRunner(narrow_network)
    with OnnxRuntimeRunner(narrow_onnx) as runner:
        errors = {
            size: relative_l2(runner.infer(rule_image(size, 3)), eager.infer(rule_image(size, 3))) for size in SIZES
        }
    assert max(errors.values()) <= 1e-5, errors


@pytest.mark.parametrize("preset", ["standard", "high_capacity"])
def test_resnet_graphs_serve_every_size_they_can(preset: str, tmp_path: Path) -> None:
    network = rule_network(preset, base_channels=8, num_classes=5, seed=6)
    eager = EagerRunner(network)
    with OnnxRuntimeRunner(onnx_from_network(network, CHECKPOINT, tmp_path / "graph.onnx")) as runner:
        for size in ((33, 33, 33), (48, 96, 96), (97, 130, 141), (64, 96, 64)):
            assert relative_l2(runner.infer(rule_image(size, 3)), eager.infer(rule_image(size, 3))) <= 1e-5, size


def test_a_resize_by_size_in_place_of_scale_would_show(
    narrow_network: LHANet, narrow_onnx: OnnxArtifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The comparison above can fail: with the other reading of the scale it does, at the public patch."""
    image = rule_image((48, 96, 96), 3)
    with OnnxRuntimeRunner(narrow_onnx) as runner:
        exported = runner.infer(image)
    monkeypatch.setattr(
        pmsa,
        "resize_by_scale",
        lambda x, scale, order: pmsa.resize_to_size(x, [int(side * scale) for side in x.shape[-3:]]),
    )
    assert relative_l2(exported, EagerRunner(narrow_network).infer(image)) > 1e-3


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("output", OUTPUTS)
def test_every_head_and_output_in_torch(narrow_network: LHANet, head: str, output: str) -> None:
    """The inference network against the eager one; the graph is traced from the former."""
    target = Target(head=head, output=output)
    image = rule_image((33, 40, 51), 3)
    expected = EagerRunner(narrow_network, target).infer(image)
    with torch.inference_mode():
        found = InferenceNetwork(narrow_network, target)(torch.from_numpy(image)).numpy()
    assert found.dtype == expected.dtype and found.shape == expected.shape
    if output == "labels":
        assert (found == expected).mean() >= 0.9999
    else:
        assert relative_l2(found, expected) <= 1e-5


@pytest.mark.parametrize(("head", "output"), [("deep0", "labels"), ("deep1", "coarse"), ("deep3", "probabilities")])
def test_heads_and_outputs_as_graphs(narrow_network: LHANet, head: str, output: str, tmp_path: Path) -> None:
    target = Target(head=head, output=output)
    options = ExportOptions(target=target)
    artifact = onnx_from_network(narrow_network, CHECKPOINT, tmp_path / "graph.onnx", options)
    with OnnxRuntimeRunner(artifact) as runner:
        for size in ((48, 64, 80), (33, 50, 71)):
            expected = EagerRunner(narrow_network, target).infer(rule_image(size, 3))
            found = runner.infer(rule_image(size, 3))
            assert found.dtype == expected.dtype and found.shape == expected.shape
            if output == "labels":
                assert (found == expected).mean() >= 0.9999
            else:
                assert relative_l2(found, expected) <= 1e-5


def test_a_deep_head_holds_only_its_own_levels(narrow_network: LHANet) -> None:
    sizes = [
        sum(weight.numel() for weight in InferenceNetwork(narrow_network, Target(head=head)).parameters())
        for head in ("deep0", "deep1", "deep2", "deep3", "final")
    ]
    assert sizes == sorted(sizes) and sizes[0] < sizes[-1] / 40


@pytest.mark.parametrize(("preset", "live"), [("lightweight", 294_599_130), ("standard", 313_651_930)])
def test_full_width_holds_the_live_network_only(preset: str, live: int) -> None:
    """Counted without weights; folding adds a bias to ResNet's convolutions and takes the batch norms' numbers."""
    with torch.device("meta"):
        network = LHANet.from_preset(preset).eval()
        plain = InferenceNetwork(network, Target(), without=tuple(REWRITES))
        rewritten = InferenceNetwork(network, Target())
    assert live * 0.999 < _parameters(plain) < live
    # What short convolutions and stacked fusions add.
    assert _parameters(rewritten) < live * 1.025


def _parameters(network: InferenceNetwork) -> int:
    return sum(weight.numel() for weight in network.parameters())


def test_batch_norms_are_gone(narrow_onnx: OnnxArtifact) -> None:
    proto = onnx.load(narrow_onnx.path)
    assert "BatchNormalization" not in {node.op_type for node in proto.graph.node}
    assert "Resize" not in {node.op_type for node in proto.graph.node}


def test_names_and_metadata(narrow_onnx: OnnxArtifact) -> None:
    proto = onnx.load(narrow_onnx.path)
    (image,), (logits,) = proto.graph.input, proto.graph.output

    def axes(value: onnx.ValueInfoProto) -> list[str | int]:
        return [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim]

    assert image.name == "image" and axes(image) == [1, 1, "D", "H", "W"]
    assert logits.name == "logits" and axes(logits) == [1, 5, "D", "H", "W"]
    facts = json.loads({entry.key: entry.value for entry in proto.metadata_props}[METADATA_KEY])
    assert facts["labels"] == ["background", "class 1", "class 2", "class 3", "class 4"]
    assert facts["preprocessing"]["spacing_mm"] == [1.5, 1.5, 1.5]
    assert facts["checkpoint"] == CHECKPOINT
    assert narrow_onnx.opset == 18 and proto.ir_version == 10


def test_amos_checkpoints_get_their_organs() -> None:
    from lhanet_export.conventions import default_labels

    assert default_labels(16) == AMOS_LABELS and len(AMOS_LABELS) == 16


def test_checkers_accept_the_file(narrow_onnx: OnnxArtifact, narrow_fp16: OnnxArtifact) -> None:
    for artifact in (narrow_onnx, narrow_fp16):
        onnx.checker.check_model(str(artifact.path), full_check=True)
        script = Path(sys.executable).with_name("polygraphy")
        done = subprocess.run([script, "inspect", "model", artifact.path], capture_output=True, text=True)
        assert done.returncode == 0 and "image" in done.stdout, done.stderr


def test_dynamic_batch(narrow_network: LHANet, tmp_path: Path) -> None:
    artifact = onnx_from_network(narrow_network, CHECKPOINT, tmp_path / "batch.onnx", ExportOptions(batch=None))
    reference = reference_for(EagerRunner(narrow_network), cases_for([(33, 40, 51)], batch=None))
    assert verify(OnnxRuntimeRunner(artifact), reference, TOLERANCES["fp32"]).passed
    pair = rule_image((33, 40, 51), 3, batch=2)
    with OnnxRuntimeRunner(artifact) as runner:
        together = runner.infer(pair)
        for index in range(2):
            assert relative_l2(together[index : index + 1], runner.infer(pair[index : index + 1])) <= 1e-5


def test_too_small_sizes_are_refused(narrow_network: LHANet, narrow_onnx: OnnxArtifact, tmp_path: Path) -> None:
    options = ExportOptions(spatial=SpatialRange((16, 64, 64), (64, 64, 64), (64, 64, 64)))
    with pytest.raises(RefusedInput, match="17x17x17"):
        onnx_from_network(narrow_network, CHECKPOINT, tmp_path / "small.onnx", options)
    assert not list(tmp_path.iterdir())
    with OnnxRuntimeRunner(narrow_onnx) as runner, pytest.raises(RefusedInput, match="16x64x64"):
        runner.infer(rule_image((16, 64, 64), 3))


def test_large_weights_get_a_file_of_their_own(
    narrow_network: LHANet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "graph.onnx"
    monkeypatch.setattr(artifact_module, "INLINE_LIMIT_BYTES", 1 << 20)
    external = onnx_from_network(narrow_network, CHECKPOINT, path)
    assert external.files == (path, external_data_of(path))
    assert read_onnx(path) == external
    image = rule_image((33, 40, 51), 3)
    with OnnxRuntimeRunner(external) as runner:
        assert relative_l2(runner.infer(image), EagerRunner(narrow_network).infer(image)) <= 1e-5

    monkeypatch.setattr(artifact_module, "INLINE_LIMIT_BYTES", 1 << 30)
    inline = onnx_from_network(narrow_network, CHECKPOINT, path)
    assert inline.files == (path,) and read_onnx(path) == inline


@pytest.fixture
def external_copy(narrow_network: LHANet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(artifact_module, "INLINE_LIMIT_BYTES", 1 << 20)
    return onnx_from_network(narrow_network, CHECKPOINT, tmp_path / "graph.onnx").path


def test_changed_files_are_refused(external_copy: Path) -> None:
    weights = external_data_of(external_copy)
    raw = bytearray(weights.read_bytes())
    raw[len(raw) // 2] ^= 1
    weights.write_bytes(raw)
    with pytest.raises(RefusedInput, match=r"graph\.onnx\.data is not the file"):
        read_onnx(external_copy)
    weights.unlink()
    with pytest.raises(RefusedInput, match="missing"):
        read_onnx(external_copy)


def test_a_graph_without_sidecar_is_taken_with_a_warning(external_copy: Path, caplog: pytest.LogCaptureFixture) -> None:
    sidecar_of(external_copy).unlink()
    assert read_onnx(external_copy).facts["head"] == "final"
    assert "cannot be checked" in caplog.text


def test_weights_elsewhere_are_refused(external_copy: Path) -> None:
    renamed = external_copy.rename(external_copy.with_name("other.onnx"))
    with pytest.raises(RefusedInput, match=r"expected other\.onnx\.data"):
        read_onnx(renamed)
    renamed.rename(external_copy)
    weights = external_data_of(external_copy)
    weights.rename(weights.with_name("elsewhere"))
    weights.symlink_to("elsewhere")
    with pytest.raises(RefusedInput, match="regular file"):
        read_onnx(external_copy)


@pytest.mark.parametrize("content", [b"", b"not a graph", b"\x08\x0a" * 100])
def test_foreign_files_are_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "foreign.onnx"
    path.write_bytes(content)
    with pytest.raises(RefusedInput, match=r"foreign\.onnx"):
        read_onnx(path)
    with pytest.raises(RefusedInput, match="there is no file"):
        read_onnx(tmp_path / "missing.onnx")


def test_foreign_operators_are_refused(narrow_onnx: OnnxArtifact, tmp_path: Path) -> None:
    proto = onnx.load(narrow_onnx.path)
    proto.graph.node[0].op_type = "Einsum"
    path = tmp_path / "strange.onnx"
    onnx.save(proto, path)
    with pytest.raises(RefusedInput, match="Einsum"):
        read_onnx(path)


def test_facts_survive_the_way_through_the_file(narrow_onnx: OnnxArtifact) -> None:
    assert read_onnx(narrow_onnx.path) == narrow_onnx
