"""Whether two samples differ: the difference of their means, with a 95 % interval."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from gradlab.compare.table import LEVEL, Estimate, estimate


class Difference(NamedTuple):
    """A difference of means.

    Attributes:
      value: the difference.
      low, high: ends of its interval; NaN where a sample has fewer than two values.
    """

    value: float
    low: float
    high: float

    @property
    def has_interval(self) -> bool:
        """Whether there were seeds enough for one."""
        return math.isfinite(self.low)

    @property
    def is_certain(self) -> bool:
        """Whether the interval leaves 0 out."""
        return self.has_interval and (self.low > 0 or self.high < 0)


Strata = Sequence[tuple[Sequence[float], Sequence[float]]]
"""Pairs of samples that differ in what is asked about alone; all values finite."""


def difference(strata: Strata) -> Difference:
    """First minus second, averaged over the strata with equal weights.

    With one stratum this is Welch's t interval (1947). With several, variances of the means add up
    and the degrees of freedom are Satterthwaite's, so that what differs between strata is no part
    of the interval.
    """
    from scipy.special import stdtrit

    samples = [np.asarray(sample, float) for pair in strata for sample in pair]
    means = [float(sample.mean()) for sample in samples]
    count = len(samples) // 2
    value = sum(means[0::2]) / count - sum(means[1::2]) / count
    if min(map(len, samples)) < 2:
        return Difference(value, math.nan, math.nan)
    parts = [float(sample.var(ddof=1)) / len(sample) / count**2 for sample in samples]
    variance = sum(parts)
    if variance == 0:
        return Difference(value, value, value)
    freedom = variance**2 / sum(
        one**2 / (len(sample) - 1) for one, sample in zip(parts, samples, strict=True)
    )
    half = float(stdtrit(freedom, (1 + LEVEL) / 2)) * math.sqrt(variance)
    return Difference(value, value - half, value + half)


def paired(strata: Strata) -> Difference:
    """The same where strata are single pairs: the t interval of their differences."""
    found = estimate(float(np.mean(a)) - float(np.mean(b)) for a, b in strata)
    return Difference(found.mean, found.mean - found.half, found.mean + found.half)


def mean(strata: Sequence[Sequence[float]]) -> Estimate:
    """Mean over strata with equal weights; its interval is of the spread within them alone.

    With one stratum this is :func:`gradlab.compare.table.estimate`.
    """
    if not strata:
        return estimate([])
    found = [estimate(sample) for sample in strata]
    n = sum(one.n for one in found)
    if len(strata) == 1:
        return found[0]
    paired = difference([(sample, [0.0] * max(2, len(sample))) for sample in strata])
    return Estimate(paired.value, paired.high - paired.value, n)


def rank_correlation(x: Sequence[float], y: Sequence[float]) -> tuple[float, float, float]:
    """Spearman's ρ and its 95 % interval by Fisher's z (Bonett & Wright 2000).

    NaN with fewer than four pairs, or where one side is constant.
    """
    from scipy.special import ndtri
    from scipy.stats import rankdata

    a, b = rankdata(x), rankdata(y)
    if len(a) < 4 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return math.nan, math.nan, math.nan
    rho = float(np.corrcoef(a, b)[0, 1])
    z = math.atanh(min(max(rho, -1 + 1e-12), 1 - 1e-12))
    half = float(ndtri((1 + LEVEL) / 2)) * math.sqrt((1 + rho**2 / 2) / (len(a) - 3))
    return rho, math.tanh(z - half), math.tanh(z + half)
