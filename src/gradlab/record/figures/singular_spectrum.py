"""In how many directions does the gradient survive? The singular values of ∂s_T/∂s_t."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray

from gradlab.record.figures.common import (
    last_measured,
    layer_title,
    mark_float32,
    mark_level,
    new_figure,
    panels,
    plot,
    set_title,
    several_measured,
    subject,
    whole_numbers,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def figure(
    curves: xarray.Dataset, scalars: xarray.Dataset, info: Mapping[str, Any]
) -> Figure | None:
    """log10 of the singular values over their index, a line per training step."""
    found = several_measured(curves, "singular_value_log10")
    if found is None:
        return None
    chosen, colours = found
    layers = curves["layer"].values
    page = new_figure(len(layers))
    set_title(
        page,
        f"In how many directions does the gradient survive?{subject(info)}\n"
        "level = in all of them alike,  steep = in a few only",
    )
    every = panels(page, len(layers), "direction, strongest first")
    rank = 1 + np.arange(curves.sizes["singular"])
    for index, (axes, layer) in enumerate(zip(every, layers, strict=True)):
        panel = chosen.isel(layer=index)
        for k, step in enumerate(chosen["step"].values):
            values = panel["singular_value_log10"].isel(step=k).values
            plot(axes, rank, values, color=colours[k], label=f"step {step:,}")
        axes.set_title(layer_title(curves, layer, _condition(curves, index)), fontsize=12)
        axes.set_ylabel("log10 of the singular value")
        mark_level(axes, 0, "as large as it was")
        whole_numbers(axes)
    _stretch(every)
    handles = every[0].get_legend_handles_labels()[0] + mark_float32(page.axes)
    page.legend(handles=handles, loc="outside right center", title="at training step")
    return page


def _condition(curves: xarray.Dataset, index: int) -> str:
    last = last_measured(curves, "condition_log10")
    if last is None:
        return ""
    value = float(last["condition_log10"].isel(layer=index))
    if np.isnan(value):
        return ""
    power = f"10^{value:.1f}" if np.isfinite(value) else "infinite"
    return f"condition number {power} at step {int(last['step']):,}"


def _stretch(panels_of_one_height: list[Axes]) -> None:
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
