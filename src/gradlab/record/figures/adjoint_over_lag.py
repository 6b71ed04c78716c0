"""How far back does the gradient reach? The adjoint's norm over lag."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray

from gradlab.record.figures.common import (
    GREY,
    PURPLE,
    by_lag,
    finite,
    last_measured,
    line,
    mark_float32,
    new_figure,
    panels,
    set_title,
    several_measured,
    subject,
    within,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_DASHED: Any = (0, (4, 2))


def figure(
    curves: xarray.Dataset, scalars: xarray.Dataset, info: Mapping[str, Any]
) -> Figure | None:
    """log10 of the adjoint's norm over lag, a line per training step, a panel per layer."""
    found = several_measured(curves, "adj_h_log10")
    if found is None:
        return None
    chosen, colours = found
    layers = curves["layer"].values
    page = new_figure(len(layers))
    set_title(
        page,
        f"How far back does the gradient reach?{subject(info)}\n"
        "left = recent past,  down = the gradient has vanished",
    )
    for index, (axes, layer) in enumerate(zip(panels(page, len(layers)), layers, strict=True)):
        panel = chosen.isel(layer=index)
        for k, step in enumerate(chosen["step"].values):
            one, colour = panel.isel(step=k), colours[k]
            line(axes, one, "adj_h_log10", color=colour, label=f"step {step:,}")
            line(axes, one, "adj_c_log10", color=colour, linestyle=_DASHED, lw=1.4)
        _quantile_band(axes, panel, colours[-1])
        horizon, zeros = _mark_horizon(axes, panel), _mark_zeros(panel)
        axes.set_title("\n".join(filter(None, [f"layer {layer}{horizon}", zeros])), fontsize=12)
        axes.set_xlim(0, float(panel["lag"].max()) or 1)
        axes.set_ylabel("log10 of the gradient's norm")
    handles = list(page.axes[0].get_legend_handles_labels()[0])
    handles += _style_keys(curves)
    handles += _mark_bound(page.axes, curves, info)
    handles += mark_float32(page.axes)
    page.legend(handles=handles, loc="outside right center", title="at training step")
    return page


def _quantile_band(axes: Axes, panel: xarray.Dataset, colour: Any) -> None:
    if "adj_h_log10_q" not in panel:
        return
    last = panel.isel(step=-1)
    lag, values = by_lag(last, "adj_h_log10_q")
    values = finite(values)
    axes.fill_between(lag, values[0], values[-1], color=colour, alpha=0.2, linewidth=0)


def _mark_horizon(axes: Axes, panel: xarray.Dataset) -> str:
    """A vertical line at the memory horizon of the last step; its length in words."""
    if "memory_horizon" not in panel:
        return ""
    if not _horizon_reached(panel):
        return ""
    horizon = float(panel["memory_horizon"].isel(step=-1))
    axes.axvline(horizon, color=GREY, linestyle=":", zorder=1)
    digits = 1 if horizon < 100 else 0
    return f": memory horizon {horizon:.{digits}f} timesteps"


def _horizon_reached(curves: xarray.Dataset) -> bool:
    """Whether any layer's gradient falls by e within the sequence, at the last step."""
    last = curves["memory_horizon"].isel(step=-1)
    return bool((last <= float(curves["lag"].max())).any())


def _mark_zeros(panel: xarray.Dataset) -> str:
    lag, values = by_lag(panel.isel(step=-1), "adj_h_log10")
    zero = np.isneginf(values)
    if not zero.any():
        return ""
    return f"exactly zero at {zero.sum()} timesteps, first at lag {lag[zero].min()}"


def _mark_bound(axes_of: list[Axes], curves: xarray.Dataset, info: Mapping[str, Any]) -> list[Any]:
    """Pascanu's bound from the adjoint at lag 0 on, where it holds; its key for the legend.

    It bounds what is transported through time. The adjoint is nothing else only in the last layer,
    and only if the loss reads the end alone.
    """
    last = last_measured(curves, "pascanu_bound_log10")
    if last is None or info.get("facts", {}).get("readout") == "every":
        return []
    layers = [str(layer) for layer in curves["layer"].values]
    keys = []
    with within(axes_of):
        for index, axes in enumerate(axes_of):
            if layers[index].split()[0] != layers[-1].split()[0]:
                continue
            panel = last.isel(layer=index)
            lag, bound = by_lag(panel, "pascanu_bound_log10")
            bound = finite(bound + by_lag(panel, "adj_h_log10")[1][0])
            style = {"color": PURPLE, "linestyle": "--", "zorder": 1}
            keys += axes.plot(lag, bound, label="bound (γσ_max)^lag,\nlast step", **style)
    return keys[:1]


def _style_keys(curves: xarray.Dataset) -> list[Any]:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    keys: list[Any] = []
    if "adj_c_log10" in curves:
        keys.append(Line2D([], [], color=GREY, label="solid: ∂ℓ/∂h"))
        keys.append(Line2D([], [], color=GREY, ls=_DASHED, lw=1.4, label="dashed: ∂ℓ/∂c"))
    if "adj_h_log10_q" in curves:
        keys.append(Patch(color=GREY, alpha=0.2, label="90 % of examples,\nlast step"))
    if "memory_horizon" in curves and _horizon_reached(curves):
        label = "memory horizon:\ndown to 1/e, last step"
        keys.append(Line2D([], [], color=GREY, linestyle=":", label=label))
    return keys
