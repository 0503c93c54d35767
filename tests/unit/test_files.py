"""Files are whole under their final name or not there, and a sidecar that is none is refused."""

import errno
import hashlib
import json
import os
from pathlib import Path

import pytest

from lhanet_export import files
from lhanet_export.errors import EnvironmentLacks, RefusedInput
from lhanet_export.files import (
    SIDECAR_LIMIT_BYTES,
    check_output_path,
    read_json,
    sha256_of,
    sidecar_of,
    staged,
    write_json,
)


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """A file that exists and must survive whatever goes wrong."""
    path = tmp_path / "model.engine"
    path.write_text("old")
    return path


def only(target: Path) -> bool:
    """Whether the target still holds what it held, alone in its folder."""
    return target.read_text() == "old" and list(target.parent.iterdir()) == [target]


def test_staged_replaces_when_the_block_succeeds(target: Path) -> None:
    with staged(target) as (temporary,):
        temporary.write_text("new")
        assert temporary.name == target.name and temporary != target
        assert target.read_text() == "old"
    assert target.read_text() == "new" and list(target.parent.iterdir()) == [target]


def test_staged_makes_the_folder(tmp_path: Path) -> None:
    target = tmp_path / "a" / "b" / "model.onnx"
    with staged(target) as (temporary,):
        temporary.write_text("new")
    assert target.read_text() == "new"


def test_folders_that_were_made_for_nothing_are_removed(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no"), staged(tmp_path / "a" / "b" / "model.onnx"):
        raise ValueError("no")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("fault", [ValueError("x"), KeyboardInterrupt(), SystemExit(3)], ids=repr)
def test_a_failed_block_changes_nothing(target: Path, fault: BaseException) -> None:
    with pytest.raises(type(fault)), staged(target) as (temporary,):
        temporary.write_text("half of the n")
        raise fault
    assert only(target)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES, errno.EDQUOT, errno.EIO, errno.EROFS])
def test_a_full_disk_or_a_read_only_folder_is_the_environment(target: Path, code: int) -> None:
    with pytest.raises(EnvironmentLacks, match=f"{target.parent}.*{os.strerror(code)}"), staged(target) as (temporary,):
        temporary.write_text("half of the n")
        raise OSError(code, os.strerror(code))
    assert only(target)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_disk_that_is_really_full(target: Path) -> None:
    with (
        pytest.raises(EnvironmentLacks, match="No space left"),
        staged(target) as (temporary,),
        open("/dev/full", "w") as full,
    ):
        temporary.write_text("half of the n")
        full.write("x")
    assert only(target)


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_every_step_of_publishing_may_fail(target: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    def fail(*arguments: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with pytest.raises(EnvironmentLacks), staged(target) as (temporary,):
        temporary.write_text("new")
        monkeypatch.setattr(files.os, call, fail)
    monkeypatch.undo()
    assert only(target)


def test_a_file_where_the_folder_should_be(target: Path) -> None:
    with pytest.raises(EnvironmentLacks, match="cannot write"), staged(target / "model.onnx"):
        pass
    assert only(target)


def test_targets_are_renamed_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    renamed = []
    replace = os.replace

    def note(source: Path, destination: Path) -> None:
        renamed.append(Path(destination).name)
        replace(source, destination)

    monkeypatch.setattr(files.os, "replace", note)
    engine, manifest = tmp_path / "z.engine", tmp_path / "a.json"
    with staged(engine, manifest) as temporary:
        for path in reversed(temporary):
            path.write_text(path.name)
    assert renamed == ["z.engine", "a.json"]
    assert (engine.read_text(), manifest.read_text()) == ("z.engine", "a.json")


def test_two_targets_succeed_or_fail_together(target: Path) -> None:
    with pytest.raises(EnvironmentLacks), staged(target, sidecar_of(target)) as (engine, _):
        engine.write_text("new")
        raise OSError(errno.ENOSPC, "No space left on device")
    assert only(target)


def test_targets_in_different_folders_are_a_fault_of_the_caller(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="different folders"), staged(tmp_path / "a" / "x", tmp_path / "b" / "y"):
        pass


def test_sidecar_lies_beside_its_artifact() -> None:
    assert sidecar_of(Path("out/model.engine")) == Path("out/model.engine.json")


def test_json_is_read_as_written(tmp_path: Path) -> None:
    facts = {"schema": 1, "name": "postcava \u00e9", "nested": {"list": [1, 2.5, None, True]}}
    write_json(tmp_path / "facts.json", facts)
    assert read_json(tmp_path / "facts.json") == facts
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(tmp_path / "nan.json", {"value": float("nan")})


@pytest.mark.parametrize(
    ("raw", "fault"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b"\xff\xfe{}", "not valid JSON"),
        (b'{"a": 1, "b": {"c": 1, "c": 1}}', "key 'c' occurs twice"),
        (b'{"a": NaN}', "NaN is not a number"),
        (b'{"a": -Infinity}', "-Infinity is not a number"),
        (b'{"a": 1e999}', "1e999 is beyond the range"),
        (b"[" * 100_000, "not valid JSON"),
        (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "not valid JSON"),
        (b"[1, 2]", "holds a JSON list, not an object"),
        (b"3", "holds a JSON int, not an object"),
        (json.dumps({"a": "x" * SIDECAR_LIMIT_BYTES}).encode(), "larger than 1048576 bytes"),
    ],
    ids=lambda value: value if isinstance(value, str) else repr(value[:20]),
)
def test_what_is_no_sidecar_is_refused(tmp_path: Path, raw: bytes, fault: str) -> None:
    path = tmp_path / "facts.json"
    path.write_bytes(raw)
    with pytest.raises(RefusedInput, match=fault) as refusal:
        read_json(path)
    assert str(path) in str(refusal.value)
    assert path.read_bytes() == raw


def test_a_sidecar_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RefusedInput, match="No such file"):
        read_json(tmp_path / "none.json")
    with pytest.raises(RefusedInput, match="Is a directory"):
        read_json(tmp_path)


def test_output_path(target: Path) -> None:
    check_output_path(target)
    check_output_path(target.with_name("new"), target)
    with pytest.raises(RefusedInput, match="not a regular file"):
        check_output_path(target.parent)
    with pytest.raises(RefusedInput, match="is an input of this command"):
        check_output_path(target.parent / "." / target.name, target)
    link = target.with_name("link")
    link.hardlink_to(target)
    with pytest.raises(RefusedInput, match="is an input of this command"):
        check_output_path(link, target)
    pipe = target.with_name("pipe")
    os.mkfifo(pipe)
    with pytest.raises(RefusedInput, match="not a regular file"):
        check_output_path(pipe)


def test_sha256(tmp_path: Path) -> None:
    path = tmp_path / "blob"
    path.write_bytes(b"abc" * 3_000_000)
    assert sha256_of(path) == hashlib.sha256(path.read_bytes()).hexdigest()
    path.write_bytes(b"")
    assert sha256_of(path) == hashlib.sha256(b"").hexdigest()
