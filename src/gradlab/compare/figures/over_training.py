"""Over training step: losses and accuracy of the whole model, figures of each layer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from gradlab.compare.figures.bands import (
    Band,
    Shown,
    baseline_of,
    draw_bands,
    fit_height,
    layer_of,
    over_runs,
    rows_of,
    units_of,
)
from gradlab.compare.figures.style import DOTTED, Page, add_keys, level, new_page
from gradlab.compare.groups import Group, counted, only
from gradlab.compare.recorded import HORIZON, LOST, PER_100, SLOPE
from gradlab.compare.statistics import bounds_of
from gradlab.record.figures import common

if TYPE_CHECKING:
    from matplotlib.axes import Axes

STEP = "training step"
WIDE = 8.0
"""Losses that differ by more than this factor get a logarithmic axis, and geometric means."""


def loss(shown: Shown) -> Page | None:
    """What the runs learn: training and validation loss, with the baseline."""
    names = {"train/loss": "training", "val/loss": "validation"}
    return _of_the_model(shown, names, "loss", logs=_is_wide(shown, list(names)))


def metric(shown: Shown) -> Page | None:
    """How often the runs are right: accuracy with the baseline, where the task has one."""
    names = {"train/accuracy": "training", "val/accuracy": "validation"}
    return _of_the_model(shown, names, "accuracy", logs=False)


def decades(shown: Shown) -> Page | None:
    """How far the gradient falls from lag 0 to the longest, in powers of ten; 0 dotted."""
    return _of_each_layer(shown, LOST, "decades lost over the sequence", 0.0)


def rate(shown: Shown) -> Page | None:
    """How fast the gradient falls, by the straight line over the lag; 0 dotted."""
    return _of_each_layer(shown, PER_100, "decades lost per 100 steps", 0.0)


def horizon(shown: Shown) -> Page | None:
    """The lag at which the gradient has first fallen by e; T dotted."""
    runs = (run for group in shown.groups for run in counted(group.runs))
    T = only((run.entry.length for run in runs), math.nan)
    return _of_each_layer(shown, HORIZON, "memory horizon (timesteps)", T, logs=True)


def slope(shown: Shown) -> Page | None:
    """How fast the gradient vanishes or explodes: its logarithm's slope over lag; 0 dotted."""
    return _of_each_layer(shown, SLOPE, "adjoint slope (nats per step)", 0.0)


def lyapunov(shown: Shown) -> Page | None:
    """Whether small changes of the state grow: the largest Lyapunov exponent; 0 dotted."""
    return _of_each_layer(shown, "lyapunov_exponent", "λ₁ (nats per step)", 0.0)


def _of_the_model(
    shown: Shown, names: Mapping[str, str], figure: str, *, logs: bool
) -> Page | None:
    """Scalars of the whole model, each in its panel, with the baseline."""
    found = {
        name: [series_band(group, name, None, logs=logs) for group in shown.groups]
        for name in names
    }
    found = {name: bands for name, bands in found.items() if any(b is not None for b in bands)}
    levels = {name: baseline_of(shown.runs, f"{name.partition('/')[0]}/{figure}") for name in found}
    label = _label(shown, list(found), names, figure) if found else ""
    return _page(shown, "variable", found, names, label, levels, "baseline", logs=logs)


def _of_each_layer(
    shown: Shown, name: str, label: str, reference: float, *, logs: bool = False
) -> Page | None:
    """A variable in a panel for each layer, with a dotted line at ``reference``."""
    found = {
        layer: [series_band(group, name, layer, logs=logs) for group in shown.groups]
        for layer in shown.layers
    }
    titles = {layer: f"layer {layer}" for layer in found}
    levels = dict.fromkeys(found, reference)
    return _page(shown, "layer", found, titles, label, levels, "", logs=logs)


