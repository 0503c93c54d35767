"""What our best FP16 path should gain over eager PyTorch on a GPU, held against what `bench` measured there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lhanet_export.bench.agreement import agrees
from lhanet_export.shapes import format_shape

#: Goals of our best FP16 path: how many times as fast it is as the fastest row whose name is one of these.
GOALS: Mapping[tuple[str, ...], float] = {
    ("eager PyTorch FP32",): 6.0,
    ("eager PyTorch FP16, channels last",): 1.5,
    ("torch.compile FP16, channels last", "torch.compile FP16, channels last, CUDA graph"): 1.2,
}
#: And the share of eager FP32's peak memory that it may need.
MOST_MEMORY = 0.45


def goals(benches: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The goals, each with what was found at every size; our best FP16 path is the fastest of our rows that passes."""
    judged = []
    for bench_facts in benches:
        size = format_shape(bench_facts["shape"])
        rows = {row["name"]: row for row in bench_facts["rows"]}
        ours = [
            row for row in rows.values()
            if row["network"] == "ours" and row["precision"] == "fp16" and agrees(row) and not row["flag"]
        ]  # fmt: skip
        best = min(ours, key=lambda row: row["median_seconds"], default=None)
        for names, times in GOALS.items():
            # Each against the reference of its own rounds, which need not be the same ones.
            others = [rows[name]["speedup"] for name in names if name in rows]
            gain = best["speedup"] / max(others) if best and others else None
            judged.append(_judged(f"{size}: {times}x {names[0]}", gain, "x", gain is not None and gain >= times))
        share = best["share_of_peak_memory"] if best else None
        text = f"{size}: at most {MOST_MEMORY:.0%} of eager FP32's peak memory"
        judged.append(_judged(text, share, "", share is not None and share <= MOST_MEMORY))
    return judged


def _judged(goal: str, found: float | None, unit: str, reached: bool) -> dict[str, Any]:
    return {"goal": goal, "found": None if found is None else f"{found:.2f}{unit}", "reached": reached}
