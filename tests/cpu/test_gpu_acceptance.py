"""The program for a machine with a GPU, as far as it goes without one: its steps, what it keeps, what it judges."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from lhanet_export.bench.candidates import Candidate
from lhanet_export.bench.torch_ways import TorchWay
from lhanet_export.engine.gpu import Gpu, find_gpus
from lhanet_export.errors import EnvironmentLacks, RefusedInput
from tests.cpu.embed import null_engine
from tests.unit.test_readme import script


@pytest.fixture(scope="module")
def program() -> Any:
    return script("gpu_acceptance")


def row_of(name: str, *, speedup: float, network: str = "as-trained", **facts: Any) -> dict[str, Any]:
    return {
        "name": name, "network": network, "precision": "fp16", "speedup": speedup, "median_seconds": 1 / speedup,
        "share_of_peak_memory": 0.4, "relative_l2": 1e-3, "label_agreement": 0.999, "flag": None,
    } | facts  # fmt: skip


def bench_of(*rows: dict[str, Any]) -> dict[str, Any]:
    return {"shape": [64, 128, 128], "rows": [row_of("eager PyTorch FP32", speedup=1.0, precision="fp32"), *rows]}


BASELINES = (
    row_of("eager PyTorch FP16, channels last", speedup=4.0), row_of("torch.compile FP16, channels last", speedup=5.0)
)  # fmt: skip


def reached(program: Any, *rows: dict[str, Any]) -> list[bool]:
    return [row["reached"] for row in program.goals([bench_of(*rows)])]


def test_goals_are_of_the_fastest_of_our_fp16_rows(program: Any) -> None:
    slower = row_of("slower", speedup=2.0, network="ours")
    assert reached(program, *BASELINES, slower, row_of("ours", speedup=6.0, network="ours")) == [True] * 4
    assert reached(program, *BASELINES, slower) == [False, False, False, True]
    # 1.5 times as fast as the one, 1.2 times as fast as the other, not 6 times as fast as FP32; and too much memory.
    large = row_of("ours", speedup=5.999, network="ours", share_of_peak_memory=0.46)
    assert reached(program, *BASELINES, large) == [False, False, False, False]
    found = program.goals([bench_of(*BASELINES, row_of("ours", speedup=8.0, network="ours"))])
    assert [row["found"] for row in found] == ["8.00x", "2.00x", "1.60x", "0.40"]


def test_the_faster_of_two_compiled_rows_is_the_one_to_beat(program: Any) -> None:
    graphed = row_of("torch.compile FP16, channels last, CUDA graph", speedup=7.0)
    assert reached(program, *BASELINES, graphed, row_of("ours", speedup=8.0, network="ours")) == [
        True, True, False, True
    ]  # fmt: skip


@pytest.mark.parametrize(
    "wrong", [{"relative_l2": 0.01}, {"relative_l2": None}, {"label_agreement": 0.98}, {"flag": "slow"}]
)
def test_a_fast_row_that_is_wrong_reaches_nothing(program: Any, wrong: dict[str, Any]) -> None:
    assert reached(program, *BASELINES, row_of("ours", speedup=9.0, network="ours", **wrong)) == [False] * 4
    fp32 = row_of("ours", speedup=9.0, network="ours", precision="fp32")
    assert reached(program, *BASELINES, fp32) == [False] * 4


def test_a_baseline_that_was_not_measured_is_no_goal_reached(program: Any) -> None:
    found = program.goals([bench_of(row_of("ours", speedup=9.0, network="ours"))])
    assert [row["found"] for row in found] == ["9.00x", None, None, "0.40"]
    assert program.goals([]) == []


def test_a_dry_run_leaves_every_step_and_goes_on_where_it_was(
    program: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All that computes by itself; commands and the authors' report, which have tests of their own, are stand-ins."""
    called: list[str] = []

    def command(name: str, *arguments: str, folder: Path) -> dict[str, Any]:
        called.append(name)
        if name == "trt":
            null_engine(folder, name=Path(arguments[2]).name)
        if name == "onnx":
            Path(arguments[2]).touch()
        return {"benches": [{"rows": [], "shape": [33, 48, 48]}], "scaling": None} if name == "bench" else {}

    monkeypatch.setattr(program, "command", command)
    monkeypatch.setattr(program, "report", lambda run: {"tests": []})
    monkeypatch.setattr(program, "write_report", lambda path, found, title: path.write_text(title))
    options = ["--dry-run", "--out", str(tmp_path)]
    done = CliRunner().invoke(program.main, options, catch_exceptions=False)
    # No goal is reached where nothing was measured, but that is for GPUs; a dry run has none.
    assert done.exit_code == 0, done.output
    found = {path.stem: json.loads(path.read_text()) for path in tmp_path.glob("*.json")}
    assert found.keys() == {
        "resize", "report", "engine", "overflow", "endurance", "bench-lightweight-33x48x48", "bench-standard-33x48x48",
        "summary",
    }  # fmt: skip
    assert all(facts["dry_run"] and facts["gpu"] is None for facts in found.values())
    assert not found["resize"]["same"], "PyTorch's CPU kernel means something else at the corners"
    assert found["overflow"]["layers"] > 100 and found["overflow"]["not_finite"] == 0
    assert 0 < found["overflow"]["nearest"][0]["largest"] < 65504
    assert found["endurance"]["different_outputs"] == 1
    assert found["engine"]["built_for"] == ["8.6"]
    assert (tmp_path / "bench-standard.html").read_text() == "LHA-Net, standard"
    # Again: nothing is made anew but what is missing.
    assert called == ["onnx", "trt", "onnx", "bench", "onnx", "onnx", "trt", "bench"]
    called.clear()
    (tmp_path / "bench-standard-33x48x48.json").unlink()
    assert CliRunner().invoke(program.main, options).exit_code == 0
    assert called == ["bench"]


