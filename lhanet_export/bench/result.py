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

    `peak_bytes` is of the process's resident memory on a CPU (`peak_kind` "resident"), of torch's allocator or of the
    whole process by NVML on a GPU ("allocator", "process"). `copy_seconds` is the median time of copies between host
    and GPU, which are not in `seconds`; None on a CPU. `flag` says what is known to be wrong with a baseline.
    """

    name: str
    precision: str
    seconds: tuple[float, ...]
    #: From nothing to ready for the first inference, and the first inference itself.
    ready_seconds: float
    first_seconds: float
    #: The most memory until then; None where it was not looked at.
    opening_peak_bytes: int | None = None
    peak_bytes: int
    peak_kind: Literal["resident", "allocator", "process"]
    process_bytes: int | None = None
    copy_seconds: float | None = None
    disk_bytes: int | None = None
    relative_l2: float
    label_agreement: float
    flag: str | None = None
    #: Clocks in MHz and temperature in degrees Celsius before and after, where the driver tells.
    conditions: Mapping[str, float] = field(default_factory=dict)

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
            "conditions": dict(self.conditions),
            "median_seconds": self.median_seconds,
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

    `work` has `multiply_adds` and `moved_bytes` of our graph and `multiply_adds_as_trained`, at `shape`.
    """

    date: str
    command: str
    machine: Mapping[str, Any]
    device: Device
    checkpoint: Mapping[str, Any]
    shape: Shape
    threads: int
    rounds: int
    rows: Sequence[Row]
    skipped: Sequence[Skipped]
    work: Mapping[str, int]

    def as_json(self) -> dict[str, Any]:
        """The facts as JSON values, with the speed-up over the first row and its share of that row's peak memory."""
        first = self.rows[0]
        rows = [
            row.as_json(self.shape)
            | {
                "speedup": first.median_seconds / row.median_seconds,
                "share_of_peak_memory": row.peak_bytes / first.peak_bytes,
            }
            for row in self.rows
        ]
        return {
            "schema": SCHEMA,
            **{key: getattr(self, key) for key in ("date", "command", "threads", "rounds")},
            "machine": dict(self.machine),
            "device": asdict(self.device),
            "checkpoint": dict(self.checkpoint),
            "shape": list(self.shape),
            "rows": rows,
            "not_measured": [asdict(one) for one in self.skipped],
            "work": dict(self.work),
        }
