"""`lhanet-export package`: a model as a server or an application wants to find it."""

from __future__ import annotations

from pathlib import Path

import click

from lhanet_export.cli.options import OutputPath, command, file_argument, json_option
from lhanet_export.cli.show import Show, format_bytes


@command("package")
@file_argument("model")
@click.option(
    "--triton", "repository", required=True, type=OutputPath(folder=True), metavar="DIR",
    help="A Triton model repository, new or not; the model becomes a folder in it.",
)  # fmt: skip
@click.option("--name", default="lhanet", show_default=True, metavar="NAME", help="The model's name on the server.")
@json_option
def package(model: Path, repository: Path, name: str, show: Show) -> None:
    """Put MODEL, an ONNX file or an engine of the backend tensorrt, into a Triton Inference Server model repository.

    Labels and preprocessing rules stand in its configuration, where clients can ask for them; windows and blending
    remain the client's. A model of that name that is there already is not touched, and the command is refused.
    """
    from lhanet_export.triton import triton_repository

    with show.progress.step(f"copy {model.name}"):
        folder = triton_repository(model, repository, name=name)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    rows = [(str(path.relative_to(repository)), format_bytes(path.stat().st_size)) for path in files]
    show.table(f"Triton model {name}", rows)
    show.facts({"model": str(model), "repository": str(repository), "name": name, "files": [str(p) for p in files]})
