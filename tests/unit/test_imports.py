"""The data flow of the design, kept: who may import whom, and what no module may do at all.

    checkpoint -> model -> inference -> export -> precision -> engine -> runners -> verify, predict -> command line

Imports point backwards along the arrow only, and not even there everywhere: `precision` works on ONNX files and
`engine` on a plan, so neither knows the network; `verify` knows runners through one interface.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
PACKAGE = REPOSITORY / "lhanet_export"
NAME = "lhanet_export"

#: What every stage shares; these modules import only each other.
SHARED = {"errors", "files", "shapes", "conventions", "progress", "strict", "strict_yaml"}
#: What a runner needs of the engines: what they are, on which library and GPU they run; not how they are built.
ENGINE_FOR_RUNNERS = {"engine.manifest", "engine.backends", "engine.gpu", "engine.plan"}
#: Part of the package: the parts, or modules of parts, that it may import besides itself and what is shared.
ALLOWED = {
    "model": set(),
    "inference": {"model"},
    "export": {"model", "inference"},
    "precision": {"export.artifact", "export.work", "runners.onnxruntime_library"},
    "engine": set(),
    "runners": {"model", "inference", "export.artifact", "precision", *ENGINE_FOR_RUNNERS},
    "verify": {"runners.base", "volume"},
    "quantize": {"export.artifact", "precision", "verify", "volume"},
    "deploy": {"model", "inference", "export", "precision", "engine", "runners", "verify", "quantize"},
    "patches": {"model", "inference.target", "export", "precision.convert", "engine"},
    "fit": {"patches", "engine"},
    "triton": {"export.artifact", "engine.manifest", "engine.build"},
    "volume": set(),
    "predict": {"runners.base", "volume"},
    "bench": {"model", "inference", "export", "engine", "runners", "verify"},
    "cli": {
        "bench",
        "model",
        "inference",
        "export",
        "precision",
        "engine",
        "runners",
        "verify",
        "volume",
        "quantize",
        "deploy",
        "patches",
        "fit",
        "predict",
        "triton",
    },
}
#: Part: libraries that none of its modules may load, not even through others.
WITHOUT = {
    "precision": ("torch", "tensorrt", "tensorrt_rtx", "click", "rich"),
    "engine": ("torch", "onnx", "tensorrt", "tensorrt_rtx", "polygraphy", "click", "rich"),
    "verify": ("torch", "onnx", "onnxruntime", "tensorrt", "tensorrt_rtx", "click", "rich"),
    # An answer that was kept is given without PyTorch.
    "patches": ("torch", "onnx", "tensorrt", "tensorrt_rtx", "click", "rich"),
    "fit": ("torch", "onnx", "tensorrt", "tensorrt_rtx", "click", "rich"),
    "model": ("onnx", "onnxruntime", "tensorrt", "tensorrt_rtx", "click", "rich"),
    "predict": ("torch", "onnx", "onnxruntime", "tensorrt", "tensorrt_rtx", "click", "rich"),
    "volume": ("torch", "onnx", "onnxruntime", "tensorrt", "tensorrt_rtx", "click", "rich"),
    # Each is loaded when a runner of it is made; OpenVINO and TensorRT need not be installed.
    "runners": ("openvino", "tensorrt", "tensorrt_rtx", "click"),
}
MOST_LINES = 400

MODULES = sorted(PACKAGE.rglob("*.py"))
TREES = {path: ast.parse(path.read_text(encoding="utf-8"), str(path)) for path in MODULES}


def dotted(path: Path) -> str:
    """`export/tidy.py` as `export.tidy`; a package by its own name, and the root as an empty text."""
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix("__init__").removesuffix(".")


def imported(path: Path) -> Iterator[str]:
    """Modules of this package that a module imports anywhere, functions and type checks included."""
    names = {dotted(other) for other in MODULES}
    for node in ast.walk(TREES[path]):
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import"
            # `from package import module` names a module, `from module import thing` does not.
            found = [f"{node.module}.{alias.name}" for alias in node.names]
            found = [name if name.removeprefix(f"{NAME}.") in names else str(node.module) for name in found]
        else:
            continue
        yield from (name.removeprefix(NAME).removeprefix(".") for name in found if f"{name}.".startswith(f"{NAME}."))


def calls(path: Path) -> Iterator[tuple[str, ast.Call]]:
    """Every call in a module, with the dotted name that is called."""
    for node in ast.walk(TREES[path]):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


@pytest.mark.parametrize("path", MODULES, ids=dotted)
def test_imports_point_backwards_along_the_data_flow(path: Path) -> None:
    part = dotted(path).partition(".")[0]
    if part in ("", "__main__"):
        return
    assert part in ALLOWED or part in SHARED, f"say in this test what {part} may import"
    allowed = ALLOWED.get(part, set())
    for name in imported(path):
        # The root holds the version and imports the public names only when they are asked for.
        if name == "" or name.partition(".")[0] in SHARED | ({part} & ALLOWED.keys()):
            continue
        fits = any(f"{name}.".startswith(f"{prefix}.") for prefix in allowed)
        assert fits, f"{part} must not import {name}; it may import {', '.join(sorted(allowed)) or 'nothing'}"


def test_every_module_imports_in_a_plain_process() -> None:
    names = [f"{NAME}.{dotted(path)}".rstrip(".") for path in MODULES if path.stem != "__main__"]
    code = "import importlib, sys\nfor name in sys.argv[1:]: importlib.import_module(name)"
    subprocess.run([sys.executable, "-W", "error::SyntaxWarning", "-c", code, *names], cwd=REPOSITORY, check=True)


@pytest.mark.parametrize("part", WITHOUT)
def test_a_part_loads_only_the_libraries_it_works_with(part: str) -> None:
    names = [f"{NAME}.{dotted(path)}" for path in MODULES if dotted(path).partition(".")[0] == part]
    code = "import importlib, sys\nfor name in sys.argv[1:]: importlib.import_module(name)\nprint(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code, *names], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert not set(WITHOUT[part]) & set(done.stdout.split())


def test_the_public_names_need_no_library_until_they_are_used() -> None:
    has = "'torch' in sys.modules"
    code = f"import lhanet_export, sys; print({has}, lhanet_export.LHANet.__name__, {has})"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "LHANet", "True"]


@pytest.mark.parametrize("path", MODULES, ids=dotted)
def test_nothing_loads_code_from_data(path: Path) -> None:
    for node in ast.walk(TREES[path]):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [str(node.module)]
        unsafe = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
        assert not unsafe & {name.partition(".")[0] for name in names}, f"{path}:{getattr(node, 'lineno', 0)}"
    for name, call in calls(path):
        where = f"{path}:{call.lineno}: {name}"
        arguments = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        assert name not in ("eval", "exec", "compile", "__import__", "os.system", "os.popen"), where
        assert not name.startswith("yaml.") or name in ("yaml.safe_load", "yaml.safe_dump", "yaml.YAMLError"), where
        assert arguments.get("allow_pickle", "False") == "False", where
        assert arguments.get("shell", "False") == "False", where
        if name in ("torch.load", "torch.jit.load"):
            assert name == "torch.load", where
            assert arguments.get("weights_only") == "True", where


def test_engines_are_deserialized_in_one_place() -> None:
    places = [
        f"{dotted(path)}:{call.lineno}"
        for path in MODULES
        for name, call in calls(path)
        if name.rpartition(".")[2] in ("deserialize_cuda_engine", "EngineFromBytes", "engine_from_bytes")
    ]
    assert len(places) == 1, f"an engine is native code; its hash is checked in one place: {places}"
    assert places[0].startswith("runners.")


@pytest.mark.parametrize("path", MODULES, ids=dotted)
def test_modules_stay_short_enough_to_read(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) < MOST_LINES


@pytest.mark.parametrize("path", MODULES, ids=dotted)
def test_only_the_command_line_prints(path: Path) -> None:
    if dotted(path) == "cli.show":
        return
    assert "print" not in {name for name, _ in calls(path)}
