"""Is it learning? The losses over training step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray

from gradlab.record.figures.common import BLUE, GREY, ORANGE, finite, new_figure, set_title, subject

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def figure(
    curves: xarray.Dataset, scalars: xarray.Dataset, info: Mapping[str, Any]
) -> Figure | None:
    """Training and validation loss over training step, with the baseline."""
    losses = {}
    for split in ("train", "val"):
        if f"{split}/loss" in scalars:
            loss = scalars[f"{split}/loss"].dropna("step")
            if loss.size:
                losses[split] = loss
    if not losses:
        return None
    page = new_figure(1, width=9.5)
    axes = page.subplots()
    names = {"train": "training", "val": "validation"}
    styles = {"train": {"color": BLUE, "alpha": 0.75}, "val": {"color": ORANGE, "marker": "o"}}
    for split, loss in losses.items():
        axes.plot(loss["step"], finite(loss.values), label=names[split], **styles[split])
    baseline = _baseline(info)
    if baseline:
        axes.axhline(baseline["loss"], color=GREY, ls="--", label=f"baseline: {baseline['name']}")
    every = np.concatenate([loss.values for loss in losses.values()])
    every = every[np.isfinite(every)]
    if every.size and every.min() > 0 and every.max() / every.min() > 8:
        axes.set_yscale("log")
    units = next(iter(losses.values())).attrs.get("units", "")
    axes.set_ylabel(f"loss ({units})" if units not in ("", "1") else "loss")
    axes.set_xlabel("training step")
    below = ",  below the dashed line = better than a guess" if baseline else ""
    set_title(page, f"Is it learning?{subject(info)}\ndown = better{below}")
    page.legend(loc="outside lower center", ncols=3)
    return page


def _baseline(info: Mapping[str, Any]) -> Mapping[str, Any] | None:
    for split in ("val", "train"):
        found = (info.get("baseline") or {}).get(split)
        if found and found.get("loss") is not None:
            return found
    return None
