"""Where in the sequence does the gradient arrive? Timestep over training step, coloured."""

from __future__ import annotations

import numpy as np
from xarray import Dataset

from gradlab.record.figures import common

QUESTION = "Where in the sequence does the gradient arrive?"
HINT = "top = end of the sequence, bottom = its start,  right = later in training"
HEAT_STEPS, HEAT_TIMES = 300, 500
"""Most columns and rows of a heatmap."""


def figure(curves: Dataset, scalars: Dataset, info: common.Info) -> common.Figure | None:
    """Timestep over training step, coloured by log10; the forget product beside the adjoint."""
    titles = {"adj_h_log10": "gradient ‖∂ℓ/∂h‖"}
    if "forget_product_log10" in curves:
        gate = curves["forget_product_log10"].attrs.get("gate", "")
        titles["forget_product_log10"] = f"what the gate {gate} alone would keep"
    shown = {}
    for name in titles:
        rows = common.measured(curves, name)
        if len(rows):
            rows = rows[common.spread(len(rows), HEAT_STEPS)]
            times = common.spread(curves.sizes["t"], HEAT_TIMES)
            shown[name] = curves[name].isel(step=rows).load().isel(t=times)
    if "adj_h_log10" not in shown:
        return None
    low, high = common.colour_limits(np.concatenate([v.values.ravel() for v in shown.values()]))
    layers = curves.sizes["layer"]
    page = common.Page(info, QUESTION, HINT, layers, len(shown), width=6.2)
    grid = page.grid(sharex=True, sharey=True)
    for row in range(layers):
        for axes, (name, values) in zip(grid[row], shown.items(), strict=True):
            mesh = common.heatmap(axes, values.isel(layer=row), low, high)
            axes.set_title(common.layer_title(curves, row, titles[name]))
        grid[row, 0].set_ylabel("timestep t")
    for axes in grid[-1]:
        axes.set_xlabel("training step")
    bar = page.figure.colorbar(mesh, ax=grid, shrink=0.9, pad=0.02, aspect=20 * layers)
    zeros = any(np.isneginf(v.values).any() for v in shown.values())
    bar.set_label("log10 (bright = strong" + (", black = exactly zero)" if zeros else ")"))
    return page.figure
