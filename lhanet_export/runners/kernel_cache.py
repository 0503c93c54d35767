"""Kernels that TensorRT-RTX compiled for the GPU that is here, kept beside the engine for the next start."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from lhanet_export.engine.manifest import check_owner
from lhanet_export.errors import EnvironmentLacks, RefusedInput
from lhanet_export.files import staged

logger = logging.getLogger(__name__)

#: Kernels of one network are some MB; more is not what this toolkit wrote.
_MOST_BYTES = 1 << 30


class KernelCache:
    """The runtime cache of an engine, in `<engine>.cache`: read when it is made, written by `save`.

    Kernels are code, so the file counts only where nobody else could have written it. TensorRT-RTX refuses those of
    another GPU, driver or release by itself. Without the cache everything works, the first run takes longer; so nothing
    that is wrong with it is an error.
    """

    def __init__(self, engine_path: Path, config: Any) -> None:
        self._path = engine_path.with_name(engine_path.name + ".cache")
        self._cache = config.create_runtime_cache()
        self._known = self._read()
        if self._known and not self._cache.deserialize(self._known):
            logger.info("%s holds kernels for another machine; they are compiled anew", self._path)
        config.set_runtime_cache(self._cache)

    def _read(self) -> bytes:
        try:
            for path in (self._path, self._path.parent):
                check_owner(path)
            if self._path.stat().st_size <= _MOST_BYTES:
                return self._path.read_bytes()
        except FileNotFoundError:
            pass  # the first start
        except (OSError, RefusedInput) as error:
            logger.warning("compiled kernels are not taken from %s: %s", self._path, error)
        return b""

    def save(self) -> None:
        """Write what was compiled, if it is more than was read."""
        try:
            kernels = bytes(self._cache.serialize())
            if kernels and kernels != self._known:
                with staged(self._path) as (path,):
                    path.write_bytes(kernels)
        except (RuntimeError, TypeError, EnvironmentLacks, RefusedInput) as error:
            logger.info("compiled kernels are not kept: %s", error)
