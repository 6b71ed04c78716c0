"""From which lag on is the gradient only noise? Signal over noise of what comes from afar."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray

from gradlab.record.figures.common import (
    GREY,
    handles_of,
    last_measured,
    layer_title,
    line,
    mark_level,
    new_figure,
    panels,
    set_title,
    several_measured,
    subject,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_LABEL = "noise horizon, last step:\nfrom beyond it comes less\nthan the noise of it all"
_NAME = "long_range_snr_log10"


def figure(
    curves: xarray.Dataset, scalars: xarray.Dataset, info: Mapping[str, Any]
) -> Figure | None:
    """log10 of signal over noise over lag, a line per training step, a panel per layer."""
    found = several_measured(curves, _NAME)
    if found is None:
        return None
    chosen, colours = found
    layers = curves["layer"].values
    seen = np.isfinite(chosen[_NAME].values.max((1, 2)))
    page = new_figure(len(layers))
    set_title(
        page,
        f"From which lag on is the gradient only noise?{subject(info)}\n"
        "from beyond a lag: above 0 = seen in a batch,  below 0 or no line = drowned",
    )
    for index, (axes, layer) in enumerate(zip(panels(page, len(layers)), layers, strict=True)):
        panel = chosen.isel(layer=index)
        for k, step in enumerate(chosen["step"].values):
            one = panel.isel(step=k)
            label = f"step {step:,}" + ("" if seen[k] else ":\n    no signal")
            line(axes, one, _NAME, color=colours[k], label=label)
        mark_level(axes, 0, "signal = noise")
        axes.set_title(layer_title(curves, layer, _mark_horizon(axes, curves, index)), fontsize=12)
        axes.set_ylabel("log10 of signal over noise")
    page.legend(handles=handles_of(page), loc="outside right center", title="at training step")
    return page


def _mark_horizon(axes: Axes, curves: xarray.Dataset, index: int) -> str:
    """A vertical line at the noise horizon of the last step; its length in words."""
    last = last_measured(curves, "noise_horizon")
    if last is None:
        return ""
    horizon = float(last["noise_horizon"].isel(layer=index))
    if np.isnan(horizon):
        return ""
    if horizon > float(curves["lag"].max()):
        return "signal over the whole sequence, last step"
    axes.axvline(horizon, color=GREY, linestyle="--", zorder=1, label=_LABEL)
    return f"noise horizon {horizon:.0f} timesteps, last step"
