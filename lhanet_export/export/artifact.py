"""An ONNX file of this toolkit: the graph, the facts that travel inside it, and the sidecar that pins its bytes.

The facts (checkpoint, head, output, precision, sizes, labels, preprocessing) are JSON in the graph's
metadata, so they survive a copy of the file alone. The sidecar `<file>.json` repeats them and adds the
SHA-256 of the file and of its external weights.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError

from lhanet_export.conventions import PRECISIONS
from lhanet_export.errors import RefusedInput
from lhanet_export.files import read_json, sha256_of, sidecar_of, staged, write_json
from lhanet_export.inference.target import Target
from lhanet_export.shapes import Shape, SpatialRange, format_shape
from lhanet_export.strict import Node

logger = logging.getLogger(__name__)

METADATA_KEY = "lhanet_export"
SCHEMA = 1
#: Operator sets that TensorRT 10, 11 and TensorRT-RTX read, from the one with reduction axes as inputs.
OPSETS = (18, 20)
#: Above this much weight data the weights get a file of their own: it can be mapped instead of parsed, and a
#: protobuf file ends at 2 GiB.
INLINE_LIMIT_BYTES = 256 << 20
#: Every operator that an exported graph of this network may hold; a foreign graph is refused before it is built.
KNOWN_OPERATORS = frozenset(
    """Abs Add And ArgMax Cast Clip Concat Conv DequantizeLinear Div Equal Floor Gather Identity MatMul MaxPool Min Mul
    QuantizeLinear Range ReduceMax ReduceMean Relu Reshape Shape Sigmoid Slice Softmax Sub Transpose
    Unsqueeze""".split()
)


@dataclass(frozen=True, kw_only=True)
class OnnxArtifact:
    """A checked ONNX file: where it is, its hashes, and the facts inside it."""

    path: Path
    sha256: str
    opset: int
    facts: dict[str, Any]

    @property
    def spatial(self) -> SpatialRange:
        """The volume sizes that the graph was exported for."""
        return SpatialRange(*(tuple(self.facts["spatial"][key]) for key in ("min", "opt", "max")))

    @property
    def precision(self) -> str:
        """`fp32`, `fp16` or `int8`."""
        return str(self.facts["precision"])

    def check_size(self, shape: Shape) -> None:
        """Refuse a volume size (D,H,W) that the graph was not exported for."""
        if shape not in self.spatial:
            raise RefusedInput(f"a volume of {format_shape(shape)} is outside the range {self.spatial} of {self.path}")

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that belong together: the graph and, where the weights are large, their file."""
        weights = external_data_of(self.path)
        return (self.path, weights) if weights.exists() else (self.path,)

    def as_json(self) -> dict[str, Any]:
        """The facts with the hash and opset, as engines record them."""
        return {"sha256": self.sha256, "opset": self.opset, **self.facts}


def save_onnx(model: ir.Model, path: Path, facts: dict[str, Any]) -> OnnxArtifact:
    """Write graph, external weights (where they are large) and sidecar under their names, all or none."""
    model.metadata_props[METADATA_KEY] = json.dumps(facts, allow_nan=False)
    size = sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value is not None)
    external = external_data_of(path) if size > INLINE_LIMIT_BYTES else None
    targets = [target for target in (external, path, sidecar_of(path)) if target is not None]
    replaced = _recorded_weights(path)
    with staged(*targets) as temporary:
        *weights, graph, sidecar = temporary
        ir.save(model, graph, external_data=weights[0].name if weights else None)
        hashes: dict[str, Any] = {"sha256": sha256_of(graph)}
        if weights:
            hashes["external_data"] = {
                "file": weights[0].name, "sha256": sha256_of(weights[0]), "bytes": weights[0].stat().st_size
            }  # fmt: skip
        opset = model.opset_imports[""]
        write_json(sidecar, {**hashes, "opset": opset, **facts})
    if external is None and replaced is not None:
        replaced.unlink(missing_ok=True)
    return OnnxArtifact(path=path, sha256=hashes["sha256"], opset=opset, facts=facts)


def _recorded_weights(path: Path) -> Path | None:
    """The weights' file of the ONNX file that is there now, if its sidecar says that it has one."""
    try:
        recorded = read_json(sidecar_of(path))
    except RefusedInput:
        return None  # there is none, or nothing can be learned from it
    return external_data_of(path) if "external_data" in recorded else None


def external_data_of(path: Path) -> Path:
    """Where large weights of an ONNX file lie: `model.onnx` has `model.onnx.data` beside it."""
    return path.with_name(path.name + ".data")


