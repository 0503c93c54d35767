"""All of the way: a checkpoint becomes a proven engine, or nothing.

The stages run one after the other in a temporary folder. Only when every comparison has passed do
the files get their names in the target folder.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lhanet_export.conventions import read_labels
from lhanet_export.engine.build import engine_from_onnx
from lhanet_export.engine.manifest import Manifest, manifest_of, publish_engine
from lhanet_export.engine.plan import EnginePlan, plan_engine
from lhanet_export.engine.recipes import Recipe
from lhanet_export.errors import GateFailed
from lhanet_export.export.artifact import OnnxArtifact
from lhanet_export.export.onnx_from_network import ExportOptions, default_range, onnx_from_network
from lhanet_export.files import staging_folder
from lhanet_export.inference.network import Target
from lhanet_export.model.checkpoint import CheckpointIdentity, open_checkpoint
from lhanet_export.model.network import LHANet
from lhanet_export.precision.convert import fp16_from_fp32
from lhanet_export.precision.fp16 import Fp16Report
from lhanet_export.progress import SILENT, Progress
from lhanet_export.runners.eager import EagerRunner
from lhanet_export.runners.onnxruntime_ import OnnxRuntimeRunner
from lhanet_export.runners.opening import runner_here
from lhanet_export.shapes import SpatialRange
from lhanet_export.verify.gate import TOLERANCES, Reference, Verification, reference_for, verify
from lhanet_export.verify.inputs import cases_for, shapes_in

#: Why an engine that was built on a machine without its GPU has no comparison of its own.
ENGINE_NOT_RUN = "not run: this machine has no GPU that the engine is for"


@dataclass(frozen=True, kw_only=True)
class Deployment:
    """What was made: the files by kind, each comparison by the graph it was made on, and the engine's manifest."""

    folder: Path
    checkpoint: CheckpointIdentity
    artifacts: dict[str, OnnxArtifact]
    engine: Path
    manifest: Manifest
    verifications: dict[str, Verification]
    fp16: Fp16Report | None

    def as_json(self) -> dict[str, Any]:
        """The deployment as `deploy --json` writes it."""
        return {
            "checkpoint": {"source": self.checkpoint.source, **self.checkpoint.as_json()},
            "onnx": {kind: {"file": str(one.path), **one.as_json()} for kind, one in self.artifacts.items()},
            "engine": str(self.engine),
            "manifest": self.manifest.as_json(),
            "fp16": self.fp16.as_json() if self.fp16 else None,
        }


class DeployFailed(GateFailed):
    """A comparison failed; carries all comparisons so far, so that they can be shown."""

    def __init__(self, message: str, verifications: dict[str, Verification]) -> None:
        super().__init__(message)
        self.verifications = verifications


def deploy(
    checkpoint: str,
    folder: Path,
    *,
    recipe: Recipe,
    backend: str = "tensorrt-rtx",
    precision: str = "fp16",
    spatial: SpatialRange | None = None,
    labels_file: Path | None = None,
    progress: Progress = SILENT,
) -> Deployment:
    """Make ONNX files, engine and manifest of a checkpoint in `folder`, each compared with the eager network.

    Without `spatial` the engine serves the recipe's sizes. `DeployFailed` when a comparison fails; then,
    as after any other error, nothing in `folder` has changed.
    """
    with progress.step(f"load {checkpoint}"):
        network, identity = open_checkpoint(checkpoint)
    sizes = spatial or recipe.spatial.within(default_range(network))
    sizes.check_network(network.preset.smallest_side)
    labels = read_labels(labels_file, network.num_classes) if labels_file else None
    with staging_folder(folder) as staging:
        options = ExportOptions(target=Target(), spatial=sizes, labels=labels)
        artifact = onnx_from_network(network, identity.as_json(), staging / "lhanet.fp32.onnx", options, progress)
        reference = _reference(network, sizes, progress)
        # The comparisons and the build need the memory that the eager network holds.
        del network
        artifacts, verifications = {"fp32": artifact}, {}
        verifications["fp32"] = _passed("fp32", artifact, reference, verifications, progress)
        report = None
        if precision == "fp16":
            artifact, report = fp16_from_fp32(artifact, staging / "lhanet.fp16.onnx", progress=progress)
            artifacts["fp16"] = artifact
            verifications["fp16"] = _passed("fp16", artifact, reference, verifications, progress)
        engine = staging / f"lhanet.{precision}.{recipe.name}.engine"
        plan = plan_engine(artifact.path, artifact.as_json(), recipe=recipe, backend=backend, spatial=sizes)
        manifest = _engine(plan, artifact, engine, reference, verifications, progress)
    return Deployment(
        folder=folder,
        checkpoint=identity,
        artifacts={kind: replace(one, path=folder / one.path.name) for kind, one in artifacts.items()},
        engine=folder / engine.name,
        manifest=manifest,
        verifications=verifications,
        fp16=report,
    )


def _reference(network: LHANet, sizes: SpatialRange, progress: Progress) -> Reference:
    return reference_for(EagerRunner(network), cases_for(shapes_in(sizes)), progress)


def _passed(
    kind: str, artifact: OnnxArtifact, reference: Reference, before: dict[str, Verification], progress: Progress
) -> Verification:
    """Compare one graph; `DeployFailed` unless it passes."""
    verification = verify(OnnxRuntimeRunner(artifact), reference, TOLERANCES[kind], progress=progress)
    _check(f"the {kind} graph", {**before, kind: verification}, verification)
    return verification


def _check(what: str, verifications: dict[str, Verification], last: Verification) -> None:
    if not last.passed:
        raise DeployFailed(f"{what} did not pass, so nothing was written: {'; '.join(last.failures)}", verifications)


def _engine(
    plan: EnginePlan,
    artifact: OnnxArtifact,
    target: Path,
    reference: Reference,
    verifications: dict[str, Verification],
    progress: Progress,
) -> Manifest:
    """Build, compare where the GPU is, and put engine and manifest beside the graphs."""
    proof: dict[str, Any] = {f"onnx_{kind}": one.as_json() for kind, one in verifications.items()}
    proof["engine"] = ENGINE_NOT_RUN
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        built = engine_from_onnx(plan, Path(folder), progress=progress)
        manifest = manifest_of(plan, built, artifact.as_json(), verification=proof)
        publish_engine(built.path, manifest, target)
    runner = runner_here(target)
    if runner is not None:
        verifications["engine"] = verify(runner, reference, TOLERANCES[plan.precision], progress=progress)
        _check("the engine", verifications, verifications["engine"])
        manifest = replace(manifest, verification={**proof, "engine": verifications["engine"].as_json()})
        publish_engine(target, manifest, target)
    return manifest

