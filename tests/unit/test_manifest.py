"""The manifest: what is written, what is refused, and that no byte of an engine changes unnoticed."""

import contextlib
import copy
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lhanet_export.conventions import Preprocessing
from lhanet_export.engine import manifest as manifest_module
from lhanet_export.engine.build import BuiltEngine, TensorFacts
from lhanet_export.engine.manifest import (
    Manifest,
    manifest_from_json,
    manifest_of,
    publish_engine,
    read_manifest,
    verify_engine_bytes,
)
from lhanet_export.engine.plan import plan_engine
from lhanet_export.engine.recipes import recipe_named
from lhanet_export.errors import EnvironmentLacks, RefusedInput
from lhanet_export.files import sidecar_of

ENGINE = bytes(range(256)) * 40
ONNX = {
    "sha256": "a" * 64,
    "opset": 18,
    "head": "final",
    "precision": "fp16",
    "spatial": {"min": [32, 64, 64], "opt": [64, 128, 128], "max": [96, 192, 192]},
    "checkpoint": {
        "sha256": "b" * 64,
        "preset": "lightweight",
        "num_classes": 3,
        "base_channels": 32,
        "epoch": None,
    },
    "labels": ["background", "liver", "prostate/uterus"],
    "preprocessing": Preprocessing().as_json(),
}


def built_in(folder: Path) -> BuiltEngine:
    path = folder / "built.engine"
    path.write_bytes(ENGINE)
    return BuiltEngine(
        path=path,
        seconds=38.04,
        peak_rss_bytes=2_800_000_000,
        backend_version="1.7.1.116",
        compute_capabilities=("8.6",),
        weights_bytes=589_149_184,
        activation_bytes=355_650_048,
        inputs=(TensorFacts(name="image", dtype="float32", shape=(1, 1, -1, -1, -1)),),
        outputs=(TensorFacts(name="logits", dtype="float32", shape=(1, 3, -1, -1, -1)),),
        log_tail=(),
    )


def made_in(folder: Path) -> Manifest:
    plan = plan_engine(Path("model.onnx"), ONNX, recipe=recipe_named("rtx3060"))
    return manifest_of(plan, built_in(folder), ONNX, verification={"passed": True})


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    """A published engine with its manifest, in a folder of its own."""
    work = tmp_path / "work"
    work.mkdir()
    target = tmp_path / "out" / "model.engine"
    publish_engine(work / "built.engine", made_in(work), target)
    return target


def test_the_manifest_has_the_names_of_the_contract(engine: Path) -> None:
    facts = json.loads(sidecar_of(engine).read_text())
    assert list(facts) == [
        "schema", "engine", "onnx", "checkpoint", "labels", "preprocessing", "verification", "build",
    ]  # fmt: skip
    assert list(facts["engine"]) == [
        "sha256", "bytes", "backend", "backend_version", "compute_capabilities", "precision", "profiles", "inputs",
        "outputs", "device_memory",
    ]  # fmt: skip
    assert facts["schema"] == 1
    assert facts["engine"]["bytes"] == len(ENGINE)
    assert facts["engine"]["compute_capabilities"] == ["8.6"]
    assert facts["engine"]["profiles"] == [ONNX["spatial"]]
    assert facts["engine"]["inputs"] == [{"name": "image", "dtype": "float32", "shape": [1, 1, -1, -1, -1]}]
    assert facts["engine"]["device_memory"] == {"weights_bytes": 589_149_184, "activation_bytes": 355_650_048}
    assert facts["onnx"] == {"sha256": "a" * 64, "opset": 18, "head": "final"}
    assert facts["checkpoint"] == ONNX["checkpoint"]
    assert facts["preprocessing"]["spacing_mm"] == [1.5, 1.5, 1.5]
    assert set(facts["build"]) == {
        "seconds", "peak_rss_bytes", "lhanet_export", "torch", "onnx", "python", "platform",
    }  # fmt: skip


def test_reading_gives_back_what_was_written(engine: Path, tmp_path: Path) -> None:
    manifest = read_manifest(engine)
    assert manifest == made_in(tmp_path)
    assert manifest_from_json(manifest.as_json(), "again") == manifest
    assert verify_engine_bytes(engine) == ENGINE


def test_a_backend_that_does_not_say_its_memory(engine: Path) -> None:
    facts = read_manifest(engine).as_json()
    facts["engine"]["device_memory"] = {"weights_bytes": None, "activation_bytes": None}
    assert manifest_from_json(facts, "x").engine.activation_bytes is None


