"""Over lag: how the gradient falls, and the product of the gate beside the measured norms."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from gradlab.compare.figures.bands import Band, Shown, draw_bands, layer_of, over_runs, rows_of
from gradlab.compare.figures.style import DOTTED, Page, add_keys, level, new_page
from gradlab.compare.groups import Group, counted, only
from gradlab.compare.recorded import ADJOINT, Recorded
from gradlab.record.base import reads_the_end
from gradlab.record.figures.common import finite, first_finite, key, within

LAG = "lag (timesteps before each example's end)"
COLUMNS = ("variable", "layer", "step", "lag", "mean_log10", "low_log10", "high_log10", "runs")
BOUND = "pascanu_bound_log10"
TYPICAL, UNITS = "forget_product_log10", "forget_product_rms_log10"
PANELS = {
    UNITS: "forget product\n(root mean square)",
    TYPICAL: "forget product\n(typical unit)",
    "forget_path_log10": "forget path",
    "whole_path_log10": "whole path (true)",
    "long_jacobian_log10": "true Jacobian",
}
"""What is drawn where it was recorded, each against its value at lag 0.

A typical unit is no norm, and is drawn only where no root mean square was recorded.
"""


def adjoint(shown: Shown) -> Page | None:
    """log10 of the adjoint's norm over lag, a panel a layer; Pascanu's bound where it holds."""
    rows: list[list[Any]] = [shown.header(*COLUMNS)]
    figure, grid = new_page(max(1, len(shown.layers)), sharey=True)
    axes_of, drawn = list(grid[0]), []
    for axes, layer in zip(axes_of, shown.layers, strict=False):
        lines = [over_lag(shown, group, ADJOINT, layer) for group in shown.groups]
        found = _draw(shown, axes, ADJOINT, layer, lines, rows)
        drawn += [(axes, layer, group, look) for group, look, _ in found]
        axes.set_xlabel(LAG)
        if len(shown.layers) > 1:
            axes.set_title(f"layer {layer}")
    if not drawn:
        return None
    axes_of[0].set_ylabel("log₁₀ ‖∂ℓ/∂h‖")
    bounds = _bounds(shown, drawn, rows)
    add_keys(figure, axes_of, shown.looks, bounds)
    return Page(figure, rows)


def transport(shown: Shown) -> Page | None:
    """What is left over lag, of the first layer: the gate's product, paths and true Jacobian."""
    rows: list[list[Any]] = [shown.header(*COLUMNS)]
    layer = shown.layers[0] if shown.layers else ""
    found = {
        name: [over_lag(shown, group, name, layer, relative=True) for group in shown.groups]
        for name in PANELS
    }
    found = {name: lines for name, lines in found.items() if any(lines)}
    if UNITS in found:
        found.pop(TYPICAL, None)
    if not found:
        return None
    figure, grid = new_page(len(found), sharey=True)
    axes_of = list(grid[0])
    for axes, (name, lines) in zip(axes_of, found.items(), strict=True):
        _draw(shown, axes, name, layer, lines, rows)
        axes.set_title(PANELS[name])
        level(axes, 0)
    if len(axes_of) % 2:
        axes_of[len(axes_of) // 2].set_xlabel(LAG)
    else:
        figure.supxlabel(LAG, fontsize=8)
    more = f", layer {layer}" if len(shown.layers) > 1 else ""
    axes_of[0].set_ylabel(f"log₁₀ of what is left{more}")
    add_keys(figure, axes_of, shown.looks)
    return Page(figure, rows)


def over_lag(
    shown: Shown, group: Group, name: str, layer: str, *, relative: bool = False
) -> tuple[Band, int | None] | None:
    """A variable of a group over lag in a layer, and the training step if it is one for all.

    Logarithms are ``relative`` to that at the smallest lag at which there is something.
    """
    steps: list[int | None] = []

    def line(run: Recorded) -> tuple[np.ndarray, np.ndarray] | None:
        curve = layer_of(run, layer, shown.at(run, name))
        if curve is None:
            return None
        steps.append(int(curve.steps[0]))
        values = curve.values[0].astype(float)
        return curve.lags, values - first_finite(values) if relative else values

    found = over_runs(group, line)
    return None if found is None else (found, only(steps, None))


def _draw(
    shown: Shown,
    axes: Any,
    name: str,
    layer: str,
    lines: Sequence[tuple[Band, int | None] | None],
    rows: list[list[Any]],
) -> list[tuple[Group, Any, Band]]:
    """Draw what :func:`over_lag` gave for each group, and write it down in ``rows``."""
    drawn = draw_bands(shown, axes, [line[0] if line else None for line in lines])
    for (group, _, found), line in zip(drawn, filter(None, lines), strict=True):
        rows += rows_of([*shown.told(group), name, layer, line[1]], found)
    return drawn


def all_read_the_end(group: Group) -> bool:
    """Whether the losses of a group read the last state alone."""
    return all(reads_the_end(run.entry.facts) for run in counted(group.runs))


def _bounds(shown: Shown, drawn: list[Any], rows: list[list[Any]]) -> list[Any]:
    """Pascanu's bound from the adjoint at lag 0 on; its key for the legend.

    It bounds what is transported through time. The adjoint is nothing else only in the last layer,
    and only if the loss reads the end alone.
    """
    keys: list[Any] = []
    with within([axes for axes, *_ in drawn]):
        for axes, layer, group, look in drawn:
            bound = _bound(shown, group, layer) if all_read_the_end(group) else None
            if bound is not None:
                style: Any = {"color": look.colour, "linestyle": DOTTED, "linewidth": 1.0}
                axes.plot(bound.x, finite(bound.mean), **style)
                rows += rows_of([*shown.told(group), BOUND, layer, None], bound)
                keys = [key("bound (γσ)ˡᵃᵍ", linestyle=DOTTED, linewidth=1.0)]
    return keys


def _bound(shown: Shown, group: Group, layer: str) -> Band | None:
    def line(run: Recorded) -> tuple[np.ndarray, np.ndarray] | None:
        if layer.split()[0] != run.layers[-1].split()[0]:
            return None
        bound = layer_of(run, layer, shown.at(run, BOUND))
        adjoint = layer_of(run, layer, shown.at(run, ADJOINT))
        if bound is None or adjoint is None:
            return None
        return bound.lags, bound.values[0].astype(float) + float(adjoint.values[0, 0])

    return over_runs(group, line)
