"""How long does each unit remember? The retention gate and its time scales."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray

from gradlab.record.figures.common import (
    edges,
    handles_of,
    layer_title,
    mark_level,
    new_figure,
    plot,
    set_title,
    several_measured,
    subject,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_HISTOGRAM, _TIMESCALE = "retention_histogram", "timescale"


def figure(
    curves: xarray.Dataset, scalars: xarray.Dataset, info: Mapping[str, Any]
) -> Figure | None:
    """The histogram of the retention gate and the units' sorted time scales, several steps."""
    shown = {
        name: found
        for name in (_HISTOGRAM, _TIMESCALE)
        if (found := several_measured(curves, name)) is not None
    }
    if not shown:
        return None
    layers = curves["layer"].values
    page = new_figure(len(layers), columns=len(shown))
    set_title(
        page,
        f"How long does each unit remember?{subject(info)}\n"
        "gate near 1 = the old state is kept,  near 0 = it is replaced",
    )
    grid = page.subplots(len(layers), len(shown), squeeze=False)
    for row, layer in enumerate(layers):
        for axes, (name, (chosen, colours)) in zip(grid[row], shown.items(), strict=True):
            panel = chosen.isel(layer=row)
            if name == _HISTOGRAM:
                _histogram(axes, panel, colours)
                title = f"how open is the gate {curves[name].attrs.get('gate', '')}?"
            else:
                _timescales(axes, panel, colours)
                title = "time scale of each unit"
            axes.set_title(layer_title(curves, layer, title))
    page.legend(handles=handles_of(page), loc="outside right center", title="at training step")
    return page


def _histogram(axes: Axes, panel: xarray.Dataset, colours: list[Any]) -> None:
    for k, step in enumerate(panel["step"].values):
        share = 100 * panel[_HISTOGRAM].isel(step=k).values
        style = {"color": colours[k], "drawstyle": "steps-post"}
        borders = edges(panel["log10_gate"].values)
        axes.plot(borders, np.append(share, share[-1:]), label=f"step {step:,}", **style)
    bins, shares = panel["log10_gate"].values, panel[_HISTOGRAM].max("step").values
    used = bins[shares > 0.005]
    if len(used):
        axes.set_xlim(min(used.min() - 0.2, -1), 0.03)
    axes.set_xlabel("log10 of the gate")
    axes.set_ylabel("share of activations (%)")


def _timescales(axes: Axes, panel: xarray.Dataset, colours: list[Any]) -> None:
    for k, step in enumerate(panel["step"].values):
        steps = np.sort(panel[_TIMESCALE].isel(step=k).values)[::-1]
        rank = 1 + np.arange(len(steps))
        plot(axes, rank, steps, color=colours[k], label=f"step {step:,}")
    mark_level(axes, panel.sizes["t"], "length T of\nthe sequence")
    axes.set_yscale("log")
    axes.set_xlabel("unit, longest first")
    axes.set_ylabel("1 / (1 - mean gate)  (timesteps)")
