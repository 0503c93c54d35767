"""What is measured against what: the eager network in every fair way, plain and own graphs, engines."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lhanet_export.bench.conditions import cpu_has_bf16
from lhanet_export.bench.result import Skipped
from lhanet_export.engine.gpu import Gpu
from lhanet_export.engine.manifest import read_manifest
from lhanet_export.errors import EnvironmentLacks
from lhanet_export.export.artifact import external_data_of, read_onnx
from lhanet_export.runners.openvino_library import computes_bf16, load_openvino
from lhanet_export.shapes import Shape, SpatialRange, format_shape

DeviceKind = Literal["cpu", "cuda"]
#: How PyTorch runs the network; `torch_ways` has a function for each.
TorchKind = Literal[
    "eager", "tf32", "autocast-fp16", "autocast-bf16", "channels-last-fp16", "compiled-fp16", "graphed-fp16", "ours"
]  # fmt: skip
#: How a candidate is opened; `worker` has a function for each.
Kind = TorchKind | Literal["plain-onnx", "onnx", "openvino", "openvino-mixed", "engine"]
REFERENCE = "eager PyTorch FP32"


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One row to be: its name, what opens it, and the file that it runs, None for the checkpoint itself.

    With `public_resize` the network has PyTorch's own resize, as the public implementation does.
    """

    name: str
    precision: str
    kind: Kind
    path: Path | None = None
    public_resize: bool = False

    @property
    def network(self) -> Literal["as-trained", "ours"]:
        """Whose layers it runs."""
        return "ours" if self.kind in ("ours", "onnx", "openvino", "openvino-mixed", "engine") else "as-trained"

    @property
    def files(self) -> tuple[Path, ...]:
        """What has to lie on a disk for it, besides the checkpoint."""
        if self.path is None:
            return ()
        if self.kind == "engine":
            return (self.path,)
        return read_onnx(self.path).files if self.kind != "plain-onnx" else (self.path, external_data_of(self.path))


def candidates_for(
    models: Sequence[Path], plain: Path, shape: Shape, device: DeviceKind, gpus: Sequence[Gpu]
) -> tuple[list[Candidate], list[Skipped]]:
    """Everything that can be measured on this machine's CPU or first GPU, the reference first; what cannot, and why.

    `plain` is PyTorch's own export of the network for volumes of `shape`. Raises `RefusedInput` for a model that is
    none.
    """
    skipped: list[Skipped] = []
    found = list(_of_torch(device, skipped))
    found.append(Candidate(name="plain export in ONNX Runtime", precision="fp32", kind="plain-onnx", path=plain))
    if device == "cpu" and not gpus:
        skipped.append(Skipped(name="everything on a GPU", reason="there is no NVIDIA GPU here"))
    openvino = device == "cpu" and _openvino(skipped)
    for path in models:
        if path.suffix != ".onnx":
            engine = _engine(path, shape, device, gpus)
            if isinstance(engine, Skipped):
                skipped.append(engine)
            else:
                found.append(engine)
            continue
        artifact = read_onnx(path)
        reason = _unfit(artifact.facts["output"], artifact.facts["head"], artifact.spatial, shape)
        if not reason and device == "cpu" and artifact.precision != "fp32":
            reason = f"a CPU computes {artifact.precision} graphs in FP32, rounding written out; its time says nothing"
        if reason:
            skipped.append(Skipped(name=path.name, reason=reason))
            continue
        name = f"{path.name} in ONNX Runtime"
        found.append(Candidate(name=name, precision=artifact.precision, kind="onnx", path=path))
        if openvino:
            found += _in_openvino(path, mixed=openvino == "mixed")
    return found, skipped


def _of_torch(device: DeviceKind, skipped: list[Skipped]) -> Iterator[Candidate]:
    """The network as trained, as PyTorch runs it, and on a GPU our own layers in PyTorch."""
    if device == "cpu":
        yield Candidate(name=REFERENCE, precision="fp32", kind="eager")
        name = "eager PyTorch FP32, PyTorch's own resize"
        yield Candidate(name=name, precision="fp32", kind="eager", public_resize=True)
        bf16 = Candidate(name="eager PyTorch BF16 autocast", precision="bf16", kind="autocast-bf16")
        if cpu_has_bf16():
            yield bf16
        else:
            skipped.append(Skipped(name=bf16.name, reason="this CPU has no BF16, and takes minutes for it"))
        return
    yield Candidate(name=REFERENCE, precision="fp32", kind="eager", public_resize=True)
    yield Candidate(name="eager PyTorch FP32, our resize", precision="fp32", kind="eager")
    for name, precision, kind in _ON_GPU:
        yield Candidate(name=name, precision=precision, kind=kind, public_resize=True)
    yield Candidate(name="our layers in PyTorch FP16, CUDA graph", precision="fp16", kind="ours")


