"""How much would the gate alone keep? The product of the retention gate beside the adjoint."""

from __future__ import annotations

from typing import Any

from xarray import Dataset

from gradlab.record.figures import common
from gradlab.variable import over_lag_name

QUESTION = "How much would the gate alone keep?"
HINT = (
    "compare the thick lines, both are norms;  paths.png, of probe=full, tells what went through h"
)
_TYPICAL, _RMS = "forget_product_log10", "forget_product_rms_log10"
_UNITS = "forget_product_log10_q"
_THICK: dict[str, Any] = {"color": common.ORANGE, "linestyle": "--"}
_THIN: dict[str, Any] = {"color": common.ORANGE, "linestyle": (0, (1.5, 1.5)), "linewidth": 1.2}


def figure(curves: Dataset, scalars: Dataset, info: common.Info) -> common.Figure | None:
    """The gate's product and the adjoint's norm over lag, last measured step, both from 0.

    Of the product its root mean square over units, which compares with a norm; thin, a typical unit
    (the mean of the units' logs) and the spread of the units.
    """
    last = common.last_measured(curves, _TYPICAL)
    if last is None:
        return None
    gate = curves[_TYPICAL].attrs.get("gate", "")
    adjoint = next((n for n in ("adj_c_log10", "adj_h_log10") if n in curves), None)
    symbol = "c" if adjoint == "adj_c_log10" else "h"
    page = common.Page(info, QUESTION, HINT, curves.sizes["layer"], last=last)
    xlabel = common.lag_label(curves, _TYPICAL)
    for row, axes in page.layers(curves, "log10 of what is left", xlabel):
        panel = last.isel(layer=row)
        _units(axes, panel)
        if adjoint:
            lag, norm = common.by_lag(panel, adjoint)
            label = f"norm of the gradient, ‖∂ℓ/∂{symbol}‖ (0 at its first lag)"
            axes.plot(lag, norm - common.first_finite(norm), color=common.BLUE, label=label)
        common.line(axes, panel, _RMS, label=f"product of {gate}, root mean square", **_THICK)
        common.line(axes, panel, _TYPICAL, label=f"product of {gate}, a typical unit", **_THIN)
        axes.set_title(f"layer {curves['layer'].values[row]}")
    common.mark_float32(page.figure.axes)
    return page.legend_below(2)


def _units(axes: common.Axes, panel: Dataset) -> None:
    """A band that 90 % of the units lie in, where it is over the lag that the lines are over."""
    if _UNITS in panel and (over_lag_name(_TYPICAL) in panel) == (over_lag_name(_UNITS) in panel):
        lag, values = common.by_lag(panel, _UNITS)
        values, style = common.finite(values), {"color": common.ORANGE, "linewidth": 0}
        axes.fill_between(lag, values[0], values[-1], alpha=0.15, label="units, 5 to 95 %", **style)
