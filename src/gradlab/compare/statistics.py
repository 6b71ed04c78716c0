"""Means, differences and rates, with their 95 % intervals."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

LEVEL = 0.95
"""Of the intervals."""


class Estimate(NamedTuple):
    """A mean over runs.

    Attributes:
      mean: over the finite values; NaN without any.
      half: half the width of the 95 % interval; NaN with fewer than two values.
      n: how many values there were.
    """

    mean: float
    half: float
    n: int


def estimate(values: Iterable[float]) -> Estimate:
    """Mean and interval of values, those that are not finite left out."""
    array = np.array([value for value in values if math.isfinite(value)], float)
    n = len(array)
    if n < 2:
        return Estimate(float(array[0]) if n else math.nan, math.nan, n)
    spread = float(array.std(ddof=1)) / math.sqrt(n)
    return Estimate(float(array.mean()), float(students_t(n - 1)) * spread, n)


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
    half = float(students_t(freedom)) * math.sqrt(variance)
    return Difference(value, value - half, value + half)


def paired(strata: Strata) -> Difference:
    """The same where strata are single pairs: the t interval of their differences."""
    found = estimate(float(np.mean(a)) - float(np.mean(b)) for a, b in strata)
    return Difference(found.mean, found.mean - found.half, found.mean + found.half)


def mean(strata: Sequence[Sequence[float]]) -> Estimate:
    """Mean over strata with equal weights; its interval is of the spread within them alone.

    With one stratum this is :func:`estimate`.
    """
    if len(strata) < 2:
        return estimate(value for sample in strata for value in sample)
    n = sum(estimate(sample).n for sample in strata)
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


class Decay(NamedTuple):
    """The straight line through ln y over the lag, by least squares.

    Attributes:
      rate: its slope in nats per step; below 0 y falls with the lag, by ``exp(rate)`` a step.
      half: half the width of the 95 % interval of ``rate`` (Student's t, as if the deviations from
        the line were independent; those of a smooth curve are not, so it is too narrow for one).
      r2: share of the variance of ln y that the line explains, 0 … 1; 1 is an exponential.
      n: points that were fitted.
    """

    rate: float
    half: float
    r2: float
    n: int


def decay(lags: np.ndarray, log10: np.ndarray) -> Decay:
    """Fit ``y = y_0 exp(rate · lag)``; points that are not finite are left out.

    Args:
      lags: ``(T,)`` timesteps.
      log10: ``(T,)``, log10 of y.
    """
    known = np.isfinite(log10)
    x, y = np.asarray(lags, float)[known], np.asarray(log10, float)[known] * math.log(10)
    n = len(x)
    if n < 3 or x.min() == x.max():
        return Decay(math.nan, math.nan, math.nan, n)
    dx, dy = x - x.mean(), y - y.mean()
    rate = float(dx @ dy / (dx @ dx))
    left, whole = float(((dy - rate * dx) ** 2).sum()), float(dy @ dy)
    half = float(students_t(n - 2)) * math.sqrt(left / (n - 2) / float(dx @ dx))
    return Decay(rate, half, 1 - left / whole if whole else 1.0, n)


def students_t(freedom: Any) -> Any:
    """Half the width of an interval in standard errors, for degrees of freedom."""
    from scipy.special import stdtrit

    return stdtrit(freedom, (1 + LEVEL) / 2)
