"""`lhanet-export deploy`: a checkpoint becomes a proven engine in one command."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from lhanet_export.cli.options import (
    OutputPath,
    backend_option,
    calibration_option,
    checkpoint_argument,
    command,
    data_option,
    gpu_option,
    json_option,
    labels_option,
    precision_option,
    recipe_option,
    seed_option,
    spatial_option,
    target_option,
    without_option,
)
from lhanet_export.cli.report import engine_rows, show_verification
from lhanet_export.cli.show import Show
from lhanet_export.errors import RefusedInput
from lhanet_export.shapes import SpatialRange

if TYPE_CHECKING:
    from lhanet_export.deploy import Deployment


@command("deploy")
@checkpoint_argument
@target_option("Folder for the ONNX files, the engine and its manifest.", folder=True)
@gpu_option
@backend_option
@precision_option("fp16", int8=True)
@spatial_option("By default what the recipe of the card says.")
@labels_option
@recipe_option
@calibration_option
@data_option
@seed_option
@without_option
@click.option(
    "--report",
    type=OutputPath(folder=False),
    metavar="FILE",
    help="Also measure the result as bench does, and write proof and measurements as one HTML page.",
)
@json_option
def deploy(
    checkpoint: str, target: Path, gpu: str, backend: str, precision: str, spatial: SpatialRange | None,
    labels: Path | None, precision_recipe: Path | None, calibration: Path | None,
    data: Path | None, assume_hu: bool, seed: int, without: tuple[str, ...], report: Path | None, show: Show,
) -> None:  # fmt: skip
    """Make an engine for a card out of CHECKPOINT, and prove that it is the network that was trained.

    CHECKPOINT is a file, demo for the trained network that comes with this package, or preset:NAME
    (lightweight, standard, high_capacity) for weights by rule.
    Every graph on the way is compared with the eager network; if one differs, nothing is written
    and the exit code is 2. Where FP16 does not pass, the nodes that have to stay FP32 are searched for.
    The engine itself is compared too where its GPU is at hand.
    """
    from lhanet_export.deploy import DeployFailed
    from lhanet_export.deploy import deploy as run
    from lhanet_export.engine.recipes import recipe_named
    from lhanet_export.precision.recipe import read_recipe

    if calibration is not None and precision != "int8":
        raise RefusedInput("--calibration belongs to --precision int8")
    if precision_recipe is not None and precision != "fp16":
        raise RefusedInput("--recipe belongs to --precision fp16")
    kept = read_recipe(precision_recipe) if precision_recipe is not None else None
    try:
        result = run(
            checkpoint, target, recipe=recipe_named(gpu), backend=backend, precision=precision, spatial=spatial,
            labels_file=labels, seed=seed, without=without, precision_recipe=kept, calibration=calibration,
            data=data, assume_hu=assume_hu, progress=show.progress,
        )  # fmt: skip
    except DeployFailed as failure:
        for kind, verification in failure.verifications.items():
            show_verification(show, kind, verification, failure.labels)
        show.facts({"passed": False, "verifications": {k: v.as_json() for k, v in failure.verifications.items()}})
        raise
    _say(result, show)
    if report is not None:
        _report(result, checkpoint, report, show)


def _report(result: Deployment, checkpoint: str, target: Path, show: Show) -> None:
    """The page of what was proved and measured; measured at the size that the engine is for."""
    from lhanet_export.bench.run import Order, benches_of, facts_of
    from lhanet_export.cli.bench import write_report

    models = [*(artifact.path for artifact in result.artifacts.values()), result.engine]
    shape = result.manifest.engine.profiles[0].opt
    order = Order(shapes=(shape,), command=shlex.join(["lhanet-export", *sys.argv[1:]]))
    facts = facts_of(benches_of(checkpoint, models, order, show.progress))
    write_report(target, facts, f"LHA-Net, {checkpoint}", result.manifest.as_json())
    show.line(f"What was proved and measured is in {target}")


def _say(result: Deployment, show: Show) -> None:
    for kind, verification in result.verifications.items():
        show_verification(show, kind, verification, result.manifest.labels)
    if result.found_recipe:
        show.line(f"FP16 needed a precision recipe; it was found and is in {result.found_recipe}")
    if result.int8:
        show.table("INT8", result.int8.rows())
    if result.fp16:
        show.table("FP16", result.fp16.rows())
    manifest = result.manifest.as_json()
    show.table(f"engine {result.engine}", engine_rows(manifest))
    if "engine" not in result.verifications:
        show.line(f"The engine itself: {manifest['verification']['engine']}. Its graph was compared above.")
    show.facts({"passed": True, **result.as_json()})