def _page(
    shown: Shown,
    column: str,
    panels: Mapping[str, Sequence[Band | None]],
    titles: Mapping[str, str],
    label: str,
    levels: Mapping[str, float],
    key: str,
    *,
    logs: bool,
) -> Page | None:
    """A panel for each entry of ``panels``; None without any band.

    Args:
      shown: what is drawn.
      column: of the file: what a panel is of.
      panels: a band for each group, or None, by that.
      titles: of the panels, where there are several.
      label: of the vertical axis, with the unit.
      levels: where a panel has a dotted line; NaN for nowhere.
      key: of these lines in the legend; empty for none.
      logs: whether the bands are of log10, on a logarithmic axis.
    """
    drawn = [one for bands in panels.values() for one in bands if one is not None]
    if not drawn:
        return None
    mean = "geometric_mean" if logs else "mean"
    columns = (column, "step", mean, "low", "high", "runs", "low_high")
    rows: list[list[Any]] = [shown.header(*columns)]
    figure, grid = new_page(len(panels), sharey=True)
    axes_of = list(grid[0])
    lines = {n: v for n, v in levels.items() if math.isfinite(v) and (v > 0 or not logs)}
    for axes, (name, bands) in zip(axes_of, panels.items(), strict=True):
        for group, _, one in draw_bands(shown, axes, bands, power=logs):
            found = rows_of([*shown.told(group), name], in_full(one) if logs else one)
            rows += [[*row, one.kind] for row in found]
        axes.set_xlabel(STEP)
        if name in lines:
            level(axes, lines[name])
        if len(panels) > 1:
            axes.set_title(titles[name])
    if logs:
        set_log(axes_of, drawn, list(lines.values()))
    else:
        fit_height(axes_of, drawn, list(lines.values()))
    axes_of[0].set_ylabel(label)
    keys = [common.key(key, linestyle=DOTTED, linewidth=0.9)] if key and lines else []
    add_keys(figure, axes_of, shown.looks, keys)
    return Page(figure, rows)


def _label(shown: Shown, found: list[str], names: Mapping[str, str], figure: str) -> str:
    unit = only((units_of(shown.runs, name) for name in found), "")
    which = f"{names[found[0]]} " if len(found) == 1 else ""
    return f"{which}{figure}" + (f" ({unit})" if unit not in ("", "1") else "")


def _is_wide(shown: Shown, names: list[str]) -> bool:
    values = [
        series.values.ravel()
        for run in shown.runs
        for name in names
        if (series := run.series(name)) is not None
    ]
    every = np.concatenate(values) if values else np.array([])
    every = every[np.isfinite(every)]
    return bool(every.size and every.min() > 0 and every.max() > WIDE * every.min())


def series_band(group: Group, name: str, layer: str | None, *, logs: bool) -> Band | None:
    """A series of a group over training step; of log10 of the positive values if ``logs``."""

    def line(run: Any) -> tuple[np.ndarray, np.ndarray] | None:
        series = run.series(name)
        if layer is not None:
            series = layer_of(run, layer, series)
        if series is None:
            return None
        values = series.values if layer is not None else series.values[:, 0]
        if logs:
            values = np.log10(np.where(values > 0, values, np.nan))
        return series.steps, np.where(np.isfinite(values), values, np.nan)

    longest = max((run.entry.length for run in counted(group.runs)), default=math.nan)
    least, most = bounds_of(name, longest)
    if logs:
        least, most = (math.log10(end) if end > 0 else -math.inf for end in (least, most))
    return over_runs(group, line, (least, most))


def in_full(found: Band) -> Band:
    """Ten to the power of a band of logarithms."""
    low, mean, high = (np.power(10.0, v) for v in (found.low, found.mean, found.high))
    return found._replace(mean=mean, low=low, high=high)


def set_log(axes_of: list[Axes], bands: list[Band], also: list[float]) -> None:
    """A logarithmic axis with plain numbers, named also where there is no whole decade."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    for axes in axes_of:
        axes.set_yscale("log")
    fit_height(axes_of, bands, also, power=True)
    low, high = axes_of[0].get_ylim()
    decades = np.log10(high / low)
    subs = range(1, 10) if decades < 0.8 else (1, 2, 5) if decades < 2.5 else (1,)
    for axes in axes_of:
        axes.yaxis.set_major_locator(LogLocator(subs=subs, numticks=12))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
