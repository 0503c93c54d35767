"""What NVIDIA cards can do at most: arithmetic by number format, and memory bandwidth, with where each figure is from.

All rates are dense, without NVIDIA's structured sparsity, which would double them on paper, and hold at the boost clock
that NVIDIA specifies. A board may clock higher and then do more: others report 27 TFLOPS of FP16 matrix products on an
RTX 3060, 6 % above its peak here, and an RTX 3090 with 420 W clocked 17 % higher.

No document of NVIDIA's could be opened when this table was made (2026-11). A figure in `quoted` was found in others'
notes that quote it from the document that `source` names. Any other rate of a GeForce card is multiprocessors x
operations in a clock x boost clock, with the operations of `_GEFORCE_OPERATIONS`: the quoted figures of the RTX 3090,
4090, 5070 and 5090 all give the same ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from lhanet_export.errors import RefusedInput

#: What a multiply-add computes in. `fp16` and `bf16` add up in FP32; `fp16-fp16` adds up in FP16, which GeForce
#: cards do twice as fast, and which TensorRT may choose for an FP16 engine. `fp32` is without tensor cores.
PRECISIONS = ("fp32", "tf32", "fp16", "bf16", "fp16-fp16", "int8")

_GA102 = (
    "NVIDIA Ampere GA102 GPU Architecture V2.0, appendix A, table 9, "
    "https://www.nvidia.com/content/PDF/nvidia-ampere-ga-102-gpu-architecture-whitepaper-v2.pdf"
)
_ADA = (
    "NVIDIA Ada GPU Architecture V2.1, appendix A, table 2, "
    "https://images.nvidia.com/aem-dam/Solutions/geforce/ada/nvidia-ada-gpu-architecture.pdf"
)
_BLACKWELL = (
    "NVIDIA RTX Blackwell GPU Architecture V1.1, pages 46-47 (RTX 5090) and 54-55 (RTX 5070), "
    "https://images.nvidia.com/aem-dam/Solutions/geforce/blackwell/nvidia-rtx-blackwell-gpu-architecture.pdf"
)
_HOPPER = (
    "NVIDIA H100 Tensor Core GPU Architecture V1.04, tables 1 and 3, "
    "https://nvdam.widen.net/s/95bdhpsgrs/nvidia_h100_tensor_core_gpu_architecture_whitepaper_v1.03; "
    "bandwidth: NVIDIA H100 product page"
)
#: Operations of a multiprocessor in a clock, two for a multiply-add.
_GEFORCE_OPERATIONS: Mapping[str, int] = {
    "fp32": 256, "tf32": 256, "fp16": 512, "bf16": 512, "fp16-fp16": 1024, "int8": 2048
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Card:
    """A card: its peaks in 10^12 operations a second (two for a multiply-add), bandwidth in 10^9 bytes a second.

    `names` are what the driver calls it; `quoted` names the peaks, and `bandwidth`, that others quote from `source`.
    """

    title: str
    names: tuple[str, ...]
    memory_gib: int
    bandwidth_gbps: float
    peaks: Mapping[str, float] = field(repr=False)
    quoted: frozenset[str] = field(repr=False)
    source: str = field(repr=False)

    def peak_tflops(self, precision: str) -> float:
        """The peak in 10^12 operations a second; `RefusedInput` for what is not in `PRECISIONS`."""
        if precision not in self.peaks:
            raise RefusedInput(f"no peak is known for {precision!r}; choose from {', '.join(PRECISIONS)}")
        return self.peaks[precision]


def card_named(name: str, memory_bytes: int | None = None) -> Card | None:
    """The card that a driver calls `name`; None for one that is not in the table, as for laptops, "Ti" and MIG slices.

    Some names stand for two cards (RTX 3060 with 12 or 8 GB, RTX 3080 with 10 or 12 GB; the table has the first).
    `memory_bytes`, as the driver says, tells them apart: another size by more than a tenth gives None.
    """
    # Drivers before version 470 leave the maker out.
    full = name if name.startswith("NVIDIA ") else f"NVIDIA {name}"
    card = next((card for card in CARDS if full in card.names), None)
    if card is not None and memory_bytes is not None and not 0.9 <= memory_bytes / (card.memory_gib << 30) <= 1.1:
        return None
    return card


def _geforce(
    model: str, multiprocessors: int, boost_mhz: int, memory_gib: int, bandwidth_gbps: float, *,
    quoted: Mapping[str, float] | None = None, bandwidth_quoted: bool = False, source: str,
) -> Card:  # fmt: skip
    """A GeForce card: what is quoted as it is, the other peaks by clock."""
    by_clock = {
        precision: multiprocessors * operations * boost_mhz * 1e6 / 1e12
        for precision, operations in _GEFORCE_OPERATIONS.items()
    }
    told = dict(quoted or {})
    return Card(
        title=f"GeForce {model}",
        names=(f"NVIDIA GeForce {model}",),
        memory_gib=memory_gib,
        bandwidth_gbps=bandwidth_gbps,
        peaks=MappingProxyType(by_clock | told),
        quoted=frozenset(told) | ({"bandwidth"} if bandwidth_quoted else set()),
        source=source,
    )


def _hopper(
    title: str, name: str, memory_gib: int, bandwidth_gbps: float, *,
    fp32: float, tf32: float, fp16: float, int8: float, unquoted: frozenset[str] = frozenset(), source: str,
) -> Card:  # fmt: skip
    """A Hopper card: adding up in FP16 is no faster there, as the whitepaper's first version has it."""
    peaks = {"fp32": fp32, "tf32": tf32, "fp16": fp16, "bf16": fp16, "fp16-fp16": fp16, "int8": int8}
    return Card(
        title=title,
        names=(name,),
        memory_gib=memory_gib,
        bandwidth_gbps=bandwidth_gbps,
        peaks=MappingProxyType(peaks),
        quoted=frozenset(peaks) - {"fp16-fp16"} - unquoted | {"bandwidth"},
        source=source,
    )


