"""The largest patches that fit on a card, found by building; nothing is run.

A patch (D,H,W) needs on the card, in bytes: weights and activations as the builder plans them for an
engine that serves every size up to the patch, the volume and the result of one call, and an
allowance for what is on the card besides. Patches of one aspect form a ladder. On it two neighbours
are searched, of which one was built and fits, and the next was built and does not fit, or has a
tensor that TensorRT does not take.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import Any

from lhanet_export.engine.backends import BACKENDS, load_module
from lhanet_export.engine.build import check_machine
from lhanet_export.engine.plan import check_backend
from lhanet_export.errors import RefusedInput
from lhanet_export.patches import Aspect, CachedPatches, ExportedPatches, Patches, Question, cache_folder, key_of
from lhanet_export.progress import SILENT, Progress
from lhanet_export.shapes import LONGEST_SIDE, Shape, format_shape

#: What an application needs besides the engine and its buffers; an allowance, not measured by this toolkit.
#: A card of 12 GiB offers CUDA 11.76 (https://github.com/TencentARC/PhotoMaker/issues/47), so some 250 MiB are never
#: there. A bare CUDA context took 256 MiB on an RTX 3090 (https://github.com/invoke-ai/InvokeAI/issues/9413). As much
#: again is for the kernels that TensorRT-RTX compiles on the card, and for memory that is given out in blocks.
ALLOWANCE_BYTES = 768 << 20
#: TensorRT's convolutions take no tensor of as many elements (https://github.com/NVIDIA/TensorRT/issues/4123). The
#: builder of TensorRT-RTX 1.7 does not say so: it builds a profile with such tensors, so the sizes are looked at first.
ELEMENT_LIMIT = 2**31


@dataclass(frozen=True, kw_only=True)
class Need:
    """Device memory that a patch needs, in bytes."""

    shape: Shape
    weights_bytes: int
    activation_bytes: int
    input_bytes: int
    output_bytes: int
    allowance_bytes: int = ALLOWANCE_BYTES

    @property
    def together_bytes(self) -> int:
        """The sum."""
        buffers = self.input_bytes + self.output_bytes
        return self.weights_bytes + self.activation_bytes + buffers + self.allowance_bytes

    def as_json(self) -> dict[str, Any]:
        """All numbers as JSON values."""
        return {**asdict(self), "shape": list(self.shape), "together_bytes": self.together_bytes}


#: The full-width lightweight network in FP16 (docs/measurements/deploy.json). Decides only where a search begins.
TYPICAL = Need(
    shape=(64, 128, 128), weights_bytes=603 * 10**6, activation_bytes=224 * 10**6,
    input_bytes=4 << 20, output_bytes=56 << 20,
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class AspectFit:
    """The largest patch of an aspect that fits, and the next one, which does not: its need, or why it is not built."""

    aspect: Aspect
    largest: Need | None
    next_shape: Shape
    next_need: Need | None
    next_refused: str | None

    def as_json(self) -> dict[str, Any]:
        """Both patches as JSON values."""
        return {
            "aspect": list(self.aspect),
            "largest": self.largest.as_json() if self.largest else None,
            "next": {
                "shape": list(self.next_shape),
                "need": self.next_need.as_json() if self.next_need else None,
                "refused": self.next_refused,
            },
        }


@dataclass(frozen=True, kw_only=True)
class Fit:
    """What fits into `vram_bytes` of a card, by aspect, and which builder planned it."""

    vram_bytes: int
    backend: str
    backend_version: str
    aspects: tuple[AspectFit, ...]

    def as_json(self) -> dict[str, Any]:
        """The result as JSON values."""
        return {
            "vram_bytes": self.vram_bytes,
            "allowance_bytes": ALLOWANCE_BYTES,
            "planned_by": {"backend": self.backend, "version": self.backend_version},
            "measured_on_gpu": False,
            "aspects": [one.as_json() for one in self.aspects],
        }


def fit(question: Question, vram_bytes: int, aspects: Sequence[Aspect], *, progress: Progress = SILENT) -> Fit:
    """The largest patch of each aspect that fits into `vram_bytes` of the question's card.

    `RefusedInput` where not even the smallest patch of any aspect fits, saying what that one needs. Answers
    of the builder are kept in `cache_folder()`.
    """
    check_backend(question.recipe, question.backend)
    check_machine(question.backend)
    version = load_module(BACKENDS[question.backend]).__version__
    with progress.step(f"look for earlier plans of {question.checkpoint}"):
        key = key_of(question, version)
    results: list[AspectFit] = []
    with ExitStack() as stack:
        exported = ExportedPatches(question=question, identity=key["checkpoint"], progress=progress, stack=stack)
        patches = CachedPatches(exported, cache_folder(), key)
        for aspect in aspects:
            with progress.step(f"patches of {format_aspect(aspect)}"):
                seen = [need for result in results for need in (result.largest, result.next_need) if need]
                results.append(largest_patch(aspect, patches, vram_bytes, seen))
    if not any(result.largest for result in results):
        raise RefusedInput(_nothing_fits(results, vram_bytes))
    return Fit(vram_bytes=vram_bytes, backend=question.backend, backend_version=version, aspects=tuple(results))


def format_aspect(aspect: Aspect) -> str:
    """(1, 2, 2) as `1:2:2`."""
    return ":".join(map(str, aspect))


def _nothing_fits(results: Sequence[AspectFit], vram_bytes: int) -> str:
    needs = [result.next_need for result in results if result.next_need]
    if not needs:
        return "; ".join(f"{format_shape(result.next_shape)}: {result.next_refused}" for result in results)
    least = min(needs, key=lambda need: need.together_bytes)
    return (
        f"no patch fits into {_gib(vram_bytes)}: {format_shape(least.shape)}, the smallest, needs "
        f"{_gib(least.together_bytes)}, of which weights {_gib(least.weights_bytes)}, activations "
        f"{_gib(least.activation_bytes)}, input and output {_gib(least.input_bytes + least.output_bytes)}, "
        f"and {_gib(least.allowance_bytes)} as an allowance for the CUDA context"
    )


def _gib(count: int) -> str:
    return f"{count / 2**30:.2f} GiB"


def largest_patch(aspect: Aspect, patches: Patches, vram_bytes: int, seen: Sequence[Need] = ()) -> AspectFit:
    """The largest patch of an aspect that fits into `vram_bytes`, with few builds.

    Memory grows about in proportion to the voxels, so the built size that is nearest (at first one of `seen`,
    from other aspects) says which one to build next.
    """
    shapes = patches.ladder.of(aspect)
    # Between these two everything is open: `shapes[low]` fits, `shapes[high]` does not.
    low, high = -1, bisect_left(shapes, True, key=lambda shape: _refusal(shape, patches) is not None)
    needs: dict[int, Need] = {}
    while high - low > 1:
        known = [*needs.values(), *seen] or [TYPICAL]
        likely = [index for index in range(low + 1, high) if _extrapolated(known, shapes[index]) <= vram_bytes]
        index = likely[-1] if likely else low + 1
        needs[index] = _need(shapes[index], patches)
        low, high = (index, high) if needs[index].together_bytes <= vram_bytes else (low, index)
    return AspectFit(
        aspect=aspect,
        largest=needs.get(low),
        next_shape=shapes[high],
        next_need=needs.get(high),
        next_refused=None if high in needs else _refusal(shapes[high], patches),
    )


def _need(shape: Shape, patches: Patches) -> Need:
    tensors, planned = patches.tensors(shape), patches.planned(shape)
    return Need(
        shape=shape,
        weights_bytes=planned.weights_bytes,
        activation_bytes=planned.activation_bytes,
        input_bytes=tensors.input_bytes,
        output_bytes=tensors.output_bytes,
    )


def _refusal(shape: Shape, patches: Patches) -> str | None:
    """Why a size is not even built."""
    if max(shape) > LONGEST_SIDE:
        return f"a side is longer than {LONGEST_SIDE} voxels, the most that is taken"
    tensors = patches.tensors(shape)
    if tensors.largest_elements < ELEMENT_LIMIT:
        return None
    return (
        f"tensor '{tensors.largest}' would have {tensors.largest_elements:,} elements, "
        f"and TensorRT's limit is {ELEMENT_LIMIT:,}"
    )


def _extrapolated(known: Sequence[Need], shape: Shape) -> float:
    """About what a patch needs, from the known one that is nearest in voxels."""
    nearest = min(known, key=lambda need: abs(math.log(math.prod(shape) / math.prod(need.shape))))
    growing = nearest.activation_bytes + nearest.input_bytes + nearest.output_bytes
    ratio = math.prod(shape) / math.prod(nearest.shape)
    return nearest.weights_bytes + nearest.allowance_bytes + growing * ratio
