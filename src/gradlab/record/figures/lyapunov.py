"""Do small changes of the state grow or die out? The Lyapunov exponents."""

from __future__ import annotations

from typing import Any

import numpy as np
from xarray import Dataset

from gradlab.record.figures import common

QUESTION = "Do small changes of the state grow or die out?"
HINT = "above 0 = they grow,  below 0 = they die out,  at 0 = they are kept"
_SPECTRUM, _RUNNING = "lyapunov_exponent", "lyapunov_running"
_ZERO = "neither grows\nnor dies out"


def figure(curves: Dataset, scalars: Dataset, info: common.Info) -> common.Figure | None:
    """The spectrum over its index for several training steps; beside it its convergence."""
    chosen = common.several_measured(curves, _SPECTRUM)
    if chosen is None:
        return None
    page = common.Page(info, QUESTION, HINT, curves.sizes["layer"], 1 + (_RUNNING in curves))
    for row, (axes, *beside) in enumerate(page.grid()):
        panel = chosen.isel(layer=row)
        _spectra(axes, panel)
        axes.set_title(common.layer_title(curves, row, _numbers(curves, row)), fontsize=12)
        _mark_mean_field(axes, curves, row)
        for other in beside:
            _convergence(other, panel)
    return page.legend()


def _spectra(axes: common.Axes, panel: Dataset) -> None:
    rank = 1 + np.arange(panel.sizes["index"])
    marker = {"marker": "o"} if len(rank) == 1 else {}
    for one, style in common.each_step(panel):
        common.plot(axes, rank, one[_SPECTRUM].values, **style, **marker)
    common.mark_level(axes, 0, _ZERO)
    axes.set_xlabel("direction, largest exponent first")
    common.whole_numbers(axes)
    axes.set_ylabel("Lyapunov exponent (nats per step)")


def _convergence(axes: common.Axes, panel: Dataset) -> None:
    times, length = panel["t"].values, panel.sizes["t"]
    for one, style in common.each_step(panel):
        common.plot(axes, times, one[_RUNNING].values, color=style["color"])
    # The first few steps are not yet an average and would set the height of the panel.
    low, high = common.colour_limits(panel[_RUNNING].values[:, length // 4 :])
    margin = 0.2 * (high - low)
    axes.set_ylim(min(low - margin, -margin), max(high + margin, margin))
    common.mark_level(axes, 0, _ZERO)
    axes.set_title("has the largest settled? (level at the right = yes)", fontsize=12)
    axes.set_xlabel("timestep t up to which it is averaged")
    axes.set_ylabel("largest exponent so far")


def _mark_mean_field(axes: common.Axes, curves: Dataset, row: int) -> None:
    level = common.last_value(curves, "mean_field_exponent", row)
    if np.isfinite(level):
        style: Any = {"color": common.PURPLE, "linestyle": "--"}
        axes.axhline(level, label="mean field: largest\nof a wide random W", **style)


def _numbers(curves: Dataset, row: int) -> str:
    """Dimension and mean-field χ at the last step, in words."""
    words = {"lyapunov_dimension": "Lyapunov dimension {:.1f}", "mean_field_chi": "χ = {:.2f}"}
    values = {text: common.last_value(curves, name, row) for name, text in words.items()}
    told = [text.format(value) for text, value in values.items() if np.isfinite(value)]
    return ", ".join(told) + (" at the last step" if told else "")
