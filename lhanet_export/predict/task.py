"""What is to be segmented and how, and what became of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lhanet_export.conventions import Preprocessing
from lhanet_export.errors import LhanetExportError


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """How scans are segmented, besides by which network.

    `preprocessing` holds the patch, the overlap and the blending, too. `batch` windows are given to the runner at a
    time, the last ones of a row more than once; fewer where a GPU has no room for them, unless it is a `fixed_batch`.
    `mirrored` are the axes (0, 1, 2 for D, H, W) along which windows are also shown mirrored, in all combinations, and
    the scores averaged. `organs` are the classes that are kept, None for all; `largest` keeps only the largest piece of
    each. `logits` says whether the runner gives logits; probabilities, if not.
    """

    preprocessing: Preprocessing = field(default_factory=Preprocessing)
    batch: int = 1
    fixed_batch: bool = False
    mirrored: tuple[int, ...] = ()
    organs: frozenset[int] | None = None
    largest: bool = False
    logits: bool = True
    assume_hu: bool = False


@dataclass(frozen=True, kw_only=True)
class Task:
    """A scan and the files that are made of it: labels, and on request a folder of probabilities and a picture."""

    scan: Path
    target: Path
    probabilities: Path | None = None
    picture: Path | None = None


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of a task: facts about the segmentation, or why there is none."""

    task: Task
    facts: dict[str, Any] = field(default_factory=dict)
    error: LhanetExportError | None = None

    def as_json(self) -> dict[str, Any]:
        """The same facts as JSON values."""
        files = {"scan": str(self.task.scan), "target": str(self.task.target)}
        return files | ({"error": str(self.error)} if self.error else self.facts)
