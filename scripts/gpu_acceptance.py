"""Everything that only a GPU can show, in one program; each step is kept, and asked again it goes on where it was.

    python scripts/gpu_acceptance.py                        # writes docs/benchmarks/<gpu>-<date>/
    python scripts/gpu_acceptance.py --out acceptance/      # elsewhere
    python scripts/gpu_acceptance.py --dry-run --out try/   # narrow networks on a CPU: shows that the program runs

A step that is already there as JSON is not made again: delete its file to repeat it. To go on another day, name the
folder with --out. A step that fails is written
down with its reason, and the others go on; then, and where a goal is not reached, the exit code is 2. At the end stand
`summary.json`, which holds the goals against what was measured, and an HTML report for each network. Needs PyTorch with
CUDA. Meant to take under 25 minutes on a data-centre card; how long it does was not measured yet. A dry run proves
nothing about a GPU, and its files say so.
"""

from __future__ import annotations

import datetime
import hashlib
import itertools
import json
import re
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

import click
import numpy as np
import torch
from _goals import goals
from _pages import BENCHMARKS
from measure_deploy import command
from torch import nn
from torch.nn import functional

from lhanet_export.bench.agreement import agrees
from lhanet_export.bench.candidates import Candidate, DeviceKind
from lhanet_export.bench.conditions import gpu_conditions
from lhanet_export.bench.scaling import scalings
from lhanet_export.bench.torch_ways import TorchWay
from lhanet_export.cli.bench import write_report
from lhanet_export.cli.show import Show, complain
from lhanet_export.engine.gpu import Gpu, find_gpus
from lhanet_export.engine.manifest import read_manifest
from lhanet_export.engine.recipes import recipe_named
from lhanet_export.errors import EnvironmentLacks, LhanetExportError, RefusedInput
from lhanet_export.files import staged, write_json
from lhanet_export.model.checkpoint import load_checkpoint
from lhanet_export.model.resize import resize_by_scale
from lhanet_export.model.rule import rule_network
from lhanet_export.runners.tensorrt_ import TensorRTRunner
from lhanet_export.shapes import Shape, parse_shape
from lhanet_export.verify.inputs import RuleCase
from lhanet_export.verify.metrics import difference

T = TypeVar("T")
SCRIPTS = Path(__file__).resolve().parent
PRESETS = ("lightweight", "standard")
#: The recipe of engines for all targets of TensorRT-RTX.
EVERY_CARD = "any-rtx"
SIDES = ((2, 2, 6), (3, 6, 6), (2, 3, 4), (6, 7, 8), (24, 48, 48))
SCALES = (Fraction(1, 2), Fraction(3, 4), Fraction(5, 4), Fraction(3, 2))
#: Two FP32 kernels that add up in different orders differ by this much; a resize of another meaning by far more.
SAME_RESIZE = 5e-5


@dataclass(frozen=True, kw_only=True)
class Run:
    """Where results go, and how much is done; `width` None is the presets' own."""

    folder: Path
    device: DeviceKind
    width: int | None = None
    shapes: tuple[str, ...] = ("64x128x128", "96x192x192")
    #: The volumes of the steps that look at one network more closely.
    probe: Shape = (64, 128, 128)
    rounds: int = 20
    inferences: int = 1000

    def checkpoint(self, preset: str) -> str:
        """A file of weights by rule, made once."""
        path = self.folder / "work" / f"{preset}.pth"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            with staged(path) as (temporary,):
                torch.save(rule_network(preset, base_channels=self.width).state_dict(), temporary)
        return str(path)


@click.command()
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), help="Where results go.")
@click.option("--dry-run", is_flag=True, help="Narrow networks and few inferences on the CPU.")
def main(out: Path | None, dry_run: bool) -> None:
    """Run every step that is not there yet, and hold the goals against what was measured."""
    try:
        run = _run_of(out, dry_run)
        failed = accept(run, Show())
    except LhanetExportError as error:
        complain(str(error))
        sys.exit(error.exit_code)
    sys.exit(2 if failed else 0)


