"""Do small changes of the state grow or die out? The Lyapunov exponents."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray

from gradlab.record.figures.common import (
    PURPLE,
    colour_limits,
    handles_of,
    last_measured,
    layer_title,
    mark_level,
    new_figure,
    plot,
    set_title,
    several_measured,
    subject,
    whole_numbers,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_SPECTRUM, _RUNNING = "lyapunov_exponent", "lyapunov_running"


def figure(
    curves: xarray.Dataset, scalars: xarray.Dataset, info: Mapping[str, Any]
) -> Figure | None:
    """The spectrum over its index for several training steps; beside it its convergence."""
    found = several_measured(curves, _SPECTRUM)
    if found is None:
        return None
    chosen, colours = found
    running = _RUNNING in curves
    layers = curves["layer"].values
    page = new_figure(len(layers), columns=1 + running)
    set_title(
        page,
        f"Do small changes of the state grow or die out?{subject(info)}\n"
        "above 0 = they grow (chaos),  below 0 = they die out,  at 0 = they are kept",
    )
    grid = page.subplots(len(layers), 1 + running, squeeze=False)
    for row, (axes, layer) in enumerate(zip(grid[:, 0], layers, strict=True)):
        panel = chosen.isel(layer=row)
        _spectra(axes, panel, colours)
        axes.set_title(layer_title(curves, layer, _numbers(curves, row)), fontsize=12)
        _mark_mean_field(axes, curves, row)
        if running:
            _convergence(grid[row, 1], panel, colours)
    page.legend(handles=handles_of(page), loc="outside right center", title="at training step")
    return page


def _spectra(axes: Axes, panel: xarray.Dataset, colours: list[Any]) -> None:
    rank = 1 + np.arange(panel.sizes["index"])
    marker = {"marker": "o"} if len(rank) == 1 else {}
    for k, step in enumerate(panel["step"].values):
        values = panel[_SPECTRUM].isel(step=k).values
        plot(axes, rank, values, color=colours[k], label=f"step {step:,}", **marker)
    mark_level(axes, 0, "neither grows\nnor dies out")
    axes.set_xlabel("direction, largest exponent first")
    whole_numbers(axes)
    axes.set_ylabel("Lyapunov exponent (nats per step)")


def _convergence(axes: Axes, panel: xarray.Dataset, colours: list[Any]) -> None:
    times, length = panel["t"].values, panel.sizes["t"]
    for k in range(panel.sizes["step"]):
        plot(axes, times, panel[_RUNNING].isel(step=k).values, color=colours[k])
    # The first few steps are not yet an average and would set the height of the panel.
    low, high = colour_limits(panel[_RUNNING].values[:, length // 4 :])
    margin = 0.2 * (high - low)
    axes.set_ylim(min(low - margin, -margin), max(high + margin, margin))
    mark_level(axes, 0, "neither grows\nnor dies out")
    axes.set_title("has the largest settled? (level at the right = yes)", fontsize=12)
    axes.set_xlabel("timestep t up to which it is averaged")
    axes.set_ylabel("largest exponent so far")


def _mark_mean_field(axes: Axes, curves: xarray.Dataset, row: int) -> None:
    last = last_measured(curves, "mean_field_exponent")
    if last is None:
        return
    level = float(last["mean_field_exponent"].isel(layer=row))
    if np.isfinite(level):
        style: Any = {"color": PURPLE, "linestyle": "--"}
        axes.axhline(level, label="mean field: largest\nof a wide random W", **style)


def _numbers(curves: xarray.Dataset, row: int) -> str:
    """Dimension and mean-field χ at the last step, in words."""
    words = {"lyapunov_dimension": "Lyapunov dimension {:.1f}", "mean_field_chi": "χ = {:.2f}"}
    found = []
    for name, text in words.items():
        last = last_measured(curves, name)
        if last is not None and np.isfinite(value := float(last[name].isel(layer=row))):
            found.append(text.format(value))
    return ", ".join(found) + (" at the last step" if found else "")
