"""Numbers as the report writes them: three digits that count, a unit, and words where there is no number."""

from __future__ import annotations

import math
from dataclasses import dataclass

NOT_MEASURED = "not measured"


def number(value: object) -> float | None:
    """A JSON value as a number; None for null, for NaN and infinity, and for what is no number."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return float(value)


def significant(value: float, digits: int = 3) -> str:
    """`1,334`, `4.05`, `0.882`, `2.1e-06`: as many digits as count, thousands apart, never fewer before the point."""
    rounded = float(f"{value:.{digits - 1}e}")
    if rounded == 0:
        return "0"
    magnitude = math.floor(math.log10(abs(rounded)))
    if magnitude < -4:
        return f"{rounded:.1e}"
    # From the value itself: where all digits are before the point, none of them is rounded away.
    return f"{value:,.{max(0, digits - 1 - magnitude)}f}"


def figure(value: object) -> str:
    """The number as it is, for what has no unit or has it in its heading."""
    found = number(value)
    return NOT_MEASURED if found is None else significant(found)


@dataclass(frozen=True)
class Unit:
    """A unit's name, and how many of it are in one second, byte or whatever the JSON counts."""

    name: str
    factor: float

    def bare(self, value: object) -> str:
        """The number alone, for a table whose heading names the unit."""
        found = number(value)
        return figure(None if found is None else found * self.factor)

    def text(self, value: object) -> str:
        """The number with its unit."""
        return NOT_MEASURED if number(value) is None else f"{self.bare(value)} {self.name}"


SECONDS = Unit("s", 1)
MILLISECONDS = Unit("ms", 1e3)
#: 10^6 bytes, as everywhere in this toolkit.
MEGABYTES = Unit("MB", 1e-6)
MILLIONS = Unit("million", 1e-6)
BILLIONS = Unit("billion", 1e-9)


def time_unit(longest: float | None) -> Unit:
    """One unit for all times that are compared, so that no eye has to convert."""
    return MILLISECONDS if longest is not None and longest < 1 else SECONDS


def percent(share: object) -> str:
    """0.218 as `22 %`, and one digit more below 10 %."""
    found = number(share)
    if found is None:
        return NOT_MEASURED
    return f"{100 * found:,.0f} %" if found >= 0.0995 or found == 0 else f"{100 * found:.1f} %"


def equal_labels(share: object) -> str:
    """0.999997 as `99.9997 %`; rounded down, so that 100 % means that every label is equal."""
    found = number(share)
    if found is None:
        return NOT_MEASURED
    return f"{math.floor(found * 1e6) / 1e4:.6g} %"


def scientific(value: object) -> str:
    """`7.2e-07`; an error of zero is `0`."""
    found = number(value)
    if found is None:
        return NOT_MEASURED
    return f"{found:.1e}" if found else "0"