def test_a_step_that_fails_is_written_down_and_tried_again(program: Any, tmp_path: Path) -> None:
    run = program.Run(folder=tmp_path, device="cpu", width=8)

    def fails(run: Any) -> dict[str, Any]:
        raise EnvironmentLacks("no room\nat all")

    show = program.Show()
    assert program._kept(run, "step", fails, show)["failed"] == "no room"
    assert json.loads((tmp_path / "step.json").read_text())["failed"] == "no room"
    assert program._kept(run, "step", lambda run: {"found": 1}, show)["found"] == 1
    assert program._kept(run, "step", fails, show)["found"] == 1


def test_what_a_dry_run_left_is_no_part_of_another(program: Any, tmp_path: Path) -> None:
    dry = program.Run(folder=tmp_path, device="cpu", width=8)
    program._kept(dry, "step", lambda run: {}, program.Show())
    with pytest.raises(RefusedInput, match="is of a dry run; name another --out"):
        program._kept(replace(dry, width=None), "step", lambda run: {}, program.Show())


def test_outputs_that_change_are_a_failure(program: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Drifting:
        def __init__(self, *arguments: Any) -> None:
            self.turn = 0.0

        def seconds(self) -> float:
            return 1.0

        def infer(self, image: np.ndarray) -> np.ndarray:
            self.turn += 1
            return np.full(1, self.turn)

    monkeypatch.setattr(program, "TorchWay", Drifting)
    run = program.Run(folder=tmp_path, device="cpu", width=8, probe=(17, 17, 17), inferences=3)
    assert program.endurance(run)["failed"] == "3 different outputs of one volume"


class _Engine:
    """A runner whose engine computes the network, every logit off by a share of itself."""

    off: float
    checkpoint: Path

    def __init__(self, path: Path, *, gpus: Sequence[Gpu], final_kernels: bool) -> None:
        assert final_kernels
        assert [gpu.compute_capability for gpu in gpus] == ["8.6"], "the library is asked, not the manifest"

    def __enter__(self) -> _Engine:
        return self

    def __exit__(self, *error: object) -> None: ...

    def slots(self, shape: tuple[int, ...], count: int) -> list[_Engine]:
        self.image = np.zeros(shape, np.float32)
        return [self]

    def start(self) -> None:
        candidate = Candidate(name="", precision="fp32", kind="eager")
        self._logits = TorchWay(candidate, self.checkpoint, self.image, "cpu").infer(self.image) * (1 + self.off)

    def wait(self) -> np.ndarray:
        return self._logits

    def network_seconds(self) -> float:
        return 0.25


@pytest.mark.parametrize(("off", "failed"), [(0.0, False), (0.0049, False), (0.0051, True), (float("nan"), True)])
def test_an_engine_that_runs_is_timed_and_compared(
    off: float, failed: bool, program: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = program.Run(folder=tmp_path, device="cpu", width=8, shapes=("17x17x17",), rounds=3)
    made = type("Engine", (_Engine,), {"off": off, "checkpoint": Path(run.checkpoint("lightweight"))})
    monkeypatch.setattr(program, "TensorRTRunner", made)
    monkeypatch.setattr(program, "apart", lambda function, *arguments: function(*arguments))
    monkeypatch.setattr(program, "engine_of", lambda run, preset, shape: null_engine(tmp_path))
    h200 = Gpu(name="NVIDIA H200", compute_capability="9.0", memory_bytes=1 << 37)
    monkeypatch.setattr(program, "find_gpus", lambda: [h200])
    found = program.engine(run)
    assert found["ran"] and found["compute_capability"] == "9.0" and found["median_seconds"] == 0.25
    assert ("failed" in found) == failed
    json.dumps(found, allow_nan=False)


def test_a_library_that_ends_its_process_is_survived(program: Any) -> None:
    assert program.apart(len, "abc") == 3
    with pytest.raises(EnvironmentLacks, match="the library ended its process"):
        program.apart(os._exit, 1)


@pytest.mark.parametrize(("capability", "engines"), [("8.6", 1), ("9.0", 0)])
def test_engines_are_measured_where_the_card_is_one_of_theirs(
    capability: str, engines: int, program: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    called: list[tuple[str, ...]] = []

    def command(*given: str, folder: Path) -> dict[str, Any]:
        called.append(given)
        if given[0] == "onnx":
            Path(given[3]).touch()
        return {}

    monkeypatch.setattr(program, "command", command)
    monkeypatch.setattr(program, "find_gpus", lambda: [Gpu(name="", compute_capability=capability, memory_bytes=1)])
    run = program.Run(folder=tmp_path, device="cuda", width=8, shapes=("17x17x17", "33x33x33"))
    program.bench(run, "lightweight", "33x33x33")
    assert [given[0] for given in called] == ["onnx", "onnx", *["trt"] * engines, "bench"]
    assert sum(one.endswith("lightweight.33x33x33.engine") for one in called[-1]) == engines
    assert called[0][-1] == "17x17x17:17x17x17:33x33x33"
    assert called[-1][called[-1].index("--volumes") + 1] == "1"


def test_an_engine_that_does_not_load_leaves_the_librarys_words(
    program: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(path: Path, **given: Any) -> Any:
        raise RefusedInput("not an engine for this machine")

    monkeypatch.setattr(program, "TensorRTRunner", refuses)
    monkeypatch.setattr(program, "apart", lambda function, *arguments: function(*arguments))
    monkeypatch.setattr(program, "engine_of", lambda run, preset, shape: null_engine(tmp_path))
    for capability, failed in (("9.0", False), ("8.6", True)):
        card = Gpu(name="", compute_capability=capability, memory_bytes=1 << 37)
        monkeypatch.setattr(program, "find_gpus", lambda card=card: [card])
        found = program.engine(program.Run(folder=tmp_path, device="cpu", width=8, shapes=("17x17x17",)))
        assert found["said"] == "not an engine for this machine" and not found["ran"]
        # On a card that it was built for, that is no finding but a failure.
        assert ("failed" in found) == failed


def test_without_a_gpu_it_says_what_it_needs(program: Any, tmp_path: Path) -> None:
    if find_gpus():
        pytest.skip("there is a GPU here")
    assert CliRunner().invoke(program.main, ["--out", str(tmp_path)]).exit_code == 3
    assert CliRunner().invoke(program.main, ["--dry-run"]).exit_code == 2
    assert not list(tmp_path.iterdir())
