"""What does truncated backpropagation lose? Bias and direction over the window."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray

from gradlab.record.figures.common import (
    handles_of,
    mark_level,
    new_figure,
    plot,
    set_title,
    several_measured,
    subject,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_PANELS = {
    "truncation_bias": ("How much is missing?", "bias: ‖truncated - full‖ / ‖full‖", 0.0),
    "truncation_cosine": ("Does it still point the right way?", "cosine with the full one", 1.0),
}


def figure(
    curves: xarray.Dataset, scalars: xarray.Dataset, info: Mapping[str, Any]
) -> Figure | None:
    """Relative bias and cosine of the truncated gradient over its window, several steps."""
    found = several_measured(curves, "truncation_bias")
    if found is None:
        return None
    chosen, colours = found
    shown = [name for name in _PANELS if name in curves]
    page = new_figure(1, columns=len(shown))
    set_title(
        page,
        f"What does truncated backpropagation lose?{subject(info)}\n"
        "the smallest window near the dotted line is long enough",
    )
    for axes, name in zip(page.subplots(1, len(shown), squeeze=False)[0], shown, strict=True):
        title, ylabel, ideal = _PANELS[name]
        windows = chosen["window"].values
        for k, step in enumerate(chosen["step"].values):
            values = chosen[name].isel(step=k).values
            style = {"color": colours[k], "marker": "o", "label": f"step {step:,}"}
            plot(axes, windows, values, **style)
        mark_level(axes, ideal, "the full gradient")
        _ticks(axes, windows)
        axes.set_title(title)
        axes.set_ylabel(ylabel)
    page.legend(handles=handles_of(page), loc="outside right center", title="at training step")
    return page


def _ticks(axes: Axes, windows: np.ndarray) -> None:
    from matplotlib.ticker import FixedLocator, NullLocator

    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(FixedLocator(list(windows)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticks(windows, [f"{window:g}" for window in windows], rotation=45)
    axes.set_xlabel("window: timesteps that the gradient may go back")