def test_facts_that_an_application_needs_are_asked_of_the_onnx_file(tmp_path: Path) -> None:
    plan = plan_engine(Path("model.onnx"), ONNX, recipe=recipe_named("rtx3060"))
    for key in ("labels", "checkpoint", "preprocessing", "opset", "head"):
        lacking = {name: value for name, value in ONNX.items() if name != key}
        with pytest.raises(RefusedInput, match=f"key '{key}' is missing"):
            manifest_of(plan, built_in(tmp_path), lacking, verification={})


def test_profiles_are_found_by_size(engine: Path) -> None:
    facts = read_manifest(engine).engine
    assert facts.profile_of((48, 96, 96)) == 0
    with pytest.raises(RefusedInput, match="97x192x192 is outside the engine's range"):
        facts.profile_of((97, 192, 192))


def change(path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    """Set the value under a dotted path; `...` removes the key."""

    def apply(facts: dict[str, Any]) -> None:
        *parents, last = path.split(".")
        where: Any = facts
        for key in parents:
            where = where[int(key) if isinstance(where, list) else key]
        if value is ...:
            del where[last]
        else:
            where[int(last) if isinstance(where, list) else last] = value

    return apply


@pytest.mark.parametrize(
    ("path", "value", "reason"),
    [
        ("schema", 2, "newer than 1.*update lhanet-export"),
        ("schema", 0, "build the engine again"),
        ("schema", True, "expected a whole number"),
        ("schema", ..., "key 'schema' is missing"),
        ("engine", ..., "key 'engine' is missing"),
        ("engine.sha256", ..., "engine: key 'sha256' is missing"),
        ("engine.sha256", "zz", "engine.sha256: expected a SHA-256"),
        ("engine.bytes", "1", "engine.bytes: expected a whole number"),
        ("engine.bytes", 0, "engine.bytes"),
        ("engine.bytes", 1.5, "engine.bytes"),
        ("engine.bytes", 2**60, "engine.bytes"),
        ("engine.backend", "openvino", "engine.backend: expected tensorrt-rtx or tensorrt"),
        ("engine.compute_capabilities", [], "engine.compute_capabilities: expected 1 to 16 items"),
        ("engine.compute_capabilities.0", 8.6, "needs quotes"),
        ("engine.profiles.0.min", [32, 64], r"engine.profiles\[0\].min: expected 3 to 3 items"),
        ("engine.profiles.0.min", [65, 64, 64], r"engine.profiles\[0\]: .*min <= opt <= max"),
        ("engine.profiles.0.extra", 1, "unknown key 'extra'"),
        ("engine.inputs.0.name", "../image", "is not a name"),
        ("engine.inputs.0.name", "other", "expected one input 'image'"),
        ("engine.inputs.0.shape", [1, 2, -1, -1, -1], "expected one input 'image'"),
        ("engine.outputs.0.name", "../x", "is not a name"),
        ("engine.outputs.0.dtype", "complex64", "dtype: expected float32"),
        ("engine.outputs", [], "engine.outputs"),
        ("engine.file", "../x.engine", "unknown key 'file'"),
        ("engine.device_memory.weights_bytes", -1, "weights_bytes"),
        ("onnx.opset", None, "onnx.opset"),
        ("checkpoint.sha256", "", "checkpoint.sha256"),
        ("checkpoint.preset", "../../etc", "checkpoint.preset"),
        ("checkpoint.num_classes", 4, "labels: expected 4 different names"),
        ("labels.1", "background", "labels: expected 3 different names"),
        ("labels.1", "../liver", "looks like a path"),
        ("labels.1", "/liver", "looks like a path"),
        ("labels.1", "-rf", "looks like a path or an option"),
        ("labels.1", "li\nver", "printable"),
        ("labels.1", "li\0ver", "printable"),
        ("labels.1", 1, r"labels\[1\]: expected a text"),
        ("labels", {"0": "background"}, "labels: expected a list"),
        ("preprocessing.spacing_mm", [1.5, 1.5, 0], r"spacing_mm\[2\]: expected a finite number"),
        ("preprocessing.clip_hu", [300, -200], "expected the lower bound first"),
        ("preprocessing.blending_sigma_divisor", 80, "blending_sigma_divisor: expected a finite number"),
        ("preprocessing.overlap", 10**400, "overlap: expected a finite number"),
        ("preprocessing.normalization", ..., "key 'normalization' is missing"),
        ("verification", None, "verification: expected an object"),
        ("build.seconds", -1, "build.seconds"),
        ("extra", {}, "unknown key 'extra'"),
    ],
)
def test_manifests_that_are_refused(engine: Path, path: str, value: Any, reason: str) -> None:
    facts = copy.deepcopy(read_manifest(engine).as_json())
    change(path, value)(facts)
    sidecar_of(engine).write_text(json.dumps(facts))
    with pytest.raises(RefusedInput, match=reason):
        verify_engine_bytes(engine)


@pytest.mark.parametrize(
    "raw", [b"", b"{", b"[]", b"\xff", b'{"schema": 1, "schema": 1}', b'{"schema": NaN}', b"[" * 9999]
)
def test_files_that_are_no_manifests(engine: Path, raw: bytes) -> None:
    sidecar_of(engine).write_bytes(raw)
    with pytest.raises(RefusedInput, match=r"model\.engine\.json"):
        read_manifest(engine)


def test_an_engine_without_manifest_and_a_manifest_without_engine(engine: Path) -> None:
    saved = sidecar_of(engine).read_bytes()
    sidecar_of(engine).unlink()
    with pytest.raises(RefusedInput, match=r"no manifest model\.engine\.json"):
        verify_engine_bytes(engine)
    sidecar_of(engine).write_bytes(saved)
    engine.unlink()
    with pytest.raises(RefusedInput, match="there is no engine file"):
        verify_engine_bytes(engine)


def test_every_flipped_bit_is_noticed(engine: Path) -> None:
    for bit in range(0, len(ENGINE) * 8, 997):
        damaged = bytearray(ENGINE)
        damaged[bit // 8] ^= 1 << (bit % 8)
        engine.write_bytes(damaged)
        with pytest.raises(RefusedInput, match="damaged or replaced"):
            verify_engine_bytes(engine)


@pytest.mark.parametrize("raw", [b"", ENGINE[:-1], ENGINE + b"\0"])
def test_a_wrong_length_is_noticed(engine: Path, raw: bytes) -> None:
    engine.write_bytes(raw)
    with pytest.raises(RefusedInput, match="cut off or another one"):
        verify_engine_bytes(engine)


@pytest.mark.parametrize("which", ["engine", "manifest", "folder"])
def test_what_everybody_can_write_is_refused(engine: Path, which: str) -> None:
    path = {"engine": engine, "manifest": sidecar_of(engine), "folder": engine.parent}[which]
    path.chmod(path.stat().st_mode | 0o002)
    with pytest.raises(RefusedInput, match=r"everybody on this machine can write.*chmod o-w"):
        verify_engine_bytes(engine)


def test_a_shared_folder_with_the_sticky_bit_is_fine(engine: Path) -> None:
    engine.parent.chmod(0o1777)
    assert verify_engine_bytes(engine) == ENGINE


def test_an_engine_of_another_user_is_refused(engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    owner = engine.stat().st_uid
    if owner == 0:
        os.chown(engine, 12345, -1)
    else:
        monkeypatch.setattr(manifest_module.os, "geteuid", lambda: owner + 1)
    with pytest.raises(RefusedInput, match="belongs to another user"):
        verify_engine_bytes(engine)


def test_publishing_replaces_a_pair_by_a_pair(engine: Path, tmp_path: Path) -> None:
    manifest = made_in(tmp_path)
    publish_engine(tmp_path / "built.engine", manifest, engine)
    assert verify_engine_bytes(engine) == ENGINE
    assert sorted(path.name for path in engine.parent.iterdir()) == ["model.engine", "model.engine.json"]
    assert (tmp_path / "built.engine").exists()


def test_publishing_changes_nothing_when_it_fails(
    engine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = made_in(tmp_path)
    (tmp_path / "built.engine").write_bytes(b"another")
    with pytest.raises(RefusedInput, match="not the engine that the manifest describes"):
        publish_engine(tmp_path / "built.engine", manifest, engine)

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    (tmp_path / "built.engine").write_bytes(ENGINE)
    monkeypatch.setattr(manifest_module, "write_json", full)
    with pytest.raises(EnvironmentLacks, match="No space left"):
        publish_engine(tmp_path / "built.engine", manifest, engine)
    assert verify_engine_bytes(engine) == ENGINE
    assert sorted(path.name for path in engine.parent.iterdir()) == ["model.engine", "model.engine.json"]


def test_publishing_to_another_file_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = made_in(tmp_path)

    def no_link(*args: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(manifest_module.os, "link", no_link)
    target = tmp_path / "out" / "model.engine"
    publish_engine(tmp_path / "built.engine", manifest, target)
    assert verify_engine_bytes(target) == ENGINE


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


def places(facts: Any, path: str = "") -> list[str]:
    """The dotted path of every value in a JSON document."""
    items = facts.items() if isinstance(facts, dict) else enumerate(facts) if isinstance(facts, list) else ()
    return [
        deeper for key, value in items for deeper in (f"{path}{key}", *places(value, f"{path}{key}."))
    ]  # fmt: skip


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_value_anywhere_is_taken_or_refused(engine: Path, data: st.DataObject) -> None:
    facts = read_manifest(engine).as_json()
    change(data.draw(st.sampled_from(places(facts))), data.draw(JSON))(facts)
    with contextlib.suppress(RefusedInput):
        manifest_from_json(facts, "fuzzed")