def _run_of(out: Path | None, dry_run: bool) -> Run:
    today = datetime.date.today()
    if dry_run:
        if out is None:
            raise RefusedInput("a dry run is no benchmark and does not go to docs/benchmarks; say where with --out")
        return Run(folder=out, device="cpu", width=8, shapes=("33x48x48",), probe=(17, 17, 17), rounds=2, inferences=4)
    gpus = find_gpus()
    if not gpus or not torch.cuda.is_available():
        raise EnvironmentLacks("there is no NVIDIA GPU that PyTorch can use; --dry-run shows that the program runs")
    name = re.sub(r"[^a-z0-9]+", "-", gpus[0].name.lower()).strip("-")
    return Run(folder=out or BENCHMARKS / f"{name}-{today}", device="cuda")


def accept(run: Run, show: Show) -> list[str]:
    """All steps and the summary; what failed or was not reached, in words."""
    run.folder.mkdir(parents=True, exist_ok=True)
    results = {name: _kept(run, name, step, show) for name, step in steps(run).items()}
    failed = [f"{name}: {found['failed']}" for name, found in results.items() if "failed" in found]
    benches = {preset: [bench for name in names for bench in results[name].get("benches", [])]
               for preset, names in _bench_names(run).items()}  # fmt: skip
    judged = goals(benches["lightweight"])
    if run.device == "cuda":
        failed += [f"{row['goal']}: {row['found'] or 'not measured'}" for row in judged if not row["reached"]]
    write_json(run.folder / "summary.json", {**_about(run), "goals": judged, "failed": failed})
    for preset, found in benches.items():
        if found:
            facts = {"benches": found, "scaling": scalings(found)}
            write_report(run.folder / f"bench-{preset}.html", facts, f"LHA-Net, {preset}")
    show.table(
        "Goals", [(row["goal"], row["found"] or "not measured", "yes" if row["reached"] else "no") for row in judged],
        ("goal", "found", "reached"),
    )  # fmt: skip
    for line in failed:
        show.line(f"failed: {line}")
    return failed


def steps(run: Run) -> dict[str, Callable[[Run], dict[str, Any]]]:
    """What is done, in order: what is quick and says most comes first."""
    sizes = [(preset, shape) for preset in PRESETS for shape in run.shapes]
    names = [name for names in _bench_names(run).values() for name in names]
    benches = {
        name: partial(bench, preset=preset, shape=shape) for name, (preset, shape) in zip(names, sizes, strict=True)
    }
    return {
        "resize": resize,
        "report": report,
        "engine": engine,
        "overflow": overflow,
        "endurance": endurance,
        **benches,
    }


def _bench_names(run: Run) -> dict[str, list[str]]:
    """The steps of each network, one for each size: what was measured is kept when the next one fails."""
    return {preset: [f"bench-{preset}-{shape}" for shape in run.shapes] for preset in PRESETS}


def _kept(run: Run, name: str, step: Callable[[Run], dict[str, Any]], show: Show) -> dict[str, Any]:
    """A step's result, from its file if it is there; a step that fails leaves its reason, and is tried again."""
    path = run.folder / f"{name}.json"
    if path.exists():
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if found["dry_run"] != (run.width is not None):
            raise RefusedInput(f"{path} is of {'a dry' if found['dry_run'] else 'no dry'} run; name another --out")
        if "failed" not in found:
            return found
    started = time.monotonic()
    with show.progress.step(name):
        try:
            found = step(run)
        except (LhanetExportError, RuntimeError, subprocess.CalledProcessError) as error:
            found = {"failed": str(error).strip().partition("\n")[0] or type(error).__name__}
    if run.device == "cuda":
        # What this process keeps, those that are measured next cannot have.
        torch.cuda.empty_cache()
    found = {**_about(run), "seconds_taken": round(time.monotonic() - started, 1), **found}
    with staged(path) as (temporary,):
        write_json(temporary, found)
    return found


def _about(run: Run) -> dict[str, Any]:
    conditions = gpu_conditions() if run.device == "cuda" else None
    return {
        "date": str(datetime.date.today()),
        "gpu": find_gpus()[0].name if run.device == "cuda" else None,
        "driver": conditions.driver if conditions else None,
        "torch": torch.__version__,
        "dry_run": run.width is not None,
    }


