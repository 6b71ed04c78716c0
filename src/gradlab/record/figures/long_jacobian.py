"""How much of a change of the state is left at the end? The long-term Jacobian's norm."""

from __future__ import annotations

from typing import Any

from xarray import Dataset

from gradlab.record.figures import common

QUESTION = "How much of a change of the state is left at the end?"
HINT = "above 0 = grown,  below 0 = shrunk,  a straight line = a constant rate"
_LARGEST, _FROBENIUS = "long_jacobian_log10", "long_jacobian_log10_frobenius"
_DASHED: dict[str, Any] = {"linestyle": (0, (4, 2)), "linewidth": 1.4}


def figure(curves: Dataset, scalars: Dataset, info: common.Info) -> common.Figure | None:
    """log10 of the norms of J_{T:t} over lag, a line per training step, a panel per layer."""
    chosen = common.several_measured(curves, _LARGEST)
    if chosen is None:
        return None
    page = common.Page(info, QUESTION, HINT, curves.sizes["layer"])
    xlabel = common.lag_label(curves, _LARGEST)
    for row, axes in page.layers(curves, "log10 ‖∂s_T/∂s_t‖", xlabel):
        for one, style in common.each_step(chosen.isel(layer=row)):
            common.line(axes, one, _LARGEST, **style)
            common.line(axes, one, _FROBENIUS, color=style["color"], **_DASHED)
    every = page.figure.axes
    last = common.last_measured(curves, "pascanu_bound_log10")
    if last is not None:
        with common.within(every):
            for row, axes in enumerate(every):
                common.line(axes, last.isel(layer=row), "pascanu_bound_log10", **common.BOUND)
    for axes in every:
        common.mark_level(axes, 0, "as large as it was")
    common.mark_float32(every)
    keys = common.handles_of(page.figure)
    if _FROBENIUS in curves:
        keys.append(common.key("solid: largest\nsingular value"))
        keys.append(common.key("dashed: Frobenius", **_DASHED))
    return page.legend(keys)
