"""Which path carries the memory? The two parts of ∂c_T/∂c_t beside their sum."""

from __future__ import annotations

import re
from typing import Any

from xarray import Dataset

from gradlab.record.figures import common
from gradlab.record.lags import FORGET, RESIDUAL, share_of_rest

QUESTION = "Which path carries the memory?"
HINT = "a path on the thick line carries it;  up = remembered, down = forgotten"
_PATHS: dict[str, tuple[str, dict[str, Any]]] = {
    "whole_path_log10": (
        "whole: all of {whole}",
        {"color": common.BLUE, "linewidth": 4, "alpha": 0.6},
    ),
    FORGET: (
        "gates alone: the product of {gate}",
        {"color": common.ORANGE, "linestyle": "--"},
    ),
    RESIDUAL: (
        "the rest, through recurrent weights",
        {"color": common.GREEN, "linestyle": (0, (1.5, 1.5))},
    ),
}


def figure(curves: Dataset, scalars: Dataset, info: common.Info) -> common.Figure | None:
    """Norms of the whole, of the forget path and of the residual path over lag, last step."""
    last = common.last_measured(curves, *_PATHS)
    if last is None:
        return None
    recorded = [name for name in _PATHS if name in curves]
    attrs = curves[recorded[0]].attrs
    whole = re.split("[ ,]", attrs["long_name"])[0]
    words = {"gate": attrs.get("gate", "the retention gate"), "whole": whole}
    page = common.Page(info, QUESTION, HINT, curves.sizes["layer"], last=last)
    xlabel = common.lag_label(curves, recorded[0])
    for row, axes in page.layers(curves, "log10 of the Frobenius norm", xlabel):
        panel = last.isel(layer=row)
        for name in recorded:
            label, style = _PATHS[name]
            common.line(axes, panel, name, label=label.format(**words), **style)
        axes.set_title(common.layer_title(curves, row, _share(panel)), fontsize=12)
    common.mark_float32(page.figure.axes)
    return page.legend_below(3)


def _share(panel: Dataset) -> str:
    """How much goes the rest's way, in words."""
    if not {FORGET, RESIDUAL} <= set(panel):
        return ""
    share = share_of_rest(*(common.by_lag(panel, name)[1] for name in (FORGET, RESIDUAL)))
    if share is None:
        return ""
    return f"recurrent weights: {share.percent}\nof the squared norm at lag {share.lag}"
