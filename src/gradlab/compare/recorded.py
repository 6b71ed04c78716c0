"""What a run recorded, as arrays by training step and lag."""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple, TypeVar

import numpy as np
import xarray

from gradlab.compare.progress import Progress
from gradlab.compare.runs import Entry
from gradlab.compare.statistics import decay
from gradlab.errors import BadInput, first_line
from gradlab.record.figures.common import measured, spread
from gradlab.record.lags import values_by_lag
from gradlab.record.reader import Run, open_run
from gradlab.variable import over_lag_name

ADJOINT = "adj_h_log10"
CURVES = {
    ADJOINT: "adjoint ∂ℓ/∂h",
    "adj_c_log10": "adjoint ∂ℓ/∂c",
    "forget_product_rms_log10": "forget product, root mean square over units",
    "forget_product_log10": "forget product, typical unit",
    "forget_path_log10": "forget path",
    "residual_path_log10": "residual path",
    "whole_path_log10": "true ∂c_T/∂c_t",
    "long_jacobian_log10": "long-term Jacobian",
    "pascanu_bound_log10": "Pascanu's bound",
}
"""Variables over lag that are compared, in words, by their names over ``t``; as log10.

All are norms, or stand beside norms, but for the typical unit: a mean over units of logarithms.
"""
LOST, PER_100, R2, SLOPE, HORIZON = (
    "decades_lost",
    "decades_per_100",
    "adjoint_line_r2",
    "adjoint_slope",
    "memory_horizon",
)
SERIES = {
    LOST: "decades lost over the sequence",
    PER_100: "decades lost per 100 steps",
    R2: "R² of the line over the lag",
    SLOPE: "adjoint slope (nats per step)",
    HORIZON: "memory horizon (steps to 1/e)",
    "lyapunov_exponent": "λ₁ (nats per step)",
}
"""Figures of each layer over training that are compared, in words."""
SOURCES = {PER_100: (SLOPE, ADJOINT), LOST: (ADJOINT,), R2: (ADJOINT,)}
"""What decades are computed from in a run that recorded none."""
_EMPTY = xarray.Dataset()
T = TypeVar("T")


class Curve(NamedTuple):
    """A variable over training step and lag.

    Attributes:
      steps: training steps at which it was measured, ascending, ``(S,)``.
      lags: timesteps back from the end, ascending, ``(T,)``.
      values: ``(S, L, T)``, L layers, float32; -inf is an exact zero, NaN "no such value".
    """

    steps: np.ndarray
    lags: np.ndarray
    values: np.ndarray


class Series(NamedTuple):
    """A figure over training steps.

    Attributes:
      steps: training steps at which it was measured, ascending, ``(S,)``.
      values: ``(S, L)``, L layers, or L = 1 for one of the whole model; float64.
    """

    steps: np.ndarray
    values: np.ndarray


