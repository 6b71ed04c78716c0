"""How exponential a decay is, and how fast."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np


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
    from scipy.special import stdtrit

    known = np.isfinite(log10)
    x, y = np.asarray(lags, float)[known], np.asarray(log10, float)[known] * math.log(10)
    n = len(x)
    if n < 3 or x.min() == x.max():
        return Decay(math.nan, math.nan, math.nan, n)
    dx, dy = x - x.mean(), y - y.mean()
    rate = float(dx @ dy / (dx @ dx))
    left, whole = float(((dy - rate * dx) ** 2).sum()), float(dy @ dy)
    half = float(stdtrit(n - 2, 0.975)) * math.sqrt(left / (n - 2) / float(dx @ dx))
    return Decay(rate, half, 1 - left / whole if whole else 1.0, n)
