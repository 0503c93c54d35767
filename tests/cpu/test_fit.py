"""The largest patch by a real build of the narrow network, with so little memory that two small patches decide."""

from __future__ import annotations

import json
import re
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest

from lhanet_export import fit as fit_module
from lhanet_export import patches as patches_module
from lhanet_export.cli.main import run
from lhanet_export.engine.build import BuiltEngine
from lhanet_export.engine.plan import EnginePlan
from lhanet_export.engine.recipes import recipe_named
from lhanet_export.errors import EnvironmentLacks
from lhanet_export.export import onnx_from_network
from lhanet_export.export.artifact import OnnxArtifact
from lhanet_export.export.work import tensor_sizes
from lhanet_export.files import STAGING_PREFIX
from lhanet_export.fit import ALLOWANCE_BYTES
from lhanet_export.inference.target import Target
from lhanet_export.model.network import LHANet
from lhanet_export.patches import ExportedPatches, Ladder, Planned, Question
from lhanet_export.progress import SILENT
from lhanet_export.shapes import TensorSizes
from tests.cpu.test_work import tiny_graph

WORDS = ("fit", "--aspect", "1:1:1")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for caches, shared by the tests of this file in their order."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def _cache_here(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    monkeypatch.setenv("COLUMNS", "80")


def left_behind(cache: Path) -> list[Path]:
    return list(cache.rglob(f"{STAGING_PREFIX}*"))


def _built_with(weights_bytes: int, activation_bytes: int) -> Any:
    """A builder that plans so much memory, whatever it is asked to build."""

    def build(plan: EnginePlan, folder: Path) -> BuiltEngine:
        path = folder / "built.engine"
        path.write_bytes(b"no engine")
        return BuiltEngine(
            path=path, seconds=1, peak_rss_bytes=1, backend_version="1.7.1.116", compute_capabilities=("8.6",),
            weights_bytes=weights_bytes, activation_bytes=activation_bytes, inputs=(), outputs=(), log_tail=(),
        )  # fmt: skip

    return build


