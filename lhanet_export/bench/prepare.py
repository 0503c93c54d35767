"""What a benchmark needs before it starts: the weights as a file, our graph of them, and how much work that is."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from lhanet_export.errors import RefusedInput
from lhanet_export.export.work import read_graph, work_of
from lhanet_export.model.demo import DEMO, demo_file
from lhanet_export.shapes import Shape, SpatialRange, format_shape

#: Volume and logits are float32 outside every graph that is measured.
_LOGIT_BYTES = 4
#: What `prepared` calls the graph that it exports.
OURS = "ours.onnx"


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """The checkpoint as a file that PyTorch loads, what it is, and the graph whose work is counted."""

    checkpoint: Path
    identity: dict[str, Any]
    graph: Path


def prepared(
    checkpoint: str, shapes: Sequence[Shape], folder: Path, *, models: Sequence[Path], device: str
) -> Prepared:
    """Make `ours.onnx` (for `cpu` or `cuda`, all shapes) in a folder unless a model is one, and a file of the weights.

    Weights by rule become a file, so that they are loaded in the way, the time and the memory in which a user's are.
    All of it happens in a process of its own, so that this one stays small.
    """
    graph = next((path for path in models if path.suffix == ".onnx"), None)
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(_prepared, checkpoint, tuple(shapes), folder, graph, device).result()


def _prepared(checkpoint: str, shapes: Sequence[Shape], folder: Path, graph: Path | None, device: str) -> Prepared:
    import torch

    from lhanet_export.export.onnx_from_network import ExportOptions, onnx_from_network
    from lhanet_export.model.checkpoint import open_checkpoint

    network, identity = open_checkpoint(checkpoint)
    weights = Path(checkpoint)
    with demo_file() if checkpoint == DEMO else nullcontext() as packaged:
        if packaged is not None:
            weights = folder / packaged.name
            weights.write_bytes(packaged.read_bytes())
    if checkpoint.startswith("preset:"):
        weights = folder / "weights.pth"
        torch.save(network.state_dict(), weights)
    if graph is None:
        graph = folder / OURS
        smallest, largest = (_sides(shapes, pick) for pick in (min, max))
        options = ExportOptions(
            spatial=SpatialRange(smallest, shapes[0], largest), purpose="cpu" if device == "cpu" else "engine"
        )
        onnx_from_network(network, identity.as_json(), graph, options)
    return Prepared(checkpoint=weights, identity=identity.as_json(), graph=graph)


def plain_export(checkpoint: Path, shape: Shape, folder: Path) -> Path:
    """The network as the public implementation has it, exported by PyTorch alone for one size: what others run."""
    path = folder / f"plain-{format_shape(shape)}.onnx"
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        pool.submit(_plain_export, checkpoint, shape, path).result()
    return path


def _plain_export(checkpoint: Path, shape: Shape, path: Path) -> None:
    import torch

    from lhanet_export.bench.public import use_torchs_resize
    from lhanet_export.model.checkpoint import load_checkpoint

    # What the exporter says of packages that this network has no use for is nothing to the user of a benchmark.
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    use_torchs_resize()
    network = load_checkpoint(checkpoint).eval()
    with torch.inference_mode():
        program = torch.onnx.export(network, (torch.zeros(1, 1, *shape),), dynamo=True, verbose=False)
    assert program is not None
    program.save(path, external_data=True)


def _sides(shapes: Sequence[Shape], pick: Any) -> Shape:
    depth, height, width = (pick(shape[axis] for shape in shapes) for axis in range(3))
    return depth, height, width


def work_at(graph: Path, shape: Shape) -> dict[str, int]:
    """Multiply-adds and bytes of a graph at a size, and the multiply-adds of the network as it was trained."""
    from lhanet_export.inference.as_trained import multiply_adds_as_trained

    found = read_graph(graph)
    if shape not in found.spatial:
        raise RefusedInput(f"{graph} serves {found.spatial}, not {format_shape(shape)}")
    counted = work_of(found.model, shape)
    total, voxels = counted.total(), math.prod(shape)
    return {
        "multiply_adds": total.multiply_adds,
        "moved_bytes": total.moved_bytes,
        "weight_bytes": total.weight_bytes,
        "input_bytes": counted.batch * voxels * _LOGIT_BYTES,
        "output_bytes": counted.batch * voxels * _LOGIT_BYTES * found.num_classes,
        "multiply_adds_as_trained": multiply_adds_as_trained(
            found.preset, shape, base_channels=found.base_channels, num_classes=found.num_classes, head=found.head,
            batch=counted.batch,
        ),
    }  # fmt: skip
