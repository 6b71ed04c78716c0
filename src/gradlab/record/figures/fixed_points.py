"""Where would the state come to rest? Fixed points, their eigenvalues, and how many there are."""

from __future__ import annotations

from typing import Any

import numpy as np
from xarray import Dataset

from gradlab.record.figures import common

QUESTION = "Where would the state come to rest?"
HINT = "all eigenvalues inside the circle = a stable point,  any outside = unstable"
_REAL, _IMAGINARY = "fixed_point_eigenvalue_real", "fixed_point_eigenvalue_imaginary"
_COUNTS = {
    "fixed_point_count": "different fixed\npoints",
    "fixed_point_converged": "starts that ended\nat one",
    "fixed_point_slow": "starts that ended\nat a slow point",
}
MOST = 4
"""Of the points, those whose eigenvalues are drawn."""


def figure(curves: Dataset, scalars: Dataset, info: common.Info) -> common.Figure | None:
    """The eigenvalues of the points of the last look, and what was found over training."""
    found = common.all_measured(curves, "fixed_point_count")
    if found is None:
        return None
    page = common.Page(info, QUESTION, HINT, curves.sizes["layer"], 2)
    for row, (plane, counts) in enumerate(page.grid()):
        panel = found.isel(layer=row)
        _eigenvalues(plane, panel.isel(step=-1))
        plane.set_title(common.layer_title(curves, row, "at the last step"), fontsize=12)
        for k, (name, label) in enumerate(_COUNTS.items()):
            style: Any = {"color": common.colour(k + MOST), "linestyle": common.dashes(k)}
            marker = "o" if panel.sizes["step"] < 30 else ""
            counts.plot(panel["step"], panel[name], marker=marker, label=label, **style)
        counts.set_ylim(bottom=0)
        counts.set_title(_rest(panel.isel(step=-1)), fontsize=12)
        counts.set_xlabel("training step")
        counts.set_ylabel("number")
    return page.legend(title=None)


def _eigenvalues(axes: common.Axes, last: Dataset) -> None:
    angle = np.linspace(0, 2 * np.pi, 181)
    circle = {"color": common.GREY, "linestyle": ":", "linewidth": 1.6, "zorder": 1}
    axes.plot(np.cos(angle), np.sin(angle), label="unit circle", **circle)
    for k in range(min(MOST, last.sizes["point"])):
        point = last.isel(point=k)
        dots: Any = {"color": common.colour(k), "marker": "xo^s"[k], "linestyle": ""}
        if np.isfinite(point[_REAL]).any():
            label = f"point {k + 1}"
            axes.plot(point[_REAL], point[_IMAGINARY], markersize=5, label=label, **dots)
    axes.set_aspect("equal", adjustable="datalim")
    axes.set_xlabel("real part of an eigenvalue")
    axes.set_ylabel("imaginary part")


def _rest(last: Dataset) -> str:
    """How far from rest the others were at the last step, in words."""
    speed = float(last["fixed_point_rest_log10"])
    return f"largest speed of the others $10^{{{speed:.1f}}}$" if np.isfinite(speed) else ""
