"""From which lag on is the gradient only noise? Signal over noise of what comes from afar."""

from __future__ import annotations

import numpy as np
from xarray import Dataset

from gradlab.record.figures import common

QUESTION = "From which lag on is the gradient only noise?"
HINT = "from beyond a lag: above 0 = seen in a batch,  below 0 or no line = drowned"
_LABEL = "noise horizon, last step:\nfrom beyond it comes less\nthan the noise of it all"
_NAME = "long_range_snr_log10"


def figure(curves: Dataset, scalars: Dataset, info: common.Info) -> common.Figure | None:
    """log10 of signal over noise over lag, a line per training step, a panel per layer."""
    chosen = common.several_measured(curves, _NAME)
    if chosen is None:
        return None
    seen = np.isfinite(chosen[_NAME].values.max((1, 2)))
    page = common.Page(info, QUESTION, HINT, curves.sizes["layer"])
    for row, axes in page.layers(curves, "log10 of signal over noise"):
        for k, (one, style) in enumerate(common.each_step(chosen.isel(layer=row))):
            style["label"] += "" if seen[k] else ":\n    no signal"
            common.line(axes, one, _NAME, **style)
        common.mark_level(axes, 0, "signal = noise")
        horizon = _mark_horizon(axes, curves, row)
        axes.set_title(common.layer_title(curves, row, horizon), fontsize=12)
    return page.legend()


def _mark_horizon(axes: common.Axes, curves: Dataset, row: int) -> str:
    """A vertical line at the noise horizon of the last step; its length in words."""
    horizon = common.last_value(curves, "noise_horizon", row)
    if np.isnan(horizon):
        return ""
    if horizon > curves.sizes["t"] - 1:
        return "signal over the whole sequence, last step"
    axes.axvline(horizon, color=common.GREY, linestyle="--", zorder=1, label=_LABEL)
    return f"noise horizon {horizon:.0f} timesteps, last step"
