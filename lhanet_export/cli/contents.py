"""What a file is and what it holds, told from its bytes: checkpoint, ONNX file, engine or manifest.

Nothing in a file is run, and no engine is deserialized. What a reader should mistrust (a hash that does
not match, weights that are missing) is listed as a fault beside the facts.
"""

from __future__ import annotations

import json
import math
import pickletools
import zipfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING, Any

from lhanet_export.errors import RefusedInput
from lhanet_export.files import read_json, sha256_of, sidecar_of

if TYPE_CHECKING:
    import onnx
    from torch import Tensor

#: How a plan of TensorRT and one of TensorRT-RTX begin.
_ENGINE_MAGIC = (b"ftrt", b"vtrt")
#: A safetensors file begins with its header's length, which the format limits to 100 MB.
_SAFETENSORS_HEADER_LIMIT = 100_000_000
_HEAD_BYTES = 4096

#: Top-level parts of the network by the beginning of their keys; and what a prediction by the final head uses of them.
_PARTS = {"backbone": "backbone.", "pmsa": "hierarchical_pmsa.", "decoder": "decoder."}
_LIVE = ("backbone.", "hierarchical_pmsa.", "decoder.feature_fusion.", "decoder.final_classifier.")
_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


@dataclass(kw_only=True)
class Contents:
    """The kind of a file, its facts as JSON values, and what is wrong with it."""

    kind: str
    facts: dict[str, Any]
    faults: list[str] = field(default_factory=list)


def contents_of(path: Path) -> Contents:
    """Recognize and read a file; one that is none of the four kinds, or broken, raises `RefusedInput`."""
    if not path.is_file():
        raise RefusedInput(f"{path} is not a regular file" if path.exists() else f"there is no file {path}")
    try:
        with path.open("rb") as stream:
            head = stream.read(_HEAD_BYTES)
        contents = _reader_of(path, head)(path)
    except OSError as error:
        raise RefusedInput(f"cannot read {path}: {error.strerror or error}") from error
    contents.facts = {
        "file": str(path), "kind": contents.kind, "bytes": path.stat().st_size,
        **contents.facts, "faults": contents.faults,
    }  # fmt: skip
    return contents


def _reader_of(path: Path, head: bytes) -> Callable[[Path], Contents]:
    if not head:
        raise RefusedInput(f"{path} is empty")
    if head.startswith(_ENGINE_MAGIC):
        return _engine
    header_length = int.from_bytes(head[:8], "little")
    is_safetensors = head[8:9] == b"{" and 2 <= header_length <= _SAFETENSORS_HEADER_LIMIT
    # 0x80 begins a bare pickle, which the checkpoint reader refuses with advice.
    if head.startswith((b"PK\x03\x04", b"\x80")) or is_safetensors:
        return _checkpoint
    if head.lstrip().startswith(b"{"):
        return _manifest
    return _onnx


# Checkpoints


def _checkpoint(path: Path) -> Contents:
    from lhanet_export.model.checkpoint import read_checkpoint

    state, identity = read_checkpoint(path)
    facts = {"checkpoint": identity.as_json(), "stored_types": _stored_types(path), "parameters": parameters_of(state)}
    return Contents(kind="checkpoint", facts={"sha256": identity.sha256, **facts})


def parameters_of(state: dict[str, Tensor]) -> dict[str, int]:
    """Parameters by part of the network, in total, and live: those that the final prediction depends on."""
    sizes = {key: tensor.numel() for key, tensor in state.items() if not key.endswith(_STATISTICS)}
    parts = {
        part: sum(size for key, size in sizes.items() if key.startswith(prefix)) for part, prefix in _PARTS.items()
    }
    total = sum(sizes.values())
    live = sum(size for key, size in sizes.items() if key.startswith(_LIVE))
    return {"total": total, **parts, "training_heads": total - sum(parts.values()), "live": live}


def _stored_types(path: Path) -> list[str]:
    """Number formats of the tensors in a checkpoint file, an optimizer's among them; counters left out."""
    with path.open("rb") as stream:
        if stream.read(2) != b"PK":
            stream.seek(0)
            header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
            names = {entry["dtype"] for key, entry in header.items() if key != "__metadata__"}
        else:
            with zipfile.ZipFile(stream) as archive:
                pickled = next(name for name in archive.namelist() if name.endswith("/data.pkl"))
                # Walks the opcodes; nothing is unpickled.
                names = {
                    str(argument).split()[1].removesuffix("Storage")
                    for opcode, argument, _ in pickletools.genops(archive.read(pickled))
                    if opcode.name == "GLOBAL" and str(argument).endswith("Storage")
                }
    plain = {
        "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64",
        "Float": "float32", "Half": "float16", "BFloat16": "bfloat16", "Double": "float64", "Long": "int64",
    }  # fmt: skip
    return sorted({plain.get(name, name) for name in names} - {"int64"})


# ONNX


def _onnx(path: Path) -> Contents:
    import onnx

    try:
        model = onnx.load_model(path, format="protobuf", load_external_data=False)
    except OSError:
        raise
    except Exception as error:
        # protobuf raises classes of its own implementation; none of them is ours to name.
        raise RefusedInput(f"{path} is neither a checkpoint, an ONNX file, an engine nor a manifest") from error
    if not (model.ir_version and model.opset_import and model.graph.output):
        raise RefusedInput(f"{path} is neither a checkpoint, an ONNX file, an engine nor a manifest")
    contents = Contents(kind="onnx", facts={"sha256": sha256_of(path), "onnx": _graph_facts(model)})
    contents.facts["onnx"]["external_data"] = _external_data(path, model, contents.faults)
    _add_sidecar(path, contents, "sidecar")
    return contents


