"""The commands from a checkpoint to an engine, as a user calls them; the narrow network stands for the full one."""

import json
import math
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch

from lhanet_export.bench.candidates import Candidate, candidates_for
from lhanet_export.bench.result import Skipped
from lhanet_export.cli.main import run
from lhanet_export.engine.build import BuiltEngine, TensorFacts
from lhanet_export.engine.gpu import find_gpus
from lhanet_export.engine.plan import EnginePlan
from lhanet_export.export.artifact import OnnxArtifact, read_onnx
from lhanet_export.files import sha256_of, sidecar_of
from lhanet_export.model.network import LHANet
from lhanet_export.model.rule import rule_network
from lhanet_export.patches import ExportedPatches, Planned
from lhanet_export.precision.recipe import read_recipe
from lhanet_export.progress import Progress
from lhanet_export.volume.nifti import write_phantom
from lhanet_export.volume.phantom import anatomy_from_seed, render

README = (Path(__file__).resolve().parents[2] / "README.md").read_text(encoding="utf-8")
COMMANDS = [line for line in README.splitlines() if line.startswith("lhanet-export ")]


@pytest.fixture(scope="module")
def readers_folder(narrow_resnet_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what a reader of the README has: a checkpoint, names for its classes, and scans."""
    folder = tmp_path_factory.mktemp("reader")
    (folder / "best_model.pth").write_bytes(narrow_resnet_checkpoint.read_bytes())
    (folder / "classes.txt").write_text("background\nliver\nspleen\nleft kidney\nright kidney\n", encoding="utf-8")
    for name, seeds, shape in (("scans", range(4), None), ("other-scans", range(4, 6), (40, 36, 40))):
        (folder / name).mkdir()
        for seed in seeds:
            # Coarse, to be quick; their labels are of other classes than the checkpoint's.
            phantom = render(anatomy_from_seed(seed), (5.0, 5.0, 5.0), shape)
            labels = tmp_path_factory.mktemp("labels") / f"{seed}.nii.gz"
            write_phantom(phantom, folder / name / f"{seed}.nii.gz", labels)
    (folder / "scan.nii.gz").write_bytes((folder / "other-scans" / "4.nii.gz").read_bytes())
    return folder


def _built_by_nobody(plan: EnginePlan, folder: Path, progress: Progress) -> BuiltEngine:
    """What `engine_from_onnx` says of an engine, without one."""
    path = folder / "built.engine"
    path.write_bytes(b"no engine")
    return BuiltEngine(
        path=path, seconds=1, peak_rss_bytes=1, backend_version="1.7.1.116",
        compute_capabilities=plan.compute_capabilities, weights_bytes=1, activation_bytes=1,
        inputs=(TensorFacts(name="image", dtype="float32", shape=(1, 1, -1, -1, -1)),),
        outputs=(TensorFacts(name="logits", dtype="float32", shape=(1, -1, -1, -1, -1)),), log_tail=(),
    )  # fmt: skip


def _reference_and_ours(*arguments: Any) -> tuple[list[Candidate], list[Skipped]]:
    """What is measured where nobody has the minutes for all of it."""
    found, skipped = candidates_for(*arguments)
    return [found[0], *(one for one in found if one.kind == "onnx")], skipped


@pytest.mark.parametrize("line", COMMANDS)
def test_commands_of_the_readme(line: str, readers_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the README's order, because later commands read what earlier ones wrote."""
    monkeypatch.chdir(readers_folder)
    # `fit` would build five times for 12 GiB; tests/cpu/test_fit.py builds, for less.
    monkeypatch.setattr(
        ExportedPatches,
        "planned",
        lambda _, shape: Planned(weights_bytes=600 * 10**6, activation_bytes=215 * math.prod(shape)),
    )
    monkeypatch.setenv("XDG_CACHE_HOME", str(readers_folder / "cache"))
    # One `deploy` builds; what the others add to it comes before the builder, which takes half a minute each time.
    if line.startswith("lhanet-export deploy") and ("--gpu" in line or "demo" in line):
        monkeypatch.setattr("lhanet_export.deploy.engine_from_onnx", _built_by_nobody)
    # `bench` alone, and of all candidates; what the others are is tested in tests/cpu/test_bench.py.
    monkeypatch.setattr("lhanet_export.bench.run.plain_export", lambda *_: Path("plain.onnx"))
    monkeypatch.setattr("lhanet_export.bench.run.candidates_for", _reference_and_ours)
    monkeypatch.setattr("lhanet_export.bench.run.ROUNDS", {"cpu": 1, "cuda": 1})
    # `calibrate` would run a hundred windows of the public patch; here they are of a sixth of its size.
    monkeypatch.setattr("lhanet_export.quantize.window_in", lambda _: (33, 48, 48))
    # The reader's checkpoint is not trained: it has no organs that INT8 could keep, and the gate says so.
    is_refused = line.startswith("lhanet-export verify model.int8.onnx")
    assert run(shlex.split(line)[1:]) == (2 if is_refused else 0)
    for target in re.findall(r" (?:-o|--report) (\S+)", line):
        assert Path(target).exists()
    assert not list(readers_folder.rglob(".lhanet-export-*"))


def test_what_deploy_leaves(readers_folder: Path) -> None:
    """Runs after the README's commands: the engine, what vouches for it, and the graphs it came from."""
    build = readers_folder / "build"
    manifest = json.loads((build / "lhanet.rtx3060.fp16.engine.json").read_text())
    assert manifest["engine"]["sha256"] == sha256_of(build / "lhanet.rtx3060.fp16.engine")
    assert manifest["engine"]["compute_capabilities"] == ["8.6"]
    assert manifest["engine"]["device_memory"]["activation_bytes"] > 0
    assert manifest["onnx"]["sha256"] == sha256_of(build / "lhanet.rtx3060.fp16.onnx")
    assert manifest["checkpoint"]["sha256"] == sha256_of(readers_folder / "best_model.pth")
    assert manifest["checkpoint"]["epoch"] == 7
    proof = manifest["verification"]
    assert proof["fp32"]["passed"] and proof["fp16"]["passed"] and proof["engine"].startswith("not run")
    shapes = [tuple(case["shape"]) for case in proof["fp16"]["cases"]]
    assert (48, 96, 96) in shapes
    other = json.loads((build / "lhanet.rtx4090.fp16.engine.json").read_text())
    assert other["labels"][1] == "liver" and other["engine"]["compute_capabilities"] == ["8.9"]


def test_the_report_of_a_deployment_proves_and_measures(readers_folder: Path) -> None:
    page = (readers_folder / "build" / "demo" / "report.html").read_text(encoding="utf-8")
    assert "Is it the network that was trained?" in page and "64x128x128 voxels" in page
    assert "eager PyTorch FP32" in page and "lhanet.rtx3060.fp32.onnx in ONNX Runtime" in page
    assert "not run: this machine has no GPU that the engine is for" in page
    assert "an engine; it needs a GPU of compute capability 8.6" in page


def _saved(network: LHANet, path: Path) -> Path:
    torch.save(network.state_dict(), path)
    return path


def test_deploy_finds_what_has_to_stay_fp32(
    overflowing_network: LHANet, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # What is built of the graph is not the question here, and takes half a minute.
    monkeypatch.setattr("lhanet_export.deploy.engine_from_onnx", _built_by_nobody)
    checkpoint = _saved(overflowing_network, tmp_path / "overflow.pth")
    build, report = tmp_path / "build", tmp_path / "report.json"
    sizes = "32x64x64:32x64x64:32x64x64"
    assert run(["deploy", str(checkpoint), "-o", str(build), "--spatial", sizes, "--json", str(report)]) == 0

    facts = json.loads(report.read_text())
    recipe = build / "lhanet.rtx3060.fp16.recipe.yaml"
    assert facts["passed"] and facts["found_recipe"] == str(recipe)
    kept = [node.name for node in read_recipe(recipe).keep]
    assert len(kept) == 3 and all("scale_attentions.1" in name for name in kept)
    graph = read_onnx(build / "lhanet.rtx3060.fp16.onnx")
    assert graph.facts["precision_recipe"]["keep"] == kept
    assert "precision recipe" in capsys.readouterr().out

    # The recipe that was found makes the same graph again, without a search.
    again = tmp_path / "again.onnx"
    assert run(["onnx", str(checkpoint), "-o", str(again), "--precision", "fp16", "--recipe", str(recipe)]) == 0
    assert run(["verify", str(again), "--checkpoint", str(checkpoint), "--shape", "32x48x48"]) == 0
    assert run(["onnx", str(checkpoint), "-o", str(tmp_path / "whole.onnx"), "--recipe", str(recipe)]) == 2
    assert "--recipe belongs to --precision fp16" in capsys.readouterr().err


def test_deploy_of_untrained_weights_leaves_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(1)
    checkpoint = _saved(LHANet.from_preset("lightweight", base_channels=8), tmp_path / "untrained.pth")
    assert (
        run(["deploy", str(checkpoint), "-o", str(tmp_path / "build"), "--spatial", "32x64x64:32x64x64:32x64x64"]) == 2
    )
    assert not (tmp_path / "build").exists()
    assert "prove nothing" in capsys.readouterr().err


def test_trt_converts_an_fp32_graph_and_says_so(
    narrow_onnx: OnnxArtifact, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    engine, facts = tmp_path / "model.engine", tmp_path / "facts.json"
    sizes = "32x48x48:32x48x48:32x48x48"
    command = ["trt", str(narrow_onnx.path), "-o", str(engine), "--fp16", "--spatial", sizes, "--json", str(facts)]
    assert run(command) == 0
    assert "FP32 graph: converting it to FP16 first" in capsys.readouterr().out
    manifest = json.loads(sidecar_of(engine).read_text())
    assert manifest["engine"]["precision"] == "fp16"
    assert json.loads(facts.read_text())["engine"] == manifest["engine"]
    if not find_gpus():
        # At once, and not as a verdict about the engine.
        assert run(["verify", str(engine), "--checkpoint", "preset:lightweight"]) == 3
        assert "needs an NVIDIA GPU" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["verify", "{onnx}", "--checkpoint", "{resnet}"], 2, "another checkpoint"),
        (["verify", "{onnx}", "--checkpoint", "{checkpoint}", "--shape", "16x64x64"], 2, "outside the range"),
        (["verify", "{checkpoint}", "--checkpoint", "{checkpoint}"], 2, "neither an ONNX file nor an engine"),
        (["onnx", "{checkpoint}", "-o", "{new}", "--spatial", "8x64x64:64x64x64:64x64x64"], 2, "17x17x17"),
        (["onnx", "{checkpoint}", "-o", "{new}", "--half-io"], 2, "--precision fp16"),
        (["onnx", "{checkpoint}", "-o", "{new}", "--labels", "{checkpoint}"], 2, "class names"),
        (["onnx", "missing.pth", "-o", "{new}"], 2, "missing.pth"),
        (["onnx", "preset:tiny", "-o", "{new}"], 2, "no preset 'tiny'"),
        (["trt", "{onnx}", "-o", "{new}", "--gpu", "rtx1"], 2, "no recipe 'rtx1'"),
        (["trt", "{onnx}", "-o", "{new}", "--spatial", "8x8x8:8x8x8:8x8x8"], 2, "8x8x8"),
        (["trt", "{checkpoint}", "-o", "{new}"], 2, "not an ONNX file"),
        (["trt", "{onnx}", "-o", "{new}", "--backend", "tensorrt"], 3, "tensorrt"),
        (["trt", "{onnx}", "-o", "{new}", "--batch", "1:1:2"], 2, "--batch dynamic"),
        (["trt", "{onnx}.json", "-o", "{new}"], 2, "not an ONNX file"),
        (["trt", "{onnx}", "-o", "{checkpoint}/x.engine"], 3, "cannot write"),
        (["trt", "{onnx}", "-o", "{new}", "--json", "{new}.json"], 2, "belongs to"),
        (["verify", "{onnx}", "--checkpoint", "{checkpoint}", "--json", "{onnx}.json"], 2, "belongs to"),
        (["onnx", "{checkpoint}", "-o", "{folder}/model"], 2, "should end in .onnx"),
        (["deploy", "{checkpoint}", "-o", "{new}", "--backend", "tensorrt"], 3, "tensorrt"),
        (["deploy", "{checkpoint}", "-o", "{new}", "--backend", "tensorrt", "--gpu", "any-rtx"], 2, "any-rtx"),
        (["deploy", "{checkpoint}", "-o", "{new}", "--spatial", "8x64x64:64x64x64:64x64x64"], 2, "17x17x17"),
    ],
)
def test_refusals(
    arguments: list[str], code: int, words: str, narrow_onnx: OnnxArtifact, narrow_checkpoint: Path,
    narrow_resnet_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """Each with its exit code, in words that name the fault, and with nothing written."""
    files = {
        "folder": tmp_path,
        "onnx": narrow_onnx.path, "checkpoint": narrow_checkpoint, "resnet": narrow_resnet_checkpoint,
        "new": tmp_path / "new.onnx",
    }  # fmt: skip
    assert run([argument.format(**files) for argument in arguments]) == code
    said = capsys.readouterr().err
    assert words in said and "Traceback" not in said
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_json_of_verify(narrow_onnx: OnnxArtifact, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The contract of `verify --json`, on stdout and alone there."""
    network = rule_network("lightweight", base_channels=8, num_classes=5, seed=6)
    checkpoint = _saved(network, tmp_path / "weights.pth")
    graph = tmp_path / "model.onnx"
    assert run(["onnx", str(checkpoint), "-o", str(graph), "--json", str(tmp_path / "onnx.json")]) == 0
    assert json.loads((tmp_path / "onnx.json").read_text())["sha256"] == sha256_of(graph)
    capsys.readouterr()
    assert run(["verify", str(graph), "--checkpoint", str(checkpoint), "--shape", "33x50x71", "--json", "-"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["passed"] is True and facts["runner"] == "onnxruntime cpu"
    assert {"relative_l2", "max_abs", "label_agreement", "nonfinite", "shape"} <= facts["cases"][0].keys()
    assert facts["tolerance"]["relative_l2"] == 1e-5


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--int8"], "--int8 and --calibration belong together"),
        (["--calibration", "{folder}"], "--int8 and --calibration belong together"),
        (["--fp16", "--int8", "--calibration", "{folder}"], "--fp16 and --int8 exclude each other"),
        (["--int8", "--calibration", "{folder}"], "export it again with --without short-convolutions"),
    ],
)
def test_trt_makes_int8_from_scans_only(
    options: list[str], text: str, narrow_onnx: OnnxArtifact, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "new.engine"
    options = [option.replace("{folder}", str(tmp_path)) for option in options]
    assert run(["trt", str(narrow_onnx.path), "-o", str(target), *options]) == 2
    assert text in capsys.readouterr().err
    assert not target.exists()


def test_deploy_of_int8_without_scans_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["deploy", "demo", "-o", str(tmp_path / "build"), "--precision", "int8"]) == 2
    assert "INT8 needs scans for its scales; name a folder of them with --calibration" in capsys.readouterr().err
    assert run(["deploy", "demo", "-o", str(tmp_path / "build"), "--calibration", str(tmp_path)]) == 2
    assert "--calibration belongs to --precision int8" in capsys.readouterr().err
