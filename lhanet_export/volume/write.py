"""Volumes on the grid of a scan, written slice by slice."""

from __future__ import annotations

import gzip
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np

from lhanet_export.volume.header import Header, header_for

#: Label maps shrink to a hundredth at the fastest level already.
_LEVEL = 1


@contextmanager
def slices_into(path: Path, header: Header, *, slope: float = 1.0) -> Iterator[Callable[[np.ndarray], None]]:
    """Write a NIfTI volume of uint8 on the grid of `header`; the function takes slices (Y,X) or slabs (t,Y,X) in turn.

    The file has the header's version, shape, affines and units; values are `slope` times what is stored. It is packed
    if its name ends in `.gz`; the same slices give the same bytes. Give a path of `files.staged`: until the block has
    ended, the file is not whole.
    """
    with ExitStack() as opened:
        file = opened.enter_context(path.open("wb"))
        content: BinaryIO = file
        if path.name.lower().endswith(".gz"):
            # Without name and time: they would make two files of one result differ.
            packed = gzip.GzipFile(filename="", fileobj=file, mode="wb", compresslevel=_LEVEL, mtime=0)
            content = opened.enter_context(packed)  # type: ignore[assignment]
        # No extensions: four zeros (nifti1.h).
        content.write(header_for(header, slope) + b"\0\0\0\0")

        def write(slices: np.ndarray) -> None:
            content.write(np.ascontiguousarray(slices, np.uint8).data)

        yield write
