"""The manifest: what an application must know of an engine, and the proof that these are the engine's bytes.

It lies beside the engine as `<engine>.json`. An engine is native code, and TensorRT does not notice a
flipped bit; so nobody deserializes bytes whose hash is not the manifest's (`verify_engine_bytes`).
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from lhanet_export import __version__
from lhanet_export.conventions import PRECISIONS, Preprocessing
from lhanet_export.engine.backends import BACKENDS, ELEMENT_TYPES
from lhanet_export.engine.build import BuiltEngine, TensorFacts
from lhanet_export.engine.plan import INPUT_NAME, EnginePlan
from lhanet_export.errors import RefusedInput
from lhanet_export.files import read_json, sha256_of, sidecar_of, staged, write_json
from lhanet_export.shapes import Shape, SpatialRange
from lhanet_export.strict import Node

SCHEMA = 1
_LARGEST_BATCH = 1024
_LARGEST_ENGINE_BYTES = 1 << 36


@dataclass(frozen=True, kw_only=True)
class EngineFacts:
    """What is in the engine file. Memory is the device memory planned by the builder, in bytes, where it says so."""

    sha256: str
    bytes: int
    backend: str
    backend_version: str
    compute_capabilities: tuple[str, ...]
    precision: str
    profiles: tuple[SpatialRange, ...]
    inputs: tuple[TensorFacts, ...]
    outputs: tuple[TensorFacts, ...]
    weights_bytes: int | None
    activation_bytes: int | None

    def profile_of(self, shape: Shape) -> int:
        """The index of the first profile that serves a volume of this size; `RefusedInput` if none does."""
        for index, profile in enumerate(self.profiles):
            if shape in profile:
                return index
        served = ", ".join(map(str, self.profiles))
        raise RefusedInput(f"a volume of {'x'.join(map(str, shape))} is outside the engine's range {served}")

    def as_json(self) -> dict[str, Any]:
        """The manifest's `engine` object."""
        return {
            "sha256": self.sha256,
            "bytes": self.bytes,
            "backend": self.backend,
            "backend_version": self.backend_version,
            "compute_capabilities": list(self.compute_capabilities),
            "precision": self.precision,
            "profiles": [profile.as_json() for profile in self.profiles],
            "inputs": [_tensor_as_json(tensor) for tensor in self.inputs],
            "outputs": [_tensor_as_json(tensor) for tensor in self.outputs],
            "device_memory": {"weights_bytes": self.weights_bytes, "activation_bytes": self.activation_bytes},
        }


