"""What does a single step do to the gradient? The norm of each step's Jacobian."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import xarray

from gradlab.record.figures.common import (
    DASHES,
    LAG,
    PALETTE,
    handles_of,
    last_measured,
    layer_title,
    line,
    mark_level,
    new_figure,
    set_title,
    several_measured,
    subject,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_WHOLE, _BLOCKS = "step_jacobian_log10", "step_jacobian_block_log10"


def figure(
    curves: xarray.Dataset, scalars: xarray.Dataset, info: Mapping[str, Any]
) -> Figure | None:
    """log10 of ‖J_t‖ over lag for several training steps; beside it its blocks at the last."""
    found = several_measured(curves, _WHOLE)
    if found is None:
        return None
    chosen, colours = found
    last = last_measured(curves, _BLOCKS)
    blocks = last is not None and curves.sizes["to"] * curves.sizes["from"] > 1
    layers = curves["layer"].values
    page = new_figure(len(layers), columns=1 + blocks)
    set_title(
        page,
        f"What does a single step do to the gradient?{subject(info)}\n"
        "above the dotted line = it can grow in this step,  below = it must shrink",
    )
    grid = page.subplots(len(layers), 1 + blocks, squeeze=False, sharex=True)
    for index, layer in enumerate(layers):
        axes, panel = grid[index, 0], chosen.isel(layer=index)
        for k, step in enumerate(chosen["step"].values):
            line(
                axes, panel.isel(step=k), _WHOLE, color=colours[k], label=f"training step {step:,}"
            )
        axes.set_title(layer_title(curves, layer, "the whole step, J_t"))
        axes.set_ylabel("log10 of the largest singular value")
        mark_level(axes, 0, "neither grows\nnor shrinks")
        if last is not None and blocks:
            _draw_blocks(grid[index, 1], last.isel(layer=index))
            title = f"old part → new part, step {int(last['step']):,}"
            grid[index, 1].set_title(layer_title(curves, layer, title))
    for axes in grid[-1]:
        axes.set_xlabel(LAG if not blocks else "lag: timesteps back from the end")
    page.legend(handles=handles_of(page), loc="outside right center")
    return page


def _draw_blocks(axes: Axes, panel: xarray.Dataset) -> None:
    """A line for each pair of parts of the state, e.g. c → h."""
    pairs = [(to, origin) for origin in panel["from"].values for to in panel["to"].values]
    for k, (to, origin) in enumerate(pairs):
        block = panel.sel({"to": to, "from": origin})
        style = {"color": PALETTE[k % len(PALETTE)], "linestyle": DASHES[k % len(DASHES)]}
        line(axes, block, _BLOCKS, label=f"{origin} → {to}", **style)
    axes.set_ylabel("log10 of the Frobenius norm")
