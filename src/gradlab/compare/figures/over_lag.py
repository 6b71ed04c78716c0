"""A quantity over lag, a panel each layer: what the figures over lag share."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from gradlab.compare.figures.bands import Band, Shown, layer_of, over_runs
from gradlab.compare.groups import Group, counted

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LAG = "lag (timesteps before the end)"
COLUMNS = ("layer", "step", "lag", "mean_log10", "low_log10", "high_log10", "runs")
Alter = Callable[[np.ndarray], np.ndarray]


def over_lag(
    shown: Shown, group: Group, name: str, layer: str, alter: Alter | None = None
) -> tuple[Band, int | None] | None:
    """A variable of a group over lag in a layer, and the training step if it is one for all."""
    steps = set()

    def line(run: Any) -> tuple[np.ndarray, np.ndarray] | None:
        curve = shown.at(run, name)
        values = None if curve is None else layer_of(run, layer, curve.values)
        if curve is None or values is None:
            return None
        steps.add(int(curve.steps[0]))
        row = values[0].astype(float)
        return curve.lags, row if alter is None else alter(row)

    found = over_runs(group, line)
    if found is None:
        return None
    return found, steps.pop() if len(steps) == 1 else None


def relative(values: np.ndarray) -> np.ndarray:
    """Logarithms against that at the smallest lag at which there is something."""
    known = values[np.isfinite(values)]
    return values - known[0] if len(known) else values


def label_layers(shown: Shown, axes_of: list[Axes]) -> None:
    """Which panel is of which layer, if there are several."""
    if len(shown.layers) > 1:
        for axes, layer in zip(axes_of, shown.layers, strict=True):
            axes.set_title(f"layer {layer}")


def reads_the_end(group: Group) -> bool:
    """Whether the loss of a group's task reads the last state alone."""
    facts = [run.entry.info.get("facts") or {} for run in counted(group.runs)]
    return all(one.get("readout") != "every" for one in facts)
