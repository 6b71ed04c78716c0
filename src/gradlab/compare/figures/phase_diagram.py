"""Two settings against each other: where the gradient survives, and where training succeeds."""

from __future__ import annotations

from typing import Any

import numpy as np

from gradlab.compare.figures.bands import Shown
from gradlab.compare.figures.style import Page, add_legend, new_page, safe
from gradlab.compare.phase_diagram import (
    HORIZON,
    LYAPUNOV,
    RATIO,
    SHARE,
    SLOPE,
    Diagram,
    Places,
    crosses,
    diagram,
    mark_missing,
    name_of,
    norm_of,
    table_rows,
)
from gradlab.record.figures.common import spread

LABELS = {
    SLOPE.name: "adjoint slope (nats per step)",
    HORIZON.name: "memory horizon (timesteps)",
    LYAPUNOV.name: "λ₁ (nats per step)",
    SHARE.name: "share of seeds that succeed",
    RATIO.name: "log₁₀ (loss / baseline)",
}
MOST_TICKS = 6
MEASURED: dict[str, Any] = {"colors": "black", "linestyles": "-", "linewidths": 1.1}
THEORY: dict[str, Any] = {"colors": "#D55E00", "linestyles": "--", "linewidths": 1.1}


def page(shown: Shown) -> Page | None:
    """The runs over the two numbers by which they differ, a panel a figure."""
    found = diagram([run.entry for run in shown.runs])
    wanted = found.panels() if found is not None else []
    if found is None or not wanted:
        return None
    across = min(len(wanted), 2)
    down = -(-len(wanted) // across)
    figure, grid = new_page(across, down, height=1.9, sharex=True, sharey=True)
    figure.get_layout_engine().set(wspace=0.06)
    places = Places(found)
    for axes, panel in zip(grid.ravel(), wanted, strict=False):
        _draw(axes, found, panel, places)
    for unused in grid.ravel()[len(wanted) :]:
        unused.remove()
    for axes in grid[:, 0]:
        axes.set_ylabel(safe(name_of(found.keys[1])))
    for index, axes in enumerate(grid.ravel()[: len(wanted)]):
        if index + across >= len(wanted):
            axes.set_xlabel(safe(name_of(found.keys[0])))
            axes.tick_params(labelbottom=True)
    keys = _keys(found)
    if keys:
        add_legend(figure, keys)
    return Page(figure, table_rows(found))


def _draw(axes: Any, found: Diagram, panel: Any, places: Places) -> None:
    from matplotlib.colors import LogNorm
    from matplotlib.patheffects import Normal, Stroke

    values = found.figures[panel.name]
    axes.grid(False)
    mark_missing(axes, found, values, places)
    norm, extend = norm_of(values, panel)
    mesh = axes.pcolormesh(
        places.x_edges,
        places.y_edges,
        np.ma.masked_invalid(values),
        cmap=panel.colours,
        norm=norm,
        zorder=1,
        rasterized=True,
    )
    plain = "%g" if isinstance(norm, LogNorm) else None
    bar = axes.figure.colorbar(mesh, ax=axes, extend=extend, format=plain, pad=0.02)
    bar.set_label(LABELS[panel.name])
    bar.outline.set_linewidth(0.6)
    for name, style in (("lyapunov_exponent", MEASURED), ("mean_field_exponent", THEORY)):
        field = found.figures[name]
        if crosses(field):
            line = axes.contour(
                places.x, places.y, np.ma.masked_invalid(field), levels=[0.0], zorder=3, **style
            )
            line.set_path_effects([Stroke(linewidth=2.2, foreground="white"), Normal()])
    for row, column in np.argwhere(found.diverged > 0):
        for colour, width in (("white", 2.0), ("black", 0.8)):
            look = {"color": colour, "markeredgewidth": width, "markersize": 3.5}
            axes.plot(places.x[column], places.y[row], "x", zorder=4, **look)
    for axis, values_of, at in ((axes.xaxis, found.x, places.x), (axes.yaxis, found.y, places.y)):
        some = spread(len(values_of), MOST_TICKS)
        axis.set_ticks(at[some], [f"{value:.3g}" for value in values_of[some]])
    axes.set_xlim(places.x_edges[0], places.x_edges[-1])
    axes.set_ylim(places.y_edges[0], places.y_edges[-1])


def _keys(found: Diagram) -> list[Any]:
    """What lines, hatches and crosses mean."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    keys: list[Any] = []
    for name, words, style in (
        ("lyapunov_exponent", "λ₁ = 0, measured", MEASURED),
        ("mean_field_exponent", "λ₁ = 0, mean field", THEORY),
    ):
        if crosses(found.figures[name]):
            look = {"color": style["colors"], "linestyle": style["linestyles"], "linewidth": 1.1}
            keys.append(Line2D([], [], label=words, **look))
    if (found.finished == 0).any():
        look = {"facecolor": "white", "edgecolor": "#999999", "hatch": "////", "linewidth": 0}
        keys.append(Patch(label="no finished run", **look))
    if found.diverged.any():
        keys.append(Line2D([], [], color="black", marker="x", linestyle="none", label="diverged"))
    return keys
