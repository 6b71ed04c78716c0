"""Where does the gradient enter? The immediate part of the adjoint beside all of it."""

from __future__ import annotations

from typing import Any

import numpy as np
from xarray import Dataset

from gradlab.record.figures import common

QUESTION = "Where does the gradient enter?"
HINT = "blue above orange = most of it came back through time"
_DIRECT, _TOTAL = "adj_h_direct_log10", "adj_h_log10"
_LINES: dict[str, dict[str, Any]] = {
    _TOTAL: {"color": common.BLUE, "label": "all of the gradient, ∂ℓ/∂h_t (whole batch)"},
    _DIRECT: {
        "color": common.ORANGE,
        "linestyle": "--",
        "label": "what enters there directly (first examples of it)",
    },
}


def figure(curves: Dataset, scalars: Dataset, info: common.Info) -> common.Figure | None:
    """log10 of the norms of ∂⁺ℓ/∂h_t and ∂ℓ/∂h_t over lag at the last measured step."""
    last = common.last_measured(curves, _DIRECT)
    if last is None:
        return None
    page = common.Page(info, QUESTION, HINT, curves.sizes["layer"], last=last)
    xlabel = common.lag_label(curves, _DIRECT)
    for row, axes in page.layers(curves, "log10 of the gradient's norm", xlabel):
        panel = last.isel(layer=row)
        for name, style in _LINES.items():
            common.line(axes, panel, name, **style)
        axes.set_title(common.layer_title(curves, row, _zeros(panel)), fontsize=12)
    common.mark_float32(page.figure.axes)
    return page.legend_below(2)


def _zeros(panel: Dataset) -> str:
    lag, direct = common.by_lag(panel, _DIRECT)
    enters = np.isfinite(direct)
    if enters.all():
        return ""
    if not enters.any():
        return "nothing enters directly"
    if enters.sum() == 1:
        return f"enters at lag {int(lag[enters][0])} only"
    return f"enters at {enters.sum()} of {len(lag)} timesteps"
