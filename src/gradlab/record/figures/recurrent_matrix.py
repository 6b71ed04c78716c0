"""What has become of the recurrent matrix? Its eigenvalues and singular values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import xarray

from gradlab.record.figures.common import (
    DASHES,
    GREY,
    PALETTE,
    all_measured,
    handles_of,
    mark_level,
    new_figure,
    plot,
    set_title,
    subject,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_PANELS = {
    "spectral_radius": ("spectral radius: what grows for ever", "largest |eigenvalue|", 1.0),
    "spectral_norm": ("spectral norm: what grows in a step", "largest singular value", 1.0),
    "departure_from_normality": ("how little the eigenvalues tell", "non-normality", 0.0),
    "transient_growth_log10": ("growth that passes", "log10 of the largest ‖W^k‖", 0.0),
}


def figure(
    curves: xarray.Dataset, scalars: xarray.Dataset, info: Mapping[str, Any]
) -> Figure | None:
    """Radius, norm, non-normality and transient growth over training step, a line per matrix."""
    shown = {name: found for name in _PANELS if (found := all_measured(curves, name)) is not None}
    if not shown:
        return None
    page = new_figure(len(shown))
    set_title(
        page,
        f"What has become of the recurrent matrix?{subject(info)}\n"
        "upper row above the dotted line = growth,  below = decay",
    )
    across = min(len(shown), 2)
    grid = page.subplots(-(-len(shown) // 2), across, squeeze=False, sharex=True).ravel()
    for unused in grid[len(shown) :]:
        unused.remove()
    for axes, (name, rows) in zip(grid, shown.items(), strict=False):
        title, ylabel, level = _PANELS[name]
        _lines(axes, rows, name)
        mark_level(axes, level, "as of an\northogonal matrix")
        axes.set_title(title)
        axes.set_ylabel(ylabel)
        axes.set_xlabel("training step")
    keys = _keys(curves) + handles_of(page)
    page.legend(handles=keys, loc="outside right center", title="matrix", handlelength=3)
    return page


def _lines(axes: Axes, rows: xarray.Dataset, name: str) -> None:
    """A line for each matrix (its colour) of each layer (its dashes)."""
    marker = "o" if rows.sizes["step"] < 30 else ""
    for row in range(rows.sizes["layer"]):
        for k in range(rows.sizes["matrix"]):
            values = rows[name].isel(layer=row, matrix=k).values
            plot(axes, rows["step"].values, values, **_look(k, row), marker=marker, ms=4)


def _look(matrix: int, layer: int) -> dict[str, Any]:
    return {"color": PALETTE[matrix % len(PALETTE)], "linestyle": DASHES[layer % len(DASHES)]}


def _keys(curves: xarray.Dataset) -> list[Any]:
    from matplotlib.lines import Line2D

    matrices, layers = curves["matrix"].values, curves["layer"].values
    keys = [Line2D([], [], **_look(k, 0), label=f"W_{name}") for k, name in enumerate(matrices)]
    if len(layers) > 1:
        grey = [{**_look(0, row), "color": GREY} for row in range(len(layers))]
        keys += [Line2D([], [], **grey[k], label=f"layer {n}") for k, n in enumerate(layers)]
    return keys
