"""What a benchmark found: rows of measurements, what was not measured, and the machine; as data, without opinions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np

from lhanet_export.shapes import Shape

SCHEMA = 1


@dataclass(frozen=True, kw_only=True)
class Device:
    """What the network ran on: `kind` is `cpu` or `cuda`; GPU facts are None on a CPU."""

    kind: Literal["cpu", "cuda"]
    name: str
    cores: int
    memory_bytes: int
    driver: str | None = None
    compute_capability: str | None = None


@dataclass(frozen=True, kw_only=True)
class Row:
    """One baseline or model at one size: seconds of every timed inference in order, bytes, and errors against FP32.

    `network` says whether the layers are those of the network `as-trained` or `ours`, rewritten. `reference_seconds` is
    the median of the reference in the same rounds. `copy_seconds` is the median time of copies between host and GPU,
    which are not in `seconds`; None on a CPU. `flag` says what is known to be wrong with a baseline.
    """

    name: str
    precision: str
    network: Literal["as-trained", "ours"]
    seconds: tuple[float, ...]
    reference_seconds: float
    #: From nothing to ready for the first inference, and that one. Engines, and what PyTorch compiles or captures, have
    #: run before, while they were made ready.
    ready_seconds: float
    first_seconds: float
    #: The most memory until after that, and that of any inference since; None where nobody looked before.
    opening_peak_bytes: int | None = None
    peak_bytes: int
    #: What they are of: a process's resident memory, on a GPU the whole process by NVML, or torch's allocator alone.
    peak_kind: Literal["resident", "process", "allocator"]
    #: The most that torch's allocator held on a GPU; None for what does not use it.
    allocator_bytes: int | None = None
    copy_seconds: float | None = None
    #: Of its files besides the checkpoint; None without any.
    disk_bytes: int | None = None
    #: The worst of the volumes that outputs were compared on.
    relative_l2: float
    label_agreement: float
    flag: str | None = None
    #: Clocks in MHz, degrees Celsius, load and the like right after the `first` and the `last` timed inference, where
    #: driver or system tell.
    conditions: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    @property
    def median_seconds(self) -> float:
        return float(np.median(self.seconds))

    def percentile_seconds(self, share: float) -> float:
        """The time that a share (0 to 100) of the inferences took at most; none is left out."""
        return float(np.percentile(self.seconds, share))

    def as_json(self, shape: Shape) -> dict[str, Any]:
        """All fields, and what follows from them for a volume of `shape`."""
        return asdict(self) | {
            "seconds": list(self.seconds),
            # JSON has no number for what overflowed.
            "relative_l2": self.relative_l2 if np.isfinite(self.relative_l2) else None,
            "conditions": {when: dict(numbers) for when, numbers in self.conditions.items()},
            "median_seconds": self.median_seconds,
            "speedup": self.reference_seconds / self.median_seconds,
            "p10_seconds": self.percentile_seconds(10),
            "p90_seconds": self.percentile_seconds(90),
            "voxels_per_second": int(np.prod(shape)) / self.median_seconds,
        }


@dataclass(frozen=True, kw_only=True)
class Skipped:
    """A baseline that was not measured, and why."""

    name: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Rows of one size on one machine; the first row is the reference, eager FP32.

    `work` has `multiply_adds`, `moved_bytes`, `weight_bytes`, `input_bytes` and `output_bytes` of our graph at `shape`,
    and `multiply_adds_as_trained`.
    """

    date: str
    command: str
    machine: Mapping[str, Any]
    device: Device
    checkpoint: Mapping[str, Any]
    shape: Shape
    threads: int
    rounds: int
    volumes: int
    rows: Sequence[Row]
    skipped: Sequence[Skipped]
    work: Mapping[str, int]

    def share_of_peak_memory(self, row: Row) -> float | None:
        """A row's peak memory as a share of the reference's; None if they are not peaks of the same kind."""
        first = self.rows[0]
        return row.peak_bytes / first.peak_bytes if row.peak_kind == first.peak_kind else None

    def as_json(self) -> dict[str, Any]:
        """The facts as JSON values."""
        return {
            "schema": SCHEMA,
            **{key: getattr(self, key) for key in ("date", "command", "threads", "rounds", "volumes")},
            "machine": dict(self.machine),
            "device": asdict(self.device),
            "checkpoint": dict(self.checkpoint),
            "shape": list(self.shape),
            "rows": [
                row.as_json(self.shape) | {"share_of_peak_memory": self.share_of_peak_memory(row)} for row in self.rows
            ],
            "not_measured": [asdict(one) for one in self.skipped],
            "work": dict(self.work),
        }
