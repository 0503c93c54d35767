"""Results that are kept between two runs: JSON facts and arrays in one npz file, without pickled objects."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from lhanet_export.errors import RefusedInput
from lhanet_export.files import staged

#: What is kept has some hundred kB; anything much larger is something else, and is not read.
_LARGEST_FILE_BYTES = 64 << 20


def save_arrays(path: Path, facts: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
    """Write facts, each a JSON value, and arrays under their names, whole or not at all."""
    texts = {
        name: np.frombuffer(json.dumps(value, allow_nan=False).encode(), np.uint8) for name, value in facts.items()
    }
    members: dict[str, Any] = {**texts, **arrays}
    with staged(path) as (temporary,), temporary.open("wb") as stream:
        np.savez_compressed(stream, **members)


@contextmanager
def read_arrays(path: Path, damaged: str) -> Iterator[Mapping[str, np.ndarray]]:
    """The arrays of a file that may be anything, by name; `fact_in` reads those that are facts.

    `RefusedInput` says `damaged` for a file that is too large, or broken, or that the block fails to make sense of.
    """
    try:
        if path.stat().st_size > _LARGEST_FILE_BYTES:
            raise ValueError("too large")
        with zipfile.ZipFile(path) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > 4 * _LARGEST_FILE_BYTES:
                raise ValueError("unpacks to too much")
        with np.load(path, allow_pickle=False) as arrays:
            yield arrays
    except OSError as error:
        raise RefusedInput(f"cannot read {path}: {error.strerror or error}") from error
    except (zipfile.BadZipFile, LookupError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise RefusedInput(f"{path} {damaged}") from error


def fact_in(arrays: Mapping[str, np.ndarray], name: str) -> Any:
    """The JSON value that `save_arrays` wrote under a name."""
    return json.loads(arrays[name].tobytes())
