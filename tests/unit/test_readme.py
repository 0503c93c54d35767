"""The README's commands exist with the options it shows, and its links lead somewhere."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import click
import pytest

from lhanet_export.cli.main import COMMANDS, commands

REPOSITORY = Path(__file__).resolve().parents[2]
README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
LINES = [
    line
    for block in re.findall(r"^```sh\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    for line in block.splitlines()
    if line.strip()
]
OURS = [line for line in LINES if line.startswith("lhanet-export ")]


def test_the_first_two_commands_set_up_and_test() -> None:
    assert LINES[:2] == ["scripts/quickstart", "scripts/test"]
    for line in LINES[:2]:
        assert (REPOSITORY / line).stat().st_mode & 0o111, f"{line} is not executable"


def test_every_command_is_shown() -> None:
    assert {shlex.split(line)[1] for line in OURS} == set(COMMANDS)


@pytest.mark.parametrize("line", OURS)
def test_commands_are_known_with_their_options(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    name, *arguments = shlex.split(line)[1:]
    assert name in COMMANDS
    context = click.Context(commands)
    command = commands.get_command(context, name)
    assert command is not None
    for param in command.params:
        # The files that the README names belong to its reader; whether they exist is not the question here.
        if isinstance(param.type, click.Path):
            monkeypatch.setattr(param, "type", click.STRING)
    # Raises click.UsageError for an unknown option, a bad value or a missing argument.
    command.make_context(name, list(arguments), parent=context)


def test_relative_links_resolve() -> None:
    links = re.findall(r"\]\(([^)#]+)", README)
    assert links
    for link in links:
        assert link.startswith("https://") or (REPOSITORY / link).exists(), link


def test_every_part_of_the_package_is_named() -> None:
    parts = {path.parent.name for path in (REPOSITORY / "lhanet_export").glob("*/__init__.py")}
    assert {part for part in parts if f"| `{part}/` |" not in README} == set()


def script(name: str) -> Any:
    """A program in scripts/ as a module; it finds those beside it, as when it is run."""
    spec = spec_from_file_location(name, REPOSITORY / "scripts" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(REPOSITORY / "scripts")
        # Dataclasses look for the module that they are in.
        patch.setitem(sys.modules, name, module)
        spec.loader.exec_module(module)
    return module


def test_results_are_those_of_the_measurement() -> None:
    """The README's figures are the ones in docs/measurements, rendered by the script that measured them."""
    module = script("measure_deploy")
    figures = json.loads(module.FIGURES.read_text(encoding="utf-8"))
    assert module.section(figures) in README
    assert figures["deploy"]["verification"]["fp16"]["passed"]


def test_the_page_of_measurements_is_that_of_its_figures() -> None:
    module = script("render_measurements")
    assert module.PAGE.read_text(encoding="utf-8") == module.page()


def test_the_pages_on_precision_are_those_of_their_figures() -> None:
    module = script("render_precision")
    for name, page in (("demo.md", module.demo_page()), ("precision.md", module.precision_page())):
        assert (module.DOCS / name).read_text(encoding="utf-8") == page
        for link in re.findall(r"\]\(([^)#]+)", page):
            assert (module.DOCS / link).exists(), link
        for line in re.findall(r"^lhanet-export (.*)$", page, re.MULTILINE):
            assert f"lhanet-export {line}" in README


PAGES = [script(name).page() for name in ("render_measurements", "render_benchmarks")]


def test_the_page_of_benchmarks_is_that_of_its_figures() -> None:
    module = script("render_benchmarks")
    assert module.PAGE.read_text(encoding="utf-8") == module.page()
    for link in re.findall(r"\]\(([^)#]+)", module.page()):
        assert (module.PAGE.parent / link).exists(), link
    for path, report in module.reports().items():
        assert path.read_text(encoding="utf-8") == report, path


@pytest.mark.parametrize("command", sorted(set(re.findall(r"`python (scripts/\S+\.py)", "".join(PAGES)))))
def test_the_programs_that_measure_start(command: str) -> None:
    """They take minutes at full width; what is shown here is that they are there, with all that they import."""
    done = subprocess.run([sys.executable, command, "--help"], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Usage:" in done.stdout
