"""Random numbers that decide an anatomy: the same from the same seed on every machine."""

import numpy as np

from lhanet_export.errors import RefusedInput


class Draws:
    """A sequence of draws; only NumPy's raw doubles are used, the rest is arithmetic of Python floats."""

    def __init__(self, seed: int, purpose: int) -> None:
        if seed < 0:
            raise RefusedInput(f"seed {seed} is negative; name one of 0 or more")
        self._generator = np.random.default_rng([seed, purpose])

    def between(self, low: float, high: float) -> float:
        """A number in [low, high)."""
        return low + (high - low) * float(self._generator.random())

    def around(self, middle: float, reach: float) -> float:
        """A number at most `reach` from `middle`, more often near it."""
        return middle + reach * (float(self._generator.random()) + float(self._generator.random()) - 1)

    def chance(self, share: float) -> bool:
        """True in this share of draws."""
        return float(self._generator.random()) < share
