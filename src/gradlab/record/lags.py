"""What a record says over the lag, also one made before it kept anything by lag."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from gradlab.variable import over_lag_name

FORGET, RESIDUAL = "forget_path_log10", "residual_path_log10"
"""The two parts of ∂c_T/∂c_t: through the gate alone, and the rest."""


def values_by_lag(measured: Mapping[Any, Any], name: str) -> np.ndarray:
    """The variable ``name`` with the lag, ascending from 0, as its last axis.

    Its twin ``_over_lag``, counted from each example's own last real step. Where that was not
    measured, as in older records and in the first rows of one that was resumed, the variable over
    ``t`` from the end of the padded sequence.

    Args:
      measured: arrays by name, a row's or a dataset's; ``name`` itself has ``t`` as its last axis.
    """
    twin = over_lag_name(name)
    if twin not in measured:
        return np.asarray(measured[name])[..., ::-1]
    values = np.asarray(measured[twin])
    if name not in measured or not np.isnan(values[..., :1]).any():
        return values
    absent = np.isnan(values).all(-1, keepdims=True)
    return np.where(absent, np.asarray(measured[name])[..., ::-1], values)


class Share(NamedTuple):
    """What part of the gradient's way back goes through the recurrent weights.

    Attributes:
      lag: the longest at which both paths were measured and one of them is not zero.
      rest: R²/(F² + R²) there, F and R the Frobenius norms of forget and residual path: of the
        squared norms of the two, 0 … 1.
    """

    lag: int
    rest: float

    @property
    def percent(self) -> str:
        """As ``83 %``."""
        part = 100 * self.rest
        if 0 < part < 0.1:
            return "less than 0.1 %"
        return "more than 99.9 %" if 99.9 < part < 100 else f"{part:.3g} %"


def share_of_rest(forget: np.ndarray, residual: np.ndarray) -> Share | None:
    """The share of the residual path, by log10 of the norms of both over lag, ``(T,)`` each.

    None where they were measured at no lag but 0, or nothing comes through either.
    """
    lags = np.flatnonzero(np.isfinite(np.maximum(forget, residual)))  # nan where one of them is
    if not lags.size or lags[-1] == 0:
        return None
    lag = int(lags[-1])
    with np.errstate(over="ignore"):
        return Share(lag, float(1 / (1 + 10 ** (2.0 * np.float64(forget[lag] - residual[lag])))))
