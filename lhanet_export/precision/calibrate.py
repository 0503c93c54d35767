"""Ranges of activations, measured on volumes: what INT8 scales are made from.

Volumes are run through the FP32 graph twice: for the smallest and largest value of each tensor, then for a
histogram of its magnitudes. The result does not depend on the method by which a scale is derived
from it, so that methods can be compared without running anything again. It can be kept in a file, which
names the graph and the volumes by their hashes and is refused for any other.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir

from lhanet_export.errors import RefusedInput
from lhanet_export.export.artifact import OnnxArtifact
from lhanet_export.files import sha256_of
from lhanet_export.precision.arrays import fact_in, read_arrays, save_arrays
from lhanet_export.precision.scales import BINS, Magnitudes
from lhanet_export.precision.sessions import GraphSession
from lhanet_export.progress import SILENT, Progress
from lhanet_export.shapes import Shape

#: Goes up whenever the same volumes would give other ranges.
VERSION = 1
#: Fewer different volumes than this say too little about the next one.
FEWEST_IMAGES = 4
#: Tensors that are fetched at a time take at most so much, or are one.
_FETCHED_BYTES = 512 << 20


@dataclass(frozen=True, kw_only=True, eq=False)
class CalibrationImage:
    """A preprocessed volume (1,1,D,H,W) float32, and the name of where it comes from."""

    name: str
    voxels: np.ndarray

    @property
    def shape(self) -> Shape:
        """Its size (D,H,W)."""
        depth, height, width = self.voxels.shape[2:]
        return depth, height, width

    @property
    def sha256(self) -> str:
        """Of its size and its voxels."""
        return hashlib.sha256(
            repr(self.voxels.shape).encode() + np.ascontiguousarray(self.voxels).tobytes()
        ).hexdigest()


@dataclass(frozen=True, kw_only=True)
class RangesKey:
    """What ranges hold for: SHA-256 of the graph with its weights, of each volume (sorted), and the tensors' names."""

    graph: str
    images: tuple[str, ...]
    tensors: tuple[str, ...]
    version: int

    @property
    def sha256(self) -> str:
        """One hash for all of it."""
        return hashlib.sha256(json.dumps(asdict(self)).encode()).hexdigest()


@dataclass(frozen=True, kw_only=True, eq=False)
class Ranges:
    """What was seen of each tensor, and on what."""

    key: RangesKey
    tensors: Mapping[str, Magnitudes]


def graph_sha256(source: OnnxArtifact) -> str:
    """One hash of a graph and of its weights, wherever they lie."""
    return hashlib.sha256("".join(sha256_of(path) for path in source.files).encode()).hexdigest()


def calibrate(
    source: OnnxArtifact,
    images: Sequence[CalibrationImage],
    tensors: Sequence[str],
    *,
    cache: Path | None = None,
    progress: Progress = SILENT,
) -> Ranges:
    """Measure the ranges of `tensors`, values inside an FP32 graph by name, on `images`.

    With `cache` the ranges are read from that file if it exists, and written there if not. `RefusedInput` for
    fewer than `FEWEST_IMAGES` different volumes, for one that is constant, not finite or of a size that the graph
    does not take, for values that become NaN or infinite, and for a file of another graph, other volumes or
    another version of this code; nothing is written then.
    """
    _check_images(source, images)
    key = RangesKey(
        graph=graph_sha256(source),
        images=tuple(sorted({image.sha256 for image in images})),
        tensors=tuple(sorted(set(tensors))),
        version=VERSION,
    )
    if cache is not None and cache.exists():
        ranges = read_ranges(cache)
        check_key(ranges.key, key, str(cache))
        return ranges
    with progress.step("measure activations", total=2 * len(images)) as advance:
        ends, sizes = _ends(source, images, key.tensors, advance)
        counts = _counts(source, images, ends, sizes, advance)
    ranges = Ranges(
        key=key,
        tensors={
            name: Magnitudes(minimum=low, maximum=high, counts=counts[name]) for name, (low, high) in ends.items()
        },
    )
    if cache is not None:
        write_ranges(cache, ranges)
    return ranges


def check_key(found: RangesKey, wanted: RangesKey, where: str) -> None:
    """Refuse ranges of something else than what is wanted, saying of what."""
    differences = [
        text
        for differs, text in (
            (found.version != wanted.version, "by another version of this toolkit"),
            (found.graph != wanted.graph, "for another graph or other weights"),
            (found.images != wanted.images, "on other volumes"),
            (found.tensors != wanted.tensors, "for other tensors of the graph"),
        )
        if differs
    ]
    if differences:
        raise RefusedInput(
            f"the ranges in {where} were measured {', '.join(differences)}; name another file, or delete this one "
            "to measure them again"
        )


def _check_images(source: OnnxArtifact, images: Sequence[CalibrationImage]) -> None:
    if source.precision != "fp32":
        raise RefusedInput(f"{source.path} is {source.precision}; ranges are measured on the FP32 graph")
    for image in images:
        voxels = image.voxels
        if voxels.ndim != 5 or voxels.shape[:2] != (1, 1) or voxels.dtype != np.float32:
            raise RefusedInput(f"{image.name} should be (1,1,D,H,W) float32, it is {voxels.shape} {voxels.dtype}")
        source.check_size(image.shape)
        if not np.isfinite(voxels).all():
            raise RefusedInput(f"{image.name} holds NaN or infinity")
        if voxels.min() == voxels.max():
            raise RefusedInput(f"{image.name} is {voxels.max():g} everywhere; nothing can be calibrated on that")
    different = len({image.sha256 for image in images})
    if different < FEWEST_IMAGES:
        raise RefusedInput(
            f"{different} different volumes are too few to calibrate on; give at least {FEWEST_IMAGES}, better 16"
        )


