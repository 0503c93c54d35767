"""Getting hold of ONNX Runtime without letting it report to anybody."""

import os
from types import ModuleType


def load_onnxruntime() -> ModuleType:
    """The module, which writes nothing into the home folder and sends nothing over the network.

    Left to itself, its import keeps an identifier of the machine and a database of events under
    `~/.cache/Microsoft` (1.31). A user's own setting of its variable is respected.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    import onnxruntime

    return onnxruntime
