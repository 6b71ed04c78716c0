"""Which directions does a step keep? The eigenvalues of its Jacobian in the complex plane."""

from __future__ import annotations

import numpy as np
from xarray import Dataset

from gradlab.record.figures import common

QUESTION = "Which directions does a single step keep?"
HINT = "near the circle = kept,  inside = they shrink,  outside = they grow"
_REAL, _IMAGINARY = "eigenvalue_real", "eigenvalue_imaginary"


def figure(curves: Dataset, scalars: Dataset, info: common.Info) -> common.Figure | None:
    """Points in the complex plane, a panel for each moment, for the first and the last look."""
    chosen = common.several_measured(curves, _IMAGINARY, most=2)
    if chosen is None:
        return None
    layers, shares = curves.sizes["layer"], curves["share"].values
    page = common.Page(info, QUESTION, HINT, layers, len(shares), width=5.5)
    for row, line in enumerate(page.grid(sharex=True, sharey=True)):
        for column, axes in enumerate(line):
            panel = chosen.isel(layer=row, share=column)
            _points(axes, panel)
            words = f"{shares[column]:.0%} of the way{_median(panel)}"
            axes.set_title(common.layer_title(curves, row, words), fontsize=12)
            axes.set_xlabel("real part")
        line[0].set_ylabel("imaginary part")
    return page.legend()


def _points(axes: common.Axes, panel: Dataset) -> None:
    angle = np.linspace(0, 2 * np.pi, 181)
    circle = {"color": common.GREY, "linestyle": ":", "linewidth": 1.6, "zorder": 1}
    axes.plot(np.cos(angle), np.sin(angle), label="unit circle", **circle)
    looks = zip(common.each_step(panel), (common.BLUE, common.ORANGE), "xo", strict=False)
    for (one, style), colour, marker in looks:
        dots = {"color": colour, "marker": marker, "linestyle": "", "markersize": 5, "alpha": 0.7}
        at, up = common.finite(one[_REAL].values), common.finite(one[_IMAGINARY].values)
        axes.plot(at, up, label=style["label"], **dots)
    axes.set_aspect("equal", adjustable="box")


def _median(panel: Dataset) -> str:
    last = panel.isel(step=-1)
    value = np.median(np.hypot(last[_REAL].values, last[_IMAGINARY].values))
    return f", median |μ| {value:.2g}" if np.isfinite(value) else ""
