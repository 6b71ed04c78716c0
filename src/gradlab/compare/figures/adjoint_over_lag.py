"""How far back the gradient reaches: the adjoint's norm over lag."""

from __future__ import annotations

from typing import Any

import numpy as np

from gradlab.compare.figures.bands import Band, Shown, draw_band, layer_of, over_runs, rows_of
from gradlab.compare.figures.over_lag import COLUMNS, LAG, label_layers, over_lag, reads_the_end
from gradlab.compare.figures.style import DOTTED, Page, add_keys, key_of, new_page
from gradlab.compare.groups import Group
from gradlab.record.figures.common import GREY, finite, within

ADJOINT, BOUND = "adj_h_log10", "pascanu_bound_log10"


def page(shown: Shown) -> Page | None:
    """log10 of the adjoint's norm over lag, and Pascanu's bound where it holds."""
    rows: list[list[Any]] = [shown.header("variable", *COLUMNS)]
    figure, grid = new_page(max(1, len(shown.layers)), sharey=True)
    axes_of, drawn = list(grid[0]), []
    for axes, layer in zip(axes_of, shown.layers, strict=False):
        for group, look in zip(shown.groups, shown.looks.of, strict=True):
            found = over_lag(shown, group, ADJOINT, layer)
            if found is not None:
                draw_band(axes, found[0], look, shade=shown.looks.few)
                told = [*shown.told(group), ADJOINT, layer, found[1]]
                rows += rows_of(told, found[0])
                drawn.append((axes, layer, group, look))
        axes.set_xlabel(LAG)
        axes.margins(x=0)
    if not drawn:
        return None
    axes_of[0].set_ylabel("log₁₀ ‖∂ℓ/∂h‖")
    label_layers(shown, axes_of)
    bounds = _bounds(shown, drawn, rows)
    add_keys(figure, axes_of, shown.looks, bounds)
    return Page(figure, rows)


def _bounds(shown: Shown, drawn: list[Any], rows: list[list[Any]]) -> list[Any]:
    """Pascanu's bound from the adjoint at lag 0 on; its key for the legend.

    It bounds what is transported through time. The adjoint is nothing else only in the last layer,
    and only if the loss reads the end alone.
    """
    keys: list[Any] = []
    with within([axes for axes, *_ in drawn]):
        for axes, layer, group, look in drawn:
            bound = _bound(shown, group, layer) if reads_the_end(group) else None
            if bound is not None:
                style: Any = {"color": look.colour, "linestyle": DOTTED, "linewidth": 1.0}
                axes.plot(bound.x, finite(bound.mean), **style)
                rows += rows_of([*shown.told(group), BOUND, layer, None], bound)
                keys = [key_of("bound (γσ)ˡᵃᵍ", color=GREY, linestyle=DOTTED, linewidth=1.0)]
    return keys


def _bound(shown: Shown, group: Group, layer: str) -> Band | None:
    def line(run: Any) -> tuple[np.ndarray, np.ndarray] | None:
        if layer.split()[0] != run.layers[-1].split()[0]:
            return None
        bounds, adjoints = shown.at(run, BOUND), shown.at(run, ADJOINT)
        if bounds is None or adjoints is None:
            return None
        bound = layer_of(run, layer, bounds.values)
        adjoint = layer_of(run, layer, adjoints.values)
        if bound is None or adjoint is None:
            return None
        return bounds.lags, bound[0].astype(float) + float(adjoint[0, 0])

    return over_runs(group, line)
