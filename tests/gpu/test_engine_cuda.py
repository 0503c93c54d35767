"""An engine built for the GPU that is here passes the gate, as its graph does."""

from pathlib import Path

import pytest

from lhanet_export.cli.main import run
from lhanet_export.engine.gpu import find_gpus

_RECIPES = {"8.6": "rtx3060", "8.9": "rtx4090", "12.0": "rtx5090"}


@pytest.mark.gpu
def test_deploy_compares_the_engine_itself(narrow_checkpoint: Path, tmp_path: Path) -> None:
    capability = find_gpus()[0].compute_capability
    if capability not in _RECIPES:
        pytest.skip(f"no recipe here for compute capability {capability}")
    report = tmp_path / "report.json"
    command = ["deploy", str(narrow_checkpoint), "-o", str(tmp_path / "build"), "--gpu", _RECIPES[capability]]
    assert run([*command, "--json", str(report)]) == 0
    assert '"engine": "not run' not in report.read_text()
