"""What a graph computes, as data: which head of the network, and what of it."""

from dataclasses import dataclass

from lhanet_export.errors import RefusedInput

HEADS = ("final", "deep0", "deep1", "deep2", "deep3")
OUTPUTS = ("logits", "labels", "probabilities", "coarse")


@dataclass(frozen=True, kw_only=True)
class Target:
    """What a graph computes: which head, and what of it.

    `logits` (N,K,D,H,W), `probabilities` (their softmax), `labels` (N,D,H,W, uint8), or `coarse`:
    the logits on the head's own grid, before the last resize.
    """

    head: str = "final"
    output: str = "logits"

    def __post_init__(self) -> None:
        if self.head not in HEADS:
            raise RefusedInput(f"there is no head '{self.head}'; heads: {', '.join(HEADS)}")
        if self.output not in OUTPUTS:
            raise RefusedInput(f"there is no output '{self.output}'; outputs: {', '.join(OUTPUTS)}")

    @property
    def levels(self) -> int:
        """How many levels, counted from the finest, the head reads."""
        return 4 if self.head == "final" else int(self.head.removeprefix("deep")) + 1