# Measuring


def _ends(
    source: OnnxArtifact, images: Sequence[CalibrationImage], tensors: Sequence[str], advance: Callable[[float], None]
) -> tuple[dict[str, tuple[float, float]], dict[str, int]]:
    """The smallest and the largest value of each tensor over all volumes, and the most values that it ever has."""
    model = ir.load(source.path)
    asked = {tensor: _ask(model.graph, source.path, tensor) for tensor in tensors}
    names = [name for made in asked.values() for name in made]
    session = GraphSession(model, source, names)
    ends = dict.fromkeys(tensors, (float("inf"), float("-inf")))
    sizes = dict.fromkeys(tensors, 0)
    for image in images:
        found = session.values(names, image.voxels)
        for tensor, (low, high, size) in asked.items():
            smallest, greatest = float(found[low]), float(found[high])
            if not np.isfinite([smallest, greatest]).all():
                raise RefusedInput(f"{image.name} makes {tensor} NaN or infinite; nothing can be calibrated on that")
            ends[tensor] = (min(ends[tensor][0], smallest), max(ends[tensor][1], greatest))
            sizes[tensor] = max(sizes[tensor], int(found[size]))
        advance(1)
    return ends, sizes


def _ask(graph: ir.Graph, path: Path, tensor: str) -> list[str]:
    """Add what computes the smallest value, the largest value and the size of a tensor; the names of the results."""
    values = (*graph.inputs, *(value for node in graph for value in node.outputs))
    value = next((value for value in values if value.name == tensor), None)
    if value is None:
        raise RefusedInput(f"{path} has no value named {tensor}")
    names = []
    for operator in ("ReduceMin", "ReduceMax", "Size"):
        attributes = {} if operator == "Size" else {"keepdims": 0}
        node = ir.node(operator, [value], attributes=attributes, name=f"{tensor}/{operator}")
        node.outputs[0].name = node.name
        graph.append(node)
        names.append(str(node.name))
    return names


def _counts(
    source: OnnxArtifact,
    images: Sequence[CalibrationImage],
    ends: Mapping[str, tuple[float, float]],
    sizes: Mapping[str, int],
    advance: Callable[[float], None],
) -> dict[str, np.ndarray]:
    """The histogram of each tensor's magnitudes over all volumes."""
    counts = {name: np.zeros(BINS) for name in ends}
    parts = list(_parts(sizes))
    for part in parts:
        session = GraphSession(ir.load(source.path), source, part)
        for image in images:
            for name, values in session.values(part, image.voxels).items():
                counts[name] += _histogram(values, max(map(abs, ends[name])))
            advance(1 / len(parts))
    return counts


def _parts(sizes: Mapping[str, int]) -> Iterator[list[str]]:
    """The tensors in parts that may be fetched at a time."""
    part: list[str] = []
    taken = 0
    for name, size in sizes.items():
        if part and taken + 4 * size > _FETCHED_BYTES:
            yield part
            part, taken = [], 0
        part.append(name)
        taken += 4 * size
    if part:
        yield part


def _histogram(values: np.ndarray, largest: float) -> np.ndarray:
    """How many magnitudes above 0 fall into each bin from 0 to `largest`, float64."""
    magnitudes = np.abs(values[values != 0])
    if not magnitudes.size:
        return np.zeros(BINS)
    places = np.minimum((magnitudes * np.float32(BINS / largest)).astype(np.int32), BINS - 1)
    return np.bincount(places, minlength=BINS).astype(np.float64)


# Files


def write_ranges(path: Path, ranges: Ranges) -> None:
    """Write ranges into a file, whole or not at all."""
    seen = list(ranges.tensors.values())
    arrays = {
        "names": np.array(list(ranges.tensors)),
        "ends": np.array([(one.minimum, one.maximum) for one in seen]),
        "counts": np.array([one.counts for one in seen]),
    }
    save_arrays(path, {"key": asdict(ranges.key)}, arrays)


def read_ranges(path: Path) -> Ranges:
    """Ranges from a file that may be anything; `RefusedInput` says what is wrong with it."""
    with read_arrays(path, "holds no ranges, or it is damaged; delete it to measure them again") as arrays:
        key = fact_in(arrays, "key")
        names, ends, counts = arrays["names"].tolist(), arrays["ends"], arrays["counts"]
        ranges = Ranges(
            key=RangesKey(
                graph=key["graph"], images=tuple(key["images"]), tensors=tuple(key["tensors"]), version=key["version"]
            ),
            tensors={
                name: Magnitudes(minimum=float(low), maximum=float(high), counts=count)
                for name, (low, high), count in zip(names, ends, counts, strict=True)
            },
        )
        if tuple(sorted(ranges.tensors)) != ranges.key.tensors:
            raise ValueError("other tensors than the key names")
        if any(one.counts.shape != (BINS,) or (one.counts < 0).any() for one in ranges.tensors.values()):
            raise ValueError("no histograms")
    return ranges
