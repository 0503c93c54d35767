"""`lhanet-export verify`: hold an ONNX file or an engine against the network it was made from."""

from __future__ import annotations

from pathlib import Path

import click

from lhanet_export.cli.options import checkpoint_option, command, file_argument, json_option, seed_option, shape_option
from lhanet_export.cli.report import show_verification
from lhanet_export.cli.show import Show
from lhanet_export.shapes import Shape


@command("verify")
@file_argument("model")
@checkpoint_option
@shape_option("By default the smallest of the model, 48x96x96 and an odd one, as far as the model serves them.")
@click.option(
    "--runtime", type=click.Choice(("onnxruntime", "openvino")), default="onnxruntime", show_default=True,
    help="What an ONNX file runs in; OpenVINO takes FP32 ones.",
)  # fmt: skip
@seed_option
@json_option
def verify(model: Path, checkpoint: str, shapes: tuple[Shape, ...], runtime: str, seed: int, show: Show) -> None:
    """Compare MODEL, an ONNX file or an engine, with the eager PyTorch network of CHECKPOINT.

    ONNX files run on the CPU, FP16 ones with every tensor rounded to FP16; engines need their GPU.
    Exit code 2 if any number is out of tolerance, or if the network does not depend on its input,
    because then every comparison passes.
    """
    from lhanet_export.model.checkpoint import open_checkpoint
    from lhanet_export.runners.opening import reference_runner, runner_of
    from lhanet_export.verify.gate import TOLERANCES, reference_for
    from lhanet_export.verify.gate import verify as compare
    from lhanet_export.verify.inputs import cases_for, check_shapes, shapes_in

    opened = runner_of(model, runtime)
    check_shapes(list(shapes), opened.spatial)
    cases = cases_for(list(shapes) or shapes_in(opened.spatial), opened.batch, seed)
    with show.progress.step(f"load {checkpoint}"):
        network, identity = open_checkpoint(checkpoint)
    opened.check_checkpoint(model, identity.as_json())
    reference = reference_for(reference_runner(network, opened.target), cases, show.progress)
    verification = compare(
        opened.runner, reference, TOLERANCES[opened.precision], output=opened.target.output, progress=show.progress
    )
    show_verification(show, model.name, verification)
    show.facts({"model": str(model), **verification.as_json()})
    verification.require(str(model))
