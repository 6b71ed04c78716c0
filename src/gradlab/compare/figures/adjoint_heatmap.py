"""Where in the sequence the gradient arrives: the adjoint over lag and training step."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import xarray

from gradlab.compare.figures.bands import Shown, layer_of
from gradlab.compare.figures.over_training import STEP
from gradlab.compare.figures.style import DOUBLE, Page, new_grid, safe
from gradlab.compare.groups import Group, counted
from gradlab.compare.recorded import ADJOINT
from gradlab.record.figures.common import colour_limits, heatmap, spread

MOST_STEPS, MOST_LAGS = 160, 120
MOST_PANELS = 12


class Map(NamedTuple):
    """The mean over runs, ``(S, T)``, at training steps ``(S,)`` and lags ``(T,)``."""

    steps: np.ndarray
    lags: np.ndarray
    values: np.ndarray
    runs: int


def page(shown: Shown) -> Page | None:
    """A panel a group, one scale of colours; of the first layer."""
    layer = shown.layers[0] if shown.layers else ""
    maps = [(group, found) for group in shown.groups if (found := _map(group, layer))]
    if not maps:
        return None
    drawn = [maps[index] for index in spread(len(maps), MOST_PANELS)]
    low, high = colour_limits(np.concatenate([found.values.ravel() for _, found in drawn]))
    sharey = len({found.lags[-1] for _, found in drawn}) == 1
    words = STEP, "lag (timesteps)"
    figure, panels = new_grid(len(drawn), 4, *words, height=1.55, sharey=sharey)
    across, down = min(len(drawn), 4), -(-len(drawn) // 4)
    mesh: Any = None
    rows: list[list[Any]] = [shown.header("layer", "step", "lag", "mean_log10", "runs")]
    for axes, (group, found) in zip(panels, drawn, strict=True):
        mesh = _draw(axes, found, low, high)
        axes.set_title(safe(group.label) if len(drawn) > 1 else "", fontsize=7 if across > 3 else 8)
        rows += [
            [*shown.told(group), layer, step, lag, value, found.runs]
            for step, line in zip(found.steps, found.values, strict=True)
            for lag, value in zip(found.lags, line, strict=True)
        ]
    zeros = any(np.isneginf(found.values).any() for _, found in drawn)
    bar = figure.colorbar(mesh, ax=panels, pad=0.02, aspect=18 * down)
    bar.set_label("log₁₀ ‖∂ℓ/∂h‖" + (" (black: 0)" if zeros else ""))
    bar.outline.set_linewidth(0.6)  # type: ignore[operator]
    notes = [f"layer {layer}"] if len(shown.layers) > 1 else []
    notes += [f"{len(drawn)} of {len(maps)} settings"] if len(drawn) < len(maps) else []
    if notes:
        figure.suptitle(", ".join(notes), fontsize=8)
    if across > 1:
        figure.set_figwidth(DOUBLE)
    return Page(figure, rows)


def _map(group: Group, layer: str) -> Map | None:
    """The mean over the runs of a group, at the steps and lags that all of them have."""
    found = [
        curve
        for run in counted(group.runs)
        if (curve := layer_of(run, layer, run.curve(ADJOINT, MOST_STEPS, MOST_LAGS))) is not None
    ]
    if not found:
        return None
    longest = max(found, key=lambda curve: len(curve.steps))
    same = [
        curve.values
        for curve in found
        if np.array_equal(curve.steps, longest.steps) and np.array_equal(curve.lags, longest.lags)
    ]
    return Map(longest.steps, longest.lags, np.asarray(same, float).mean(0), len(same))


def _draw(axes: Any, found: Map, low: float, high: float) -> Any:
    places = {"step": found.steps.astype(float), "lag": found.lags.astype(float)}
    values = xarray.DataArray(found.values, places, ("step", "lag"))
    mesh = heatmap(axes, values, low, high)
    axes.set_ylim(axes.get_ylim()[::-1] if axes.get_ylim()[0] < axes.get_ylim()[1] else None)
    return mesh
