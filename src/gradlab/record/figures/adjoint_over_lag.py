"""How far back does the gradient reach? The adjoint's norm over lag."""

from __future__ import annotations

from typing import Any

import numpy as np
from xarray import Dataset

from gradlab.record.base import reads_the_end
from gradlab.record.figures import common

QUESTION = "How far back does the gradient reach?"
HINT = "left = recent past,  down = the gradient has vanished"
_WIDEST_ALONE = 80
_ADJOINT = "adj_h_log10"
_HORIZON = "memory horizon: the state's\ngradient is first down to\n1/e of lag 0, last step"
_DASHED: dict[str, Any] = {"linestyle": (0, (4, 2)), "linewidth": 1.4}


def figure(curves: Dataset, scalars: Dataset, info: common.Info) -> common.Figure | None:
    """log10 of the adjoint's norm over lag, a line per training step, a panel per layer."""
    chosen = common.several_measured(curves, _ADJOINT)
    if chosen is None:
        return None
    page = common.Page(info, QUESTION, HINT, curves.sizes["layer"])
    xlabel = common.lag_label(curves, _ADJOINT)
    widest = common.WIDEST if curves.sizes["layer"] > 1 else _WIDEST_ALONE
    for row, axes in page.layers(curves, "log10 of the gradient's norm", xlabel):
        panel = chosen.isel(layer=row)
        for one, style in common.each_step(panel):
            common.line(axes, one, _ADJOINT, **style)
            common.line(axes, one, "adj_c_log10", color=style["color"], **_DASHED)
        _quantile_band(axes, one, style["color"])
        name = f"layer {curves['layer'].values[row]}, step {int(one['step']):,}"
        lines = [
            common.titled(name, _fall(one), widest),
            _line(one),
            _mark_horizon(axes, one),
            _zeros(one),
        ]
        axes.set_title("\n".join(filter(None, lines)), fontsize=12)
        axes.set_xlim(0, panel.sizes["t"] - 1 or 1)
    keys = list(page.figure.axes[0].get_legend_handles_labels()[0])
    keys += _style_keys(curves)
    keys += _mark_bound(page.figure.axes, curves, info)
    keys += common.mark_float32(page.figure.axes)
    return page.legend(keys)


def _quantile_band(axes: common.Axes, last: Dataset, colour: Any) -> None:
    if "adj_h_log10_q" in last:
        lag, values = common.by_lag(last, "adj_h_log10_q")
        values = common.finite(values)
        axes.fill_between(lag, values[0], values[-1], color=colour, alpha=0.2, linewidth=0)


def _fall(last: Dataset) -> str:
    """How far the norm of the whole state's gradient falls over the sequence, in words."""
    lost = float(last.get("decades_lost", np.nan))
    if np.isnan(lost):
        return ""
    if np.isinf(lost):
        return "nothing arrives from the longest lag"
    return f"{abs(lost):.1f} decades {'lost' if lost >= 0 else 'gained'} over the sequence"


def _line(last: Dataset) -> str:
    """The straight line through that fall, and how straight it is."""
    rate, r2 = (float(last.get(name, np.nan)) for name in ("decades_per_100", "adjoint_line_r2"))
    if np.isnan(rate):
        return ""
    straight = "" if np.isnan(r2) else f", r² = {r2:.2f}"
    way = "lost" if rate >= 0 else "gained"
    return f"line: {abs(rate):.3g} decades {way} per 100 timesteps{straight}"


def _mark_horizon(axes: common.Axes, last: Dataset) -> str:
    """A vertical line at the memory horizon of the last step; its length in words."""
    horizon = float(last.get("memory_horizon", np.nan))
    if not horizon <= last.sizes["t"] - 1:
        return ""
    axes.axvline(horizon, color=common.GREY, linestyle=":", zorder=1)
    digits = 1 if horizon < 100 else 0
    return f"memory horizon {horizon:.{digits}f} timesteps"


def _horizon_reached(last: Dataset) -> bool:
    """Whether any layer's gradient falls by e within the sequence."""
    horizon = last.get("memory_horizon")
    return horizon is not None and bool((horizon <= last.sizes["t"] - 1).any())


def _zeros(last: Dataset) -> str:
    lag, values = common.by_lag(last, _ADJOINT)
    zero = np.isneginf(values)
    if not zero.any():
        return ""
    return f"exactly zero at {zero.sum()} timesteps, first at lag {lag[zero].min()}"


def _mark_bound(every: list[common.Axes], curves: Dataset, info: common.Info) -> list[Any]:
    """Pascanu's bound from the adjoint at lag 0 on, where it holds; its key for the legend.

    It bounds what is transported through time. The adjoint is nothing else only in the last layer,
    and only if the loss reads the end alone.
    """
    last = common.last_measured(curves, "pascanu_bound_log10")
    if last is None or not reads_the_end(info.get("facts", {})):
        return []
    layers = [str(layer) for layer in curves["layer"].values]
    keys = []
    with common.within(every):
        for row, axes in enumerate(every):
            if layers[row].split()[0] != layers[-1].split()[0]:
                continue
            panel = last.isel(layer=row)
            lag, bound = common.by_lag(panel, "pascanu_bound_log10")
            bound = common.finite(bound + common.by_lag(panel, _ADJOINT)[1][0])
            keys += axes.plot(lag, bound, **common.BOUND)
    return keys[:1]


def _style_keys(curves: Dataset) -> list[Any]:
    from matplotlib.patches import Patch

    keys: list[Any] = []
    if "adj_c_log10" in curves:
        keys.append(common.key("solid: ∂ℓ/∂h"))
        keys.append(common.key("dashed: ∂ℓ/∂c", **_DASHED))
    if "adj_h_log10_q" in curves:
        keys.append(Patch(color=common.GREY, alpha=0.2, label="90 % of examples,\nlast step"))
    if _horizon_reached(curves.isel(step=-1)):
        keys.append(common.key(_HORIZON, linestyle=":"))
    return keys
