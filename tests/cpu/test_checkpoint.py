"""Every form in which LHA-Net checkpoints occur is taken, and every other file is refused by name and without harm."""

import argparse
import ast
import copy
import io
import os
import pickle
import random
import struct
import tarfile
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor

import lhanet_export
from lhanet_export.errors import EnvironmentLacks, RefusedInput
from lhanet_export.files import sha256_of
from lhanet_export.model.checkpoint import (
    LARGEST_FILE,
    CheckpointIdentity,
    load_checkpoint,
    open_checkpoint,
    read_checkpoint,
)
from lhanet_export.model.network import LHANet
from lhanet_export.model.rule import rule_image, rule_network

State = dict[str, Tensor]
WEIGHT = "decoder.feature_fusion.1.0.weight"
VARIANCE = "backbone.encoder_blocks.2.1.running_var"


@pytest.fixture(scope="module")
def weights() -> State:
    """The narrowest network there is."""
    return dict(rule_network("lightweight", base_channels=4, num_classes=3).state_dict())


@pytest.fixture(scope="module")
def archive(weights: State, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A sound checkpoint, to be damaged."""
    path = tmp_path_factory.mktemp("archive") / "sound.pth"
    torch.save({"model_state_dict": weights}, path)
    return path.read_bytes()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "best_model.pth"


def refusal(path: Path, *facts: str) -> str:
    """The message with which a file is refused: one short line that names the file and the facts."""
    with pytest.raises(RefusedInput) as refused:
        read_checkpoint(path)
    message = str(refused.value)
    for fact in (str(path), *facts):
        assert fact in message
    assert "\n" not in message and len(message) < 1500 + len(str(path))
    assert "weights_only" not in message
    return message


def assert_equal(found: State, wanted: State) -> None:
    assert found.keys() == wanted.keys()
    for key, tensor in found.items():
        assert torch.equal(tensor, wanted[key]), key


def with_members(raw: bytes, change: Callable[[str, bytes], bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    """The same archive with changed members and right checksums."""
    result = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(raw)) as old, zipfile.ZipFile(result, "w", compression) as new:
        for name in old.namelist():
            new.writestr(name, change(name, old.read(name)))
    return result.getvalue()


# Taken


def test_training_checkpoint(narrow_network: LHANet, narrow_checkpoint: Path) -> None:
    state, identity = read_checkpoint(narrow_checkpoint)
    assert_equal(state, narrow_network.state_dict())
    assert identity == CheckpointIdentity(
        source="narrow.pth",
        sha256=sha256_of(narrow_checkpoint),
        preset="lightweight",
        num_classes=5,
        base_channels=8,
        epoch=7,
    )
    assert identity.as_json() == {
        "sha256": identity.sha256,
        "preset": "lightweight",
        "num_classes": 5,
        "base_channels": 8,
        "epoch": 7,
    }


def test_loaded_network_computes_the_same(narrow_network: LHANet, narrow_checkpoint: Path) -> None:
    network = lhanet_export.load_checkpoint(str(narrow_checkpoint))
    assert isinstance(network, LHANet) and not network.training
    assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}
    image = torch.from_numpy(rule_image((24, 32, 20), seed=1))
    with torch.inference_mode():
        assert torch.equal(network(image), narrow_network(image))


def test_training_checkpoint_of_a_resnet(narrow_resnet_checkpoint: Path) -> None:
    network, identity = open_checkpoint(str(narrow_resnet_checkpoint))
    assert (identity.preset, identity.num_classes, identity.base_channels) == ("standard", 5, 8)
    assert network.preset.name == "standard" and not network.training


def test_high_capacity_is_told_from_standard(path: Path) -> None:
    network = rule_network("high_capacity", base_channels=8, num_classes=4)
    torch.save(network.state_dict(), path)
    state, identity = read_checkpoint(path)
    assert (identity.preset, identity.num_classes, identity.base_channels) == ("high_capacity", 4, 8)
    assert_equal(state, network.state_dict())


@pytest.mark.parametrize("wrap", [dict, OrderedDict, lambda state: {"state_dict": state, "epoch": 3}])
def test_bare_state_dict(weights: State, path: Path, wrap: Callable[[State], Any]) -> None:
    torch.save(wrap(weights), path)
    state, identity = read_checkpoint(path)
    assert_equal(state, weights)
    assert identity.epoch == (None if "epoch" not in wrap(weights) else 3)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "_orig_mod.module.", "module._orig_mod."])
def test_prefixes_of_wrapping_modules(weights: State, path: Path, prefix: str) -> None:
    torch.save({"model_state_dict": {prefix + key: tensor for key, tensor in weights.items()}}, path)
    assert_equal(read_checkpoint(path)[0], weights)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("form", ["torch", "safetensors"])
def test_half_precision_becomes_float32(weights: State, tmp_path: Path, dtype: torch.dtype, form: str) -> None:
    half = {key: tensor.to(dtype) if tensor.is_floating_point() else tensor for key, tensor in weights.items()}
    path = tmp_path / f"half.{form}"
    torch.save(half, path) if form == "torch" else safetensors.torch.save_file(half, path)
    state, _ = read_checkpoint(path)
    assert_equal(state, {key: t.float() if t.is_floating_point() else t for key, t in half.items()})
    assert {tensor.dtype for tensor in state.values()} == {torch.float32, torch.int64}


@pytest.mark.parametrize("name", ["best.safetensors", "best.pth"])
def test_safetensors(weights: State, tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    safetensors.torch.save_file(weights, path, metadata={"format": "pt"})
    state, identity = read_checkpoint(path)
    assert_equal(state, weights)
    assert identity.sha256 == sha256_of(path)
    assert load_checkpoint(path).num_classes == 3


def test_parameters_and_other_layouts_become_plain_tensors(weights: State, path: Path) -> None:
    flat = torch.cat([weights[WEIGHT].ravel(), torch.zeros(5)])
    changed = dict(weights) | {
        WEIGHT: flat[:-5].view_as(weights[WEIGHT]),
        "backbone.encoder_blocks.0.0.weight": torch.nn.Parameter(
            weights["backbone.encoder_blocks.0.0.weight"].to(memory_format=torch.channels_last_3d)
        ),
    }
    torch.save(changed, path)
    state, _ = read_checkpoint(path)
    assert_equal(state, weights)
    assert all(type(tensor) is Tensor and tensor.is_contiguous() for tensor in state.values())


@pytest.mark.parametrize("package", ["numpy._core", "numpy.core"])
def test_numpy_numbers_beside_the_weights(weights: State, path: Path, package: str) -> None:
    """Upstream's `best_dice` is a numpy.float64; NumPy 1 and 2 pickle it under different names."""
    torch.save(
        {
            "model_state_dict": weights,
            "best_dice": np.mean([0.5, 0.75]),
            "epoch": 12,
            "history": [np.float32(1), np.int64(2), np.bool_(True), np.str_("a"), np.arange(6.0).reshape(2, 3)],
        },
        path,
    )
    module = np.mean([0.5]).__reduce__()[0].__module__.removesuffix(".multiarray")
    raw = with_members(path.read_bytes(), lambda _, data: data.replace(f"c{module}.".encode(), f"c{package}.".encode()))
    assert f"c{package}.multiarray\nscalar".encode() in raw
    path.write_bytes(raw)
    state, identity = read_checkpoint(path)
    assert_equal(state, weights)
    assert identity.epoch == 12


@pytest.mark.parametrize("epoch", ["7", 7.0, True, -1, None, np.int64(7)])
def test_an_epoch_is_a_whole_number_or_unknown(weights: State, path: Path, epoch: Any) -> None:
    torch.save({"model_state_dict": weights, "epoch": epoch}, path)
    assert read_checkpoint(path)[1].epoch is None


def test_a_moving_average_beside_the_weights_is_left_alone(weights: State, path: Path) -> None:
    average = {key: tensor * 0 for key, tensor in weights.items()}
    torch.save({"ema_state_dict": average, "model_state_dict": weights}, path)
    assert_equal(read_checkpoint(path)[0], weights)


def test_weights_by_rule_need_no_file(narrow_network: LHANet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lhanet_export.model.checkpoint.rule_network", lambda name: narrow_network)
    network, identity = open_checkpoint("preset:lightweight")
    assert network is narrow_network
    assert (identity.source, identity.preset, identity.epoch) == ("preset:lightweight", "lightweight", None)
    assert len(identity.sha256) == 64
    with pytest.raises(RefusedInput, match="no preset 'huge'"):
        open_checkpoint("preset:huge")


# Refused: what is no checkpoint


def test_missing_file_and_folder(tmp_path: Path) -> None:
    refusal(tmp_path / "none.pth", "does not exist", "preset:lightweight")
    refusal(tmp_path, "is not a regular file")
    os.mkfifo(tmp_path / "pipe")
    refusal(tmp_path / "pipe", "is not a regular file")
    refusal(tmp_path / ("x" * 300), "File name too long")


@pytest.mark.parametrize(
    ("raw", "fact"),
    [
        (b"", "is empty"),
        (random.Random(1).randbytes(5000) + b"\x00", "neither a PyTorch checkpoint nor safetensors"),
        (b"\n<!DOCTYPE html><html><body>404</body></html>", "is an HTML page"),
        (b"<html>quota exceeded</html>", "is an HTML page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "is a Git LFS pointer"),
        (b"PK\x03\x04" + bytes(100), "truncated, damaged or no PyTorch checkpoint"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_files_of_another_kind(path: Path, raw: bytes, fact: str) -> None:
    path.write_bytes(raw)
    refusal(path, fact)


def test_a_zip_archive_of_something_else(path: Path) -> None:
    np.savez(path.with_suffix(".npz"), weight=np.ones(3))
    refusal(path.with_suffix(".npz"), "a zip archive, but not one that torch.save wrote")


def test_a_file_beyond_the_cap_is_not_read(path: Path) -> None:
    path.touch()
    os.truncate(path, LARGEST_FILE + 1)
    refusal(path, "larger than 4 GiB", "save its model_state_dict alone")


def test_too_little_memory_is_the_environment(path: Path, archive: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: Any, **more: Any) -> None:
        raise MemoryError

    path.write_bytes(archive)
    monkeypatch.setattr(torch, "load", fail)
    with pytest.raises(EnvironmentLacks, match=r"too little memory for .*best_model\.pth"):
        read_checkpoint(path)


# Refused: code


class Payload:
    """Creates a file when it is unpickled by the ordinary unpickler."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.call


def payloads(sentinel: Path) -> list[Payload]:
    return [
        Payload(os.system, f"touch {sentinel}"),
        Payload(eval, f"open({str(sentinel)!r}, 'w')"),
        Payload(exec, f"open({str(sentinel)!r}, 'w')"),
        Payload(open, str(sentinel), "w"),
        Payload(Path.touch, sentinel),
        Payload(copy.copy, Payload(os.mknod, str(sentinel))),
    ]


def saved(form: str, content: Any) -> bytes:
    stream = io.BytesIO()
    if form == "zip":
        torch.save(content, stream)
    elif form == "legacy":
        torch.save(content, stream, _use_new_zipfile_serialization=False)
    else:
        pickle.dump(content, stream, protocol=int(form))
    return stream.getvalue()


@pytest.mark.parametrize("form", ["zip", "legacy", "0", "1", "2", "4"])
@pytest.mark.parametrize("beside", [False, True], ids=["alone", "beside weights"])
def test_no_code_of_a_file_runs(path: Path, tmp_path: Path, form: str, beside: bool) -> None:
    sentinel = tmp_path / "sentinel"
    for payload in payloads(sentinel):
        raw = saved(form, {"model_state_dict": {"a": torch.ones(2)}, "best_dice": payload} if beside else payload)
        path.write_bytes(raw)
        message = refusal(path, "state_dict or safetensors only")
        assert ("it calls for" in message) == (form == "zip")
        assert not sentinel.exists()
    if form == "zip":
        return
    # The payloads do work where nobody refuses them.
    pickle.loads(pickle.dumps(payload))
    assert sentinel.exists()


def test_a_whole_module(path: Path) -> None:
    torch.save(torch.nn.Linear(2, 2), path)
    refusal(path, "calls for torch.nn.modules.linear.Linear", "state_dict or safetensors only")


def test_a_torchscript_archive(path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), path)
    refusal(path, "is a TorchScript archive", "state_dict or safetensors only")


def test_a_legacy_tar(path: Path) -> None:
    with tarfile.open(path, "w") as tar:
        for name in ("sys_info", "pickle", "storages", "tensors"):
            tar.addfile(tarfile.TarInfo(name), io.BytesIO())
    refusal(path, "bare pickle or tar file", "state_dict or safetensors only")


def test_a_legacy_state_dict(weights: State, path: Path) -> None:
    path.write_bytes(saved("legacy", weights))
    refusal(path, "format before 1.6", "state_dict or safetensors only")


def test_other_objects_beside_the_weights_are_named(weights: State, path: Path) -> None:
    torch.save({"model_state_dict": weights, "args": argparse.Namespace(lr=1)}, path)
    refusal(path, "calls for argparse.Namespace", "state_dict or safetensors only")


def test_numpy_is_not_reached(path: Path, weights: State) -> None:
    """Of NumPy only numbers and arrays are let by, and those without running NumPy."""
    torch.save({"model_state_dict": weights, "f": np.load}, path)
    refusal(path, "calls for numpy.load")


@pytest.mark.parametrize(
    ("content", "fact"),
    [
        ([torch.ones(2)], "holds a list, not a dict of weights"),
        (torch.ones(2), "holds a Tensor, not a dict of weights"),
        ({}, "holds a dict without weights (its keys: none)"),
        ({"epoch": 3, "lr": 0.1}, "holds a dict without weights (its keys: epoch, lr)"),
        ({"model_state_dict": {"epoch": 3}}, "holds a dict without weights (its keys: epoch)"),
        ({"weight": torch.ones(2), "epoch": 3}, "epoch is a int, not a tensor"),
        ({"weight": torch.ones(2), 3: torch.ones(2)}, "3 is a Tensor, not a tensor"),
        ({"conv.weight": torch.ones(2)}, "holds weights, but not LHA-Net's: conv.weight"),
        ({"evil\n\x1b[2Jkey": torch.ones(2)}, "'evil\\n\\x1b[2Jkey'"),
        ({"w": torch.eye(3).to_sparse()}, "w is sparse, quantized or without values"),
        ({"w": torch.empty(2, device="meta")}, "w is sparse, quantized or without values"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_contents_that_are_no_weights(path: Path, content: Any, fact: str) -> None:
    torch.save(content, path)
    refusal(path, fact)


def test_attributes_from_a_pickle_shadow_no_method(weights: State, path: Path) -> None:
    state = OrderedDict(weights)
    # pickle itself would stumble over the real names.
    state.__dict__.update({"_items": 3, "_keys": 3, "_get": 3})
    torch.save(state, path)
    short = {b"\x06\x00\x00\x00_items": b"\x05\x00\x00\x00items", b"\x05\x00\x00\x00_keys": b"\x04\x00\x00\x00keys"}
    short[b"\x04\x00\x00\x00_get"] = b"\x03\x00\x00\x00get"

    def rename(name: str, data: bytes) -> bytes:
        for old, new in short.items() if name.endswith(".pkl") else ():
            assert data.count(old) == 1
            data = data.replace(old, new)
        return data

    path.write_bytes(with_members(path.read_bytes(), rename))
    assert torch.load(path, weights_only=True).items == 3
    assert_equal(read_checkpoint(path)[0], weights)


# Refused: damage


@pytest.mark.parametrize("share", [0.01, 0.5, 0.99, 0.999999])
def test_truncated_archive(path: Path, archive: bytes, share: float) -> None:
    path.write_bytes(archive[: int(len(archive) * share)])
    refusal(path, "truncated, damaged or no PyTorch checkpoint")


def test_flipped_bit_in_the_weights(path: Path, archive: bytes, weights: State) -> None:
    where = archive.index(weights[WEIGHT].numpy().tobytes()[:64])
    damaged = bytearray(archive)
    damaged[where + 3] ^= 0x40
    path.write_bytes(damaged)
    refusal(path, "is damaged: member ", "/data/", "fails its checksum")


def test_flipped_bits_anywhere(path: Path, archive: bytes, weights: State) -> None:
    """Refused, or without effect because the bit is padding or a date."""
    generator = random.Random(5)
    directory = len(archive) - archive.rindex(b"PK\x01\x02")
    spots = [generator.randrange(len(archive)) for _ in range(6)]
    spots += [len(archive) - 1 - generator.randrange(60 * directory) for _ in range(12)]
    spots += [generator.randrange(2000) for _ in range(6)]
    for spot in spots:
        damaged = bytearray(archive)
        damaged[spot] ^= 1 << generator.randrange(8)
        path.write_bytes(damaged)
        try:
            state, _ = read_checkpoint(path)
        except RefusedInput as refused:
            assert str(path) in str(refused)
        else:
            assert_equal(state, weights)


def test_deflate_bomb(path: Path) -> None:
    torch.save({"weight": torch.ones(4)}, path)
    path.write_bytes(with_members(path.read_bytes(), lambda name, data: bytes(10_000_000), zipfile.ZIP_DEFLATED))
    assert path.stat().st_size < 100_000
    refusal(path, "has compressed or overlapping members")


def test_members_larger_than_the_file(path: Path) -> None:
    torch.save({"weight": torch.ones(4)}, path)
    raw = bytearray(path.read_bytes())
    entry = raw.index(b"PK\x01\x02")
    raw[entry + 20 : entry + 28] = struct.pack("<II", 2**31, 2**31)
    path.write_bytes(raw)
    refusal(path, "has compressed or overlapping members")


def test_members_of_one_name(path: Path) -> None:
    torch.save({"weight": torch.ones(4)}, path)
    with warnings.catch_warnings(), zipfile.ZipFile(path, "a") as archive:
        warnings.simplefilter("ignore")
        archive.writestr(archive.namelist()[-1], b"again")
    refusal(path, "not one that torch.save wrote")


def test_an_endless_pickle(path: Path) -> None:
    torch.save({"weight": torch.ones(4)}, path)
    path.write_bytes(
        with_members(path.read_bytes(), lambda name, data: b"]" * (17 << 20) if name.endswith(".pkl") else data)
    )
    refusal(path, "holds a pickle of 17 MiB")


@pytest.mark.parametrize("raw", [b"", b"\x80\x02", b"\x80\x02}q\x00h\x07.", b"garbage"])
def test_damaged_pickle_with_a_right_checksum(path: Path, raw: bytes) -> None:
    torch.save({"weight": torch.ones(4)}, path)
    path.write_bytes(with_members(path.read_bytes(), lambda name, data: raw if name.endswith(".pkl") else data))
    refusal(path, "truncated, damaged or no PyTorch checkpoint of weights")


@pytest.mark.parametrize(
    "tensor",
    [torch.zeros(1).expand(200_000, 200_000), torch.ones(64).as_strided((32, 32), (1, 1))],
    ids=["stride 0", "overlapping"],
)
def test_views_that_claim_more_than_the_file_has(path: Path, tensor: Tensor) -> None:
    torch.save({"model_state_dict": {"backbone.initial_conv.0.weight": tensor}}, path)
    assert path.stat().st_size < 10_000
    refusal(path, "backbone.initial_conv.0.weight claims more values than the file holds")


def test_tensors_that_share_their_values(weights: State, path: Path) -> None:
    other = "decoder.feature_fusion.1.1.running_mean"
    torch.save(dict(weights) | {other: weights[VARIANCE]}, path)
    refusal(path, " claims more values than the file holds for it, or another tensor's")


def test_a_huge_empty_tensor(weights: State, path: Path) -> None:
    torch.save(dict(weights) | {"backbone.initial_conv.0.weight": torch.empty(2**40, 0)}, path)
    refusal(path, "'backbone.initial_conv.0.weight' has shape (1099511627776, 0)")


def safetensors_file(header: str, data: bytes) -> bytes:
    return struct.pack("<Q", len(header)) + header.encode() + data


@pytest.mark.parametrize(
    ("raw", "fact"),
    [
        (struct.pack("<Q", 2**63) + b'{"a": 1}', "header too large"),
        (b"abc", "header too small"),
        (safetensors_file('{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}', bytes(7)), "not fully covered"),
        (safetensors_file('{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}', bytes(9)), "not fully covered"),
        (safetensors_file('{"a":{"dtype":"F32","shape":[3],"data_offsets":[0,8]}}', bytes(8)), ""),
        (
            safetensors_file(
                '{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},'
                '"b":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}',
                bytes(8),
            ),
            "invalid offset",
        ),
        (
            safetensors_file(
                '{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},'
                '"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}',
                bytes(8),
            ),
            "duplicate key a",
        ),
        (safetensors_file("[1, 2]", b""), ""),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_damaged_safetensors(tmp_path: Path, raw: bytes, fact: str) -> None:
    path = tmp_path / "best.safetensors"
    path.write_bytes(raw)
    refusal(path, "truncated, damaged or no safetensors file", fact)


def test_truncated_safetensors(weights: State, tmp_path: Path) -> None:
    path = tmp_path / "best.safetensors"
    raw = safetensors.torch.save(weights)
    path.write_bytes(raw[:-4])
    refusal(path, "truncated, damaged or no safetensors file", "not fully covered")


# Refused: weights of something else


def changed(weights: State, key: str, change: Callable[[Tensor], Tensor]) -> State:
    return dict(weights) | {key: change(weights[key].clone())}


def filled(value: float) -> Callable[[Tensor], Tensor]:
    def fill(tensor: Tensor) -> Tensor:
        tensor.view(-1)[1] = value
        return tensor

    return fill


@pytest.mark.parametrize(
    ("key", "value", "fact"),
    [
        (WEIGHT, float("nan"), f"{WEIGHT} has values from nan to nan"),
        (WEIGHT, float("inf"), f"{WEIGHT} has values from "),
        (WEIGHT, -4.9e35, f"{WEIGHT} has values from -4.9e+35 to"),
        (VARIANCE, -0.5, f"{VARIANCE} has the negative variance -0.5"),
    ],
)
def test_values_that_no_training_leaves(weights: State, path: Path, key: str, value: float, fact: str) -> None:
    torch.save(changed(weights, key, filled(value)), path)
    refusal(path, "damaged or its training diverged", fact)


def test_many_bad_tensors_are_counted(weights: State, path: Path) -> None:
    torch.save({key: t * float("nan") if t.is_floating_point() else t for key, t in weights.items()}, path)
    refusal(path, "backbone.initial_conv.0.weight has values from nan to nan", "more; take another checkpoint")


def test_missing_unexpected_and_misshapen_keys_are_named(weights: State, path: Path) -> None:
    state = changed(weights, VARIANCE, lambda tensor: tensor[:-1].clone())
    del state[WEIGHT]
    state["decoder.extra"] = torch.ones(1)
    torch.save(state, path)
    refusal(
        path,
        "is not a whole LHA-Net (lightweight, width 4, 3 classes)",
        f"missing: {WEIGHT}",
        "unexpected: decoder.extra",
        f"of another shape: {VARIANCE} (31,) instead of (32,)",
    )


def test_many_missing_keys_are_counted(weights: State, path: Path) -> None:
    torch.save({key: tensor for key, tensor in weights.items() if "pmsa" not in key}, path)
    message = refusal(path, "missing: hierarchical_pmsa.", " more")
    missing = sum("pmsa" in key for key in weights)
    assert f"and {missing - 8} more" in message


def test_a_prefix_on_some_keys_only(weights: State, path: Path) -> None:
    state = dict(weights)
    state["module." + WEIGHT] = state.pop(WEIGHT)
    torch.save(state, path)
    refusal(path, f"missing: {WEIGHT}", f"unexpected: module.{WEIGHT}")


@pytest.mark.parametrize("key", ["backbone.initial_conv.0.weight", "decoder.final_classifier.weight"])
def test_keys_that_everything_is_inferred_from(weights: State, path: Path, key: str) -> None:
    torch.save({name: tensor for name, tensor in weights.items() if name != key}, path)
    refusal(path, f"'{key}' is missing")


@pytest.mark.parametrize("shape", [(), (0, 64, 1, 1, 1), (513, 1)])
def test_impossible_class_counts(weights: State, path: Path, shape: tuple[int, ...]) -> None:
    torch.save(dict(weights) | {"decoder.final_classifier.weight": torch.zeros(shape)}, path)
    refusal(path, f"'decoder.final_classifier.weight' has shape {shape}; its first side must be 1 to 512")


def test_one_class(weights: State, path: Path) -> None:
    torch.save(dict(weights) | {"decoder.final_classifier.weight": torch.zeros(1, 64, 1, 1, 1)}, path)
    refusal(path, "at least 2 classes")


def test_heads_of_another_class_count(weights: State, path: Path) -> None:
    torch.save(changed(weights, "final_conv.bias", lambda tensor: torch.zeros(7)), path)
    refusal(path, "of another shape: final_conv.bias (7,) instead of (3,)")


def test_blocks_of_no_preset(narrow_resnet_checkpoint: Path, path: Path) -> None:
    state, _ = read_checkpoint(narrow_resnet_checkpoint)
    torch.save({key: tensor for key, tensor in state.items() if not key.startswith("backbone.layer3.1.")}, path)
    refusal(path, "ResNet stages of (2, 2, 1, 2) blocks", "standard (2, 2, 2, 2), high_capacity (3, 4, 6, 3)")


@pytest.mark.parametrize(
    "dtype", [torch.int8, torch.float64, torch.float8_e4m3fn, torch.complex64, torch.bool], ids=str
)
def test_weights_of_other_types(weights: State, path: Path, dtype: torch.dtype) -> None:
    torch.save(changed(weights, WEIGHT, lambda tensor: tensor.to(dtype)), path)
    refusal(path, "not float32, float16 or bfloat16", f"{WEIGHT} {dtype}")


def test_int8_safetensors(weights: State, tmp_path: Path) -> None:
    path = tmp_path / "best.safetensors"
    safetensors.torch.save_file(changed(weights, WEIGHT, lambda tensor: tensor.to(torch.int8)), path)
    refusal(path, "not float32, float16 or bfloat16", f"{WEIGHT} torch.int8")


def test_a_counter_that_is_no_counter(weights: State, path: Path) -> None:
    key = "backbone.initial_conv.1.num_batches_tracked"
    torch.save(changed(weights, key, lambda tensor: tensor.float()), path)
    refusal(path, f"{key} torch.float32")


# No way around


def test_the_package_never_unpickles_without_checks() -> None:
    loads = 0
    for source in Path(lhanet_export.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = {alias.name for alias in node.names} | {getattr(node, "module", None)}
                assert not names & {"pickle", "joblib", "dill", "cloudpickle", "shelve", "marshal"}, source
            if isinstance(node, ast.Call):
                arguments = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                assert arguments.get("allow_pickle", "False") == "False", source
                called = ast.unparse(node.func)
                assert called not in {"eval", "exec", "yaml.load", "torch.jit.load"}, source
                if called == "torch.load":
                    loads += 1
                    assert arguments["weights_only"] == "True", source
    assert loads == 1
