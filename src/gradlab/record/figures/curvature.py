"""How sharply is the loss curved? The Hessian along the gradient and at its largest."""

from __future__ import annotations

from typing import Any

import numpy as np
from xarray import Dataset

from gradlab.record.figures import common

QUESTION = "How sharply is the loss curved?"
HINT = "plain gradient descent is stable below 2 / learning rate"
_LINES: dict[str, tuple[str, dict[str, Any]]] = {
    "hessian_top": (
        "largest eigenvalue of the Hessian H",
        {"color": common.ORANGE, "marker": "s"},
    ),
    "gradient_curvature": ("along the gradient, ĝᵀHĝ", {"color": common.BLUE, "marker": "o"}),
}


def figure(curves: Dataset, scalars: Dataset, info: common.Info) -> common.Figure | None:
    """Curvature along the gradient and the Hessian's largest eigenvalue over training step."""
    shown = common.recorded(scalars, _LINES)
    shown = {name: values for name, values in shown.items() if np.isfinite(values).any()}
    if not shown:
        return None
    page = common.Page(info, QUESTION, HINT)
    axes = page.grid()[0, 0]
    for name, values in shown.items():
        label, style = _LINES[name]
        style = {**style, "label": label, "markersize": 5, "clip_on": False}
        axes.plot(values["step"], common.finite(values.values), **style)
    _scale(axes, np.concatenate([values.values for values in shown.values()]))
    axes.set_xlabel("training step")
    axes.set_ylabel("second derivative of the loss")
    return page.legend_below(3)


def _scale(axes: common.Axes, values: np.ndarray) -> None:
    """Logarithmic where the sizes differ a lot; through zero where there are both signs."""
    sizes = np.abs(values[np.isfinite(values) & (values != 0)])
    wide = sizes.size and sizes.max() / sizes.min() > 50
    signs = bool((values <= 0).any())
    if wide and not signs:
        axes.set_yscale("log")
    elif wide:
        axes.set_yscale("symlog", linthresh=max(np.quantile(sizes, 0.2), sizes.max() * 1e-6))
    if signs:
        common.mark_level(axes, 0, "flat")
