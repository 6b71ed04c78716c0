"""Which timesteps teach which parameter? The part of the gradient that enters at t."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray

from gradlab.record.figures.common import (
    DASHES,
    LAG,
    PALETTE,
    by_lag,
    last_measured,
    mark_float32,
    new_figure,
    plot,
    set_title,
    subject,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_NAME = "temporal_contribution_log10"
MOST_LINES = len(PALETTE) * 2


def figure(
    curves: xarray.Dataset, scalars: xarray.Dataset, info: Mapping[str, Any]
) -> Figure | None:
    """log10 of the norm of what enters ∂L/∂θ at t, over lag, a line per parameter, last step."""
    last = last_measured(curves, _NAME)
    if last is None:
        return None
    parameters = [p for p in range(curves.sizes["parameter"]) if _seen(last, p)]
    if not parameters:
        return None
    page = new_figure(1, width=12.5)
    page.set_size_inches(13, max(6.2, 2.4 + 0.5 * min(len(parameters), MOST_LINES)))
    set_title(
        page,
        f"Which timesteps teach which parameter?{subject(info)}, step {int(last['step']):,}\n"
        "falling to the right = the far past hardly counts",
    )
    axes = page.subplots()
    for k, parameter in enumerate(parameters[:MOST_LINES]):
        lag, values = by_lag(last.isel(parameter=parameter), _NAME)
        style = {"color": PALETTE[k % len(PALETTE)], "linestyle": DASHES[k // len(PALETTE)]}
        plot(axes, lag, values, label=_label(last, parameter), **style)
    axes.set_xlabel(LAG)
    axes.set_ylabel("log10 of the norm of what enters at t")
    mark_float32([axes])
    title = "layer: parameter"
    if "long_short_cosine" in last:
        title += "\n(cos: long range\nagainst short range)"
    left_out = len(parameters) - MOST_LINES
    if left_out > 0:
        title += f"\n{left_out} more are not shown"
    page.legend(loc="outside right center", title=title, fontsize=11)
    return page


def _seen(last: xarray.Dataset, parameter: int) -> bool:
    return bool(np.isfinite(last[_NAME].isel(parameter=parameter).values).any())


def _label(last: xarray.Dataset, parameter: int) -> str:
    name = str(last["parameter"].values[parameter])
    if found := re.fullmatch(r"layers/(\d+)/(\d+)/(.+)", name):
        depth, direction, rest = found.groups()
        name = f"{depth}{' backward' if direction != '0' else ''}: {rest}"
    if "long_short_cosine" in last:
        cosine = float(last["long_short_cosine"].isel(parameter=parameter))
        if np.isfinite(cosine):
            return f"{name}\n    cos {cosine:+.2f}"
    return name
