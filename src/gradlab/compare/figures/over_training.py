"""A figure of each layer over training, a panel each layer: what several figures share."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from gradlab.compare.figures.bands import (
    Band,
    Shown,
    draw_band,
    fit_height,
    layer_of,
    over_runs,
    rows_of,
)
from gradlab.compare.figures.over_lag import label_layers
from gradlab.compare.figures.style import Page, add_keys, level, new_page
from gradlab.compare.groups import Group

if TYPE_CHECKING:
    from matplotlib.axes import Axes

STEP = "training step"


def page_over_training(
    shown: Shown, name: str, label: str, *, reference: float = math.nan, logs: bool = False
) -> Page | None:
    """A variable of each layer over training step.

    Args:
      shown: what to draw.
      name: of the variable.
      label: of the vertical axis, with the unit.
      reference: where to draw a dotted line; NaN for nowhere.
      logs: whether mean and interval are of the logarithm, on a logarithmic axis.
    """
    mean = "geometric_mean" if logs else "mean"
    rows: list[list[Any]] = [shown.header("layer", "step", mean, "low", "high", "runs")]
    figure, grid = new_page(max(1, len(shown.layers)), sharey=True)
    axes_of, bands = list(grid[0]), []
    for axes, layer in zip(axes_of, shown.layers, strict=False):
        for group, look in zip(shown.groups, shown.looks.of, strict=True):
            found = series_band(group, name, layer, logs=logs)
            if found is not None:
                draw_band(axes, found, look, shade=shown.looks.few, power=logs)
                bands.append(found)
                rows += rows_of([*shown.told(group), layer], in_full(found) if logs else found)
        if math.isfinite(reference):
            level(axes, reference)
        axes.set_xlabel(STEP)
        axes.margins(x=0)
    if not bands:
        return None
    if logs:
        set_log(axes_of, bands, [reference])
    else:
        fit_height(axes_of, bands, [reference])
    axes_of[0].set_ylabel(label)
    label_layers(shown, axes_of)
    add_keys(figure, axes_of, shown.looks)
    return Page(figure, rows)


def series_band(group: Group, name: str, layer: str | None, *, logs: bool) -> Band | None:
    """A series of a group over training step; of log10 of the positive values if ``logs``."""

    def line(run: Any) -> tuple[np.ndarray, np.ndarray] | None:
        series = run.series(name)
        if series is None:
            return None
        values = series.values[:, 0] if layer is None else layer_of(run, layer, series.values)
        if values is None:
            return None
        if logs:
            values = np.log10(np.where(values > 0, values, np.nan))
        return series.steps, np.where(np.isfinite(values), values, np.nan)

    return over_runs(group, line)


def in_full(found: Band) -> Band:
    """Ten to the power of a band of logarithms."""
    low, mean, high = (np.power(10.0, v) for v in (found.low, found.mean, found.high))
    return Band(found.x, mean, low, high, found.n)


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
