"""A Triton Inference Server model repository of an engine or an ONNX file.

The layout and the fields of `config.pbtxt` are those of Triton's documentation (model_repository.md,
model_configuration.md at github.com/triton-inference-server/server/tree/main/docs/user_guide).
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from lhanet_export.engine.build import TensorFacts
from lhanet_export.engine.manifest import read_manifest, verify_engine_bytes
from lhanet_export.errors import RefusedInput
from lhanet_export.export.artifact import read_onnx
from lhanet_export.files import scratch_folder, sidecar_of
from lhanet_export.shapes import Shape
from lhanet_export.strict import Node

#: Triton's names of element types, by NumPy's.
_TYPES = {
    "float32": "TYPE_FP32", "float16": "TYPE_FP16", "uint8": "TYPE_UINT8", "int8": "TYPE_INT8", "int32": "TYPE_INT32",
    "int64": "TYPE_INT64", "bool": "TYPE_BOOL",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class _Model:
    """What a server has to know of a model, whatever runs it."""

    backend: str
    files: tuple[Path, ...]
    inputs: Sequence[TensorFacts]
    outputs: Sequence[TensorFacts]
    usual: Shape
    labels: Sequence[str]
    preprocessing: Mapping[str, Any]


def triton_repository(model: Path, repository: Path, *, name: str) -> Path:
    """Put an engine or ONNX file into a model repository as version 1 of a new model; its folder is returned.

    The files are copied with their manifest after their hashes matched; what a client has to know for preprocessing
    stands in the configuration's parameters, too. Raises `RefusedInput` for a name that is none, for one that is taken,
    and for engines of TensorRT-RTX, which Triton does not serve. If it fails, the repository is as it was.
    """
    Node(name, "--name").identifier()
    target = repository / name
    if target.exists():
        raise RefusedInput(f"{target} exists already; name another model, or move that one away")
    found = _onnx_model(model) if model.suffix == ".onnx" else _engine_model(model)
    with scratch_folder(repository) as scratch:
        version = scratch / name / "1"
        version.mkdir(parents=True)
        for path in found.files:
            shutil.copyfile(path, version / path.name)
        (scratch / name / "config.pbtxt").write_text(_config(name, found), encoding="utf-8")
        # What was copied is what was described: a file may have changed in between.
        copy = version / model.name
        read_onnx(copy) if model.suffix == ".onnx" else verify_engine_bytes(copy)
        os.rename(scratch / name, target)
    return target


def _engine_model(path: Path) -> _Model:
    manifest = read_manifest(path)
    engine = manifest.engine
    if engine.backend != "tensorrt":
        raise RefusedInput(
            f"{path} is an engine of {engine.backend}, which Triton does not serve; name the ONNX file, or build an "
            "engine on the server's GPU with: lhanet-export trt --backend tensorrt"
        )
    verify_engine_bytes(path)
    return _Model(
        backend="tensorrt",
        files=(path, sidecar_of(path)),
        inputs=engine.inputs,
        outputs=engine.outputs,
        usual=engine.profiles[0].opt,
        labels=manifest.labels,
        preprocessing=manifest.preprocessing.as_json(),
    )


def _onnx_model(path: Path) -> _Model:
    artifact = read_onnx(path)
    graph = onnx.load(path, load_external_data=False).graph
    sidecar = sidecar_of(path)
    return _Model(
        backend="onnxruntime",
        files=(*artifact.files, *((sidecar,) if sidecar.exists() else ())),
        inputs=[_tensor(value) for value in graph.input],
        outputs=[_tensor(value) for value in graph.output],
        usual=artifact.spatial.opt,
        labels=artifact.facts["labels"],
        preprocessing=artifact.facts["preprocessing"],
    )


def _tensor(value: onnx.ValueInfoProto) -> TensorFacts:
    kind = value.type.tensor_type
    return TensorFacts(
        name=value.name,
        dtype=onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type).name,
        shape=tuple(side.dim_value if side.HasField("dim_value") else -1 for side in kind.shape.dim),
    )


def _config(name: str, model: _Model) -> str:
    """`config.pbtxt`: shapes in full, so `max_batch_size` is 0 and Triton adds no axis of its own."""
    (image,) = model.inputs
    lines = [
        f"name: {_text(name)}",
        f"backend: {_text(model.backend)}",
        f"default_model_filename: {_text(model.files[0].name)}",
        "max_batch_size: 0",
        *(_io("input", tensor) for tensor in model.inputs),
        *(_io("output", tensor) for tensor in model.outputs),
        # One context on each GPU: a network this large fills it, and contexts share no activations.
        "instance_group { count: 1 kind: KIND_GPU }",
        # The first request would wait for what the library sets up for a size.
        "model_warmup {",
        f"  name: {_text('usual size')}",
        "  batch_size: 1",
        f"  inputs {{ key: {_text(image.name)} value {{",
        f"    data_type: {_TYPES[image.dtype]} dims: {_dims((max(image.shape[0], 1), 1, *model.usual))}"
        " random_data: true",
        "  } }",
        "}",
        _parameter("labels", json.dumps(list(model.labels))),
        _parameter("preprocessing", json.dumps(dict(model.preprocessing))),
    ]
    return "\n".join(lines) + "\n"


def _io(kind: str, tensor: TensorFacts) -> str:
    return f"{kind} {{ name: {_text(tensor.name)} data_type: {_TYPES[tensor.dtype]} dims: {_dims(tensor.shape)} }}"


def _dims(shape: Sequence[int]) -> str:
    return f"[{', '.join(map(str, shape))}]"


def _parameter(key: str, value: str) -> str:
    return f"parameters {{ key: {_text(key)} value {{ string_value: {_text(value)} }} }}"


def _text(value: str) -> str:
    """A string of protobuf's text format, UTF-8 with octal escapes."""
    return '"' + "".join(_escaped(byte) for byte in value.encode()) + '"'


def _escaped(byte: int) -> str:
    plain = 0x20 <= byte < 0x7F and chr(byte) not in '"\\'
    return chr(byte) if plain else f"\\{byte:03o}"
