"""A statement and what was measured of it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from gradlab.compare.statistics import Estimate


@dataclass(frozen=True)
class Finding:
    """A statement, whether it held, and the figures that say so.

    Attributes:
      statement: one sentence, as the lecture makes it.
      held: whether the measurement agrees.
      measured: the figures, with their units and, over seeds, their 95 % interval.
    """

    statement: str
    held: bool
    measured: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "held", bool(self.held))  # numpy's own is no JSON

    @property
    def verdict(self) -> str:
        """``held`` or ``did not hold``."""
        return "held" if self.held else "did not hold"


def number(value: float) -> str:
    """Three digits that count; those of a whole number all."""
    if not math.isfinite(value):
        return {math.inf: "infinite", -math.inf: "-infinite"}.get(value, "not a number")
    if float(value).is_integer() and abs(value) < 1e6:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def power(log10: float) -> str:
    """A number by its log10, which no float need hold: ``10^-12.3``; one near 1 as itself."""
    if math.isnan(log10):
        return "not a number"
    if math.isinf(log10):
        return "infinite" if log10 > 0 else "0"
    return number(10**log10) if abs(log10) < 3 else f"10^{log10:.1f}"


def spread(found: Estimate, unit: str = "") -> str:
    """``-0.31 ± 0.02 nats per step``: mean and half the 95 % interval over seeds, or what is said.

    See :func:`gradlab.compare.statistics.estimates` for where there is none.
    """
    after = f" {unit}" if unit else ""
    text = f"{number(found.mean)}{after}"
    if found.n < 2:
        return f"{text} (one seed)" if found.n else "not measured"
    if found.is_same:
        return f"{text} (identical in {found.n} seeds)"
    if found.is_range:
        return f"{text} (range {number(found.low)} to {number(found.high)})"
    return f"{number(found.mean)} ± {number(found.half)}{after}"
