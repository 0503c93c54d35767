"""`lhanet-export trt`: an ONNX file becomes an engine with its manifest."""

from __future__ import annotations

from pathlib import Path

import click

from lhanet_export.cli.options import (
    BatchRangeType,
    backend_option,
    calibration_option,
    command,
    file_argument,
    gpu_option,
    json_option,
    recipe_option,
    spatial_option,
    target_option,
)
from lhanet_export.cli.report import engine_rows
from lhanet_export.cli.show import Show
from lhanet_export.errors import RefusedInput
from lhanet_export.shapes import SpatialRange


@command("trt")
@file_argument("model")
@target_option("The engine; its manifest is written beside it.")
@click.option("--fp16", is_flag=True, help="Convert an FP32 graph to FP16 first, as onnx --precision fp16 does.")
@click.option("--int8", is_flag=True, help="Convert an FP32 graph to INT8 first, as calibrate does.")
@recipe_option
@calibration_option
@gpu_option
@backend_option
@spatial_option("By default the sizes of the card's recipe, as far as the graph serves them.")
@click.option(
    "--batch", type=BatchRangeType(), metavar="MIN:OPT:MAX",
    help="Volumes in one call, for graphs of --batch dynamic. By default the graph's, or 1.",
)  # fmt: skip
@json_option
def trt(
    model: Path, target: Path, fp16: bool, int8: bool, precision_recipe: Path | None, calibration: Path | None,
    gpu: str, backend: str, spatial: SpatialRange | None, batch: tuple[int, int, int] | None, show: Show,
) -> None:  # fmt: skip
    """Build an engine from MODEL, an ONNX file of this toolkit.

    The backend tensorrt-rtx builds on any machine, tensorrt on a machine with the GPU. Precision is
    the graph's. The engine is not compared with the network here; that is what `verify` (on the
    GPU) and `deploy` (also its graphs) do.
    """
    from lhanet_export.engine.build import engine_from_onnx
    from lhanet_export.engine.manifest import manifest_of, publish_engine
    from lhanet_export.engine.plan import plan_engine
    from lhanet_export.engine.recipes import recipe_named
    from lhanet_export.export.artifact import read_onnx
    from lhanet_export.files import scratch_folder
    from lhanet_export.precision.convert import fp16_from_fp32
    from lhanet_export.precision.recipe import read_recipe

    recipe = recipe_named(gpu)
    artifact = read_onnx(model)
    if fp16 and int8:
        raise RefusedInput("--fp16 and --int8 exclude each other: an INT8 graph is FP16 where it is not INT8")
    if int8 != (calibration is not None):
        raise RefusedInput("--int8 and --calibration belong together: INT8 needs scans for its scales")
    if int8 and artifact.precision != "fp32":
        raise RefusedInput(f"{model} is {artifact.precision} already; INT8 is made from the FP32 graph")
    if precision_recipe is not None and not (fp16 and artifact.precision == "fp32"):
        raise RefusedInput("--recipe belongs to --fp16 and an FP32 graph")
    kept = read_recipe(precision_recipe) if precision_recipe is not None else None
    with scratch_folder(target.parent) as folder:
        report = None
        if fp16 and artifact.precision == "fp32":
            show.line(f"{model} is an FP32 graph: converting it to FP16 first")
            artifact, report = fp16_from_fp32(artifact, folder / "fp16.onnx", recipe=kept, progress=show.progress)
        if calibration is not None:
            # Reading and judging scans takes libraries that no other way to an engine needs.
            from lhanet_export.quantize import int8_from_scans

            show.line(f"{model} is an FP32 graph: converting it to INT8 first")
            quantized = int8_from_scans(artifact, folder / "int8.onnx", calibration, progress=show.progress)
            artifact = quantized.artifact
            show.table("INT8", quantized.report.rows())
        facts = artifact.as_json()
        plan = plan_engine(artifact.path, facts, recipe=recipe, backend=backend, spatial=spatial, batch=batch)
        built = engine_from_onnx(plan, folder, progress=show.progress)
        manifest = manifest_of(plan, built, facts, verification={"engine": "not compared yet"})
        publish_engine(built.path, manifest, target)
    if report is not None:
        show.table("FP16", report.rows())
    show.table(f"engine {target}", engine_rows(manifest.as_json()))
    show.facts({"engine_file": str(target), **manifest.as_json()})
