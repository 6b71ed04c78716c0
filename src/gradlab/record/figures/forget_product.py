"""Does the gate alone explain the memory? The forget product beside the adjoint."""

from __future__ import annotations

from xarray import Dataset

from gradlab.record.figures import common

QUESTION = "Does the gate alone explain the memory?"
HINT = "lines together = through the gate,  apart = the rest went through h"
_PRODUCT = "forget_product_log10"


def figure(curves: Dataset, scalars: Dataset, info: common.Info) -> common.Figure | None:
    """Forget product and adjoint over lag at the last measured step, both from 0 at lag 0."""
    last = common.last_measured(curves, _PRODUCT)
    if last is None:
        return None
    product_label = f"product of the retention gate {curves[_PRODUCT].attrs.get('gate', '')}"
    adjoint = next((n for n in ("adj_c_log10", "adj_h_log10") if n in curves), None)
    symbol = "c" if adjoint == "adj_c_log10" else "h"
    page = common.Page(info, QUESTION, HINT, curves.sizes["layer"], last=last)
    for row, axes in page.layers(curves, "log10 of what is left"):
        panel = last.isel(layer=row)
        if adjoint:
            lag, norm = common.by_lag(panel, adjoint)
            label = f"gradient ‖∂ℓ/∂{symbol}‖ (0 at its first lag)"
            axes.plot(lag, norm - common.first_finite(norm), color=common.BLUE, label=label)
        lag, product = common.by_lag(panel, _PRODUCT)
        axes.plot(lag, product, color=common.ORANGE, linestyle="--", label=product_label.rstrip())
        axes.set_title(f"layer {curves['layer'].values[row]}")
    common.mark_float32(page.figure.axes)
    return page.legend_below(2)
