"""Engines of a small graph, built for compute capability 8.6 by TensorRT-RTX on the CPU, and builds that fail."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from lhanet_export.engine import build
from lhanet_export.engine.build import BuiltEngine, engine_from_onnx
from lhanet_export.engine.child import ORPHANED
from lhanet_export.engine.gpu import find_gpus
from lhanet_export.engine.plan import EnginePlan, plan_engine
from lhanet_export.engine.recipes import recipe_named
from lhanet_export.errors import EnvironmentLacks, LhanetExportError, RefusedInput
from lhanet_export.files import sha256_of, write_json
from lhanet_export.shapes import SpatialRange

SIZES = SpatialRange.parse("8x8x8:16x16x16:16x32x32")
CLASSES, CHANNELS = 4, 8


def save_graph(
    path: Path, output: str = "logits", *, half: bool = False, batch: int | str = 1, input_name: str = "image"
) -> Path:
    """Two convolutions with the inputs and outputs of the real network, dynamic in D, H and W."""
    rng = np.random.default_rng(0)
    kind, dtype = (TensorProto.FLOAT16, np.float16) if half else (TensorProto.FLOAT, np.float32)
    weights = {"w1": (CHANNELS, 1, 3, 3, 3), "w2": (CLASSES, CHANNELS, 1, 1, 1)}
    initializers = [
        numpy_helper.from_array((0.1 * rng.standard_normal(shape)).astype(dtype), name)
        for name, shape in weights.items()
    ]
    nodes = [
        helper.make_node("Conv", [input_name, "w1"], ["a"], pads=[1] * 6),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "w2"], ["c"]),
    ]
    result, shape = kind, [batch, CLASSES, "D", "H", "W"]
    if output == "logits":
        nodes.append(helper.make_node("Identity", ["c"], ["logits"]))
    elif output == "probabilities":
        nodes.append(helper.make_node("Softmax", ["c"], ["probabilities"], axis=1))
    else:
        nodes.append(helper.make_node("ArgMax", ["c"], ["d"], axis=1, keepdims=0))
        nodes.append(helper.make_node("Cast", ["d"], ["labels"], to=TensorProto.UINT8))
        result, shape = TensorProto.UINT8, [batch, "D", "H", "W"]
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info(input_name, kind, [batch, 1, "D", "H", "W"])],
        [helper.make_tensor_value_info(output, result, shape)],
        initializers,
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


def plan_for(path: Path, **options: Any) -> EnginePlan:
    facts = {"sha256": sha256_of(path), "precision": "fp32", "batch": None}
    return plan_engine(path, facts, **{"recipe": recipe_named("rtx3060"), "spatial": SIZES, **options})


def outputs(built: BuiltEngine) -> list[tuple[str, str, tuple[int, ...]]]:
    return [(tensor.name, tensor.dtype, tensor.shape) for tensor in built.outputs]


class Steps:
    """A progress that remembers what it was told."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.amount = 0.0

    @contextmanager
    def step(self, text: str, total: float | None = None) -> Iterator[Callable[[float], None]]:
        self.texts.append(text)

        def advance(amount: float) -> None:
            self.amount += amount

        yield advance


def test_an_engine_for_the_rtx_3060_without_a_gpu(tmp_path: Path) -> None:
    steps = Steps()
    built = engine_from_onnx(plan_for(save_graph(tmp_path / "model.onnx")), tmp_path, progress=steps)
    assert built.path.parent == tmp_path
    assert built.path.stat().st_size > 100_000
    assert built.compute_capabilities == ("8.6",)
    assert built.backend_version.startswith("1.7.")
    assert [(tensor.name, tensor.dtype, tensor.shape) for tensor in built.inputs] == [
        ("image", "float32", (1, 1, -1, -1, -1))
    ]
    assert outputs(built) == [("logits", "float32", (1, CLASSES, -1, -1, -1))]
    parameters = CHANNELS * 27 + CLASSES * CHANNELS
    assert built.weights_bytes is not None and built.weights_bytes >= 4 * parameters
    largest = 16 * 32 * 32 * CHANNELS * 4
    assert built.activation_bytes is not None and largest <= built.activation_bytes < 100 * largest
    assert 0 < built.seconds < 60
    assert 50 * 2**20 < built.peak_rss_bytes < 4 * 2**30
    assert any("Total Activation Memory" in line for line in built.log_tail)
    assert steps.texts == ["build the engine with TensorRT-RTX"]
    assert steps.amount == pytest.approx(1.0)


def test_peak_memory_is_the_childs_own(tmp_path: Path) -> None:
    ballast = np.ones(3 << 27, np.uint8)  # 400 MB that the parent has and the child does not
    built = engine_from_onnx(plan_for(save_graph(tmp_path / "model.onnx")), tmp_path)
    assert built.peak_rss_bytes < ballast.nbytes


