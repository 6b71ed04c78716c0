"""How long does each unit remember? The retention gate and its time scales."""

from __future__ import annotations

import numpy as np
from xarray import Dataset

from gradlab.record.figures import common

QUESTION = "How long does each unit remember?"
HINT = "gate near 1 = the old state is kept,  near 0 = it is replaced"
_HISTOGRAM, _TIMESCALE = "retention_histogram", "timescale"


def figure(curves: Dataset, scalars: Dataset, info: common.Info) -> common.Figure | None:
    """The histogram of the retention gate and the units' sorted time scales, several steps."""
    shown = {
        name: chosen
        for name in (_HISTOGRAM, _TIMESCALE)
        if (chosen := common.several_measured(curves, name)) is not None
    }
    if not shown:
        return None
    page = common.Page(info, QUESTION, HINT, curves.sizes["layer"], len(shown))
    for row, across in enumerate(page.grid()):
        for axes, (name, chosen) in zip(across, shown.items(), strict=True):
            panel = chosen.isel(layer=row)
            if name == _HISTOGRAM:
                _histogram(axes, panel)
                title = f"how open is the gate {common.gate_of(curves, info, name, row)}?"
            else:
                _timescales(axes, panel)
                title = "time scale of each unit"
            axes.set_title(common.layer_title(curves, row, title))
    return page.legend()


def _histogram(axes: common.Axes, panel: Dataset) -> None:
    bins, shares = panel["log10_gate"].values, panel[_HISTOGRAM].max("step").values
    for one, style in common.each_step(panel):
        share = 100 * one[_HISTOGRAM].values
        stairs = np.append(share, share[-1:])
        axes.plot(common.edges(bins), stairs, drawstyle="steps-post", **style)
    used = bins[shares > 0.005]
    if len(used):
        axes.set_xlim(min(used.min() - 0.2, -1), 0.03)
    axes.set_xlabel("log10 of the gate")
    axes.set_ylabel("share of activations (%)")


def _timescales(axes: common.Axes, panel: Dataset) -> None:
    for one, style in common.each_step(panel):
        steps = np.sort(one[_TIMESCALE].values)[::-1]
        common.plot(axes, 1 + np.arange(len(steps)), steps, **style)
    common.mark_level(axes, panel.sizes["t"], "length T of\nthe sequence")
    axes.set_yscale("log")
    axes.set_xlabel("unit, longest first")
    axes.set_ylabel("1 / (1 - mean gate)  (timesteps)")
