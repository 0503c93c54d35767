"""lhanet-export: from an LHA-Net checkpoint to an engine that is right, small and fast, with proof."""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["LHANet", "load_checkpoint"]

if TYPE_CHECKING:
    from lhanet_export.model.checkpoint import load_checkpoint
    from lhanet_export.model.network import LHANet


def __getattr__(name: str) -> Any:
    # torch takes a second to import; `lhanet-export --help` should not wait for it.
    if name == "LHANet":
        from lhanet_export.model.network import LHANet

        return LHANet
    if name == "load_checkpoint":
        from lhanet_export.model.checkpoint import load_checkpoint

        return load_checkpoint
    raise AttributeError(f"module 'lhanet_export' has no attribute '{name}'")
