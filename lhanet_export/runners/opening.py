"""Which runner belongs to a file, and what the network behind it is compared as."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lhanet_export.conventions import RUNTIMES, Preprocessing, default_labels
from lhanet_export.engine.gpu import find_gpus
from lhanet_export.engine.manifest import read_manifest, verify_engine_bytes
from lhanet_export.errors import RefusedInput
from lhanet_export.export.artifact import OnnxArtifact, read_onnx
from lhanet_export.files import sidecar_of
from lhanet_export.inference.target import Target
from lhanet_export.model.checkpoint import open_checkpoint
from lhanet_export.model.network import LHANet
from lhanet_export.runners.base import Runner
from lhanet_export.runners.eager import EagerRunner
from lhanet_export.runners.null import NullRunner
from lhanet_export.runners.onnxruntime_ import OnnxRuntimeRunner
from lhanet_export.runners.onnxruntime_cuda import OnnxRuntimeCudaRunner
from lhanet_export.runners.openvino_ import OpenVINORunner
from lhanet_export.runners.tensorrt_ import TensorRTRunner
from lhanet_export.shapes import LONGEST_SIDE, SpatialRange
from lhanet_export.strict import Node


@dataclass(frozen=True, kw_only=True)
class Opened:
    """A runner, not yet started, and the facts that decide how it is judged.

    `batch` is how many volumes it takes at a time, None for any number. `checkpoint` is the manifest's object.
    """

    runner: Runner
    target: Target
    precision: str
    spatial: SpatialRange
    batch: int | None
    labels: tuple[str, ...]
    checkpoint: Mapping[str, Any]
    preprocessing: Preprocessing


_RUNNERS: dict[str, Callable[[OnnxArtifact], Runner]] = {
    "onnxruntime": OnnxRuntimeRunner,
    "onnxruntime-cuda": OnnxRuntimeCudaRunner,
    "openvino": OpenVINORunner,
}


def runner_of(path: Path, runtime: str | None = None, *, null: bool = False) -> Opened:
    """The runner of an ONNX file, or of an engine with its manifest (its own backend).

    `runtime` is what ONNX files run in (`conventions.RUNTIMES`, the first if None); OpenVINO takes FP32 ones. With
    `null` files are checked as ever, and no network is run. For a runtime that is not installed, and for an engine
    whose GPU is not here, this raises `EnvironmentLacks` or `RefusedInput` at once, before anybody computes a reference
    to compare it with.
    """
    chosen = runtime or RUNTIMES[0]
    if path.suffix == ".onnx":
        artifact = read_onnx(path)
        return Opened(
            runner=(
                _null_runner(artifact.facts["labels"], artifact.facts["output"]) if null else _RUNNERS[chosen](artifact)
            ),
            target=Target(head=artifact.facts["head"], output=artifact.facts["output"]),
            precision=artifact.precision,
            spatial=artifact.spatial,
            batch=artifact.facts["batch"],
            labels=tuple(artifact.facts["labels"]),
            checkpoint=artifact.facts["checkpoint"],
            preprocessing=Preprocessing.from_node(Node(artifact.facts["preprocessing"], path, "preprocessing")),
        )
    if not sidecar_of(path).exists():
        raise RefusedInput(
            f"{path} is neither an ONNX file nor an engine: there is no manifest {sidecar_of(path).name}"
        )
    if chosen != RUNTIMES[0]:
        raise RefusedInput(f"{path} is an engine, which its own library runs; {chosen} runs ONNX files only")
    manifest = read_manifest(path)
    engine = TensorRTRunner(path)
    (output,) = manifest.engine.outputs
    if null:
        verify_engine_bytes(path)
    else:
        engine.matching_gpu()
    batch = manifest.engine.inputs[0].shape[0]
    return Opened(
        runner=_null_runner(manifest.labels, output.name) if null else engine,
        target=Target(head=manifest.onnx_head, output=output.name),
        precision=manifest.engine.precision,
        spatial=manifest.engine.profiles[0],
        batch=None if batch == -1 else batch,
        labels=manifest.labels,
        checkpoint=manifest.checkpoint,
        preprocessing=manifest.preprocessing,
    )


def _null_runner(labels: Sequence[str], output: str) -> NullRunner:
    return NullRunner(len(labels), coarse=output == "coarse")


def runner_for(spec: str, runtime: str | None = None, *, null: bool = False) -> Opened:
    """The runner of whatever can segment: an ONNX file, an engine, or a checkpoint, `demo` or `preset:NAME`.

    `runtime` is for ONNX files only; `null` checks the model and runs no network.
    """
    path = Path(spec)
    if path.suffix in (".onnx", ".engine", ".plan") or sidecar_of(path).exists():
        if not path.is_file():
            raise RefusedInput(f"there is no file {path}")
        return runner_of(path, runtime, null=null)
    if runtime is not None:
        raise RefusedInput(f"{spec} is a checkpoint, which PyTorch runs; {runtime} runs ONNX files: lhanet-export onnx")
    opened = runner_of_checkpoint(spec)
    return replace(opened, runner=_null_runner(opened.labels, opened.target.output)) if null else opened


def runner_of_checkpoint(spec: str) -> Opened:
    """The eager runner of a checkpoint file, `demo` or `preset:NAME`; it gives coarse logits, for they hold all."""
    network, identity = open_checkpoint(spec)
    target = Target(output="coarse")
    smallest = (network.preset.smallest_side,) * 3
    return Opened(
        runner=EagerRunner(network, target),
        target=target,
        precision="fp32",
        spatial=SpatialRange(smallest, smallest, (LONGEST_SIDE,) * 3),
        batch=None,
        labels=default_labels(network.num_classes),
        checkpoint=identity.as_json(),
        preprocessing=Preprocessing(),
    )


def engine_runner_here(path: Path) -> Runner | None:
    """The runner of an engine if this machine has the GPU for it, else None."""
    capabilities = read_manifest(path).engine.compute_capabilities
    gpus = find_gpus()
    return TensorRTRunner(path) if gpus and gpus[0].compute_capability in capabilities else None


def reference_runner(network: LHANet, target: Target) -> Runner:
    """The eager network, giving logits: on the head's own grid if `coarse` is what is compared, else resized."""
    return EagerRunner(network, replace(target, output="coarse" if target.output == "coarse" else "logits"))
