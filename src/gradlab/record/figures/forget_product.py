"""Does the gate alone explain the memory? The forget product beside the adjoint."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import xarray

from gradlab.record.figures.common import (
    BLUE,
    ORANGE,
    by_lag,
    first_finite,
    last_measured,
    mark_float32,
    new_figure,
    panels,
    set_title,
    subject,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def figure(
    curves: xarray.Dataset, scalars: xarray.Dataset, info: Mapping[str, Any]
) -> Figure | None:
    """Forget product and adjoint over lag at the last measured step, both from 0 at lag 0."""
    last = last_measured(curves, "forget_product_log10")
    if last is None:
        return None
    gate = curves["forget_product_log10"].attrs.get("gate", "")
    adjoint = next((n for n in ("adj_c_log10", "adj_h_log10") if n in curves), None)
    layers = curves["layer"].values
    page = new_figure(len(layers))
    step = int(last["step"])
    set_title(
        page,
        f"Does the gate alone explain the memory?{subject(info)}, step {step:,}\n"
        "lines together = through the gate,  apart = the rest went through h",
    )
    symbol = "c" if adjoint == "adj_c_log10" else "h"
    for index, (axes, layer) in enumerate(zip(panels(page, len(layers)), layers, strict=True)):
        panel = last.isel(layer=index)
        lag, product = by_lag(panel, "forget_product_log10")
        if adjoint:
            lag, norm = by_lag(panel, adjoint)
            label = f"gradient ‖∂ℓ/∂{symbol}‖ (0 at its first lag)"
            axes.plot(lag, norm - first_finite(norm), color=BLUE, label=label)
        product_label = f"product of the retention gate {gate}".rstrip()
        axes.plot(lag, product, color=ORANGE, linestyle="--", label=product_label)
        axes.set_title(f"layer {layer}")
        axes.set_ylabel("log10 of what is left")
    handles = page.axes[0].get_legend_handles_labels()[0] + mark_float32(page.axes)
    page.legend(handles=handles, loc="outside lower center", ncols=2)
    return page
