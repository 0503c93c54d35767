"""`lhanet-export fit`: the largest patches that fit on a card."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from lhanet_export.cli.options import (
    AspectType,
    MemoryType,
    backend_option,
    checkpoint_argument,
    command,
    gpu_option,
    json_option,
    precision_option,
    target_options,
)
from lhanet_export.cli.show import Show, format_bytes
from lhanet_export.shapes import format_shape

if TYPE_CHECKING:
    from lhanet_export.fit import AspectFit, Fit


@command("fit")
@checkpoint_argument
@click.option(
    "--vram", type=MemoryType(), metavar="SIZE", help="Memory of the card, e.g. 12GiB. By default what the recipe says."
)
@gpu_option
@backend_option
@precision_option("fp16")
@target_options
@click.option(
    "--aspect", "aspects", type=AspectType(), metavar="D:H:W", multiple=True, default=("1:2:2", "1:1:1"),
    show_default=True, help="Parts of depth, height and width of a patch; may be given several times.",
)  # fmt: skip
@json_option
def fit(
    checkpoint: str, vram: int | None, gpu: str, backend: str, precision: str, output: str, head: str,
    aspects: tuple[tuple[int, int, int], ...], show: Show,
) -> None:  # fmt: skip
    """Find the largest patches of CHECKPOINT that fit on a card, by building; nothing is run on a GPU.

    CHECKPOINT is a file, or preset:NAME. Some builds of about a minute are made for each aspect; what they
    planned is kept in XDG_CACHE_HOME or ~/.cache, so that asking again takes seconds.
    """
    from lhanet_export.engine.recipes import recipe_named
    from lhanet_export.fit import fit as run
    from lhanet_export.inference.target import Target
    from lhanet_export.patches import Question

    recipe = recipe_named(gpu)
    question = Question(
        checkpoint=checkpoint, recipe=recipe, backend=backend, precision=precision,
        target=Target(head=head, output=output),
    )  # fmt: skip
    distinct = tuple(dict.fromkeys(aspects))
    result = run(question, vram or recipe.memory_bytes, distinct, progress=show.progress)
    _say(f"Patches of {checkpoint} in {precision}, {output} of the {head} head, on {recipe.title}", result, show)
    show.facts({
        "checkpoint": checkpoint, "recipe": recipe.name, "compute_capabilities": list(recipe.compute_capabilities),
        "precision": precision, "output": output, "head": head, **result.as_json(),
    })  # fmt: skip


def _say(title: str, result: Fit, show: Show) -> None:
    from lhanet_export.engine.backends import BACKENDS
    from lhanet_export.fit import ALLOWANCE_BYTES, format_aspect

    names = (
        "", "largest patch that fits", "weights, as planned", "activations, as planned", "input and output",
        "allowance for CUDA", "together", f"left of {format_bytes(result.vram_bytes)}", "next patch", "which needs",
    )  # fmt: skip
    columns = [[format_aspect(one.aspect), *_cells(one, result.vram_bytes)] for one in result.aspects]
    flush = [[cell.rjust(max(map(len, column))) for cell in column] for column in columns]
    headings, *rows = zip(names, *flush, strict=True)
    show.table(title, rows, headings)
    for one in result.aspects:
        if one.next_refused:
            show.line(f"{format_shape(one.next_shape)} was not built: {one.next_refused}.")
    show.line(
        f"Weights and activations are what {BACKENDS[result.backend].title} {result.backend_version} planned for "
        f"engines that serve every size up to the patch. The allowance of {format_bytes(ALLOWANCE_BYTES)}, for the "
        "CUDA context and what else is on the card, is not a measurement. Nothing was run on a GPU."
    )


def _cells(one: AspectFit, vram_bytes: int) -> list[str]:
    """The column of an aspect: the largest patch and its memory, the next patch and what it needs."""
    need, beyond = one.largest, one.next_need
    fitting = ["none", *[""] * 6]
    if need:
        amounts = (
            need.weights_bytes, need.activation_bytes, need.input_bytes + need.output_bytes, need.allowance_bytes,
            need.together_bytes, vram_bytes - need.together_bytes,
        )  # fmt: skip
        fitting = [format_shape(need.shape), *map(format_bytes, amounts)]
    return [*fitting, format_shape(one.next_shape), format_bytes(beyond.together_bytes) if beyond else "not built"]
