"""Pictures of a run, made to be read without documentation. One figure a file.

Every module but :mod:`~gradlab.record.figures.common` has one function ``figure(curves, scalars,
info)`` that gives a matplotlib figure, or None if what it shows was not recorded. A new figure is
such a module and its place in :data:`FIGURES`; the PNG is called like the module.

Lengths of vectors and products are shown as log10: a straight line is exponential decay, and its
slope is the rate. ``-inf`` means exactly zero; it is drawn black in the heatmaps and left out of
the lines.
"""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import xarray

from gradlab.record.figures.common import STYLE, colour_limits, heat_colours
from gradlab.record.shard import replace

__all__ = ["FIGURES", "colour_limits", "draw", "draw_one", "heat_colours"]

FIGURES = {
    name: import_module(f".{name}", __package__).figure
    for name in (
        "adjoint_over_lag",
        "adjoint_heatmap",
        "forget_product",
        "paths",
        "long_jacobian",
        "step_jacobian",
        "jacobian_eigenvalues",
        "singular_spectrum",
        "isometry",
        "lyapunov",
        "fixed_points",
        "adjoint_alignment",
        "direct_adjoint",
        "temporal_contribution",
        "gradient_noise",
        "truncation",
        "clipping",
        "curvature",
        "gates",
        "recurrent_matrix",
        "state_covariance",
        "horizons",
        "loss",
    )
}
"""What draws each figure, by its name, in the order in which they are drawn."""


def draw(
    curves: xarray.Dataset,
    scalars: xarray.Dataset,
    info: Mapping[str, Any],
    folder: str | os.PathLike[str],
) -> list[Path]:
    """Draw the figures that the recorded variables allow.

    Args:
      curves: as ``gradlab.open_run(path).curves``: variables over ``step``, ``layer``, ``t``, ...
      scalars: as ``gradlab.open_run(path).scalars``: variables over ``step`` alone.
      info: as ``gradlab.open_run(path).info``; ``facts`` and ``baseline`` are used.
      folder: where to write the PNGs; made if missing.

    Returns:
      Paths of the files written, ``NAME.png`` for each of :data:`FIGURES` that has data.
    """
    drawn = [draw_one(name, curves, scalars, info, folder) for name in FIGURES]
    return [path for path in drawn if path is not None]


def draw_one(
    name: str,
    curves: xarray.Dataset,
    scalars: xarray.Dataset,
    info: Mapping[str, Any],
    folder: str | os.PathLike[str],
) -> Path | None:
    """Draw one figure, as :func:`draw` does; None if it has no data."""
    import matplotlib

    with matplotlib.rc_context(STYLE):
        page = FIGURES[name](curves, scalars, info)
        if page is None:
            return None
        drawn = io.BytesIO()
        page.savefig(drawn, format="png")
    path = Path(folder) / f"{name}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    replace(path, drawn.getvalue())  # an earlier one stays as it is until this one is whole
    return path