@dataclass(frozen=True)
class Recorded:
    """A run with its arrays, read from disk when they are asked for.

    Attributes:
      entry: the run.
      run: None if it has no arrays that can be read.
      damage: what of it cannot be read, and why; empty if all can.
      unread: whether its arrays were left alone, since there are many runs; ``run`` is None then.
      lost: what could not be read when it was asked for, and why.
    """

    entry: Entry
    run: Run | None
    damage: str = ""
    unread: bool = False
    lost: list[str] = field(default_factory=list)

    @property
    def trouble(self) -> str:
        """All that cannot be read, in words; empty if all can."""
        return "; ".join(filter(None, [self.damage, *dict.fromkeys(self.lost)]))

    @cached_property
    def layers(self) -> tuple[str, ...]:
        """Names of the layers; empty without arrays."""
        curves = self._curves
        return tuple(map(str, curves["layer"].values)) if "layer" in curves.coords else ()

    @cached_property
    def names(self) -> frozenset[str]:
        """Every variable there is."""
        return frozenset(map(str, [*self._curves.data_vars, *self._scalars.data_vars]))

    @cached_property
    def scalars(self) -> tuple[str, ...]:
        """The variables over training step alone, as ``train/loss``."""
        return tuple(map(str, self._scalars.data_vars))

    def has(self, name: str) -> bool:
        """Whether :meth:`series` may have a variable."""
        return not self.names.isdisjoint((name, *SOURCES.get(name, ())))

    def curve(self, name: str, most_steps: int = 0, most_lags: int = 0) -> Curve | None:
        """A variable of :data:`CURVES`, or None if it was never measured.

        Args:
          name: of the variable.
          most_steps: if given, at most so many training steps, evenly spread over those at which
            it was measured.
          most_lags: if given, at most so many lags, evenly spread. Values are never averaged.
        """
        return self._asked(name, lambda: self._curve(name, most_steps, most_lags))

    def _curve(self, name: str, most_steps: int, most_lags: int) -> Curve | None:
        kept = self._kept(name)
        if not kept:
            return None
        # Both, where they are: a run that an older version began has some rows over t alone.
        names = [one for one in dict.fromkeys((kept, name)) if one in self._curves]
        curves = self._curves[names].transpose("step", "layer", ...)
        steps = curves["step"].values
        rows = np.unique(np.concatenate([measured(curves, one) for one in names]))
        if not len(rows):
            return None
        if most_steps:
            rows = rows[spread(len(rows), most_steps)]
        lags = np.arange(curves[kept].shape[-1])
        if most_lags:
            lags = lags[spread(len(lags), most_lags)]
        few = len(rows) < len(steps) / 4
        values = values_by_lag(curves.isel(step=rows) if few else curves, name)
        values = values[:, :, lags] if few else values[rows][:, :, lags]
        return Curve(steps[rows], lags, values.astype(np.float32))

    def _kept(self, name: str) -> str:
        """What a curve is recorded as: by lag, or over ``t`` alone; empty for neither."""
        names = (over_lag_name(name), name)
        return next((one for one in names if one in self._curves), "")

    @property
    def longest_lag(self) -> float:
        """Of any example: by the adjoint where that was read, else as of one of full length."""
        curve = self.curve(ADJOINT, most_steps=2)
        if curve is None:
            return self.entry.length - 1
        return float(curve.lags[~np.isnan(curve.values[-1, 0])].max(initial=0))

    @property
    def rows(self) -> int:
        """How many training steps were recorded."""
        return self._scalars.sizes.get("step", 0)

    def measured(self, name: str) -> tuple[int, int, int]:
        """How many training steps (an upper limit), layers and lags a curve has; zeros without."""
        kept = self._kept(name)
        if not kept:
            return 0, 0, 0
        sizes = self._curves[kept].sizes
        return sizes["step"], sizes["layer"], sizes["t" if kept == name else "back"]

    def series(self, name: str) -> Series | None:
        """A scalar, or a variable of :data:`SERIES`, or None if it was never measured.

        Of a run that was recorded before there were decades they are computed from what it has:
        see :func:`decades_of`.
        """
        return self._asked(name, lambda: self._of_series(name))

    def _of_series(self, name: str) -> Series | None:
        if name in self._scalars:
            values = self._scalars[name].values[:, None]
        elif name in self._curves:
            found = self._curves[name]
            if "index" in found.dims:  # exponents descend: the first is the largest
                found = found.isel(index=0)
            values = found.transpose("step", "layer").values
        else:
            return decades_of(self, name)
        rows = np.flatnonzero(~np.isnan(values).all(1))
        if not len(rows):
            return None
        return Series(self._scalars["step"].values[rows], values[rows].astype(np.float64))

    def last(self, name: str) -> float:
        """The last measured value of a series, of the first layer; or NaN."""
        if name not in self._last:
            found = self.series(name)
            known = [] if found is None else found.values[~np.isnan(found.values[:, 0]), 0]
            self._last[name] = float(known[-1]) if len(known) else math.nan
        return self._last[name]

    @cached_property
    def _last(self) -> dict[str, float]:
        return {}

    def _asked(self, name: str, read: Callable[[], T]) -> T | None:
        """What is read, or None with a line in ``lost``: the other runs are to be seen."""
        try:
            return read()
        except Exception as error:  # noqa: BLE001  (whatever a folder that was sent leads to)
            self.lost.append(f"{name} cannot be read ({type(error).__name__}: {first_line(error)})")
            return None

    @cached_property
    def _curves(self) -> xarray.Dataset:
        return self.run.curves if self.run is not None else _EMPTY

    @cached_property
    def _scalars(self) -> xarray.Dataset:
        return self.run.scalars if self.run is not None else _EMPTY


