"""Checkpoints: from a file that may be anything to a network, or to a refusal that says what the file is.

Taken are training checkpoints of the public implementation (a dict with `model_state_dict`), bare
state dicts, and safetensors, in float32, float16 or bfloat16, with the key prefixes that
DataParallel and torch.compile leave. Preset, width and class count follow from keys and shapes.

PyTorch and safetensors do not notice a flipped bit, and a checkpoint may have been made to do harm,
so a file is read once into memory, hashed, checked and parsed from those very bytes. No code from
a file runs, and there is no way to ask for it.
"""

import hashlib
import io
import json
import os
import zipfile
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from lhanet_export.errors import EnvironmentLacks, RefusedInput
from lhanet_export.model.demo import DEMO, demo_file
from lhanet_export.model.network import LHANet
from lhanet_export.model.presets import PRESETS, preset_named
from lhanet_export.model.rule import RULE_SEED, rule_network

#: The largest preset with both of Adam's moments for the parameters that training reaches takes about 4.2 GB.
LARGEST_FILE = 4 << 30
#: A checkpoint's pickle holds names, shapes and numbers, no weights: about a megabyte with an optimizer's state.
_LARGEST_PICKLE = 16 << 20
#: No network whose weights fit the largest file is wider or has more classes.
_WIDEST = 512
#: Beyond any trained weight or variance, but what a flipped bit in an exponent makes.
_LARGEST_VALUE = 1e9
_PRESET_PREFIX = "preset:"
_WRAPPER_PREFIXES = ("module.", "_orig_mod.")
#: For the type that the network has, the types that are taken.
_TYPES = {torch.float32: (torch.float32, torch.float16, torch.bfloat16), torch.int64: (torch.int64,)}
_ADVICE = "state_dict or safetensors only: where the file was made, save model.state_dict() alone with torch.save"


@dataclass(frozen=True, kw_only=True)
class CheckpointIdentity:
    """Which checkpoint a network came from, as artifacts made from it record it."""

    #: File name, `demo`, or `preset:NAME` for weights by rule.
    source: str
    sha256: str
    preset: str
    num_classes: int
    base_channels: int
    #: Epoch that the training recorded, if it did.
    epoch: int | None = None

    def as_json(self) -> dict[str, Any]:
        """The `checkpoint` object of a manifest."""
        return {key: value for key, value in asdict(self).items() if key != "source"}


def load_checkpoint(path: str | os.PathLike[str]) -> LHANet:
    """The network of a checkpoint file, float32 on the CPU, in eval mode; any other file raises `RefusedInput`."""
    return _network(*read_checkpoint(Path(path)))


def open_checkpoint(spec: str) -> tuple[LHANet, CheckpointIdentity]:
    """The network, in eval mode, and identity of a checkpoint file, of `demo`, or of weights by rule for `preset:NAME`.

    `demo` is the trained reference network that comes with this package (docs/demo.md).
    """
    if spec == DEMO:
        with demo_file() as path:
            state, identity = read_checkpoint(path)
        return _network(state, identity), replace(identity, source=DEMO)
    if not spec.startswith(_PRESET_PREFIX):
        state, identity = read_checkpoint(Path(spec))
        return _network(state, identity), identity
    preset = preset_named(spec.removeprefix(_PRESET_PREFIX))
    network = rule_network(preset.name)
    # The rule has no file to hash; this text says all that its weights depend on.
    text = f"{spec} num_classes={network.num_classes} base_channels={network.base_channels} seed={RULE_SEED}"
    return network, CheckpointIdentity(
        source=spec,
        sha256=hashlib.sha256(text.encode()).hexdigest(),
        preset=preset.name,
        num_classes=network.num_classes,
        base_channels=network.base_channels,
    )


def read_checkpoint(path: Path) -> tuple[dict[str, Tensor], CheckpointIdentity]:
    """The weights of a checkpoint file, keyed as `LHANet` names them, and the file's identity.

    Floating tensors are float32, contiguous and finite. Takes about twice the file's size in
    memory. A file that is missing, damaged, unsafe to read, or not a whole LHA-Net raises `RefusedInput`.
    """
    raw = _read(path)
    size, digest = len(raw), hashlib.sha256(raw).hexdigest()
    found, epoch = _parse(path, raw)
    del raw
    state = _without_prefixes(_tensors(path, found, size))
    del found
    identity = CheckpointIdentity(source=path.name, sha256=digest, epoch=epoch, **_infer(path, state))
    _check_layout(path, state, identity)
    return _float32(path, state), identity


