"""What may go wrong, and files: read only where nobody else could have changed them, written whole or not at all."""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO


class Refused(Exception):
    """What was given cannot be used as it is: an option, a manifest, an engine, a scan. Exit code 2."""


class Lacks(Exception):
    """What the machine lacks: a GPU, a package, memory, disk. Exit code 3."""


def need(fact: object, message: str) -> None:
    """Refuse the input, unless something is so; `message` names file, fact and remedy."""
    if not fact:
        raise Refused(message)


def read_own(path: Path, limit: int) -> bytes:
    """A file's bytes, at most `limit` and one more, refused where another user of this machine could have changed it.

    An engine and what belongs to it are native code: who can write them can run anything.
    """
    try:
        need(path.is_file(), f"there is no file {path}")
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            _check_owner(path, status)
            _check_owner(path.parent, path.absolute().parent.stat())
            return file.read(min(limit, status.st_size) + 1)
    except OSError as error:
        raise Refused(f"cannot read {path}: {error.strerror or error}") from error


def _check_owner(path: Path, found: os.stat_result) -> None:
    if not hasattr(os, "geteuid"):
        return  # Windows, whose access lists say this in another way
    # A shared folder with the sticky bit protects its files.
    protected = stat.S_ISDIR(found.st_mode) and found.st_mode & stat.S_ISVTX
    shared = found.st_mode & stat.S_IWOTH and not protected
    need(not shared, f"everybody on this machine can write to {path}, and an engine is native code: chmod o-w {path}")
    owned = found.st_uid in (0, os.geteuid())
    need(owned, f"{path} belongs to another user, and an engine is native code; copy engine and manifest to a folder")


@contextmanager
def written(path: Path) -> Iterator[BinaryIO]:
    """A new file that gets its name when the block succeeds; until then, and if it fails, the old one stays.

    Its folder is made if it is missing.
    """
    hidden = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with hidden.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(hidden, path)
    except OSError as error:
        raise Lacks(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        with suppress(OSError):
            hidden.unlink(missing_ok=True)
