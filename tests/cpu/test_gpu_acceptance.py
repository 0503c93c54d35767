"""The program for a machine with a GPU, as far as it goes without one: its steps, what it keeps, what it judges."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from lhanet_export.engine.gpu import find_gpus
from lhanet_export.errors import EnvironmentLacks
from tests.cpu.embed import null_engine
from tests.unit.test_readme import script


@pytest.fixture(scope="module")
def program() -> Any:
    return script("gpu_acceptance")


def row_of(name: str, *, speedup: float, network: str = "as-trained", **facts: Any) -> dict[str, Any]:
    return {
        "name": name, "network": network, "precision": "fp16", "speedup": speedup, "median_seconds": 1 / speedup,
        "share_of_peak_memory": 0.4, "relative_l2": 1e-3, "label_agreement": 0.999,
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


@pytest.mark.parametrize("wrong", [{"relative_l2": 0.01}, {"relative_l2": None}, {"label_agreement": 0.98}])
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
        return {"benches": [], "scaling": None} if name == "bench" else {}

    monkeypatch.setattr(program, "command", command)
    monkeypatch.setattr(program, "report", lambda run: {"tests": []})
    monkeypatch.setattr(program, "write_report", lambda path, found, title: path.write_text(title))
    options = ["--dry-run", "--out", str(tmp_path)]
    done = CliRunner().invoke(program.main, options, catch_exceptions=False)
    # No goal is reached where nothing was measured, but that is for GPUs; a dry run has none.
    assert done.exit_code == 0, done.output
    found = {path.stem: json.loads(path.read_text()) for path in tmp_path.glob("*.json")}
    assert found.keys() == {*program.steps(), "summary"}
    assert all(facts["dry_run"] and facts["gpu"] is None for facts in found.values())
    assert not found["resize"]["same"], "PyTorch's CPU kernel means something else at the corners"
    assert found["overflow"]["layers"] > 100 and found["overflow"]["not_finite"] == 0
    assert 0 < found["overflow"]["nearest"][0]["largest"] < 65504
    assert found["endurance"]["different_outputs"] == 1
    assert found["engine"]["built_for"] == ["8.6"]
    assert (tmp_path / "bench-standard.html").read_text() == "LHA-Net, standard"
    # Again: nothing is made anew but what is missing.
    called.clear()
    (tmp_path / "bench-standard.json").unlink()
    assert CliRunner().invoke(program.main, options).exit_code == 0
    assert called == ["onnx", "onnx", "bench"]


def test_a_step_that_fails_is_written_down_and_tried_again(program: Any, tmp_path: Path) -> None:
    run = program.Run(folder=tmp_path, device="cpu", width=8)

    def fails(run: Any) -> dict[str, Any]:
        raise EnvironmentLacks("no room\nat all")

    show = program.Show()
    assert program._kept(run, "step", fails, show)["failed"] == "no room"
    assert json.loads((tmp_path / "step.json").read_text())["failed"] == "no room"
    assert program._kept(run, "step", lambda run: {"found": 1}, show)["found"] == 1
    assert program._kept(run, "step", fails, show)["found"] == 1


def test_outputs_that_change_are_a_failure(program: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import numpy as np

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


def test_without_a_gpu_it_says_what_it_needs(program: Any, tmp_path: Path) -> None:
    if find_gpus():
        pytest.skip("there is a GPU here")
    assert CliRunner().invoke(program.main, ["--out", str(tmp_path)]).exit_code == 3
    assert CliRunner().invoke(program.main, ["--dry-run"]).exit_code == 2
    assert not list(tmp_path.iterdir())