def test_the_smallest_patch_by_a_build(
    narrow_checkpoint: Path, cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """One build says what the smallest patch needs; with so much memory it fits, and the next one is asked for."""
    checkpoint, report = str(narrow_checkpoint), tmp_path / "fit.json"
    assert run([*WORDS, checkpoint, "--vram", "500MB"]) == 2
    refused = capsys.readouterr().err
    assert "no patch fits into 0.47 GiB: 32x32x32, the smallest, needs 0.8" in refused
    assert re.findall(r"build for patches up to (\S+)", refused) == ["32x32x32"]
    assert left_behind(cache) == []

    (kept,) = (cache / "lhanet-export").iterdir()
    answers = json.loads(kept.read_text())["answers"]
    smallest = sum(answers["planned 32x32x32"].values()) + 32**3 * (4 + 5 * 4) + ALLOWANCE_BYTES
    enough = ["--vram", f"{smallest / 1e6 + 0.001:.3f}MB"]
    # A second build would take as long, and say no more than that the next patch needs more.
    monkeypatch.setattr(patches_module, "engine_from_onnx", _built_with(50 * 10**6, 48**3 * 1000))
    assert run([*WORDS, checkpoint, *enough, "--json", str(report)]) == 0
    said = capsys.readouterr()
    assert re.findall(r"build for patches up to (\S+)", said.err) == ["48x48x48"]
    assert left_behind(cache) == []
    # The sentence under the table is one line where the output is no terminal.
    assert max(len(line.rstrip()) for line in said.out.splitlines()[:-1]) <= 80
    for words in ("32x32x32", "weights, as planned", "allowance for CUDA", "next patch", "48x48x48", "Nothing was run"):
        assert words in said.out
    facts = json.loads(report.read_text())
    (one,) = facts["aspects"]
    assert one["largest"]["shape"] == [32, 32, 32]
    assert one["largest"]["together_bytes"] == smallest <= facts["vram_bytes"] < smallest + 2000
    assert one["next"]["shape"] == [48, 48, 48]
    assert one["next"]["need"]["together_bytes"] > facts["vram_bytes"]
    assert one["next"]["need"]["activation_bytes"] > 48**3 * 8
    assert facts["measured_on_gpu"] is False
    assert facts["planned_by"]["version"].startswith("1.7.")


def test_what_was_built_is_not_built_again(
    narrow_checkpoint: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Runs after the builds; a little more memory is not enough for the second of them."""

    def not_again(*_: Any) -> None:
        raise AssertionError

    monkeypatch.setattr(ExportedPatches, "_exported", property(not_again))
    (kept,) = (cache / "lhanet-export").iterdir()
    answers = json.loads(kept.read_text())["answers"]
    needed = sum(answers["planned 48x48x48"].values()) + 48**3 * (4 + 5 * 4) + ALLOWANCE_BYTES
    assert run([*WORDS, str(narrow_checkpoint), "--vram", f"{needed / 1e6 - 1:.3f}MB"]) == 0
    said = capsys.readouterr()
    assert "export" not in said.err and "build" not in said.err
    assert "largest patch that fits  32x32x32" in said.out


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["no such file"], 2, "there is no regular file no such file"),
        (["preset:enormous"], 2, "there is no preset 'enormous'"),
        (["preset:lightweight", "--vram", "12"], 2, "'12' is not the memory of a card"),
        (["preset:lightweight", "--aspect", "flat"], 2, "'flat' is no aspect"),
        (["preset:lightweight", "--gpu", "rtx1"], 2, "there is no recipe 'rtx1'"),
        (["preset:lightweight", "--gpu", "h200"], 2, "is not for tensorrt-rtx"),
    ],
)
def test_what_the_command_refuses(
    arguments: list[str], code: int, words: str, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["fit", *arguments]) == code
    assert words in capsys.readouterr().err
    assert left_behind(cache) == []


def test_a_file_that_is_no_checkpoint(tmp_path: Path, cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "notes.pth").write_text("no weights")
    assert run(["fit", str(tmp_path / "notes.pth")]) == 2
    assert "neither a PyTorch checkpoint nor safetensors" in capsys.readouterr().err
    assert left_behind(cache) == []


def test_a_machine_without_the_builder(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    monkeypatch.setattr(fit_module, "check_machine", lambda backend: None)
    assert run(["fit", "preset:lightweight"]) == 3
    assert "TensorRT-RTX" in capsys.readouterr().err


# What the graph says and the builder does not


@pytest.fixture
def exported(narrow_onnx: OnnxArtifact, monkeypatch: pytest.MonkeyPatch) -> ExportedPatches:
    """Patches of the narrow graph as it was exported for other tests."""
    monkeypatch.setattr(ExportedPatches, "_exported", (Ladder(stride=16, smallest=32), narrow_onnx))
    question = Question(
        checkpoint="narrow.pth", recipe=recipe_named("rtx3060"), backend="tensorrt-rtx", precision="fp32",
        target=Target(),
    )  # fmt: skip
    return ExportedPatches(question=question, identity="0" * 64, progress=SILENT, stack=ExitStack())


@pytest.mark.parametrize("planned", [(10, 20), (None, 20), (10, None)])
def test_a_builder_that_does_not_say_what_it_planned(
    planned: tuple[int | None, int | None], exported: ExportedPatches, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    plans = []

    def build(plan: Any, folder: Path) -> BuiltEngine:
        plans.append(plan)
        engine = tmp_path / "built.engine"
        engine.write_bytes(b"engine")
        return BuiltEngine(
            path=engine, seconds=1, peak_rss_bytes=1, backend_version="1.7", compute_capabilities=("8.6",),
            weights_bytes=planned[0], activation_bytes=planned[1], inputs=(), outputs=(), log_tail=(),
        )  # fmt: skip

    monkeypatch.setattr(patches_module, "engine_from_onnx", build)
    if None in planned:
        with pytest.raises(EnvironmentLacks, match="does not say what memory"):
            exported.planned((48, 96, 96))
    else:
        assert exported.planned((48, 96, 96)) == Planned(weights_bytes=10, activation_bytes=20)
    assert list(tmp_path.iterdir()) == []
    assert str(plans[0].profiles[0]) == "32x32x32:48x96x96:48x96x96"
    assert plans[0].memory_bytes > 2**50


def test_tensors_of_the_narrow_graph(exported: ExportedPatches) -> None:
    tensors = exported.tensors((48, 96, 96))
    voxels = 48 * 96 * 96
    assert (tensors.input_bytes, tensors.output_bytes) == (4 * voxels, 4 * 5 * voxels)
    assert tensors.largest_elements >= 5 * voxels
    assert tensors.largest.startswith("/")


def test_a_checkpoint_that_changes_meanwhile(
    narrow_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(patches_module, "_identity", lambda checkpoint: "f" * 64)
    assert run(["fit", str(narrow_checkpoint)]) == 2
    assert "changed while it was read" in capsys.readouterr().err
    assert left_behind(cache) == []


def test_an_interruption_leaves_nothing(
    narrow_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Path] = []

    def interrupted(network: LHANet, checkpoint: dict[str, Any], path: Path, *_: Any) -> None:
        path.write_bytes(b"half a graph")
        seen.append(path)
        raise KeyboardInterrupt

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(onnx_from_network, "onnx_from_network", interrupted)
    assert run([*WORDS, str(narrow_checkpoint)]) == 130
    assert seen[0].is_relative_to(tmp_path / "cache")
    assert not (tmp_path / "cache" / "lhanet-export").exists()


def test_sizes_of_a_tiny_graph_by_hand() -> None:
    """The image has 4 * 6 * 8 = 192 voxels, the convolutions give 96 values, the output is 24 in FP16."""
    assert tensor_sizes(tiny_graph(), (4, 6, 8)) == TensorSizes(
        input_bytes=4 * 192, output_bytes=2 * 24, largest="image", largest_elements=192
    )
    strange = tiny_graph()
    strange.graph.outputs.append(ir.Value(name="b"))
    assert tensor_sizes(strange, (4, 6, 8)).output_bytes == 2 * 24 + 4 * 96
