"""All of the way: a checkpoint becomes a proven engine, or nothing.

The stages run one after the other in a temporary folder. Only when every comparison has passed do
the files get their names in the target folder.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lhanet_export.conventions import read_labels
from lhanet_export.engine.build import check_machine, engine_from_onnx
from lhanet_export.engine.manifest import Manifest, manifest_of, publish_engine
from lhanet_export.engine.plan import EnginePlan, check_backend, plan_engine
from lhanet_export.engine.recipes import Recipe
from lhanet_export.errors import GateFailed, RefusedInput
from lhanet_export.export.artifact import OnnxArtifact
from lhanet_export.export.onnx_from_network import ExportOptions, default_range, onnx_from_network
from lhanet_export.files import scratch_folder, staging_folder
from lhanet_export.inference.target import Target
from lhanet_export.model.checkpoint import CheckpointIdentity, open_checkpoint
from lhanet_export.precision.convert import WeightsBeyondRange, fp16_from_fp32
from lhanet_export.precision.fp16 import Fp16Report
from lhanet_export.precision.int8 import NOT_FOR_INT8, Int8Report
from lhanet_export.precision.recipe import PrecisionRecipe, write_recipe
from lhanet_export.precision.search import SearchResult, search_fp16
from lhanet_export.progress import SILENT, Progress
from lhanet_export.quantize import int8_from_scans
from lhanet_export.runners.base import Runner
from lhanet_export.runners.onnxruntime_ import OnnxRuntimeRunner
from lhanet_export.runners.opening import engine_runner_here, reference_runner
from lhanet_export.shapes import SpatialRange
from lhanet_export.verify.cases import comparison_cases
from lhanet_export.verify.gate import TOLERANCES, Reference, Verification, reference_for, verify

#: Trials of a search for a precision recipe; a trial takes about half a minute at full width.
_MOST_TRIALS = 60
#: Why an engine that was built on a machine without its GPU has no comparison of its own.
ENGINE_NOT_RUN = "not run: this machine has no GPU that the engine is for"


@dataclass(frozen=True, kw_only=True)
class Deployment:
    """What was made: ONNX files by precision, comparisons by what was compared, the engine and its manifest."""

    checkpoint: CheckpointIdentity
    artifacts: dict[str, OnnxArtifact]
    engine: Path
    manifest: Manifest
    verifications: dict[str, Verification]
    fp16: Fp16Report | None
    #: The file of the precision recipe that FP16 needed, if it was searched for.
    found_recipe: Path | None
    int8: Int8Report | None

    def as_json(self) -> dict[str, Any]:
        """The deployment as `deploy --json` writes it."""
        return {
            "checkpoint": {"source": self.checkpoint.source, **self.checkpoint.as_json()},
            "onnx": {kind: {"file": str(one.path), **one.as_json()} for kind, one in self.artifacts.items()},
            "engine": str(self.engine),
            "manifest": self.manifest.as_json(),
            "fp16": self.fp16.as_json() if self.fp16 else None,
            "int8": self.int8.as_json() if self.int8 else None,
            "found_recipe": str(self.found_recipe) if self.found_recipe else None,
        }


class DeployFailed(GateFailed):
    """A comparison failed; carries all comparisons so far and the class names, so that they can be shown."""

    def __init__(self, message: str, verifications: dict[str, Verification], labels: tuple[str, ...]) -> None:
        super().__init__(message)
        self.verifications = verifications
        self.labels = labels


def deploy(
    checkpoint: str,
    folder: Path,
    *,
    recipe: Recipe,
    backend: str = "tensorrt-rtx",
    precision: str = "fp16",
    spatial: SpatialRange | None = None,
    labels_file: Path | None = None,
    seed: int = 0,
    without: tuple[str, ...] = (),
    precision_recipe: PrecisionRecipe | None = None,
    calibration: Path | None = None,
    data: Path | None = None,
    assume_hu: bool = False,
    progress: Progress = SILENT,
) -> Deployment:
    """Make ONNX files, engine and manifest of a checkpoint in `folder`, each compared with the eager network.

    Without `spatial` the engine serves the recipe's sizes. `seed` chooses the volumes to compare on; `without`
    names rewrites of the network to leave out. Graphs are compared on the scans in `data`, too, or on phantoms
    (`verify.cases`). Where FP16 does not pass, the nodes that have to stay FP32 are searched for, and the recipe is
    written beside the rest; `precision_recipe` is one from before. INT8 has its scales from the scans in the folder
    `calibration`.
    `DeployFailed` when a comparison fails; then, as after any other error, nothing in `folder` has changed.
    """
    check_backend(recipe, backend)
    check_machine(backend)
    if precision == "int8" and calibration is None:
        raise RefusedInput("INT8 needs scans for its scales; name a folder of them with --calibration")
    with progress.step(f"load {checkpoint}"):
        network, identity = open_checkpoint(checkpoint)
    sizes = spatial or recipe.spatial.within(default_range(network))
    sizes.check_network(network.preset.smallest_side)
    labels = read_labels(labels_file, network.num_classes) if labels_file else None
    # Files of one card belong together: sizes and class names may be others for the next card.
    stem = f"lhanet.{recipe.name}"
    with staging_folder(folder) as staging:
        if precision == "int8":
            without = tuple({*without, NOT_FOR_INT8})
        options = ExportOptions(target=Target(), spatial=sizes, labels=labels, without=without)
        artifact = onnx_from_network(network, identity.as_json(), staging / f"{stem}.fp32.onnx", options, progress)
        cases = comparison_cases(
            sizes, network.num_classes, precision=precision, data=data, assume_hu=assume_hu, seed=seed,
            progress=progress,
        )  # fmt: skip
        reference = reference_for(reference_runner(network, Target()), cases, progress)
        # The comparisons and the build need the memory that the eager network holds.
        del network
        artifacts, report = {"fp32": artifact}, None
        proof = _Proof(reference, tuple(artifact.facts["labels"]), progress)
        proof.require("fp32", OnnxRuntimeRunner(artifact), "fp32")
        found_recipe = staging / f"{stem}.fp16.recipe.yaml"
        if precision == "fp16":
            artifact, report = _half(artifact, staging / f"{stem}.fp16.onnx", proof, precision_recipe, found_recipe)
            artifacts["fp16"] = artifact
        int8_report = None
        if precision == "int8" and calibration is not None:
            quantized = int8_from_scans(
                artifact, staging / f"{stem}.int8.onnx", calibration, assume_hu=assume_hu, progress=progress
            )
            artifacts["int8"] = artifact = quantized.artifact
            int8_report = quantized.report
            proof.require("int8", OnnxRuntimeRunner(artifact), "int8")
        engine = staging / f"{stem}.{precision}.engine"
        plan = plan_engine(artifact.path, artifact.as_json(), recipe=recipe, backend=backend, spatial=sizes)
        manifest = _build(plan, artifact, engine, proof)
        searched = found_recipe.exists()
    return Deployment(
        checkpoint=identity,
        artifacts={kind: replace(one, path=folder / one.path.name) for kind, one in artifacts.items()},
        engine=folder / engine.name,
        manifest=manifest,
        verifications=proof.verifications,
        fp16=report,
        int8=int8_report,
        found_recipe=folder / found_recipe.name if searched else None,
    )


def _half(
    source: OnnxArtifact, path: Path, proof: _Proof, recipe: PrecisionRecipe | None, found: Path
) -> tuple[OnnxArtifact, Fp16Report]:
    """The FP16 graph that passes: by the rule, by the given recipe, or by one that is searched for and kept."""
    try:
        artifact, report = fp16_from_fp32(source, path, recipe=recipe, progress=proof.progress)
        if proof.compare("fp16", OnnxRuntimeRunner(artifact), "fp16").passed:
            return artifact, report
    except WeightsBeyondRange:
        if recipe is not None:
            raise
    if recipe is None:
        result = proof.search(source, path.parent)
        write_recipe(result.recipe, found)
        artifact, report = fp16_from_fp32(source, path, recipe=result.recipe, progress=proof.progress)
    proof.require("fp16", OnnxRuntimeRunner(artifact), "fp16")
    return artifact, report


class _Proof:
    """The comparisons of one deployment with one reference, by what was compared."""

    def __init__(self, reference: Reference, labels: tuple[str, ...], progress: Progress) -> None:
        self.verifications: dict[str, Verification] = {}
        self.progress = progress
        self._reference = reference
        self._labels = labels

    def compare(self, what: str, runner: Runner, precision: str) -> Verification:
        """Compare and keep the result."""
        result = verify(runner, self._reference, TOLERANCES[precision], progress=self.progress)
        self.verifications[what] = result
        return result

    def search(self, source: OnnxArtifact, folder: Path) -> SearchResult:
        """Find what has to stay FP32 for the FP16 form of an FP32 graph to pass this comparison."""

        def judge(trial: OnnxArtifact) -> Verification:
            return verify(OnnxRuntimeRunner(trial), self._reference, TOLERANCES["fp16"])

        images = [case.image for case in self._reference.cases]
        try:
            return search_fp16(source, judge, images, folder, most_trials=_MOST_TRIALS, progress=self.progress)
        except GateFailed as error:
            raise DeployFailed(f"{error}; nothing was written", self.verifications, self._labels) from error

    def require(self, what: str, runner: Runner, precision: str) -> None:
        """Compare, keep the result, and raise `DeployFailed` unless it passed."""
        result = self.compare(what, runner, precision)
        if not result.passed:
            reasons = "; ".join(result.failures)
            raise DeployFailed(
                f"{what} did not pass, so nothing was written: {reasons}", self.verifications, self._labels
            )

    def as_json(self) -> dict[str, Any]:
        """The manifest's `verification` object."""
        return {"engine": ENGINE_NOT_RUN, **{what: result.as_json() for what, result in self.verifications.items()}}


def _build(plan: EnginePlan, artifact: OnnxArtifact, target: Path, proof: _Proof) -> Manifest:
    """Build the engine, compare it where its GPU is, and put it with its manifest at `target`."""
    with scratch_folder(target.parent) as folder:
        built = engine_from_onnx(plan, folder, progress=proof.progress)
        manifest = manifest_of(plan, built, artifact.as_json(), verification=proof.as_json())
        publish_engine(built.path, manifest, target)
    runner = engine_runner_here(target)
    if runner is not None:
        proof.require("engine", runner, plan.precision)
        manifest = replace(manifest, verification=proof.as_json())
        publish_engine(target, manifest, target)
    return manifest
