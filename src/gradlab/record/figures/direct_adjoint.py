"""Where does the gradient enter? The immediate part of the adjoint beside all of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray

from gradlab.record.figures.common import (
    BLUE,
    ORANGE,
    by_lag,
    handles_of,
    last_measured,
    layer_title,
    line,
    mark_float32,
    new_figure,
    panels,
    set_title,
    subject,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_DIRECT, _TOTAL = "adj_h_direct_log10", "adj_h_log10"


def figure(
    curves: xarray.Dataset, scalars: xarray.Dataset, info: Mapping[str, Any]
) -> Figure | None:
    """log10 of the norms of ∂⁺ℓ/∂h_t and ∂ℓ/∂h_t over lag at the last measured step."""
    last = last_measured(curves, _DIRECT)
    if last is None:
        return None
    layers = curves["layer"].values
    page = new_figure(len(layers))
    set_title(
        page,
        f"Where does the gradient enter?{subject(info)}, step {int(last['step']):,}\n"
        "blue above orange = most of it came back through time",
    )
    for index, (axes, layer) in enumerate(zip(panels(page, len(layers)), layers, strict=True)):
        panel = last.isel(layer=index)
        line(axes, panel, _TOTAL, color=BLUE, label="all of the gradient, ∂ℓ/∂h_t (whole batch)")
        line(
            axes,
            panel,
            _DIRECT,
            color=ORANGE,
            linestyle="--",
            label="what enters at this t (first examples of it)",
        )
        axes.set_title(layer_title(curves, layer, _zeros(panel)), fontsize=12)
        axes.set_ylabel("log10 of the gradient's norm")
    mark_float32(page.axes)
    page.legend(handles=handles_of(page), loc="outside lower center", ncols=2)
    return page


def _zeros(panel: xarray.Dataset) -> str:
    lag, direct = by_lag(panel, _DIRECT)
    enters = np.isfinite(direct)
    if enters.all():
        return ""
    if not enters.any():
        return "nothing enters directly"
    if enters.sum() == 1:
        return f"enters at lag {int(lag[enters][0])} only"
    return f"enters at {enters.sum()} of {len(lag)} timesteps"
