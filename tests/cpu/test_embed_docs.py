"""What docs/embedding.md says, done: its commands, the snippet for linking, and three programs with one answer."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest

from lhanet_export.cli.main import run
from lhanet_export.engine.manifest import read_manifest
from lhanet_export.volume.nifti import write_phantom
from lhanet_export.volume.phantom import anatomy_from_seed, render
from tests.cpu.embed import ROOT, built, null_engine

PAGE = (ROOT / "docs" / "embedding.md").read_text(encoding="utf-8")
SHELL = [
    line for block in re.findall(r"^```sh\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL) for line in block.splitlines()
]
PREDICT = re.findall(r"`(lhanet-export predict .*?)`", PAGE)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the page's commands are run: the sources, what is built of them, an engine without network, and a scan."""
    folder = tmp_path_factory.mktemp("reader")
    (folder / "engines").symlink_to(ROOT / "engines")
    (folder / "build").mkdir()
    (folder / "build" / "cpp").symlink_to(built().parent)
    null_engine(folder / "build", name="model.engine", classes=6, patch=(48, 48, 48))
    phantom = render(anatomy_from_seed(4), (4.0, 4.5, 5.0), (36, 32, 24))
    write_phantom(phantom, folder / "scan.nii.gz", folder / "truth.nii.gz")
    return folder


def test_the_commands_of_the_page(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    assert len(SHELL) == 4 and len(PREDICT) == 1
    for line in SHELL:
        program, *arguments = shlex.split(line)
        # The tests' own Python, and their build of the application, which CMake finds up to date.
        command = [sys.executable if program == "python" else program, *arguments]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
    assert run(shlex.split(PREDICT[0])[1:]) == 0
    names = ("labels.nii.gz", "labels-too.nii.gz", "labels-again.nii.gz")
    first, *others = (np.asarray(nibabel.load(name).dataobj) for name in names)  # type: ignore[attr-defined]
    assert len(np.unique(first)) > 3
    for labels in others:
        assert np.array_equal(labels, first)


def test_the_manifests_keys_are_explained(folder: Path) -> None:
    facts = read_manifest(folder / "build" / "model.engine").as_json()
    named = set(re.findall(r"`([a-z0-9_.]+)`", PAGE))
    keys = {f"engine.{key}" for key in facts["engine"]} | facts.keys() - {"engine"} | facts["preprocessing"].keys()
    # One value each so far; the steps of the page say what they are.
    keys -= {"engine.precision", "normalization", "orientation", "blending"}
    assert keys - named == set()


def test_another_project_finds_the_library(tmp_path: Path) -> None:
    (lines,) = re.findall(r"^    (find_package\(lhanet.*?)\n\n", PAGE, re.MULTILINE | re.DOTALL)
    find, link = (line.strip() for line in lines.splitlines())
    source = tmp_path / "source"
    source.mkdir()
    (source / "main.cpp").write_text(
        '#include "lhanet/nifti.hpp"\nint main(int n, char** a) { lhanet::ScanFile scan(a[n - 1]); }\n'
    )
    (source / "CMakeLists.txt").write_text(
        f"cmake_minimum_required(VERSION 3.18)\nproject(yours CXX)\n{find}\nadd_executable(your_app main.cpp)\n{link}\n"
    )
    for command in (
        ["cmake", "--install", built().parent, "--prefix", tmp_path / "installed"],
        ["cmake", "-S", source, "-B", tmp_path / "build", f"-DCMAKE_PREFIX_PATH={tmp_path / 'installed'}"],
        ["cmake", "--build", tmp_path / "build"],
    ):
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "installed" / "bin" / "lhanet-segment").is_file()


def test_the_snippet_compiles_and_links(folder: Path, tmp_path: Path) -> None:
    (snippet,) = re.findall(r"^```cpp\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    includes, body = snippet.split("\n\n", 1)
    body = re.sub(r'"(model.engine|scan.nii.gz|labels.nii.gz)"', rf'"{folder}/build/\1"', body)
    source, program = tmp_path / "main.cpp", tmp_path / "main"
    source.write_text(
        f"{includes}\n#include <cstdio>\n#include \"lhanet/error.hpp\"\nint main() try {{\n{body}return 0;\n}} "
        "catch (const lhanet::Lacks& error) { std::puts(error.what()); return 3; }\n"
    )  # fmt: skip
    library = built().parent / "liblhanet.a"
    include = ROOT / "engines" / "embed" / "cpp" / "include"
    command = ["g++", "-std=c++17", "-Wall", "-Werror", f"-I{include}", source, library, "-lz", "-o", program]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    # Built without TensorRT: it says so, and what to do.
    ran = subprocess.run([program], capture_output=True, text=True)
    assert ran.returncode == 3 and "TensorRT" in ran.stdout
