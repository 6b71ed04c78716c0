"""Which path carries the memory? The two parts of ∂c_T/∂c_t beside their sum."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import xarray

from gradlab.record.figures.common import (
    BLUE,
    GREEN,
    ORANGE,
    by_lag,
    handles_of,
    last_measured,
    layer_title,
    mark_float32,
    new_figure,
    panels,
    plot,
    set_title,
    subject,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_PATHS: dict[str, tuple[str, dict[str, Any]]] = {
    "whole_path_log10": (
        "whole: all of {whole}",
        {"color": BLUE, "linewidth": 4, "alpha": 0.6},
    ),
    "forget_path_log10": (
        "gates alone: the product of {gate}",
        {"color": ORANGE, "linestyle": "--"},
    ),
    "residual_path_log10": (
        "the rest, through recurrent weights",
        {"color": GREEN, "linestyle": (0, (1.5, 1.5))},
    ),
}


def figure(
    curves: xarray.Dataset, scalars: xarray.Dataset, info: Mapping[str, Any]
) -> Figure | None:
    """Norms of the whole, of the forget path and of the residual path over lag, last step."""
    last = last_measured(curves, *_PATHS)
    if last is None:
        return None
    recorded = [name for name in _PATHS if name in curves]
    attrs = curves[recorded[0]].attrs
    whole = re.split("[ ,]", attrs["long_name"])[0]
    words = {"gate": attrs.get("gate", "the retention gate"), "whole": whole}
    layers = curves["layer"].values
    page = new_figure(len(layers))
    set_title(
        page,
        f"Which path carries the memory?{subject(info)}, step {int(last['step']):,}\n"
        "a path on the thick line carries it;  up = remembered, down = forgotten",
    )
    for index, (axes, layer) in enumerate(zip(panels(page, len(layers)), layers, strict=True)):
        for name in recorded:
            label, style = _PATHS[name]
            lag, values = by_lag(last.isel(layer=index), name)
            plot(axes, lag, values, label=label.format(**words), **style)
        axes.set_title(layer_title(curves, layer))
        axes.set_ylabel("log10 of the Frobenius norm")
    mark_float32(page.axes)
    page.legend(handles=handles_of(page), loc="outside lower center", ncols=3)
    return page
