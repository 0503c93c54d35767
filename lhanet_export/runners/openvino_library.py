"""Getting hold of OpenVINO, which need not be installed, without letting it report to anybody."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any, cast

from lhanet_export.errors import EnvironmentLacks


def load_openvino() -> ModuleType:
    """The module; `EnvironmentLacks` says how to install it, or why it does not load."""
    keep_openvino_quiet()
    try:
        import openvino
    except ModuleNotFoundError as error:
        if error.name == "openvino":
            install = "pip install 'lhanet-export[openvino]'"
            raise EnvironmentLacks(f"OpenVINO is not installed; install it with: {install}") from error
        raise EnvironmentLacks(f"OpenVINO is installed but incomplete: {error}") from error
    except (ImportError, OSError, RuntimeError) as error:
        raise EnvironmentLacks(f"OpenVINO is installed but does not load: {error}") from error
    return cast(ModuleType, openvino)


def load_parts() -> tuple[ModuleType, ModuleType]:
    """The modules with its graph passes and with its operations, for who has loaded OpenVINO."""
    from openvino import opset13, passes

    return passes, opset13


def keep_openvino_quiet() -> None:
    """Make an `import openvino` that follows in this process send nothing over the network.

    Left to itself, the import writes an identifier into the home folder and sends an event to Google
    Analytics (2026.4, `openvino/tools/ovc/__init__.py`). Without its package for that it does neither.
    """
    # None is Python's way to say that a module is not to be had.
    sys.modules.setdefault("openvino_telemetry", cast(ModuleType, None))


def computes_bf16(core: Any) -> bool:
    """Whether an `openvino.Core` has BF16 arithmetic on this CPU."""
    return "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
