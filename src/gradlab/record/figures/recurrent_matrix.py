"""What has become of the recurrent matrix? Its eigenvalues and singular values."""

from __future__ import annotations

from typing import Any

from xarray import Dataset

from gradlab.record.figures import common

QUESTION = "What has become of the recurrent matrix?"
HINT = "upper row above the dotted line = growth,  below = decay"
_PANELS = {
    "spectral_radius": ("spectral radius: what grows for ever", "largest |eigenvalue|", 1.0),
    "spectral_norm": ("spectral norm: what grows in a step", "largest singular value", 1.0),
    "departure_from_normality": ("how little the eigenvalues tell", "non-normality", 0.0),
    "transient_growth_log10": ("growth that passes", "log10 of the largest ‖W^k‖", 0.0),
}


def figure(curves: Dataset, scalars: Dataset, info: common.Info) -> common.Figure | None:
    """Radius, norm, non-normality and transient growth over training step, a line per matrix."""
    shown = common.those_measured(curves, _PANELS)
    if not shown:
        return None
    page = common.Page(info, QUESTION, HINT, len(shown))
    every = common.panels(page.figure, len(shown), "training step", sharex=True, sharey=False)
    for axes, (name, rows) in zip(every, shown.items(), strict=True):
        title, ylabel, level = _PANELS[name]
        _lines(axes, rows, name)
        common.mark_level(axes, level, "as of an\northogonal matrix")
        axes.set_title(title)
        axes.set_ylabel(ylabel)
    keys = _keys(curves) + common.handles_of(page.figure)
    return page.legend(keys, "matrix", handlelength=3)


def _lines(axes: common.Axes, rows: Dataset, name: str) -> None:
    """A line for each matrix (its colour) of each layer (its dashes)."""
    marker = "o" if rows.sizes["step"] < 30 else ""
    for row in range(rows.sizes["layer"]):
        for k in range(rows.sizes["matrix"]):
            values = rows[name].isel(layer=row, matrix=k).values
            common.plot(axes, rows["step"].values, values, **_look(k, row), marker=marker, ms=4)


def _look(matrix: int, layer: int) -> dict[str, Any]:
    return {"color": common.colour(matrix), "linestyle": common.dashes(layer)}


def _keys(curves: Dataset) -> list[Any]:
    matrices, layers = curves["matrix"].values, curves["layer"].values
    keys = [common.key(f"W_{name}", **_look(k, 0)) for k, name in enumerate(matrices)]
    if len(layers) > 1:
        keys += [
            common.key(f"layer {name}", linestyle=common.dashes(k)) for k, name in enumerate(layers)
        ]
    return keys
