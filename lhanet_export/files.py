"""Files that are either whole under their final name or not there.

Everything is written into a temporary folder beside its target and renamed: a reader sees the old
file or the new one. When writing fails, the temporary folder is removed and the old file stays.
"""

import errno
import hashlib
import json
import math
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lhanet_export.errors import EnvironmentLacks, RefusedInput

#: A sidecar is a few kB; anything much larger is not one, and is not parsed.
SIDECAR_LIMIT_BYTES = 1 << 20
#: Folders of this prefix hold files that are being written; after a crash they can be deleted.
STAGING_PREFIX = ".lhanet-export-"
_CHUNK_BYTES = 1 << 22
_WRITE_ERRORS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO})


def sha256_of(path: Path) -> str:
    """Hex SHA-256 of a file's bytes, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def check_output_path(path: Path, *inputs: Path) -> None:
    """Refuse a target that cannot be written safely: a folder, a device, or one of the command's own inputs."""
    if path.exists() and not path.is_file():
        raise RefusedInput(f"{path} exists and is not a regular file; name another output")
    for source in inputs:
        if path.exists() and source.exists() and path.samefile(source):
            raise RefusedInput(f"{path} is an input of this command; name another output")


@contextmanager
def staged(*targets: Path) -> Iterator[tuple[Path, ...]]:
    """Paths of the same names in a temporary folder beside the targets, renamed into place when the block succeeds.

    All targets lie in one folder, which is made if it is missing. They are renamed in the given order:
    name last what vouches for the rest (a manifest after its engine). If the block fails, no target
    changes and the temporary folder is gone. A full disk or a read-only folder raises `EnvironmentLacks`.
    """
    folder = targets[0].parent
    if any(target.parent != folder for target in targets):
        raise ValueError(f"targets lie in different folders: {', '.join(map(str, targets))}")
    for target in targets:
        check_output_path(target)
    with scratch_folder(folder) as scratch:
        yield tuple(scratch / target.name for target in targets)
        with _written(folder):
            _publish([(scratch / target.name, target) for target in targets])


@contextmanager
def staging_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder in `folder`; the files left in it are renamed into `folder` when the block succeeds.

    JSON files come last, because they vouch for the others. If the block fails, nothing in `folder`
    changes and the temporary folder is gone. A full disk or a read-only folder raises `EnvironmentLacks`.
    """
    with scratch_folder(folder) as scratch:
        yield scratch
        made = sorted(scratch.iterdir(), key=lambda path: (path.suffix == ".json", path.name))
        with _written(folder):
            _publish([(path, folder / path.name) for path in made])


@contextmanager
def scratch_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder in `folder`, on the disk that the results go to; gone afterwards, whatever happens.

    `folder` is made if it is missing, with its parents, and removed again if the block fails and left it empty. What
    a killed process of this machine left there is removed first. `EnvironmentLacks` where nothing can be written.
    """
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    with _written(folder):
        folder.mkdir(parents=True, exist_ok=True)
        _sweep(folder)
        prefix = f"{STAGING_PREFIX}{socket.gethostname()}-{os.getpid()}-"
        scratch = tempfile.TemporaryDirectory(prefix=prefix, dir=folder)
    try:
        with scratch as name:
            try:
                yield Path(name)
            except OSError as error:
                # Reading an input can fail in the block, too; these are what writing fails with.
                if error.errno not in _WRITE_ERRORS:
                    raise
                raise _cannot_write(folder, error) from error
    except BaseException:
        for path in made:
            if not any(path.iterdir()):
                path.rmdir()
        raise


def _sweep(folder: Path) -> None:
    """Remove temporary folders of processes of this machine that are no more."""
    mine = f"{STAGING_PREFIX}{socket.gethostname()}-"
    for path in folder.glob(f"{mine}*"):
        owner = path.name.removeprefix(mine).partition("-")[0]
        if owner.isdigit() and not _is_running(int(owner)):
            shutil.rmtree(path, ignore_errors=True)


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True  # it belongs to somebody else
    return True


@contextmanager
def _written(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _cannot_write(folder, error) from error


def _cannot_write(folder: Path, error: OSError) -> EnvironmentLacks:
    return EnvironmentLacks(f"cannot write into {folder}: {error.strerror or error}")


def _publish(pairs: Sequence[tuple[Path, Path]]) -> None:
    """Rename each file to its target, in order, after everything that can be known to fail has been checked."""
    for path, target in pairs:
        check_output_path(target)
        _flush(path)
    for path, target in pairs:
        os.replace(path, target)
    _flush(pairs[0][1].parent)


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sidecar_of(path: Path) -> Path:
    """Where the facts about an artifact lie: `model.engine` has `model.engine.json` beside it."""
    return path.with_name(path.name + ".json")


def write_json(path: Path, facts: dict[str, Any]) -> None:
    """Write facts as readable JSON; a NaN or an infinity is a fault of the caller (ValueError), never written."""
    path.write_text(json.dumps(facts, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file that may be anything; `RefusedInput` says what is wrong with it."""
    try:
        with path.open("rb") as stream:
            raw = stream.read(SIDECAR_LIMIT_BYTES + 1)
    except OSError as error:
        raise RefusedInput(f"cannot read {path}: {error.strerror}") from error
    if len(raw) > SIDECAR_LIMIT_BYTES:
        raise RefusedInput(f"{path} is larger than {SIDECAR_LIMIT_BYTES} bytes; this is no manifest of this toolkit")
    try:
        facts = json.loads(
            raw.decode("utf-8"), object_pairs_hook=_unique_keys, parse_constant=_no_constant, parse_float=_finite
        )
    except (ValueError, RecursionError) as error:
        raise RefusedInput(f"{path} is not valid JSON: {error}") from error
    if not isinstance(facts, dict):
        raise RefusedInput(f"{path} holds a JSON {type(facts).__name__}, not an object")
    return facts


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = [key for key, _ in pairs]
    if len(set(keys)) != len(keys):
        raise ValueError(f"key {next(key for key in keys if keys.count(key) > 1)!r} occurs twice")
    return dict(pairs)


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a number that JSON knows")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is beyond the range of a double")
    return value
