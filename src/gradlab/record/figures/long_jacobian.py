"""How much of a change of the state is left at the end? The long-term Jacobian's norm."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import xarray

from gradlab.record.figures.common import (
    GREY,
    PURPLE,
    by_lag,
    handles_of,
    last_measured,
    layer_title,
    line,
    mark_float32,
    mark_level,
    new_figure,
    panels,
    plot,
    set_title,
    several_measured,
    subject,
    within,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_LARGEST, _FROBENIUS = "long_jacobian_log10", "long_jacobian_log10_frobenius"
_DASHED: Any = (0, (4, 2))


def figure(
    curves: xarray.Dataset, scalars: xarray.Dataset, info: Mapping[str, Any]
) -> Figure | None:
    """log10 of the norms of J_{T:t} over lag, a line per training step, a panel per layer."""
    found = several_measured(curves, _LARGEST)
    if found is None:
        return None
    chosen, colours = found
    layers = curves["layer"].values
    page = new_figure(len(layers))
    set_title(
        page,
        f"How much of a change of the state is left at the end?{subject(info)}\n"
        "above 0 = grown,  below 0 = shrunk,  a straight line = a constant rate",
    )
    every = panels(page, len(layers))
    for index, (axes, layer) in enumerate(zip(every, layers, strict=True)):
        panel = chosen.isel(layer=index)
        for k, step in enumerate(chosen["step"].values):
            one, colour = panel.isel(step=k), colours[k]
            line(axes, one, _LARGEST, color=colour, label=f"step {step:,}")
            line(axes, one, _FROBENIUS, color=colour, linestyle=_DASHED, lw=1.4)
        axes.set_title(layer_title(curves, layer))
        axes.set_ylabel("log10 ‖∂s_T/∂s_t‖")
    _mark_bound(every, curves)
    for axes in every:
        mark_level(axes, 0, "as large as it was")
    mark_float32(page.axes)
    handles = handles_of(page) + _style_keys(curves)
    page.legend(handles=handles, loc="outside right center", title="at training step")
    return page


def _mark_bound(every: list[Any], curves: xarray.Dataset) -> None:
    last = last_measured(curves, "pascanu_bound_log10")
    if last is None:
        return
    with within(every):
        for index, axes in enumerate(every):
            lag, bound = by_lag(last.isel(layer=index), "pascanu_bound_log10")
            style = {"color": PURPLE, "linestyle": "--", "zorder": 1}
            plot(axes, lag, bound, label="bound (γσ_max)^lag,\nlast step", **style)


def _style_keys(curves: xarray.Dataset) -> list[Any]:
    from matplotlib.lines import Line2D

    if _FROBENIUS not in curves:
        return []
    return [
        Line2D([], [], color=GREY, label="solid: largest\nsingular value"),
        Line2D([], [], color=GREY, ls=_DASHED, lw=1.4, label="dashed: Frobenius"),
    ]
