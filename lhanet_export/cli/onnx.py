"""`lhanet-export onnx`: a checkpoint becomes an ONNX file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from lhanet_export.cli.options import (
    checkpoint_argument,
    command,
    graph_options,
    json_option,
    precision_option,
    purpose_option,
    recipe_option,
    spatial_option,
    target_option,
    without_option,
)
from lhanet_export.cli.show import Show, format_bytes
from lhanet_export.errors import RefusedInput
from lhanet_export.shapes import SpatialRange

if TYPE_CHECKING:
    from lhanet_export.export.artifact import OnnxArtifact
    from lhanet_export.precision.fp16 import Fp16Report


@command("onnx")
@checkpoint_argument
@target_option("The ONNX file; its sidecar and large weights are written beside it.")
@precision_option("fp32")
@spatial_option("By default 32 to 256 voxels a side.")
@graph_options
@recipe_option
@purpose_option
@without_option
@json_option
def onnx(
    checkpoint: str, target: Path, precision: str, spatial: SpatialRange | None, output: str, head: str,
    batch: int | None, half_io: bool, labels: Path | None, precision_recipe: Path | None, purpose: str,
    without: tuple[str, ...], show: Show,
) -> None:  # fmt: skip
    """Export CHECKPOINT to an ONNX file with dynamic depth, height and width.

    The graph's input is `image` (N,1,D,H,W), its output is named after its kind. The file is not
    compared with the network here; that is what `verify` and `deploy` do.
    """
    from lhanet_export.conventions import read_labels
    from lhanet_export.export.onnx_from_network import ExportOptions, onnx_from_network
    from lhanet_export.files import scratch_folder
    from lhanet_export.inference.target import Target
    from lhanet_export.model.checkpoint import open_checkpoint
    from lhanet_export.precision.convert import fp16_from_fp32
    from lhanet_export.precision.recipe import read_recipe

    if target.suffix != ".onnx":
        raise RefusedInput(f"{target} should end in .onnx: readers tell the format by it")
    if half_io and precision != "fp16":
        raise RefusedInput("--half-io belongs to --precision fp16")
    if precision_recipe is not None and precision != "fp16":
        raise RefusedInput("--recipe belongs to --precision fp16")
    kept = read_recipe(precision_recipe) if precision_recipe is not None else None
    with show.progress.step(f"load {checkpoint}"):
        network, identity = open_checkpoint(checkpoint)
    options = ExportOptions(
        target=Target(head=head, output=output), spatial=spatial, batch=batch,
        labels=read_labels(labels, network.num_classes) if labels else None, purpose=purpose, without=without,
    )  # fmt: skip
    report = None
    if precision == "fp32":
        artifact = onnx_from_network(network, identity.as_json(), target, options, show.progress)
    else:
        with scratch_folder(target.parent) as folder:
            whole = onnx_from_network(network, identity.as_json(), folder / "fp32.onnx", options, show.progress)
            artifact, report = fp16_from_fp32(whole, target, half_io=half_io, recipe=kept, progress=show.progress)
    _say(artifact, report, show)


def _say(artifact: OnnxArtifact, report: Fp16Report | None, show: Show) -> None:
    facts = artifact.as_json()
    bytes_on_disk = sum(path.stat().st_size for path in artifact.files)
    rows = [
        ("file", str(artifact.path)),
        ("size", format_bytes(bytes_on_disk)),
        ("precision", artifact.precision),
        ("output", f"{facts['output']} of the {facts['head']} head"),
        ("sizes", str(artifact.spatial)),
        ("for", facts["purpose"]),
        ("rewrites", ", ".join(facts["rewrites"]) or "none"),
        ("opset", str(artifact.opset)),
    ]
    if report is not None:
        rows += report.rows()
        facts["fp16"] = report.as_json()
    show.table("ONNX", rows)
    show.facts({"file": str(artifact.path), "bytes": bytes_on_disk, **facts})