_ON_GPU: tuple[tuple[str, str, TorchKind], ...] = (
    ("eager PyTorch TF32", "tf32", "tf32"),
    ("eager PyTorch FP16 autocast", "fp16", "autocast-fp16"),
    ("eager PyTorch BF16 autocast", "bf16", "autocast-bf16"),
    ("eager PyTorch FP16, channels last", "fp16", "channels-last-fp16"),
    ("torch.compile FP16, channels last", "fp16", "compiled-fp16"),
    ("torch.compile FP16, channels last, CUDA graph", "fp16", "graphed-fp16"),
)


def _engine(path: Path, shape: Shape, device: DeviceKind, gpus: Sequence[Gpu]) -> Candidate | Skipped:
    manifest = read_manifest(path)
    facts = manifest.engine
    capabilities = " or ".join(facts.compute_capabilities)
    if device == "cpu" or not gpus or gpus[0].compute_capability not in facts.compute_capabilities:
        return Skipped(name=path.name, reason=f"an engine; it needs a GPU of compute capability {capabilities}")
    # Where several profiles serve a size, the runner takes one; for the first to serve it is enough to be measured.
    served = next((profile for profile in facts.profiles if shape in profile), facts.profiles[0])
    reason = _unfit(facts.outputs[0].name, manifest.onnx_head, served, shape)
    if reason:
        return Skipped(name=path.name, reason=reason)
    return Candidate(name=path.name, precision=facts.precision, kind="engine", path=path)


def _unfit(output: str, head: str, spatial: SpatialRange, shape: Shape) -> str | None:
    """Why a graph or engine cannot be compared with the others; None if it can."""
    if output != "logits" or head != "final":
        return f"it gives {output} of {head}, the others the final logits"
    return None if shape in spatial else f"it serves {spatial}, not {format_shape(shape)}"


def _in_openvino(path: Path, *, mixed: bool) -> Iterator[Candidate]:
    yield Candidate(name=f"{path.name} in OpenVINO", precision="fp32", kind="openvino", path=path)
    if mixed:
        name = f"{path.name} in OpenVINO, mixed"
        yield Candidate(name=name, precision="mixed", kind="openvino-mixed", path=path)


def _openvino(skipped: list[Skipped]) -> Literal["fp32", "mixed"] | None:
    """What OpenVINO can compute here; what it cannot goes to `skipped`."""
    try:
        has_bf16 = computes_bf16(load_openvino().Core())
    except EnvironmentLacks:
        skipped.append(Skipped(name="OpenVINO", reason="it is not installed: pip install 'lhanet-export[openvino]'"))
        return None
    if not has_bf16:
        skipped.append(Skipped(name="OpenVINO mixed", reason="this CPU has no BF16"))
    return "mixed" if has_bf16 else "fp32"


def flag_of(candidate: Candidate, torch_version: str, cudnn_version: int | None) -> str | None:
    """What is known to be wrong with a baseline: a gain over it would be a gain over somebody's mistake.

    cuDNN 9.8 to 9.14 computes 3-D convolutions in half precision wrongly unless channels are last. torch 2.9.0 does
    without cuDNN for them whatever its version, later ones for those versions: several times the time and the memory.
    https://github.com/pytorch/pytorch/issues/166122, https://github.com/pytorch/pytorch/issues/166643
    """
    if candidate.kind not in ("autocast-fp16", "autocast-bf16", "ours") or cudnn_version is None:
        return None
    if torch_version.startswith("2.9.0"):
        return f"torch {torch_version} does without cuDNN for these 3-D convolutions, and takes several times as long"
    if 90800 <= cudnn_version < 91500:
        return f"3-D convolutions are slow or wrong with cuDNN {cudnn_text(cudnn_version)}; install 9.15 or newer"
    return None


def cudnn_text(version: int) -> str:
    """91501 as `9.15.1`."""
    return f"{version // 10000}.{version // 100 % 100}.{version % 100}"
