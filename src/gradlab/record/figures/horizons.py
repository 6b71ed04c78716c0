"""How far back can the network learn? Four horizons over training step."""

from __future__ import annotations

from typing import Any

import numpy as np
from xarray import Dataset

from gradlab.record.figures import common

QUESTION = "How far back can the network learn?"
HINT = "up = further back;  memory below 2 = the first steps alone take it to 1/e"
_LINES: dict[str, tuple[str, dict[str, Any]]] = {
    "memory_horizon": (
        "memory: the gradient is\nfirst 1/e of that at lag 0",
        {"color": common.BLUE},
    ),
    "gradient_mass_horizon": (
        "mass: nearly all of the\ngradient is nearer",
        {"color": common.ORANGE, "linestyle": "--"},
    ),
    "lyapunov_horizon": (
        "Lyapunov: 1/e by the\nlargest exponent",
        {"color": common.GREEN, "linestyle": (0, (1.5, 1.5))},
    ),
    "noise_horizon": (
        "noise: what comes from\nbeyond it is drowned",
        {"color": common.PURPLE, "linestyle": "-."},
    ),
}
SHORTEST, BEYOND = 0.2, 10.0
"""The ends of the axis: timesteps, and times T."""
_ENDS = {"^": f"longer than {BEYOND:g} T,\nor without end", "v": f"below {SHORTEST:g} timesteps"}


def figure(curves: Dataset, scalars: Dataset, info: common.Info) -> common.Figure | None:
    """Every recorded horizon over training step, a panel per layer."""
    shown = common.those_measured(curves, _LINES)
    if not shown.keys() - {"memory_horizon"}:
        return None
    page = common.Page(info, QUESTION, HINT, curves.sizes["layer"])
    for row, axes in page.layers(curves, "horizon (timesteps)", "training step"):
        axes.set_yscale("log")
        for name, rows in shown.items():
            label, style = _LINES[name]
            _line(axes, rows.isel(layer=row), name, curves.sizes["t"], label=label, **style)
        common.mark_level(axes, curves.sizes["t"], "length T of\nthe sequence")
    used = {line.get_gid() for axes in page.figure.axes for line in axes.lines}
    look: dict[str, Any] = {"linestyle": "", "markersize": 7}
    ends = [common.key(label, marker=k, **look) for k, label in _ENDS.items() if k in used]
    return page.legend(common.handles_of(page.figure) + ends, title=None)


def _line(axes: common.Axes, rows: Dataset, name: str, length: int, **style: Any) -> None:
    """The horizons on the axis, and marks at its ends for those that lie beyond them."""
    values, steps = rows[name].values, rows["step"].values
    within = (values >= SHORTEST) & (values <= BEYOND * length)
    marker = "o" if len(values) < 30 else ""
    axes.plot(steps, np.where(within, values, np.nan), marker=marker, markersize=4, **style)
    for off, end, mark in (
        (values < SHORTEST, SHORTEST, "v"),
        (values > BEYOND * length, BEYOND * length, "^"),
    ):
        if off.any():
            look = {"color": style["color"], "marker": mark, "linestyle": "", "markersize": 7}
            axes.plot(steps[off], np.full(off.sum(), end), gid=mark, **look)
