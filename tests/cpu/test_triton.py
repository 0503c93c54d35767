"""A Triton model repository: its layout, a configuration that Triton's own definition reads, and the refusals."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from importlib.machinery import PathFinder
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import text_format

from lhanet_export.cli.main import run
from lhanet_export.conventions import Preprocessing
from lhanet_export.engine.manifest import publish_engine
from lhanet_export.files import sidecar_of, write_json
from lhanet_export.triton import triton_repository
from tests.cpu.test_tensorrt_shell import ENGINE, manifest_for


@pytest.fixture(scope="module")
def graph(narrow_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("graph") / "model.fp16.onnx"
    command = ["onnx", str(narrow_checkpoint), "-o", str(path), "--precision", "fp16", "--output", "coarse"]
    assert run(command) == 0
    return path


@pytest.fixture(scope="module")
def parsed() -> Callable[[Path], Any]:
    """Reads a `config.pbtxt` by the protobuf definition that Triton publishes in its client."""
    client = PathFinder.find_spec("tritonclient")
    assert client is not None and client.submodule_search_locations
    # By its file: its package wants grpc, which nothing here needs.
    source = Path(client.submodule_search_locations[0]) / "grpc" / "model_config_pb2.py"
    spec = spec_from_file_location("model_config_pb2", source)
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return lambda path: text_format.Parse(path.read_text(encoding="utf-8"), module.ModelConfig())


def files_in(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def engine_of(folder: Path, **changes: Any) -> Path:
    source, target = folder / "built", folder / "liver.engine"
    source.write_bytes(ENGINE)
    made = manifest_for(source)
    publish_engine(source, replace(made, engine=replace(made.engine, **changes)), target)
    return target


def test_an_onnx_file(graph: Path, tmp_path: Path, parsed: Callable[[Path], Any]) -> None:
    repository, report = tmp_path / "models", tmp_path / "report.json"
    assert run(["package", str(graph), "--triton", str(repository), "--json", str(report)]) == 0
    assert files_in(repository) == {
        "lhanet/config.pbtxt", "lhanet/1/model.fp16.onnx", "lhanet/1/model.fp16.onnx.json"
    }  # fmt: skip
    config = parsed(repository / "lhanet" / "config.pbtxt")
    assert (config.name, config.backend, config.max_batch_size) == ("lhanet", "onnxruntime", 0)
    assert config.default_model_filename == "model.fp16.onnx"
    (image,), (scores,) = config.input, config.output
    assert (image.name, list(image.dims)) == ("image", [1, 1, -1, -1, -1])
    types = {field.number: field.name for field in type(image).DESCRIPTOR.fields_by_name["data_type"].enum_type.values}
    assert types[image.data_type] == types[scores.data_type] == "TYPE_FP32"
    assert scores.name == "coarse" and scores.dims[0] == 1 and scores.dims[1] > 1
    (warmup,) = config.model_warmup
    assert list(warmup.inputs["image"].dims)[:2] == [1, 1] and warmup.inputs["image"].random_data
    assert json.loads(config.parameters["preprocessing"].string_value) == Preprocessing().as_json()
    labels = json.loads(config.parameters["labels"].string_value)
    assert labels[0] == "background" and len(labels) == scores.dims[1]
    assert len(json.loads(report.read_text())["files"]) == 3


def test_an_engine(tmp_path: Path, parsed: Callable[[Path], Any]) -> None:
    engine = engine_of(tmp_path, backend="tensorrt")
    folder = triton_repository(engine, tmp_path / "models", name="liver-2")
    assert files_in(folder) == {"config.pbtxt", "1/liver.engine", "1/liver.engine.json"}
    assert (folder / "1" / "liver.engine").read_bytes() == ENGINE
    config = parsed(folder / "config.pbtxt")
    assert (config.name, config.backend, config.default_model_filename) == ("liver-2", "tensorrt", "liver.engine")
    assert [list(tensor.dims) for tensor in (*config.input, *config.output)] == [[1, 1, -1, -1, -1], [1, 2, -1, -1, -1]]
    assert list(config.model_warmup[0].inputs["image"].dims) == [1, 1, 32, 32, 32]


def test_names_of_classes_survive(tmp_path: Path, parsed: Callable[[Path], Any]) -> None:
    engine = engine_of(tmp_path, backend="tensorrt")
    facts = json.loads(sidecar_of(engine).read_text())
    facts["labels"] = ["background", 'Leber "links" \\ Niere ü']
    write_json(sidecar_of(engine), facts)
    folder = triton_repository(engine, tmp_path / "models", name="a")
    found = parsed(folder / "config.pbtxt").parameters["labels"].string_value
    assert json.loads(found) == facts["labels"]


def test_engines_of_tensorrt_rtx_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    engine = engine_of(tmp_path)
    assert run(["package", str(engine), "--triton", str(tmp_path / "models")]) == 2
    assert "Triton does not serve" in capsys.readouterr().err
    assert not (tmp_path / "models").exists()


@pytest.mark.parametrize("name", ["../up", "", "a/b", "-x", "a b"])
def test_names_that_lead_elsewhere_are_refused(graph: Path, tmp_path: Path, name: str) -> None:
    assert run(["package", str(graph), "--triton", str(tmp_path / "models"), "--name", name]) == 2
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_is_there_is_kept(graph: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    there = tmp_path / "lhanet" / "config.pbtxt"
    there.parent.mkdir()
    there.write_text("somebody's")
    assert run(["package", str(graph), "--triton", str(tmp_path)]) == 2
    assert "exists already" in capsys.readouterr().err
    assert files_in(tmp_path) == {"lhanet/config.pbtxt"}


def test_a_damaged_engine_is_not_packaged(tmp_path: Path) -> None:
    engine = engine_of(tmp_path, backend="tensorrt")
    engine.write_bytes(ENGINE[:-1])
    assert run(["package", str(engine), "--triton", str(tmp_path / "models")]) == 2
    assert not (tmp_path / "models").exists()