def _graph_facts(model: onnx.ModelProto) -> dict[str, Any]:
    weights: Counter[str] = Counter()
    for tensor in model.graph.initializer:
        dtype, item_bytes = _dtype(tensor.data_type)
        weights[dtype] += math.ceil(math.prod(tensor.dims) * item_bytes)
    named = {tensor.name for tensor in model.graph.initializer}
    return {
        "opset": {entry.domain or "ai.onnx": entry.version for entry in model.opset_import},
        "ir_version": model.ir_version,
        "producer": " ".join(filter(None, (model.producer_name, model.producer_version))),
        "inputs": [_value_facts(value) for value in model.graph.input if value.name not in named],
        "outputs": [_value_facts(value) for value in model.graph.output],
        "nodes": dict(Counter(node.op_type for node in model.graph.node).most_common()),
        "weights_bytes": dict(weights),
        "metadata": {entry.key: _parsed(entry.value) for entry in model.metadata_props},
    }


def _value_facts(value: onnx.ValueInfoProto) -> dict[str, Any]:
    tensor = value.type.tensor_type
    shape = [dim.dim_param or (dim.dim_value if dim.HasField("dim_value") else "?") for dim in tensor.shape.dim]
    return {"name": value.name, "dtype": _dtype(tensor.elem_type)[0], "shape": shape}


def _dtype(code: int) -> tuple[str, float]:
    """Name and bytes of one element; types without a fixed size, or of a newer ONNX, count as 0 bytes."""
    from onnx_ir import DataType

    try:
        dtype = DataType(code)
    except ValueError:
        return f"type {code}", 0.0
    name = {DataType.FLOAT: "float32", DataType.DOUBLE: "float64"}.get(dtype, dtype.name.lower())
    return name, 0.0 if dtype in (DataType.UNDEFINED, DataType.STRING) else float(dtype.itemsize)


def _external_data(path: Path, model: onnx.ModelProto, faults: list[str]) -> list[dict[str, Any]]:
    """The files that hold weights of a graph: those beside it, with a fault for each that cannot serve."""
    needed: dict[str, int] = {}
    for tensor in model.graph.initializer:
        entry = {item.key: item.value for item in tensor.external_data}
        if "location" in entry:
            numbers = [entry.get(key, "0") for key in ("offset", "length")]
            end = sum(int(number) for number in numbers if number.isdecimal())
            needed[entry["location"]] = max(needed.get(entry["location"], 0), end)
    files = []
    for location, size in sorted(needed.items()):
        inside = all(len(kind(location).parts) == 1 for kind in (PurePosixPath, PureWindowsPath)) and location != ".."
        file = path.with_name(location) if inside else None
        present = file.stat().st_size if file is not None and file.is_file() and not file.is_symlink() else None
        if not inside:
            faults.append(f"weights outside of the graph's folder: {location}")
        elif present is None:
            faults.append(f"weights missing: {location} should lie beside the graph as a regular file")
        elif present < size:
            faults.append(f"weights cut off: {location} has {present} bytes, the graph reads {size}")
        files.append({"file": location, "bytes": present, "needed_bytes": size})
    return files


def _parsed(text: str) -> Any:
    """Metadata of this toolkit is JSON; other programs write plain text."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return value if isinstance(value, dict) else text


# Engines, manifests and sidecars


def _engine(path: Path) -> Contents:
    contents = Contents(kind="engine", facts={"sha256": sha256_of(path)})
    if not sidecar_of(path).exists():
        contents.faults.append(f"no manifest: {sidecar_of(path).name} should lie beside the engine")
    _add_sidecar(path, contents, "manifest")
    return contents


def _manifest(path: Path) -> Contents:
    facts = read_json(path)
    artifact = path.with_name(path.name.removesuffix(".json"))
    if isinstance(facts.get("engine"), dict):
        _check_manifest(path, facts)
        contents = Contents(kind="manifest", facts={"manifest": facts})
    elif {"sha256", "opset"} <= facts.keys():
        contents = Contents(kind="sidecar", facts={"sidecar": facts})
    else:
        raise RefusedInput(f"{path} is JSON, but neither an engine's manifest nor an ONNX file's sidecar")
    if artifact != path and artifact.is_file():
        _compare(artifact, facts, sha256_of(artifact), contents)
    return contents


def _check_manifest(path: Path, facts: dict[str, Any]) -> None:
    from lhanet_export.engine.manifest import manifest_from_json

    manifest_from_json(facts, path)


def _add_sidecar(path: Path, contents: Contents, key: str) -> None:
    """Add the facts of `<file>.json`, if it is there, and whether it describes these bytes."""
    sidecar = sidecar_of(path)
    contents.facts[key] = None
    if not sidecar.exists():
        return
    facts = contents.facts[key] = read_json(sidecar)
    if key == "manifest":
        _check_manifest(sidecar, facts)
    _compare(path, facts, contents.facts["sha256"], contents)


def _compare(artifact: Path, recorded: dict[str, Any], sha256: str, contents: Contents) -> None:
    engine = recorded.get("engine")
    hashes: dict[Path, tuple[Any, str | None]] = {}
    hashes[artifact] = ((engine if isinstance(engine, dict) else recorded).get("sha256"), sha256)
    external = recorded.get("external_data")
    if isinstance(external, dict):
        weights = artifact.with_name(artifact.name + ".data")
        hashes[weights] = (external.get("sha256"), sha256_of(weights) if weights.is_file() else None)
    different = [file for file, (want, have) in hashes.items() if want != have]
    contents.facts["sha256_matches"] = not different
    for file in different:
        if file.is_file():
            contents.faults.append(f"{file.name} is not the file that {sidecar_of(artifact).name} describes")