def resize(run: Run) -> dict[str, Any]:
    """How far PyTorch's resize on this device is from the meaning that the toolkit gives it, at corner sizes."""
    rows = []
    for sides, scale in itertools.product(SIDES, SCALES):
        if min(side * scale for side in sides) < 1:
            continue
        x = torch.from_numpy(np.random.default_rng(0).standard_normal((1, 2, *sides), np.float32)).to(run.device)
        theirs = functional.interpolate(x, scale_factor=float(scale), mode="trilinear", align_corners=False)
        away = float((theirs - resize_by_scale(x, scale)).abs().max())
        rows.append({"sides": list(sides), "scale": float(scale), "largest_difference": away})
    same = all(row["largest_difference"] <= SAME_RESIZE for row in rows)
    # On a CPU they differ, which is why the reference does without PyTorch's there.
    return {"rows": rows, "same": same} | ({} if same or run.device == "cpu" else {"failed": "another resize"})


def report(run: Run) -> dict[str, Any]:
    """The report of the network's authors again, its memory on this machine."""
    path = run.folder / "work" / "report.json"
    path.parent.mkdir(exist_ok=True)
    width = ["--width", str(run.width)] if run.width else []
    subprocess.run([sys.executable, str(SCRIPTS / "reproduce_report.py"), "--out", str(path), *width], check=True)
    return dict(json.loads(path.read_text(encoding="utf-8")))


def bench(run: Run, preset: str, shape: str) -> dict[str, Any]:
    """All rows of `bench` at a size: eager baselines, both graphs, and the engine where this GPU is one of its own."""
    models = [graph_of(run, preset, precision) for precision in ("fp32", "fp16")]
    gpus = find_gpus()
    if not gpus or gpus[0].compute_capability in recipe_named(EVERY_CARD).compute_capabilities:
        models.append(engine_of(run, preset, shape))
    # Comparing large volumes takes longer than computing them.
    volumes = 3 if shape == run.shapes[0] else 1
    options = ["--rounds", str(run.rounds), "--volumes", str(volumes), "--device", run.device]
    given = ["--checkpoint", run.checkpoint(preset), "--shape", shape]
    return command("bench", *map(str, models), *given, *options, folder=run.folder / "work")


def graph_of(run: Run, preset: str, precision: str) -> Path:
    """An ONNX file for all sizes, made once."""
    path = run.folder / "work" / f"{preset}.{precision}.onnx"
    if not path.exists():
        spatial = f"{run.shapes[0]}:{run.shapes[0]}:{run.shapes[-1]}"
        command(
            "onnx", run.checkpoint(preset), "-o", str(path), "--precision", precision, "--spatial", spatial,
            folder=path.parent,
        )  # fmt: skip
    return path


def engine_of(run: Run, preset: str, shape: str) -> Path:
    """The FP16 engine for every card, made once; for one size, because one for more plans memory for the largest."""
    graph = graph_of(run, preset, "fp16")
    path = graph.with_name(f"{preset}.{shape}.engine")
    if not path.exists():
        options = ["--gpu", EVERY_CARD, "--spatial", ":".join([shape] * 3)]
        command("trt", str(graph), "-o", str(path), *options, folder=graph.parent)
    return path


def engine(run: Run) -> dict[str, Any]:
    """Whether an engine loads and runs on this GPU, also if it was not built for it: TensorRT-RTX's own answer.

    If it does: how long the network takes, copies apart, and how far its logits are from the eager network's.
    """
    path = engine_of(run, "lightweight", run.shapes[0])
    built_for = read_manifest(path).engine.compute_capabilities
    gpus = find_gpus()
    if not gpus:
        return {"built_for": list(built_for), "ran": False, "said": "there is no GPU here"}
    # The toolkit would refuse another GPU before it asks the library.
    pretended = tuple(replace(gpu, compute_capability=built_for[0]) for gpu in gpus)
    case = RuleCase(shape=parse_shape(run.shapes[0]), kind="bodies", seed=0)
    facts = {"built_for": list(built_for), "compute_capability": gpus[0].compute_capability, "shape": list(case.shape)}
    try:
        logits, seconds = apart(run_engine, path, pretended, case, run.rounds)
    except LhanetExportError as error:
        facts |= {"ran": False, "said": str(error)}
        own = gpus[0].compute_capability in built_for
        return {**facts, "failed": f"it does not run on a card that it was built for: {error}"} if own else facts
    found = difference(case, _eager_logits(run, case), logits, "logits", 0.0).as_json()
    facts |= {
        "ran": True, "precision": "fp16", **{key: found[key] for key in ("relative_l2", "label_agreement")},
        "median_seconds": float(np.median(seconds)), "p90_seconds": float(np.percentile(seconds, 90)),
    }  # fmt: skip
    return facts if agrees(facts) else {**facts, "failed": "its logits are not those of eager FP32"}


