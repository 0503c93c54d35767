"""`inspect` tells files by their content, and says when files that lie together do not belong together."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import safetensors.torch
import torch
from onnx import TensorProto, helper

from lhanet_export.cli.contents import contents_of, parameters_of
from lhanet_export.cli.main import run
from lhanet_export.conventions import Preprocessing
from lhanet_export.errors import RefusedInput
from lhanet_export.files import sidecar_of, write_json
from lhanet_export.model.network import LHANet


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    return LHANet.from_preset("lightweight", num_classes=5, base_channels=4).state_dict()


def write_graph(path: Path, *, external: str | None = None) -> None:
    """A small convolution with weights inside the file or in another one."""
    weights = np.ones((4, 1, 3, 3, 3), np.float32)
    tensor = helper.make_tensor("w", TensorProto.FLOAT, weights.shape, weights.tobytes(), raw=True)
    if external is not None:
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", external), ("offset", "0"), ("length", str(weights.nbytes))):
            tensor.external_data.add(key=key, value=value)
    graph = helper.make_graph(
        [helper.make_node("Conv", ["image", "w"], ["x"]), helper.make_node("Relu", ["x"], ["logits"])],
        "small",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 1, "D", "H", "W"])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT16, [1, 4, "D", "H", None])],
        [tensor],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10, producer_name="test")
    helper.set_model_props(
        model, {"lhanet_export": json.dumps({"head": "final", "batch": None}), "note": "\x1b[31mred"}
    )
    path.write_bytes(model.SerializeToString())


def manifest_for(raw: bytes) -> dict[str, Any]:
    size = {"min": [32, 32, 32], "opt": [64, 128, 128], "max": [96, 192, 192]}
    return {
        "schema": 1,
        "engine": {
            "sha256": hashlib.sha256(raw).hexdigest(), "bytes": len(raw), "backend": "tensorrt-rtx",
            "backend_version": "1.7.1.116", "compute_capabilities": ["8.6"], "precision": "fp16", "profiles": [size],
            "inputs": [{"name": "image", "dtype": "float32", "shape": [1, 1, -1, -1, -1]}],
            "outputs": [{"name": "logits", "dtype": "float32", "shape": [1, 5, -1, -1, -1]}],
            "device_memory": {"weights_bytes": 589_000_000, "activation_bytes": 378_000_000},
        },
        "onnx": {"sha256": "0" * 64, "opset": 18, "head": "final"},
        "checkpoint": {
            "sha256": "1" * 64, "preset": "lightweight", "num_classes": 2, "base_channels": 4, "epoch": None,
        },
        "labels": ["background", "spleen"],
        "preprocessing": Preprocessing().as_json(),
        "verification": {"passed": True},
        "build": {
            "seconds": 21.5, "peak_rss_bytes": 4_000_000_000, "lhanet_export": "0.1.0", "torch": "2.13.0",
            "onnx": "1.23.2", "python": "3.11.7", "platform": "Linux",
        },
    }  # fmt: skip


def inspected(path: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, dict[str, Any], str]:
    """Exit code, JSON facts, and everything that was said to a reader, on lines of any length."""
    code = run(["inspect", str(path), "--json", "-"])
    out, err = capsys.readouterr()
    return code, json.loads(out) if out else {}, " ".join(err.split())


# Checkpoints


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_training_checkpoint(
    dtype: torch.dtype, state: dict[str, torch.Tensor], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a checkpoint.engine"
    stored = {key: value.to(dtype) if value.is_floating_point() else value for key, value in state.items()}
    torch.save({"model_state_dict": stored, "epoch": 41, "best_dice": 0.8}, path)
    code, facts, text = inspected(path, capsys)
    assert code == 0
    assert facts["kind"] == "checkpoint"
    assert facts["checkpoint"]["preset"] == "lightweight"
    assert (facts["checkpoint"]["num_classes"], facts["checkpoint"]["base_channels"]) == (5, 4)
    assert facts["checkpoint"]["epoch"] == 41
    assert facts["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert facts["stored_types"] == [str(dtype).removeprefix("torch.")]
    assert f"total {facts['parameters']['total']:,}" in text
    assert "epoch 41" in text


def test_safetensors(state: dict[str, torch.Tensor], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "weights"
    safetensors.torch.save_file(state, path)
    code, facts, text = inspected(path, capsys)
    assert (code, facts["kind"], facts["stored_types"]) == (0, "checkpoint", ["float32"])
    assert "epoch not recorded" in text


@pytest.mark.parametrize(
    ("preset", "total", "backbone", "live"),
    [("lightweight", 311_237_575, 14_107_200, 294_599_130), ("standard", 330_290_375, 33_160_000, 313_651_930)],
)
def test_parameters_are_counted_as_in_the_report(preset: str, total: int, backbone: int, live: int) -> None:
    with torch.device("meta"):
        network = LHANet.from_preset(preset)
    counts = parameters_of(network.state_dict())
    assert counts["total"] == total == sum(parameter.numel() for parameter in network.parameters())
    assert (counts["backbone"], counts["pmsa"], counts["decoder"]) == (backbone, 279_965_964, 17_147_317)
    assert counts["live"] == live


# ONNX


def test_onnx(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "graph"
    write_graph(path)
    code, facts, text = inspected(path, capsys)
    assert (code, facts["kind"], facts["sidecar"]) == (0, "onnx", None)
    graph = facts["onnx"]
    assert (graph["opset"], graph["ir_version"]) == ({"ai.onnx": 18}, 10)
    assert graph["inputs"] == [{"name": "image", "dtype": "float32", "shape": [1, 1, "D", "H", "W"]}]
    assert graph["outputs"] == [{"name": "logits", "dtype": "float16", "shape": [1, 4, "D", "H", "?"]}]
    assert graph["nodes"] == {"Conv": 1, "Relu": 1}
    assert graph["weights_bytes"] == {"float32": 4 * 27 * 4}
    assert graph["metadata"]["lhanet_export"] == {"head": "final", "batch": None}
    assert "image float32 (1, 1, D, H, W)" in text
    assert "batch dynamic" in text
    assert r"\x1b[31mred" in text


@pytest.mark.parametrize("same", [True, False])
def test_onnx_with_sidecar(same: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "model.onnx"
    write_graph(path)
    recorded = hashlib.sha256(path.read_bytes()).hexdigest() if same else "0" * 64
    write_json(sidecar_of(path), {"sha256": recorded, "opset": 18, "schema": 1})
    code, facts, text = inspected(path, capsys)
    assert (code, facts["sha256_matches"]) == (0 if same else 2, same)
    assert ("is not the file that model.onnx.json describes" in text) is not same


def test_onnx_whose_weights_changed_or_are_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, data = tmp_path / "model.onnx", tmp_path / "model.onnx.data"
    write_graph(path, external=data.name)
    data.write_bytes(bytes(432))
    hashes = {
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "external_data": {"file": data.name, "sha256": hashlib.sha256(data.read_bytes()).hexdigest(), "bytes": 432},
    }
    write_json(sidecar_of(path), {**hashes, "opset": 18, "schema": 1})
    code, facts, _ = inspected(path, capsys)
    assert (code, facts["faults"]) == (0, [])
    assert facts["onnx"]["external_data"] == [{"file": data.name, "bytes": 432, "needed_bytes": 432}]

    data.write_bytes(b"\x01" + bytes(431))
    code, facts, _ = inspected(path, capsys)
    assert (code, facts["faults"]) == (2, ["model.onnx.data is not the file that model.onnx.json describes"])

    data.write_bytes(bytes(100))
    code, facts, _ = inspected(path, capsys)
    assert code == 2
    assert "weights cut off: model.onnx.data has 100 bytes, the graph reads 432" in facts["faults"]

    data.unlink()
    code, facts, _ = inspected(path, capsys)
    assert (code, facts["sha256_matches"]) == (2, False)
    assert any("weights missing" in fault for fault in facts["faults"])


@pytest.mark.parametrize("location", ["../secret", "/etc/passwd", "sub/weights", "..", r"..\secret", r"C:\secret"])
def test_weights_outside_of_the_folder_are_a_fault(location: str, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    write_graph(path, external=location)
    assert contents_of(path).faults == [f"weights outside of the graph's folder: {location}"]


def test_types_without_a_size_are_shown_by_name_or_number(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    write_graph(path)
    model = onnx.load_model(path)
    model.graph.initializer[0].data_type = 999
    model.graph.initializer.append(helper.make_tensor("s", TensorProto.STRING, [1], [b"text"]))
    model.graph.initializer.append(helper.make_tensor("q", TensorProto.INT4, [3], [1, 2, 3]))
    path.write_bytes(model.SerializeToString())
    assert contents_of(path).facts["onnx"]["weights_bytes"] == {"type 999": 0, "string": 0, "int4": 2}


# Engines and manifests


@pytest.mark.parametrize("magic", [b"ftrt", b"vtrt"])
def test_engine_with_manifest(magic: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "model.engine"
    path.write_bytes(magic + bytes(1000))
    write_json(sidecar_of(path), manifest_for(path.read_bytes()))
    code, facts, text = inspected(path, capsys)
    assert (code, facts["kind"], facts["sha256_matches"]) == (0, "engine", True)
    assert facts["manifest"] == manifest_for(path.read_bytes())
    assert "recorded sha256 matches" in text
    assert "min 32x32x32, opt 64x128x128, max 96x192x192" in text
    assert "weights 589 MB, activation 378 MB" in text
    code, facts, text = inspected(sidecar_of(path), capsys)
    assert (code, facts["kind"], facts["sha256_matches"]) == (0, "manifest", True)


def test_engine_that_was_changed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "model.engine"
    path.write_bytes(b"vtrt" + bytes(1000))
    write_json(sidecar_of(path), manifest_for(path.read_bytes()))
    path.write_bytes(b"vtrt" + bytes(999) + b"\x01")
    for file in (path, sidecar_of(path)):
        code, facts, text = inspected(file, capsys)
        assert (code, facts["sha256_matches"]) == (2, False)
        assert "does not match" in text
        assert "model.engine is not the file that model.engine.json describes" in text


def test_engine_without_manifest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "model.engine"
    path.write_bytes(b"vtrt" + bytes(1000))
    code, facts, text = inspected(path, capsys)
    assert (code, facts["manifest"]) == (2, None)
    assert "no manifest: model.engine.json should lie beside the engine" in text


def test_manifest_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "model.engine.json"
    write_json(path, manifest_for(b"elsewhere"))
    code, facts, text = inspected(path, capsys)
    assert (code, facts["kind"]) == (0, "manifest")
    assert "sha256_matches" not in facts
    assert "seconds 22 s" in text


# What is none of them


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"a text file\n",
        b"PK\x03\x04 cut off",
        b"\x80\x02}q\x00.",
        b"{",
        b'{"a": 1}',
        b"[1]",
        b'{"engine": {"sha256": "0"}, "schema": 1}',
        b'{"engine": {}, "schema": 2}',
        b'{"sha256": NaN, "opset": 18}',
        bytes(100),
        (50).to_bytes(8, "little") + b"{" + bytes(60),
        b"\x08\x0a",
        b"\x1f\x8b\x08" + bytes(50),
    ],
)
def test_other_files_are_refused(raw: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "file"
    path.write_bytes(raw)
    assert run(["inspect", str(path)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("lhanet-export: ")
    assert str(path) in err


def test_truncated_files_are_refused(state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    torch.save(state, whole)
    cut.write_bytes(whole.read_bytes()[:-1000])
    with pytest.raises(RefusedInput):
        contents_of(cut)
    write_graph(whole)
    cut.write_bytes(whole.read_bytes()[:-100])
    with pytest.raises(RefusedInput):
        contents_of(cut)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes on this system")
def test_a_named_pipe_is_refused_without_waiting_for_it(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert run(["inspect", str(tmp_path / "pipe")]) == 2


def test_json_over_the_inspected_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    write_graph(path)
    before = path.read_bytes()
    assert run(["inspect", str(path), "--json", str(path)]) == 2
    assert path.read_bytes() == before