@pytest.mark.parametrize(
    ("output", "half", "expected"),
    [
        ("labels", False, ("labels", "uint8", (1, -1, -1, -1))),
        ("labels", True, ("labels", "uint8", (1, -1, -1, -1))),
        ("probabilities", False, ("probabilities", "float32", (1, CLASSES, -1, -1, -1))),
        ("logits", True, ("logits", "float16", (1, CLASSES, -1, -1, -1))),
    ],
)
def test_outputs_that_applications_ask_for(
    tmp_path: Path, output: str, half: bool, expected: tuple[str, str, tuple[int, ...]]
) -> None:
    built = engine_from_onnx(plan_for(save_graph(tmp_path / "model.onnx", output, half=half)), tmp_path)
    assert outputs(built) == [expected]
    assert built.inputs[0].dtype == ("float16" if half else "float32")


def test_a_range_of_batches(tmp_path: Path) -> None:
    plan = plan_for(save_graph(tmp_path / "model.onnx", batch="N"), batch=(1, 2, 4))
    assert engine_from_onnx(plan, tmp_path).inputs[0].shape == (-1, 1, -1, -1, -1)


def test_one_engine_for_several_generations(tmp_path: Path) -> None:
    built = engine_from_onnx(plan_for(save_graph(tmp_path / "model.onnx"), recipe=recipe_named("any-rtx")), tmp_path)
    assert built.compute_capabilities == ("8.0", "8.6", "8.9", "12.0", "12.1")


def test_what_does_not_fit_on_the_card_is_refused(tmp_path: Path) -> None:
    plan = plan_for(save_graph(tmp_path / "model.onnx"))
    small = EnginePlan.from_json({**plan.as_json(), "memory_bytes": 1 << 20})
    with pytest.raises(RefusedInput, match=r"needs 0.0 GiB on the GPU.*smaller MAX"):
        engine_from_onnx(small, tmp_path)
    assert not (tmp_path / "built.engine").exists()


def test_a_graph_that_tensorrt_refuses_is_refused_in_its_own_words(tmp_path: Path) -> None:
    turing = EnginePlan.from_json(
        {**plan_for(save_graph(tmp_path / "model.onnx")).as_json(), "compute_capabilities": ["7.5"]}
    )
    with pytest.raises(RefusedInput, match="FP32 3D convolution is not supported"):
        engine_from_onnx(turing, tmp_path)
    unknown = EnginePlan.from_json({**turing.as_json(), "compute_capabilities": ["9.0"]})
    with pytest.raises(RefusedInput, match=r"9\.0 \(SM90\) not supported"):
        engine_from_onnx(unknown, tmp_path)
    assert not (tmp_path / "built.engine").exists()


def test_an_operator_that_tensorrt_does_not_know(tmp_path: Path) -> None:
    path = save_graph(tmp_path / "model.onnx")
    model = onnx.load(path)
    model.graph.node[1].CopyFrom(helper.make_node("Bernoulli", ["a"], ["b"]))
    onnx.save(model, path)
    with pytest.raises(RefusedInput, match="Bernoulli"):
        engine_from_onnx(plan_for(path), tmp_path)


def test_graphs_that_are_not_of_this_toolkit(tmp_path: Path) -> None:
    with pytest.raises(RefusedInput, match="should have one input 'image', it has 'x'"):
        engine_from_onnx(plan_for(save_graph(tmp_path / "a.onnx", input_name="x")), tmp_path)
    fixed = plan_for(save_graph(tmp_path / "b.onnx", batch=1), batch=(1, 2, 4))
    with pytest.raises(RefusedInput, match=r"the plan asks for \(2, 1, 16, 16, 16\)"):
        engine_from_onnx(fixed, tmp_path)
    plan = plan_for(save_graph(tmp_path / "c.onnx"))
    (tmp_path / "c.onnx").write_bytes(b"not ONNX")
    with pytest.raises(RefusedInput, match="changed since it was checked"):
        engine_from_onnx(plan, tmp_path)
    with pytest.raises(RefusedInput, match="not a valid ONNX file"):
        engine_from_onnx(plan_for(tmp_path / "c.onnx"), tmp_path)
    (tmp_path / "c.onnx").unlink()
    with pytest.raises(RefusedInput, match="there is no file"):
        engine_from_onnx(plan, tmp_path)


@pytest.mark.parametrize("location", ["../weights.data", "link.data"])
def test_weights_outside_the_folder_are_not_opened(tmp_path: Path, location: str) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    path = save_graph(folder / "model.onnx")
    model = onnx.load(path)
    (tmp_path / "weights.data").write_bytes(b"".join(tensor.raw_data for tensor in model.graph.initializer))
    (folder / "link.data").symlink_to(tmp_path / "weights.data")
    for tensor in model.graph.initializer:
        size = len(tensor.raw_data)
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", location), ("offset", "0"), ("length", str(size))):
            tensor.external_data.add(key=key, value=value)
    path.write_bytes(model.SerializeToString())
    with pytest.raises(RefusedInput, match="not a valid ONNX file"):
        engine_from_onnx(plan_for(path), tmp_path)


