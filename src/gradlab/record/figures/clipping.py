"""What does clipping take away, and how often? By lag, and over training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray

from gradlab.record.figures.common import (
    BLUE,
    by_lag,
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


def figure(
    curves: xarray.Dataset, scalars: xarray.Dataset, info: Mapping[str, Any]
) -> Figure | None:
    """What clipping removed by the lag that it came from; the share of clipped steps."""
    found = several_measured(curves, "clip_removed")
    if found is None:
        return None
    chosen, colours = found
    rate = scalars["train/clip_rate"].dropna("step") if "train/clip_rate" in scalars else None
    both = rate is not None and rate.size > 0
    page = new_figure(1, columns=1 + both)
    set_title(
        page,
        f"What does clipping take away, and how often?{subject(info)}\n"
        "left: high = much of what it takes away came from there,  below 0 = that pulled against it",
    )
    grid = page.subplots(1, 1 + both, squeeze=False)[0]
    _removed(grid[0], chosen, colours)
    if rate is not None and both:
        grid[1].plot(rate["step"], 100 * rate.values, color=BLUE)
        grid[1].set_ylim(-3, 103)
        grid[1].set_title("how often it is at work")
        grid[1].set_xlabel("training step")
        grid[1].set_ylabel("steps that are clipped (%)")
    page.legend(handles=handles_of(page), loc="outside right center", title="at training step")
    return page


def _removed(axes: Axes, chosen: xarray.Dataset, colours: list[Any]) -> None:
    for k, step in enumerate(chosen["step"].values):
        lag, values = by_lag(chosen.isel(step=k), "clip_removed")
        plot(axes, lag, values, color=colours[k], label=_label(step, values))
    mark_level(axes, 0, "nothing")
    axes.set_title("what is removed, by where it came from")
    axes.set_xlabel("lag: timesteps back from the end")
    axes.set_ylabel("gradient removed (loss per parameter)")


def _label(step: int, removed: np.ndarray) -> str:
    return f"step {step:,}" + ("" if np.any(removed) else ":\n    not clipped")
