"""Getting hold of ONNX Runtime without letting it report to anybody, and opening graphs with it."""

import os
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from lhanet_export.errors import RefusedInput


def load_onnxruntime() -> ModuleType:
    """The module, which writes nothing into the home folder and sends nothing over the network.

    Left to itself, its import keeps an identifier of the machine and a database of events under
    `~/.cache/Microsoft` (1.31). A user's own setting of its variable is respected.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    import onnxruntime

    return onnxruntime


def open_session(
    path: Path, options: Any, what: str, providers: Sequence[Any] = ("CPUExecutionProvider",), module: Any = None
) -> Any:
    """A session for a graph in a file, by default on the CPU; `RefusedInput` names it as `what` if it does not load."""
    # Warnings of the optimizer about constants that it folds or not; errors are raised anyway.
    options.log_severity_level = 3
    try:
        library = load_onnxruntime() if module is None else module
        return library.InferenceSession(str(path), options, providers=list(providers))
    except Exception as error:
        # ONNX Runtime's exceptions have no common base below Exception.
        raise RefusedInput(f"ONNX Runtime cannot load {what}: {error}") from error
