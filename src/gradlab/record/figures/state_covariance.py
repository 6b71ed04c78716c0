"""Where do the states go? Their autocorrelation, and in how many directions they vary."""

from __future__ import annotations

import math
from typing import Any

from xarray import Dataset

from gradlab.record.figures import common

QUESTION = "For how long does a state resemble itself, and in how many directions do states vary?"
HINT = "left falling slowly = long memory of the forward pass,  right low = few directions are used"
_CURVE, _RATIO = "state_autocorrelation", "participation_ratio"


def figure(curves: Dataset, scalars: Dataset, info: common.Info) -> common.Figure | None:
    """Autocorrelation over delay, a line per look; participation ratio over training."""
    chosen, rows = common.several_measured(curves, _CURVE), common.all_measured(curves, _RATIO)
    if chosen is None or rows is None:
        return None
    page = common.Page(info, QUESTION, HINT, curves.sizes["layer"], 2)
    for row, (left, right) in enumerate(page.grid()):
        _autocorrelation(left, chosen.isel(layer=row))
        _directions(right, rows.isel(layer=row))
        left.set_title(common.layer_title(curves, row, "autocorrelation"))
        right.set_title(common.layer_title(curves, row, "directions over training"))
    return page.legend(title=None, handlelength=3)


def _autocorrelation(axes: common.Axes, panel: Dataset) -> None:
    for one, style in common.each_step(panel):
        for k in range(panel.sizes["state"]):
            values = one[_CURVE].isel(state=k).values
            common.plot(axes, one["delay"].values, values, **_look(k, style["color"]))
        axes.plot([], [], **style)
    common.mark_level(axes, 1 / math.e, "1/e")
    axes.set_xlabel("delay in timesteps")
    axes.set_ylabel("autocorrelation of the states")


def _directions(axes: common.Axes, rows: Dataset) -> None:
    marker = "o" if rows.sizes["step"] < 30 else ""
    for k, name in enumerate(rows["state"].values):
        label, look = f"state {name}", _look(k, common.GREY)
        values = rows[_RATIO].isel(state=k).values
        common.plot(axes, rows["step"].values, values, label=label, **look, marker=marker, ms=4)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("training step")
    axes.set_ylabel("participation ratio")


def _look(state: int, colour: Any) -> dict[str, Any]:
    return {"color": colour, "linestyle": common.dashes(state)}
