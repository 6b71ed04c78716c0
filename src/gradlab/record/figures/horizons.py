"""How far back can the network learn? Four horizons over training step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray

from gradlab.record.figures.common import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    all_measured,
    handles_of,
    layer_title,
    mark_level,
    new_figure,
    panels,
    set_title,
    subject,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_LINES: dict[str, tuple[str, dict[str, Any]]] = {
    "memory_horizon": ("memory: the gradient\nis down to 1/e", {"color": BLUE}),
    "gradient_mass_horizon": (
        "mass: nearly all of the\ngradient is nearer",
        {"color": ORANGE, "linestyle": "--"},
    ),
    "lyapunov_horizon": (
        "Lyapunov: 1/e by the\nlargest exponent",
        {"color": GREEN, "linestyle": (0, (1.5, 1.5))},
    ),
    "noise_horizon": (
        "noise: what comes from\nbeyond it is drowned",
        {"color": PURPLE, "linestyle": "-."},
    ),
}
SHORTEST, BEYOND = 0.2, 10.0
"""The ends of the axis: timesteps, and times T."""


def figure(
    curves: xarray.Dataset, scalars: xarray.Dataset, info: Mapping[str, Any]
) -> Figure | None:
    """Every recorded horizon over training step, a panel per layer."""
    shown = {name: found for name in _LINES if (found := all_measured(curves, name)) is not None}
    if not shown.keys() - {"memory_horizon"}:
        return None
    layers = curves["layer"].values
    page = new_figure(len(layers))
    set_title(
        page,
        f"How far back can the network learn?{subject(info)}\n"
        "up = further back;  the lowest line is what limits it",
    )
    every = panels(page, len(layers), "training step")
    for index, (axes, layer) in enumerate(zip(every, layers, strict=True)):
        axes.set_yscale("log")
        for name, rows in shown.items():
            label, style = _LINES[name]
            _line(axes, rows.isel(layer=index), name, curves.sizes["t"], label=label, **style)
        mark_level(axes, curves.sizes["t"], "length T of\nthe sequence")
        axes.set_title(layer_title(curves, layer))
        axes.set_ylabel("horizon (timesteps)")
    page.legend(handles=handles_of(page) + _mark_keys(page), loc="outside right center")
    return page


def _line(axes: Axes, rows: xarray.Dataset, name: str, length: int, **style: Any) -> None:
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


def _mark_keys(page: Figure) -> list[Any]:
    from matplotlib.lines import Line2D

    used = {line.get_gid() for axes in page.axes for line in axes.lines}
    labels = {
        "^": f"longer than {BEYOND:g} T,\nor without end",
        "v": f"below {SHORTEST:g} timesteps",
    }
    look: dict[str, Any] = {"color": GREY, "linestyle": "", "markersize": 7}
    return [Line2D([], [], marker=k, label=v, **look) for k, v in labels.items() if k in used]
