"""Means, differences and rates, with their 95 % intervals."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

LEVEL = 0.95
"""Of the intervals."""


ROUNDING = 1e-6
"""Values that differ by less, as a share of the largest, are equal but for rounding (float32)."""
UNBOUNDED = (-math.inf, math.inf)
SHARES = ("accuracy", "clip_rate", "adjoint_line_r2")
POSITIVE = ("loss", "grad_norm", "steps_per_second", "probe_overhead")
UP_TO_T = ("memory_horizon",)


class Estimate(NamedTuple):
    """A mean over runs, and what is said of its uncertainty.

    Attributes:
      mean: over the finite values; NaN without any.
      low, high: ends of the 95 % interval of the mean; NaN with fewer than two values, and both the
        mean where all values are equal but for rounding.
      n: how many values there were.
      is_range: whether ``low`` and ``high`` are the least and the greatest value instead.
    """

    mean: float
    low: float
    high: float
    n: int
    is_range: bool = False

    @property
    def half(self) -> float:
        """Half the width of the interval; NaN without one."""
        return math.nan if self.is_range or self.is_same else (self.high - self.low) / 2

    @property
    def is_same(self) -> bool:
        """Whether all values, two at least, are equal but for rounding."""
        return self.low == self.high


class Estimates(NamedTuple):
    """:class:`Estimate` at each of N points; ``is_range`` is of all of them."""

    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray
    n: np.ndarray
    is_range: bool


def estimates(table: np.ndarray, bounds: tuple[float, float] = UNBOUNDED) -> Estimates:
    """Means over runs at several points, each with its 95 % interval by Student's t.

    The one rule of all tables, bands and words: fewer than two values have no interval, nor have
    values that are equal but for rounding. Where an interval would leave ``bounds``, at any of the
    points, the lowest and highest value over runs stand in its place, at all of them. Bounds that a
    value itself leaves are none.

    Args:
      table: ``(R, N)``, R runs at N points; NaN is no value, and a mean with an infinity is that.
      bounds: what the figure cannot be below or above; see :func:`bounds_of`.
    """
    n = (~np.isnan(table)).sum(0)
    finite = np.isfinite(table)
    known = np.where(finite, table, 0.0)
    with np.errstate(invalid="ignore"):
        mean = known.sum(0) / n
    squares = np.where(finite, np.square(known - mean), 0.0).sum(0)
    least = np.min(table, 0, where=finite, initial=np.inf)
    most = np.max(table, 0, where=finite, initial=-np.inf)
    several = (n > 1) & (finite.sum(0) == n)
    freedom = np.maximum(n - 1, 1)
    half = students_t(freedom) * np.sqrt(squares / freedom / np.maximum(n, 1))
    half = np.where(several, np.where(are_same(least, most), 0.0, half), np.nan)
    mean = np.where(np.isneginf(table).any(0), -np.inf, mean)
    mean = np.where(np.isposinf(table).any(0), np.inf, mean)
    low, high = mean - half, mean + half
    is_range = _leaves(bounds, low, high) and not _leaves(bounds, least[several], most[several])
    if is_range:
        low, high = (np.where(half > 0, end, mean + half) for end in (least, most))
    return Estimates(mean, low, high, n, is_range)


def _leaves(bounds: tuple[float, float], low: Any, high: Any) -> bool:
    return bool(np.any(low < bounds[0]) or np.any(high > bounds[1]))


def estimate(values: Iterable[float], bounds: tuple[float, float] = UNBOUNDED) -> Estimate:
    """Mean and interval of values, those that are not finite left out; see :func:`estimates`."""
    known = [[value] for value in values if math.isfinite(value)]
    if not known:
        return Estimate(math.nan, math.nan, math.nan, 0)
    mean, low, high, n, is_range = estimates(np.array(known, float), bounds)
    return Estimate(float(mean[0]), float(low[0]), float(high[0]), int(n[0]), is_range)


def are_same(least: Any, most: Any) -> Any:
    """Whether values between these two are equal but for rounding."""
    return most - least <= ROUNDING * np.maximum(np.abs(least), np.abs(most))


def bounds_of(name: str, length: float = math.inf) -> tuple[float, float]:
    """What a figure cannot be below or above.

    Args:
      name: ``test/accuracy``, ``val/loss``, ``memory_horizon/layer_0``.
      length: T of the runs.
    """
    words = set(name.split("/"))
    if words & set(SHARES):
        return 0.0, 1.0
    if words & set(UP_TO_T):
        return 0.0, math.inf if math.isnan(length) else length
    return (0.0, math.inf) if words & set(POSITIVE) else UNBOUNDED


class Difference(NamedTuple):
    """A difference of means.

    Attributes:
      value: the difference.
      low, high: ends of its interval; NaN where a sample has fewer than two values, both ``value``
        where the values of each are equal but for rounding.
    """

    value: float
    low: float
    high: float

    @property
    def has_interval(self) -> bool:
        """Whether there is one: seeds enough, that do not all give the same."""
        return self.low < self.high

    @property
    def is_certain(self) -> bool:
        """Whether the interval leaves 0 out."""
        return self.low > 0 or self.high < 0


def difference(first: Sequence[float], second: Sequence[float]) -> Difference:
    """The mean of the first minus that of the second, with Welch's t interval (1947).

    Values are finite and independent: one a seed.
    """
    samples = [np.asarray(sample, float) for sample in (first, second)]
    means = [float(sample.mean()) for sample in samples]
    value = means[0] - means[1]
    if min(map(len, samples)) < 2:
        return Difference(value, math.nan, math.nan)
    parts = [
        0.0 if _same(sample) else float(sample.var(ddof=1)) / len(sample) for sample in samples
    ]
    variance = sum(parts)
    if variance == 0:
        value = 0.0 if abs(value) <= ROUNDING * max(map(abs, means)) else value
        return Difference(value, value, value)
    freedom = variance**2 / sum(
        one**2 / (len(sample) - 1) for one, sample in zip(parts, samples, strict=True)
    )
    half = float(students_t(freedom)) * math.sqrt(variance)
    return Difference(value, value - half, value + half)


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


def _same(values: np.ndarray) -> bool:
    return bool(are_same(values.min(), values.max()))


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
