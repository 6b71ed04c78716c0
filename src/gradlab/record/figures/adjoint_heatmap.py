"""How far back does the gradient arrive? The lag over training step, coloured."""

from __future__ import annotations

import numpy as np
import xarray
from xarray import Dataset

from gradlab.record.figures import common

QUESTION = "How far back does the gradient arrive?"
HINT = "top = the end of the sequence, bottom = far back,  right = later in training"
HEAT_STEPS, HEAT_LAGS = 300, 500
"""Most columns and rows of a heatmap."""
_NO_GATE = "no gate multiplies its old state"
_WIDEST = 43
_ADJOINT = "adj_h_log10"
_PRODUCTS = {
    "forget_product_rms_log10": "what the gate {} alone would keep",
    "forget_product_log10": "what the gate {} of a typical unit would keep",  # of older runs
}


def figure(curves: Dataset, scalars: Dataset, info: common.Info) -> common.Figure | None:
    """The lag over training step, coloured by log10; the forget product beside the adjoint."""
    titles = {_ADJOINT: "gradient ‖∂ℓ/∂h‖"}
    for name, title in _PRODUCTS.items():
        if name in curves:
            titles[name] = title
            break
    shown = {name: _chosen(curves, name) for name in titles if len(common.measured(curves, name))}
    if _ADJOINT not in shown:
        return None
    low, high = common.colour_limits(np.concatenate([v.values.ravel() for v in shown.values()]))
    layers = curves.sizes["layer"]
    page = common.Page(info, QUESTION, HINT, layers, len(shown), width=6.2)
    grid = page.grid(sharex=True, sharey=True)
    for row in range(layers):
        for axes, (name, values) in zip(grid[row], shown.items(), strict=True):
            mesh = common.heatmap(axes, values.isel(layer=row), low, high)
            gate = common.gate_of(curves, info, name, row)
            title = titles[name].format(gate) if gate or name == _ADJOINT else _NO_GATE
            axes.set_title(common.layer_title(curves, row, title, _WIDEST))
        grid[row, 0].set_ylabel("lag (timesteps back)")
    grid[0, 0].invert_yaxis()  # they share it
    for axes in grid[-1]:
        axes.set_xlabel("training step")
    bar = page.figure.colorbar(mesh, ax=grid, shrink=0.9, pad=0.02, aspect=20 * layers)
    zeros = any(np.isneginf(v.values).any() for v in shown.values())
    bar.set_label("log10 (bright = strong" + (", black = exactly zero)" if zeros else ")"))
    return page.figure


def _chosen(curves: Dataset, name: str) -> xarray.DataArray:
    """A variable at some training steps and lags, ``(step, layer, lag)``."""
    rows = common.measured(curves, name)
    some = curves.isel(step=rows[common.spread(len(rows), HEAT_STEPS)])
    lag, values = common.by_lag(some, name)
    lags = common.spread(len(lag), HEAT_LAGS)
    coords = {"step": some["step"].values, "lag": lag[lags]}
    return xarray.DataArray(values[..., lags], coords, ("step", "layer", "lag"))