def _tensor_as_json(tensor: TensorFacts) -> dict[str, Any]:
    return {"name": tensor.name, "dtype": tensor.dtype, "shape": list(tensor.shape)}


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The whole manifest; what other stages wrote (checkpoint, preprocessing, verification) stays as they wrote it."""

    engine: EngineFacts
    onnx_sha256: str
    onnx_opset: int
    #: Which head of the network the graph computes: `final`, `deep0`, ...
    onnx_head: str
    checkpoint: Mapping[str, Any]
    labels: tuple[str, ...]
    preprocessing: Preprocessing
    verification: Mapping[str, Any]
    build: Mapping[str, Any]

    def as_json(self) -> dict[str, Any]:
        """The manifest as JSON values; inverse of `manifest_from_json`."""
        return {
            "schema": SCHEMA,
            "engine": self.engine.as_json(),
            "onnx": {"sha256": self.onnx_sha256, "opset": self.onnx_opset, "head": self.onnx_head},
            "checkpoint": dict(self.checkpoint),
            "labels": list(self.labels),
            "preprocessing": self.preprocessing.as_json(),
            "verification": dict(self.verification),
            "build": dict(self.build),
        }


def manifest_of(
    plan: EnginePlan, built: BuiltEngine, onnx: Mapping[str, Any], *, verification: Mapping[str, Any]
) -> Manifest:
    """The manifest of an engine that was just built from an ONNX file with the facts `onnx` (its sidecar's).

    Reads the engine file once, for its hash. `RefusedInput` if the ONNX facts lack something that an
    application needs.
    """
    facts = {
        "schema": SCHEMA,
        "engine": EngineFacts(
            sha256=sha256_of(built.path),
            bytes=built.path.stat().st_size,
            backend=plan.backend,
            backend_version=built.backend_version,
            compute_capabilities=built.compute_capabilities,
            precision=plan.precision,
            profiles=plan.profiles,
            inputs=built.inputs,
            outputs=built.outputs,
            weights_bytes=built.weights_bytes,
            activation_bytes=built.activation_bytes,
        ).as_json(),
        "onnx": {key: onnx[key] for key in ("sha256", "opset", "head") if key in onnx},
        **{key: onnx[key] for key in ("checkpoint", "labels", "preprocessing") if key in onnx},
        "verification": dict(verification),
        "build": {
            "seconds": round(built.seconds, 1),
            "peak_rss_bytes": built.peak_rss_bytes,
            "lhanet_export": __version__,
            "torch": _version_of("torch"),
            "onnx": _version_of("onnx"),
            "python": platform.python_version(),
            "platform": platform.platform(),
        },
    }
    # Read back as a stranger would: what is written is what can be read.
    return manifest_from_json(facts, f"the manifest of {plan.onnx}")


def _version_of(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def read_manifest(engine_path: Path) -> Manifest:
    """The checked manifest of an engine; `RefusedInput` where it is missing, damaged, of a newer schema or not one."""
    path = sidecar_of(engine_path)
    try:
        is_there = path.is_file()
    except OSError as error:
        raise RefusedInput(f"cannot read {path}: {error.strerror}") from error
    if not is_there:
        raise RefusedInput(
            f"{engine_path} has no manifest {path.name} beside it; without one nothing says what the engine is"
        )
    return manifest_from_json(read_json(path), path)


def manifest_from_json(facts: Mapping[str, Any], source: Path | str) -> Manifest:
    """A manifest from JSON values that came from `source`; `RefusedInput` names the key that is wrong."""
    node = Node(dict(facts), source)
    document = node.object()
    schema = document.take("schema").integer(0)
    if schema != SCHEMA:
        raise node.refused(
            f"schema {schema} is {'newer than' if schema > SCHEMA else 'not'} {SCHEMA}, which this version "
            f"({__version__}) reads; {'update lhanet-export' if schema > SCHEMA else 'build the engine again'}"
        )
    onnx = document.take("onnx").object()
    checkpoint = document.take("checkpoint")
    labels_node = document.take("labels")
    manifest = Manifest(
        engine=_engine_from(document.take("engine")),
        onnx_sha256=onnx.take("sha256").sha256(),
        onnx_opset=onnx.take("opset").integer(1, 1000),
        onnx_head=onnx.take("head").identifier(),
        checkpoint=_checkpoint_from(checkpoint),
        labels=labels_node.list_of(Node.label, at_least=2),
        preprocessing=Preprocessing.from_node(document.take("preprocessing")),
        verification=document.take("verification").facts(),
        build=_build_from(document.take("build")),
    )
    onnx.finish()
    document.finish()
    classes = manifest.checkpoint["num_classes"]
    if len(manifest.labels) != classes or len(set(manifest.labels)) != classes:
        raise labels_node.refused(f"expected {classes} different names, one a class; found {len(manifest.labels)}")
    return manifest


def _engine_from(node: Node) -> EngineFacts:
    engine = node.object()
    memory = engine.take("device_memory").object()
    inputs_node = engine.take("inputs")
    facts = EngineFacts(
        sha256=engine.take("sha256").sha256(),
        bytes=engine.take("bytes").integer(1, _LARGEST_ENGINE_BYTES),
        backend=engine.take("backend").one_of(tuple(BACKENDS)),
        backend_version=engine.take("backend_version").identifier(),
        compute_capabilities=engine.take("compute_capabilities").list_of(Node.capability, at_most=16),
        precision=engine.take("precision").one_of(PRECISIONS),
        profiles=engine.take("profiles").list_of(Node.spatial, at_most=16),
        inputs=inputs_node.list_of(_tensor_from, at_most=1),
        outputs=engine.take("outputs").list_of(_tensor_from, at_most=16),
        weights_bytes=memory.take_if("weights_bytes", lambda value: value.integer(0)),
        activation_bytes=memory.take_if("activation_bytes", lambda value: value.integer(0)),
    )
    memory.finish()
    engine.finish()
    image = facts.inputs[0]
    if image.name != INPUT_NAME or len(image.shape) != 5 or image.shape[1] != 1:
        raise inputs_node.refused(f"expected one input '{INPUT_NAME}' of shape (N,1,D,H,W)")
    return facts


def _tensor_from(node: Node) -> TensorFacts:
    tensor = node.object()
    facts = TensorFacts(
        name=tensor.take("name").identifier(),
        dtype=tensor.take("dtype").one_of(tuple(ELEMENT_TYPES.values())),
        shape=tensor.take("shape").list_of(lambda side: side.integer(-1, 1 << 20), at_least=4, at_most=5),
    )
    tensor.finish()
    return facts


def _checkpoint_from(node: Node) -> dict[str, Any]:
    known = node.object()
    known.take("sha256").sha256()
    known.take("preset").identifier()
    known.take("num_classes").integer(2, 4096)
    known.take("base_channels").integer(1, 4096)
    known.take_if("epoch", lambda value: value.integer(0))
    return node.facts()


def _build_from(node: Node) -> dict[str, Any]:
    known = node.object()
    known.take("seconds").number(0)
    known.take("peak_rss_bytes").integer(0)
    for key in ("lhanet_export", "python", "platform"):
        known.take(key).text()
    for key in ("torch", "onnx"):
        known.take_if(key, Node.text)
    return node.facts()


def verify_engine_bytes(engine_path: Path) -> bytes:
    """The engine's bytes, read once, after their size and SHA-256 matched the manifest's.

    Deserialize what this returns, never the file: it may be another by then. `RefusedInput` also
    where other users of this machine could have replaced engine and manifest together.
    """
    expected = read_manifest(engine_path).engine
    if not engine_path.is_file():
        raise RefusedInput(f"there is no engine file {engine_path}")
    try:
        with engine_path.open("rb") as stream:
            _check_owner(engine_path, os.fstat(stream.fileno()))
            check_owner(sidecar_of(engine_path))
            check_owner(engine_path.parent)
            size = os.fstat(stream.fileno()).st_size
            if size != expected.bytes:
                raise RefusedInput(
                    f"{engine_path} has {size} bytes, its manifest says {expected.bytes}: "
                    "the file is cut off or another one; copy or build it again"
                )
            # One more byte than expected, in case the file is growing.
            raw = stream.read(expected.bytes + 1)
    except OSError as error:
        raise RefusedInput(f"cannot read {engine_path}: {error.strerror}") from error
    found_sha256 = hashlib.sha256(raw).hexdigest()
    if found_sha256 != expected.sha256:
        raise RefusedInput(
            f"{engine_path} is not the file that its manifest describes (sha256 {found_sha256[:12]}..., "
            f"recorded {expected.sha256[:12]}...): damaged or replaced; copy or build it again"
        )
    return raw


def check_owner(path: Path) -> None:
    """Refuse a file or folder that another user of this machine can change; `OSError` if there is none."""
    _check_owner(path, path.absolute().stat())


def _check_owner(path: Path, found: os.stat_result) -> None:
    # A shared folder with the sticky bit protects its files.
    if not hasattr(os, "geteuid"):
        return  # Windows, whose access lists say this in another way
    protected = stat.S_ISDIR(found.st_mode) and found.st_mode & stat.S_ISVTX
    if found.st_mode & stat.S_IWOTH and not protected:
        raise RefusedInput(
            f"everybody on this machine can write to {path}, and an engine is native code; run: chmod o-w {path}"
        )
    if found.st_uid not in (0, os.geteuid()):
        raise RefusedInput(
            f"{path} belongs to another user (uid {found.st_uid}), and an engine is native code; "
            "if you trust it, copy engine and manifest into a folder of your own"
        )


def publish_engine(engine_file: Path, manifest: Manifest, target: Path) -> None:
    """Put an engine and its manifest under their final names: both, or neither.

    The manifest comes last and vouches for the bytes, so a reader in between sees a pair that does
    not match and refuses it. `engine_file` stays where it is.
    """
    with staged(target, sidecar_of(target)) as (engine, sidecar):
        try:
            os.link(engine_file, engine)
        except OSError:
            # Another file system, or one without links.
            shutil.copyfile(engine_file, engine)
        if sha256_of(engine) != manifest.engine.sha256:
            raise RefusedInput(f"{engine_file} is not the engine that the manifest describes; build it again")
        write_json(sidecar, manifest.as_json())
