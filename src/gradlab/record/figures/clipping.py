"""What does clipping take away, and how often? By lag, and over training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import xarray

from gradlab.record.figures.common import (
    BLUE,
    all_measured,
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
    looks = all_measured(curves, "clip_removed")
    if looks is None:
        return None
    clipped = (looks["clip_removed"] != 0).any("t").values
    found = several_measured(looks.isel(step=clipped) if clipped.any() else looks, "clip_removed")
    assert found is not None
    chosen, colours = found
    rate = scalars["train/clip_rate"].dropna("step") if "train/clip_rate" in scalars else None
    both = rate is not None and rate.size > 0
    page = new_figure(1, columns=1 + both)
    set_title(
        page,
        f"What does clipping take away, and how often?{subject(info)}\n"
        "left: high = much of it came from this lag,  below 0 = this lag pulled the other way",
    )
    grid = page.subplots(1, 1 + both, squeeze=False)[0]
    _removed(grid[0], chosen, colours)
    grid[0].set_title(f"what it takes away (at {clipped.sum()} of {len(clipped)} looks)")
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
        plot(axes, lag, values, color=colours[k], label=f"step {step:,}")
    mark_level(axes, 0, "nothing")
    axes.set_xlabel("lag: timesteps back from the end")
    axes.set_ylabel("gradient removed (loss per parameter)")