def _network(state: Mapping[str, Tensor], identity: CheckpointIdentity) -> LHANet:
    preset = preset_named(identity.preset)
    return LHANet.from_state_dict(state, preset, num_classes=identity.num_classes, base_channels=identity.base_channels)


def _read(path: Path) -> bytes:
    try:
        if not path.is_file():
            fault = "is not a regular file" if path.exists() else "does not exist"
            raise RefusedInput(f"{path} {fault}; name a checkpoint file, preset:{next(iter(PRESETS))}, or demo")
        with path.open("rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            if size > LARGEST_FILE:
                raise RefusedInput(f"{path} is larger than {LARGEST_FILE >> 30} GiB; save its model_state_dict alone")
            return stream.read(size)
    except OSError as error:
        raise RefusedInput(f"cannot read {path}: {error.strerror or error}") from error


def _parse(path: Path, raw: bytes) -> tuple[dict[Any, Any], int | None]:
    """The dict that should hold the weights, and the epoch if the file names one."""
    head = raw[:512]
    if not raw:
        raise RefusedInput(f"{path} is empty; copy the checkpoint again")
    if head.startswith(b"version https://git-lfs"):
        raise RefusedInput(f"{path} is a Git LFS pointer, not the checkpoint itself; fetch it with `git lfs pull`")
    if head.lstrip().lower().startswith((b"<!doctype html", b"<html")):
        raise RefusedInput(f"{path} is an HTML page, probably the answer of a failed download; download it again")
    if head.startswith(b"PK"):
        return _weights_in(path, _load_zip(path, raw))
    # A safetensors file is the length of a JSON header, 8 bytes, and that header.
    if path.suffix == ".safetensors" or head[8:9] == b"{":
        return _load_safetensors(path, raw), None
    if head[257:262] == b"ustar" or head.startswith(b"\x80") or raw.endswith(b"."):
        raise RefusedInput(f"{path} is a bare pickle or tar file, PyTorch's format before 1.6; {_ADVICE}")
    raise RefusedInput(f"{path} is neither a PyTorch checkpoint nor safetensors; {_ADVICE}")


@contextmanager
def _damage_refused(path: Path, kind: str, *, quote: bool = True) -> Iterator[None]:
    """Turn whatever a parser raises about a damaged file into `RefusedInput`."""
    try:
        yield
    except RefusedInput:
        raise
    except Exception as error:  # Parsers raise any type, depending on which byte is wrong.
        if isinstance(error, MemoryError) or "can't allocate memory" in str(error):
            raise EnvironmentLacks(f"too little memory for {path}; loading takes twice its size") from error
        detail = _some([str(error) if quote else type(error).__name__])
        raise RefusedInput(f"{path} is truncated, damaged or no {kind} ({detail}); copy or save it again") from error


def _load_safetensors(path: Path, raw: bytes) -> dict[Any, Any]:
    with _damage_refused(path, "safetensors file"):
        state = safetensors.torch.load(raw)
        # The library takes the last of two entries of one name.
        json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")], object_pairs_hook=_once)
    return dict(state)


def _once(pairs: list[tuple[str, Any]]) -> None:
    repeated = [key for key, count in Counter(key for key, _ in pairs).items() if count > 1]
    if repeated:
        raise ValueError(f"duplicate key {_some(repeated)}")


def _load_zip(path: Path, raw: bytes) -> Any:
    """What torch.save wrote, after all checks that can be made without unpickling."""
    with _damage_refused(path, "PyTorch checkpoint"), zipfile.ZipFile(io.BytesIO(raw)) as archive:
        _check_members(path, archive, len(raw))
        damaged = archive.testzip()  # torch.load does not compare the checksums.
    if damaged is not None:
        raise RefusedInput(f"{path} is damaged: member {_some([damaged])} fails its checksum; copy or save it again")
    # PyTorch's own message about a refused pickle recommends to load it unsafely.
    with (
        _damage_refused(path, "PyTorch checkpoint of weights", quote=False),
        torch.serialization.safe_globals(_INERT_GLOBALS),
    ):
        blocked = torch.serialization.get_unsafe_globals_in_checkpoint(io.BytesIO(raw))
        if blocked:
            raise RefusedInput(f"{path} holds more than weights, it calls for {_some(sorted(blocked))}; {_ADVICE}")
        return torch.load(io.BytesIO(raw), map_location="cpu", weights_only=True)


def _check_members(path: Path, archive: zipfile.ZipFile, size: int) -> None:
    members = archive.infolist()
    names = {member.filename for member in members}
    if any(name.endswith("/constants.pkl") or "/code/" in name for name in names):
        raise RefusedInput(f"{path} is a TorchScript archive, which is a program; {_ADVICE}")
    pickles = [member for member in members if member.filename.endswith("/data.pkl")]
    if len(pickles) != 1 or len(names) != len(members):
        raise RefusedInput(f"{path} is a zip archive, but not one that torch.save wrote; {_ADVICE}")
    stored = all(member.compress_type == zipfile.ZIP_STORED for member in members)
    if not stored or sum(member.file_size for member in members) > size:
        raise RefusedInput(f"{path} has compressed or overlapping members, which torch.save never writes; {_ADVICE}")
    if pickles[0].file_size > _LARGEST_PICKLE:
        raise RefusedInput(f"{path} holds a pickle of {pickles[0].file_size >> 20} MiB beside its tensors; {_ADVICE}")


class _Inert:
    """Stands in for the NumPy numbers that a training loop leaves in its checkpoint; nothing reads them."""

    def __init__(self, *arguments: Any) -> None: ...

    def __setstate__(self, state: Any) -> None: ...


#: Upstream stores `best_dice` as a numpy.float64. With these names bound to `_Inert`, no code of NumPy runs for it.
_INERT_GLOBALS: list[Any] = [
    (_Inert, name)
    for package in ("numpy.core.multiarray", "numpy._core.multiarray")
    for name in ("numpy.dtype", "numpy.ndarray", f"{package}.scalar", f"{package}._reconstruct")
]


def _weights_in(path: Path, loaded: Any) -> tuple[dict[Any, Any], int | None]:
    if not isinstance(loaded, dict):
        raise RefusedInput(f"{path} holds a {type(loaded).__name__}, not a dict of weights; {_ADVICE}")
    # Methods through the class: a pickle may shadow those of an OrderedDict with attributes.
    epoch = dict.get(loaded, "epoch")
    inner = dict.get(loaded, "model_state_dict", dict.get(loaded, "state_dict"))
    found = inner if isinstance(inner, dict) else loaded
    return dict(dict.items(found)), epoch if type(epoch) is int and epoch >= 0 else None


def _tensors(path: Path, found: Mapping[Any, Any], size: int) -> dict[str, Tensor]:
    """The entries as plain tensors, checked without reading or copying a value.

    Together they may take no more bytes than the file has: a view can claim any number of
    elements, and a copy of it would then fill the memory.
    """
    if not any(isinstance(value, Tensor) for value in found.values()):
        keys = _some([str(key) for key in found])
        raise RefusedInput(f"{path} holds a dict without weights (its keys: {keys or 'none'}); {_ADVICE}")
    state: dict[str, Tensor] = {}
    unclaimed: dict[int, int] = {}  # Bytes of each storage that no tensor has claimed yet.
    for key, value in found.items():
        if not isinstance(key, str) or type(value) not in (Tensor, torch.nn.Parameter):
            raise RefusedInput(f"{path}: {_some([str(key)])} is a {type(value).__name__}, not a tensor; {_ADVICE}")
        # A fresh tensor, without attributes that a pickle may have set.
        tensor = Tensor.detach(value)
        if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.is_quantized:
            raise RefusedInput(f"{path}: {_some([key])} is sparse, quantized or without values; {_ADVICE}")
        claimed = tensor.numel() * tensor.element_size()
        storage = tensor.untyped_storage()
        place = storage.data_ptr()
        unclaimed[place] = unclaimed.get(place, storage.nbytes()) - claimed
        size -= claimed
        if min(size, unclaimed[place]) < 0:
            raise RefusedInput(
                f"{path}: {_some([key])} claims more values than the file holds for it, or another tensor's; "
                "save every tensor as a contiguous copy of its own"
            )
        state[key] = tensor
    return state


def _without_prefixes(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state with the prefixes of wrapping modules taken off, as far as all keys have them."""
    for prefix in _WRAPPER_PREFIXES * 2:
        if all(key.startswith(prefix) for key in state):
            state = {key.removeprefix(prefix): tensor for key, tensor in state.items()}
    return state


def _infer(path: Path, state: Mapping[str, Tensor]) -> dict[str, Any]:
    """`preset`, `num_classes` and `base_channels`, from keys and shapes alone."""
    stages = [f"backbone.layer{stage}." for stage in range(1, 5)]
    counts = (len({key.split(".")[2] for key in state if key.startswith(stage)}) for stage in stages)
    blocks = tuple(count for count in counts if count)
    stem = "backbone.conv1.weight" if blocks else "backbone.initial_conv.0.weight"
    if not any(key.startswith("backbone.") for key in state):
        raise RefusedInput(f"{path} holds weights, but not LHA-Net's: {_some(list(state))}")
    preset = next((preset for preset in PRESETS.values() if preset.residual_blocks == blocks), None)
    if preset is None:
        known = [f"{preset.name} {preset.residual_blocks}" for preset in PRESETS.values() if preset.residual_blocks]
        raise RefusedInput(f"{path} has ResNet stages of {blocks} blocks, as no preset has; known are {_some(known)}")
    return {
        "preset": preset.name,
        "num_classes": _first_side(path, state, "decoder.final_classifier.weight"),
        "base_channels": _first_side(path, state, stem),
    }


def _first_side(path: Path, state: Mapping[str, Tensor], key: str) -> int:
    if key not in state:
        raise RefusedInput(f"{path} is not a whole LHA-Net: '{key}' is missing; save the complete state_dict")
    shape = tuple(state[key].shape)
    if not shape or not 1 <= shape[0] <= _WIDEST:
        raise RefusedInput(f"{path}: '{key}' has shape {shape}; its first side must be 1 to {_WIDEST}")
    return shape[0]


def _check_layout(path: Path, state: Mapping[str, Tensor], identity: CheckpointIdentity) -> None:
    """Refuse missing and unexpected keys, and shapes and types other than the network's own."""
    preset, width = preset_named(identity.preset), identity.base_channels
    try:
        with torch.device("meta"):
            expected = LHANet(preset, num_classes=identity.num_classes, base_channels=width).state_dict()
    except RefusedInput as error:
        raise RefusedInput(f"{path}: {error}") from error
    shared = [(key, state[key], tensor) for key, tensor in expected.items() if key in state]
    faults = {
        "missing": [key for key in expected if key not in state],
        "unexpected": [key for key in state if key not in expected],
        "of another shape": [
            f"{key} {tuple(has.shape)} instead of {tuple(wants.shape)}"
            for key, has, wants in shared
            if has.shape != wants.shape
        ],
        "not float32, float16 or bfloat16 (num_batches_tracked: int64)": [
            f"{key} {has.dtype}" for key, has, wants in shared if has.dtype not in _TYPES[wants.dtype]
        ],
    }
    found = "; ".join(f"{fault}: {_some(keys)}" for fault, keys in faults.items() if keys)
    if found:
        kind = f"{preset.name}, width {width}, {identity.num_classes} classes"
        raise RefusedInput(f"{path} is not a whole LHA-Net ({kind}): {found}. Save the complete state_dict as trained")


def _float32(path: Path, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state in float32, after a look at every value; empties `state`, so that no tensor is held twice for long."""
    converted: dict[str, Tensor] = {}
    faults = []
    for key in list(state):
        tensor = state.pop(key)
        if tensor.is_floating_point():
            tensor = tensor.to(torch.float32).contiguous()
            # Both are NaN if any value is.
            low, high = (bound.item() for bound in tensor.aminmax())
            if not -_LARGEST_VALUE <= low <= high <= _LARGEST_VALUE:
                faults.append(f"{key} has values from {low:.3g} to {high:.3g}")
            elif low < 0 and key.endswith("running_var"):
                faults.append(f"{key} has the negative variance {low:.3g}")
        converted[key] = tensor
    if faults:
        raise RefusedInput(f"{path} is damaged or its training diverged: {_some(faults)}; take another checkpoint")
    return converted


def _some(items: Collection[str], most: int = 8) -> str:
    """The first of the items, on one line whatever they hold, and how many more there are."""
    shown = ", ".join(item[:120] if item.isprintable() else repr(item[:120]) for item in list(items)[:most])
    return shown if len(items) <= most else f"{shown} and {len(items) - most} more"
