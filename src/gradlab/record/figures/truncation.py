"""What does truncated backpropagation lose? Bias and direction over the window."""

from __future__ import annotations

import numpy as np
from xarray import Dataset

from gradlab.record.figures import common

QUESTION = "What does truncated backpropagation lose?"
HINT = "the smallest window near the dotted line is long enough"
_PANELS = {
    "truncation_bias": ("How much is missing?", "bias: ‖truncated - full‖ / ‖full‖", 0.0),
    "truncation_cosine": ("Does it still point the right way?", "cosine with the full one", 1.0),
}


def figure(curves: Dataset, scalars: Dataset, info: common.Info) -> common.Figure | None:
    """Relative bias and cosine of the truncated gradient over its window, several steps."""
    chosen = common.several_measured(curves, "truncation_bias")
    if chosen is None:
        return None
    shown = [name for name in _PANELS if name in curves]
    page = common.Page(info, QUESTION, HINT, columns=len(shown))
    for axes, name in zip(page.grid()[0], shown, strict=True):
        title, ylabel, ideal = _PANELS[name]
        windows = chosen["window"].values
        for one, style in common.each_step(chosen):
            common.plot(axes, windows, one[name].values, marker="o", **style)
        common.mark_level(axes, ideal, "the full gradient")
        _ticks(axes, windows)
        axes.set_title(title)
        axes.set_ylabel(ylabel)
    return page.legend()


def _ticks(axes: common.Axes, windows: np.ndarray) -> None:
    from matplotlib.ticker import FixedLocator, NullLocator

    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(FixedLocator(list(windows)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticks(windows, [f"{window:g}" for window in windows], rotation=45)
    axes.set_xlabel("window: timesteps that the gradient may go back")
