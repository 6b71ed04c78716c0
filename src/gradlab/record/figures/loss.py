"""Is it learning? The losses over training step."""

from __future__ import annotations

from typing import Any

import numpy as np
from xarray import Dataset

from gradlab.record.base import baseline_of
from gradlab.record.figures import common

_LINES: dict[str, dict[str, Any]] = {
    "train/loss": {"label": "training", "color": common.BLUE, "alpha": 0.75},
    "val/loss": {"label": "validation", "color": common.ORANGE, "marker": "o"},
}


def figure(curves: Dataset, scalars: Dataset, info: common.Info) -> common.Figure | None:
    """Training and validation loss over training step, with the baseline."""
    losses = common.recorded(scalars, _LINES)
    if not losses:
        return None
    baseline = baseline_of(info.get("baseline") or {}, ("val", "train"))
    below = ",  below the dashed line = better than a guess" if baseline else ""
    page = common.Page(info, "Is it learning?", f"down = better{below}")
    axes = page.grid()[0, 0]
    for name, loss in losses.items():
        axes.plot(loss["step"], common.finite(loss.values), **_LINES[name])
    if baseline:
        label = f"baseline: {baseline['name']}"
        axes.axhline(baseline["loss"], color=common.GREY, ls="--", label=label)
    every = np.concatenate([loss.values for loss in losses.values()])
    every = every[np.isfinite(every)]
    if every.size and every.min() > 0 and every.max() / every.min() > 8:
        axes.set_yscale("log")
    units = next(iter(losses.values())).attrs.get("units", "")
    axes.set_ylabel(f"loss ({units})" if units not in ("", "1") else "loss")
    axes.set_xlabel("training step")
    return page.legend_below(3)