CARDS: tuple[Card, ...] = (
    # NVIDIA publishes no tensor figures for it but "101 tensor TFLOPS", which is sparse and adds up in FP16: twice the
    # 50.9 that the clock gives. Clock, multiprocessors and bandwidth (192 bits of 15 Gbit/s) are as shops list them.
    _geforce(
        "RTX 3060", 28, 1777, 12, 360,
        source="3,584 cores at 1.78 GHz: NVIDIA's announcement of 2021-01-12; the rest by clock",
    ),
    # The 10 GB card. That TF32 is as fast as FP32 on it say CUTLASS's maintainers (NVIDIA/cutlass, discussion 390).
    _geforce(
        "RTX 3080", 68, 1710, 10, 760,
        source="by clock; clock, multiprocessors and bandwidth as shops list them",
    ),
    _geforce(
        "RTX 3090", 82, 1695, 24, 936,
        quoted={"fp32": 35.6, "tf32": 35.6, "fp16": 71, "bf16": 71, "int8": 284},
        bandwidth_quoted=True, source=_GA102,
    ),
    # With GDDR6X; a later one with GDDR6 of the same name has 480 GB/s.
    _geforce(
        "RTX 4070", 46, 2475, 12, 504,
        source="by clock; clock, multiprocessors and bandwidth as reviews list them, "
        "https://www.thefpsreview.com/gpu-family/nvidia-geforce-rtx-4070-gpu-family-specifications",
    ),
    _geforce(
        "RTX 4090", 128, 2520, 24, 1008,
        quoted={"fp32": 82.6, "fp16": 165.2, "bf16": 165.2, "fp16-fp16": 330.3, "int8": 660.6},
        bandwidth_quoted=True, source=_ADA,
    ),
    # The bandwidth is 192 bits of 28 Gbit/s.
    _geforce("RTX 5070", 48, 2512, 12, 672, quoted={"fp16": 61.7, "int8": 246.9}, source=_BLACKWELL),
    _geforce(
        "RTX 5090", 170, 2407, 32, 1792,
        quoted={"fp32": 104.8, "fp16": 209.5, "bf16": 209.5, "int8": 838},
        bandwidth_quoted=True, source=_BLACKWELL,
    ),
    _hopper(
        "H100 SXM", "NVIDIA H100 80GB HBM3", 80, 3350, fp32=66.9, tf32=494.7, fp16=989.4, int8=1978.9, source=_HOPPER,
    ),
    _hopper("H100 PCIe", "NVIDIA H100 PCIe", 80, 2000, fp32=51, tf32=378, fp16=756, int8=1513, source=_HOPPER),
    # The page gives rates with sparsity; these are their halves. TF32 as on the H100 SXM, which has the same chip.
    _hopper(
        "H200", "NVIDIA H200", 141, 4800, fp32=67, tf32=494.7, fp16=989.5, int8=1979, unquoted=frozenset({"tf32"}),
        source="NVIDIA H200 product page, https://www.nvidia.com/en-us/data-center/h200/",
    ),
)  # fmt: skip