def decades_of(run: Recorded, name: str) -> Series | None:
    """Decades lost, their rate or its R², for a run that recorded none; None for other names.

    The rate is the recorded slope in another unit. The others, and the rate where there is no slope
    either, are of the norm of the whole state, whose parts were recorded: the root of the sum of
    their squares, each a geometric mean over examples, so that it is exact for one example or part.
    """
    if name not in SOURCES:
        return None
    slope = run.series(SLOPE) if name == PER_100 else None
    if slope is not None:
        return slope._replace(values=-100 / math.log(10) * slope.values)
    read = [run.curve(part) for part in (ADJOINT, "adj_c_log10")]
    parts = [one for one in read if one is not None]
    if not parts:
        return None
    steps, lags, _ = parts[0]
    squares = [2 * math.log(10) * one.values.astype(float) for one in parts]
    with np.errstate(invalid="ignore"):  # nan where there is no value
        log10 = np.logaddexp.reduce(squares, axis=0) / (2 * math.log(10))
    figures: dict[str, Callable[[np.ndarray], float]] = {
        LOST: fall,
        PER_100: lambda curve: -100 / math.log(10) * decay(lags, curve).rate,
        R2: lambda curve: decay(lags, curve).r2,
    }
    return Series(steps, np.apply_along_axis(figures[name], -1, log10))


def fall(curve: np.ndarray) -> float:
    """Decades from lag 0 to the longest lag with a value, of log10 ``(T,)``; inf to an exact 0."""
    known = curve[~np.isnan(curve)]
    return float(curve[0] - known[-1]) if np.isfinite(curve[0]) else math.nan


def recorded(
    runs: Sequence[Entry],
    chosen: Container[int] | None = None,
    progress: Progress | None = None,
) -> list[Recorded]:
    """The arrays of runs. What cannot be read of one is in its ``damage``; the others are whole.

    Args:
      runs: all of them.
      chosen: positions of those whose arrays are read; None for all.
      progress: is told how far it is.
    """
    wanted = [index for index in range(len(runs)) if chosen is None or index in chosen]
    watched = progress.over(wanted, "reading arrays", len(wanted)) if progress else wanted
    read = {index: _recorded(runs[index]) for index in watched}
    return [read.get(index) or _unread(entry) for index, entry in enumerate(runs)]


def _check_dims(curves: xarray.Dataset) -> None:
    """Refuse what bears the name of a curve and is none."""
    wanted = {name: {"step", "layer", "t"} for name in CURVES}
    wanted |= {over_lag_name(name): {"step", "layer", "back"} for name in CURVES}
    wanted |= {name: {"step", "layer"} for name in SERIES}
    for name, dims in wanted.items():
        if name in curves and set(curves[name].dims) - {"index"} != dims:
            raise BadInput(name, curves[name].dims, f"{name} over {', '.join(sorted(dims))}")


def _unread(entry: Entry) -> Recorded:
    return Recorded(entry, None, "" if entry.info else entry.reason, unread=bool(entry.info))


def _recorded(entry: Entry) -> Recorded:
    if not entry.info:
        return Recorded(entry, None, entry.reason)
    try:
        run = open_run(entry.path)
        found = Recorded(entry, run, "; ".join(run.damage))
        _ = found.names  # opens the arrays
        _check_dims(run.curves)
    except BadInput as error:
        return Recorded(entry, None, f"not {error.allowed}")
    except Exception as error:  # noqa: BLE001  (one bad run never costs the page of the others)
        return Recorded(entry, None, f"{type(error).__name__}: {first_line(error)}")
    return found
