"""How sharply is the loss curved? The Hessian along the gradient and at its largest."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray

from gradlab.record.figures.common import (
    BLUE,
    ORANGE,
    finite,
    mark_level,
    new_figure,
    set_title,
    subject,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_LINES: dict[str, tuple[str, dict[str, Any]]] = {
    "hessian_top": ("largest eigenvalue of the Hessian H", {"color": ORANGE, "marker": "s"}),
    "gradient_curvature": ("along the gradient, ĝᵀHĝ", {"color": BLUE, "marker": "o"}),
}


def figure(
    curves: xarray.Dataset, scalars: xarray.Dataset, info: Mapping[str, Any]
) -> Figure | None:
    """Curvature along the gradient and the Hessian's largest eigenvalue over training step."""
    shown = {name: scalars[name].dropna("step") for name in _LINES if name in scalars}
    shown = {name: values for name, values in shown.items() if np.isfinite(values).any()}
    if not shown:
        return None
    page = new_figure(1, width=9.5)
    set_title(
        page,
        f"How sharply is the loss curved?{subject(info)}\n"
        "plain gradient descent is stable below 2 / learning rate",
    )
    axes = page.subplots()
    for name, values in shown.items():
        label, style = _LINES[name]
        axes.plot(
            values["step"], finite(values.values), label=label, markersize=5, clip_on=False, **style
        )
    _scale(axes, np.concatenate([values.values for values in shown.values()]))
    axes.set_xlabel("training step")
    axes.set_ylabel("second derivative of the loss")
    page.legend(loc="outside lower center", ncols=3)
    return page


def _scale(axes: Axes, values: np.ndarray) -> None:
    """Logarithmic where the sizes differ a lot; through zero where there are both signs."""
    sizes = np.abs(values[np.isfinite(values) & (values != 0)])
    wide = sizes.size and sizes.max() / sizes.min() > 50
    signs = bool((values <= 0).any())
    if wide and not signs:
        axes.set_yscale("log")
    elif wide:
        axes.set_yscale("symlog", linthresh=max(np.quantile(sizes, 0.2), sizes.max() * 1e-6))
    if signs:
        mark_level(axes, 0, "flat")