def apart(function: Callable[..., T], *arguments: Any) -> T:
    """What a function gives in a process of its own; `EnvironmentLacks` if that dies of it."""
    with ProcessPoolExecutor(1, get_context("spawn")) as child:
        try:
            return child.submit(function, *arguments).result()
        except BrokenProcessPool as error:
            raise EnvironmentLacks("the library ended its process") from error


def run_engine(path: Path, gpus: tuple[Gpu, ...], case: RuleCase, rounds: int) -> tuple[np.ndarray, list[float]]:
    """An engine's logits (N,K,D,H,W) float32 of a volume, and the seconds of further inferences, without copies."""
    with TensorRTRunner(path, gpus=gpus, final_kernels=True) as runner:
        (slot,) = runner.slots(case.image.shape, 1)
        slot.image[...] = case.image
        slot.start()
        logits = slot.wait().astype(np.float32)
        return logits, [slot.network_seconds() for _ in range(rounds)]


def _eager_logits(run: Run, case: RuleCase) -> np.ndarray:
    """What the eager network says of a volume, on the device that everything runs on."""
    candidate = Candidate(name="", precision="fp32", kind="eager")
    return TorchWay(candidate, Path(run.checkpoint("lightweight")), case.image, run.device).infer(case.image)


def overflow(run: Run) -> dict[str, Any]:
    """Layers of the network in FP16 throughout: how large they get, and how many values leave FP16's range."""
    rows: dict[str, dict[str, Any]] = {}

    def watch(name: str) -> Callable[[nn.Module, tuple[torch.Tensor, ...], torch.Tensor], None]:
        def look(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            row = rows.setdefault(name, {"name": name, "largest": 0.0, "not_finite": 0})
            finite = output.isfinite()
            row["not_finite"] += int((~finite).sum())
            row["largest"] = max(row["largest"], float(torch.where(finite, output, 0).abs().max()))

        return look

    network = load_checkpoint(run.checkpoint("lightweight")).eval().to(run.device).half()
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv3d):
            module.register_forward_hook(watch(name))
    with torch.inference_mode():
        for seed in range(3):
            case = RuleCase(shape=run.probe, kind="bodies", seed=seed)
            network(torch.from_numpy(case.image).to(run.device).half())
    nearest = sorted(rows.values(), key=lambda row: -row["largest"])
    return {"layers": len(rows), "not_finite": sum(row["not_finite"] for row in rows.values()), "nearest": nearest[:10]}


def endurance(run: Run) -> dict[str, Any]:
    """Many inferences of our layers in FP16: the same output each time, and no more memory at the end."""
    image = RuleCase(shape=run.probe, kind="bodies", seed=0).image
    candidate = Candidate(name="", precision="fp16", kind="ours")
    checkpoint = Path(run.checkpoint("lightweight"))
    way = TorchWay(candidate, checkpoint, image, run.device)
    outputs, memory, seconds = set(), [], []
    for turn in range(run.inferences):
        seconds.append(way.seconds())
        if turn % max(1, run.inferences // 20) == 0:
            outputs.add(hashlib.sha256(way.infer(image).tobytes()).hexdigest())
            memory.append(torch.cuda.memory_reserved() if run.device == "cuda" else None)
    known = [used for used in memory if used is not None]
    grown = known[-1] - known[0] if known else None
    facts = {
        "inferences": run.inferences, "different_outputs": len(outputs), "memory_bytes": memory, "grown_bytes": grown,
        "median_seconds": float(np.median(seconds)), "p90_seconds": float(np.percentile(seconds, 90)),
    }  # fmt: skip
    if len(outputs) > 1:
        return {**facts, "failed": f"{len(outputs)} different outputs of one volume"}
    return {**facts, "failed": f"{grown:,} bytes more at the end"} if grown and grown > 0 else facts


if __name__ == "__main__":
    main()
