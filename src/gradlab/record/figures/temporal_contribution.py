"""Which timesteps teach which parameter? The part of the gradient that enters at t."""

from __future__ import annotations

import re

import numpy as np
from xarray import Dataset

from gradlab.record.figures import common

QUESTION = "Which timesteps teach which parameter?"
HINT = "falling to the right = the far past hardly counts"
_NAME = "temporal_contribution_log10"
MOST_LINES = len(common.PALETTE) * 2


def figure(curves: Dataset, scalars: Dataset, info: common.Info) -> common.Figure | None:
    """log10 of the norm of what enters ∂L/∂θ at t, over lag, a line per parameter, last step."""
    last = common.last_measured(curves, _NAME)
    if last is None:
        return None
    parameters = np.flatnonzero(np.isfinite(last[_NAME].values).any(1))
    if not parameters.size:
        return None
    height = max(6.2, 2.4 + 0.5 * min(len(parameters), MOST_LINES))
    page = common.Page(info, QUESTION, HINT, last=last, width=13, height=height)
    axes = page.grid()[0, 0]
    for k, parameter in enumerate(parameters[:MOST_LINES]):
        one = last.isel(parameter=parameter)
        style = {"color": common.colour(k), "linestyle": common.dashes(k // len(common.PALETTE))}
        common.line(axes, one, _NAME, label=_label(one), **style)
    axes.set_xlabel(common.LAG)
    axes.set_ylabel("log10 of the norm of what enters at t")
    common.mark_float32([axes])
    title = "layer: parameter"
    if "long_short_cosine" in last:
        title += "\n(cos: long range\nagainst short range)"
    left_out = len(parameters) - MOST_LINES
    if left_out > 0:
        title += f"\n{left_out} more are not shown"
    return page.legend(title=title, fontsize=11)


def _label(one: Dataset) -> str:
    name = str(one["parameter"].values)
    if found := re.fullmatch(r"layers/(\d+)/(\d+)/(.+)", name):
        depth, direction, rest = found.groups()
        name = f"{depth}{' backward' if direction != '0' else ''}: {rest}"
    if "long_short_cosine" in one and np.isfinite(cosine := float(one["long_short_cosine"])):
        return f"{name}\n    cos {cosine:+.2f}"
    return name
