"""Where in the sequence does the gradient arrive? Timestep over training step, coloured."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray

from gradlab.record.figures.common import (
    colour_limits,
    heatmap,
    measured,
    new_figure,
    set_title,
    spread,
    subject,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

HEAT_STEPS, HEAT_TIMES = 300, 500
"""Most columns and rows of a heatmap."""


def figure(
    curves: xarray.Dataset, scalars: xarray.Dataset, info: Mapping[str, Any]
) -> Figure | None:
    """Timestep over training step, coloured by log10; the forget product beside the adjoint."""
    titles = {"adj_h_log10": "gradient ‖∂ℓ/∂h‖"}
    if "forget_product_log10" in curves:
        gate = curves["forget_product_log10"].attrs.get("gate", "")
        titles["forget_product_log10"] = f"what the gate {gate} alone would keep"
    shown = {}
    for name in titles:
        rows = measured(curves, name)
        if len(rows):
            rows = rows[spread(len(rows), HEAT_STEPS)]
            times = spread(curves.sizes["t"], HEAT_TIMES)
            shown[name] = curves[name].isel(step=rows).load().isel(t=times)
    if "adj_h_log10" not in shown:
        return None
    low, high = colour_limits(np.concatenate([v.values.ravel() for v in shown.values()]))
    layers = curves["layer"].values
    page = new_figure(len(layers), columns=len(shown), width=6.2)
    grid = page.subplots(len(layers), len(shown), squeeze=False, sharex=True, sharey=True)
    for row, layer in enumerate(layers):
        for axes, (name, values) in zip(grid[row], shown.items(), strict=True):
            mesh = heatmap(axes, values.isel(layer=row), low, high)
            axes.set_title(f"layer {layer}: {titles[name]}" if len(layers) > 1 else titles[name])
        grid[row, 0].set_ylabel("timestep t")
    for axes in grid[-1]:
        axes.set_xlabel("training step")
    bar = page.colorbar(mesh, ax=grid, shrink=0.9, pad=0.02, aspect=20 * len(layers))
    zeros = any(np.isneginf(v.values).any() for v in shown.values())
    bar.set_label("log10 (bright = strong" + (", black = exactly zero)" if zeros else ")"))
    set_title(
        page,
        f"Where in the sequence does the gradient arrive?{subject(info)}\n"
        "top = end of the sequence, bottom = its start,  right = later in training",
    )
    return page
