"""In how many directions does the gradient survive? The singular values of ∂s_T/∂s_t."""

from __future__ import annotations

import numpy as np
from xarray import Dataset

from gradlab.record.figures import common

QUESTION = "In how many directions does the gradient survive?"
HINT = "level = in all of them alike,  steep = in a few only"
_NAME, _CONDITION = "singular_value_log10", "condition_log10"


def figure(curves: Dataset, scalars: Dataset, info: common.Info) -> common.Figure | None:
    """log10 of the singular values over their index, a line per training step."""
    chosen = common.several_measured(curves, _NAME)
    if chosen is None:
        return None
    page = common.Page(info, QUESTION, HINT, curves.sizes["layer"])
    rank = 1 + np.arange(curves.sizes["singular"])
    ylabel, xlabel = "log10 of the singular value", "direction, strongest first"
    for row, axes in page.layers(curves, ylabel, xlabel):
        for one, style in common.each_step(chosen.isel(layer=row)):
            common.plot(axes, rank, one[_NAME].values, **style)
        axes.set_title(common.layer_title(curves, row, _condition(curves, row)), fontsize=12)
        common.mark_level(axes, 0, "as large as it was")
        common.whole_numbers(axes)
    _stretch(page.figure.axes)
    common.mark_float32(page.figure.axes)
    return page.legend()


def _condition(curves: Dataset, row: int) -> str:
    last, value = (
        common.last_measured(curves, _CONDITION),
        common.last_value(curves, _CONDITION, row),
    )
    if last is None or np.isnan(value):
        return ""
    power = f"10^{value:.1f}" if np.isfinite(value) else "infinite"
    return f"condition number {power} at step {int(last['step']):,}"


def _stretch(panels_of_one_height: list[common.Axes]) -> None:
    """Room for what survives, near 0, where other values are hundreds of decades below."""
    from matplotlib.ticker import FixedLocator, NullLocator, ScalarFormatter

    axes = panels_of_one_height[0]
    low, high = axes.get_ylim()
    if low > -60:
        return
    axes.set_yscale("symlog", linthresh=10)
    ticks = [0, 5, 10, -5, *(-digit * 10.0**power for power in range(1, 6) for digit in (1, 2, 5))]
    axes.yaxis.set_major_locator(FixedLocator([tick for tick in ticks if low <= tick <= high]))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(ScalarFormatter())
    lines = [line for each in panels_of_one_height for line in each.lines]
    top = max(float(np.nanmax(line.get_ydata(), initial=0)) for line in lines)
    axes.set_ylim(1.2 * low, 1.1 * top + 1)