@pytest.mark.skipif(bool(find_gpus()), reason="a GPU is here")
def test_tensorrt_builds_on_a_gpu_only(tmp_path: Path) -> None:
    plan = plan_for(save_graph(tmp_path / "model.onnx"), backend="tensorrt")
    with pytest.raises(EnvironmentLacks, match="no NVIDIA GPU here"):
        engine_from_onnx(plan, tmp_path)


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    plan = plan_for(save_graph(tmp_path / "model.onnx"))
    with pytest.raises(EnvironmentLacks, match="cannot write to"):
        engine_from_onnx(plan, tmp_path / "missing")


@pytest.fixture
def child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], EnginePlan]:
    """Replace the child process by a script; returns a plan to build with it."""

    def install(script: str) -> EnginePlan:
        path = tmp_path / "child.py"
        path.write_text(textwrap.dedent(script))
        monkeypatch.setattr(build, "CHILD", (str(path),))
        return plan_for(save_graph(tmp_path / "model.onnx"))

    return install


def test_a_child_that_is_killed(child: Callable[[str], EnginePlan], tmp_path: Path) -> None:
    plan = child(
        """
        import os, signal, sys
        open(sys.argv[2], "w").write("half an engine")
        print('{"log": [40, "Requested 17 GiB"]}', flush=True)
        print('{"log": [4', end="", flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
        """
    )
    with pytest.raises(EnvironmentLacks, match=r"ran out of memory; TensorRT-RTX said: Requested 17 GiB"):
        engine_from_onnx(plan, tmp_path)
    assert not (tmp_path / "built.engine").exists()


def test_a_child_that_crashes(child: Callable[[str], EnginePlan], tmp_path: Path) -> None:
    plan = child(
        """
        import os, signal, sys
        sys.stderr.write("terminate called\\n" * 100_000)  # more than a pipe holds
        sys.stderr.flush()
        os.kill(os.getpid(), signal.SIGSEGV)
        """
    )
    with pytest.raises(RefusedInput, match=r"crashed \(SIGSEGV\).*terminate called"):
        engine_from_onnx(plan, tmp_path)


def test_a_child_with_a_fault_of_our_own(child: Callable[[str], EnginePlan], tmp_path: Path) -> None:
    with pytest.raises(LhanetExportError, match=r"exit code 1.*KeyError: 'oops'") as caught:
        engine_from_onnx(child("raise KeyError('oops')"), tmp_path)
    assert caught.value.exit_code == 1
    with pytest.raises(LhanetExportError, match="exit code 0"):
        engine_from_onnx(child("print('{}')"), tmp_path)


def test_an_interruption_ends_the_child(child: Callable[[str], EnginePlan], tmp_path: Path) -> None:
    plan = child(
        """
        import os, sys, time
        open(sys.argv[2], "w").write(str(os.getpid()))
        print('{"phase": "p", "parent": null, "steps": 2}\\n{"step": "p"}', flush=True)
        time.sleep(600)
        """
    )
    seen: list[int] = []

    class Interrupt:
        @contextmanager
        def step(self, text: str, total: float | None = None) -> Iterator[Callable[[float], None]]:
            def advance(amount: float) -> None:
                seen.append(int((tmp_path / "built.engine").read_text()))
                raise KeyboardInterrupt

            yield advance

    with pytest.raises(KeyboardInterrupt):
        engine_from_onnx(plan, tmp_path, progress=Interrupt())
    with pytest.raises(ProcessLookupError):
        os.kill(seen[0], 0)
    assert not (tmp_path / "built.engine").exists()


def test_sigterm_ends_the_child(tmp_path: Path) -> None:
    script = textwrap.dedent(
        f"""
        import pathlib, sys
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        from lhanet_export.engine import build
        from test_engine_build import plan_for, save_graph
        folder = pathlib.Path({str(tmp_path)!r})
        build.CHILD = ("-c", "import os, sys, time; open(sys.argv[2], 'w').write(str(os.getpid())); time.sleep(600)")
        build.engine_from_onnx(plan_for(save_graph(folder / "model.onnx")), folder)
        """
    )
    process = subprocess.Popen([sys.executable, "-c", script])
    engine = tmp_path / "built.engine"
    deadline = time.monotonic() + 60
    while not (engine.exists() and engine.read_text()):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
    child_pid = int(engine.read_text())
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == 143
    with pytest.raises(ProcessLookupError):
        os.kill(child_pid, 0)
    assert not engine.exists()


def test_a_child_does_not_outlive_its_parent(tmp_path: Path) -> None:
    plan_path = tmp_path / "plan.json"
    write_json(plan_path, plan_for(save_graph(tmp_path / "model.onnx")).as_json())
    command = [sys.executable, "-m", "lhanet_export.engine.child", str(plan_path), str(tmp_path / "e")]
    # Standard input is closed from the start, as it is when the parent was killed.
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, timeout=60, check=False)
    assert done.returncode == ORPHANED
    assert not (tmp_path / "e").exists()


def test_the_current_folder_is_not_imported_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "onnx.py").write_text("raise SystemExit('code of the current folder ran')")
    work = tmp_path / "work"
    work.mkdir()
    plan = plan_for(save_graph(work / "model.onnx"))
    monkeypatch.chdir(tmp_path)
    assert engine_from_onnx(plan, work).path.exists()
