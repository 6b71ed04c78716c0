"""How much would the gate alone keep? The product of the retention gate beside the adjoint."""

from __future__ import annotations

from typing import Any

import numpy as np
from xarray import Dataset

from gradlab.record.figures import common
from gradlab.variable import over_lag_name

QUESTION = "How much would the gate alone keep?"
HINT = "compare the thick lines, both are norms;  paths.png, of {}, tells what went through h"
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
    rows = range(curves.sizes["layer"])
    gates = [common.gate_of(curves, info, _TYPICAL, row) for row in rows]
    symbols = [_memory(last.isel(layer=row)) for row in rows]
    one_kind = len({*zip(gates, symbols, strict=True)}) == 1
    gate = "/".join(dict.fromkeys(filter(None, gates)))
    norms = " or ".join(dict.fromkeys(f"‖∂ℓ/∂{symbol}‖" for symbol in filter(None, symbols)))
    hint = HINT.format(common.close_look(info, "forget_path", "probe=full"))
    page = common.Page(info, QUESTION, hint, len(rows), last=last)
    xlabel = common.lag_label(curves, _TYPICAL)
    for row, axes in page.layers(curves, "log10 of what is left", xlabel):
        panel = last.isel(layer=row)
        _units(axes, panel)
        if symbols[row]:
            lag, norm = common.by_lag(panel, f"adj_{symbols[row]}_log10")
            label = f"norm of the gradient, {norms} (0 at its first lag)"
            axes.plot(lag, norm - common.first_finite(norm), color=common.BLUE, label=label)
        common.line(axes, panel, _RMS, label=f"product of {gate}, root mean square", **_THICK)
        common.line(axes, panel, _TYPICAL, label=f"product of {gate}, a typical unit", **_THIN)
        beside = f"gate {gates[row]}" if gates[row] else "no gate that multiplies it"
        kind = "" if one_kind else f"‖∂ℓ/∂{symbols[row]}‖, {beside}"
        axes.set_title(common.titled(f"layer {curves['layer'].values[row]}", kind))
    common.mark_float32(page.figure.axes)
    return page.legend_below(2)


def _memory(panel: Dataset) -> str:
    """The state of a layer that its gate multiplies: c where it has one, else h."""
    there = (name for name in ("c", "h") if f"adj_{name}_log10" in panel)
    return next((name for name in there if panel[f"adj_{name}_log10"].notnull().any()), "")


def _units(axes: common.Axes, panel: Dataset) -> None:
    """A band that 90 % of the units lie in, where it counts the lag as the lines do."""
    if _UNITS not in panel:
        return
    lag, typical = common.by_lag(panel, _TYPICAL)
    same_length = np.allclose(typical, panel[_TYPICAL].values[::-1], equal_nan=True)
    if same_length or over_lag_name(_UNITS) in panel:
        values = common.finite(common.by_lag(panel, _UNITS)[1])
        low, high = (panel["quantile"].values[end] for end in (0, -1))
        style = {"color": common.ORANGE, "linewidth": 0, "alpha": 0.15}
        axes.fill_between(
            lag, values[0], values[-1], label=f"units, {low:.0%} to {high:.0%}", **style
        )