def read_onnx(path: Path) -> OnnxArtifact:
    """Check an ONNX file of this toolkit against its sidecar and read its facts; weights are hashed, not loaded.

    `RefusedInput` for a file that is missing, damaged, changed since it was written, of another
    origin, or with operators that this network does not have. Without a sidecar the file is taken
    as it is, with a warning: nothing can tell then whether a weight was flipped.
    """
    proto, facts = read_graph_and_facts(path)
    strange = sorted({node.op_type for node in proto.graph.node if node.domain or node.op_type not in KNOWN_OPERATORS})
    if strange:
        raise RefusedInput(f"{path} holds operators that LHA-Net does not have: {', '.join(strange[:8])}")
    has_external_weights = _has_external_weights(path, proto)
    sha256 = sha256_of(path)
    if sidecar_of(path).exists():
        _check_hashes(path, sha256, has_external_weights)
    else:
        logger.warning("%s has no sidecar %s: its bytes cannot be checked", path, sidecar_of(path).name)
    return OnnxArtifact(path=path, sha256=sha256, opset=_opset_of(path, proto), facts=facts)


def read_graph_and_facts(path: Path) -> tuple[onnx.ModelProto, dict[str, Any]]:
    """The graph of an ONNX file of this toolkit, its external weights left on disk, and the facts inside it.

    Nothing is hashed. `RefusedInput` for a file that is missing, damaged or of another origin.
    """
    try:
        proto = onnx.load(path, format="protobuf", load_external_data=False)
    except FileNotFoundError:
        raise RefusedInput(f"there is no file {path}") from None
    except OSError as error:
        raise RefusedInput(f"cannot read {path}: {error.strerror}") from error
    except DecodeError as error:
        raise RefusedInput(f"{path} is not an ONNX file, or it is damaged: {error}") from error
    return proto, _facts_in(path, proto)


def _facts_in(path: Path, proto: onnx.ModelProto) -> dict[str, Any]:
    """The facts in a graph's metadata, each of the type that it should have."""
    texts = [entry.value for entry in proto.metadata_props if entry.key == METADATA_KEY]
    if len(texts) != 1:
        raise RefusedInput(
            f"{path} is not an ONNX file of this toolkit (it has no facts in its metadata); "
            "make one with: lhanet-export onnx CHECKPOINT -o model.onnx"
        )
    try:
        facts = json.loads(texts[0])
    except (ValueError, RecursionError) as error:
        raise RefusedInput(f"the facts in {path} are not valid JSON: {error}") from error
    known = Node(facts, path).object()
    known.take("schema").integer(SCHEMA, SCHEMA)
    known.take("precision").one_of(PRECISIONS)
    Target(head=known.take("head").text(), output=known.take("output").text())
    if "batch" not in facts:
        raise RefusedInput(f"{path}: key 'batch' is missing")
    known.take_if("batch", lambda batch: batch.integer(1))
    known.take("spatial").spatial()
    known.take("labels").list_of(Node.label, at_least=2)
    for key in ("checkpoint", "preprocessing"):
        known.take(key).facts()
    return dict(facts)


def _opset_of(path: Path, proto: onnx.ModelProto) -> int:
    versions = [entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx")]
    if len(versions) != 1 or not OPSETS[0] <= versions[0] <= OPSETS[1]:
        raise RefusedInput(
            f"{path} has opset {versions}; this toolkit reads {OPSETS[0]} to {OPSETS[1]}; export it again"
        )
    return int(versions[0])


def _has_external_weights(path: Path, proto: onnx.ModelProto) -> bool:
    """Whether weights lie outside; only in the one file that this toolkit writes, a regular file beside the graph."""
    names = {
        entry.value for tensor in proto.graph.initializer for entry in tensor.external_data if entry.key == "location"
    }
    expected = external_data_of(path)
    if names - {expected.name}:
        raise RefusedInput(
            f"{path} refers to weights in {', '.join(sorted(names))}; expected {expected.name}. "
            "A renamed ONNX file needs its old name, or a fresh export"
        )
    if names and (expected.is_symlink() or not expected.is_file()):
        raise RefusedInput(f"the weights of {path} are missing: {expected.name} should lie beside it as a regular file")
    return bool(names)


def _check_hashes(path: Path, sha256: str, has_external_weights: bool) -> None:
    recorded = Node(read_json(sidecar_of(path)), sidecar_of(path)).object()
    pairs = [(path, recorded.take("sha256").sha256(), sha256)]
    if has_external_weights:
        weights = external_data_of(path)
        pairs.append((weights, recorded.take("external_data").object().take("sha256").sha256(), sha256_of(weights)))
    for file, want, have in pairs:
        if want != have:
            raise RefusedInput(
                f"{file} is not the file that {sidecar_of(path).name} describes (sha256 {have[:12]}..., "
                f"recorded {want[:12]}...); export it again"
            )
