"""What is measured against what: the eager network in every fair way, plain and own graphs, engines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lhanet_export.bench.result import Skipped
from lhanet_export.engine.gpu import Gpu
from lhanet_export.engine.manifest import read_manifest
from lhanet_export.errors import EnvironmentLacks
from lhanet_export.export.artifact import external_data_of, read_onnx
from lhanet_export.runners.openvino_library import computes_bf16, load_openvino

#: How a candidate is opened; `worker` has a function for each.
Kind = Literal["eager", "autocast-bf16", "plain-onnx", "onnx", "openvino", "openvino-mixed"]
REFERENCE = "eager PyTorch FP32"


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One row to be: its name, what opens it, and the file that it runs, None for the checkpoint itself."""

    name: str
    precision: str
    kind: Kind
    path: Path | None = None

    @property
    def files(self) -> tuple[Path, ...]:
        """What has to lie on a disk for it, besides the checkpoint."""
        if self.path is None:
            return ()
        return read_onnx(self.path).files if self.kind != "plain-onnx" else (self.path, external_data_of(self.path))


def candidates_for(models: Sequence[Path], plain: Path, gpus: Sequence[Gpu]) -> tuple[list[Candidate], list[Skipped]]:
    """Everything that can be measured on this machine's CPU, the reference first; and what cannot, with the reason.

    `plain` is PyTorch's own export of the network. Raises `RefusedInput` for a model that is none.
    """
    found = [
        Candidate(name=REFERENCE, precision="fp32", kind="eager"),
        Candidate(name="eager PyTorch BF16 autocast", precision="bf16", kind="autocast-bf16"),
        Candidate(name="plain export in ONNX Runtime", precision="fp32", kind="plain-onnx", path=plain),
    ]
    skipped = [] if gpus else [Skipped(name="everything on a GPU", reason="there is no NVIDIA GPU here")]
    has_openvino, has_bf16 = _openvino()
    if not has_openvino:
        skipped.append(Skipped(name="OpenVINO", reason="it is not installed: pip install 'lhanet-export[openvino]'"))
    elif not has_bf16:
        skipped.append(Skipped(name="OpenVINO mixed", reason="this CPU has no BF16"))
    for path in models:
        if path.suffix != ".onnx":
            capabilities = " or ".join(read_manifest(path).engine.compute_capabilities)
            skipped.append(Skipped(name=path.name, reason=f"an engine; it needs a GPU of {capabilities}"))
            continue
        artifact = read_onnx(path)
        if artifact.facts["output"] != "logits" or artifact.facts["head"] != "final":
            reason = f"it gives {artifact.facts['output']} of {artifact.facts['head']}, the others the final logits"
            skipped.append(Skipped(name=path.name, reason=reason))
        elif artifact.precision != "fp32":
            reason = f"a CPU computes {artifact.precision} graphs in FP32, rounding written out; its time says nothing"
            skipped.append(Skipped(name=path.name, reason=reason))
        else:
            found.append(Candidate(name=f"{path.name} in ONNX Runtime", precision="fp32", kind="onnx", path=path))
            if has_openvino:
                found.append(Candidate(name=f"{path.name} in OpenVINO", precision="fp32", kind="openvino", path=path))
            if has_bf16:
                name = f"{path.name} in OpenVINO, mixed"
                found.append(Candidate(name=name, precision="mixed", kind="openvino-mixed", path=path))
    return found, skipped


def _openvino() -> tuple[bool, bool]:
    """Whether OpenVINO is here, and whether it computes BF16 on this CPU."""
    try:
        return True, computes_bf16(load_openvino().Core())
    except EnvironmentLacks:
        return False, False


def flag_of(candidate: Candidate, torch_version: str) -> str | None:
    """What is known to be wrong with a baseline: a gain over it would be a gain over somebody's mistake."""
    if candidate.kind == "autocast-bf16" and torch_version.startswith("2.9."):
        return f"3-D convolutions under autocast are about four times too slow in torch {torch_version}"
    return None
