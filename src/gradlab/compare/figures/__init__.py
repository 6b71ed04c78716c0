"""Figures of many runs for a paper: vectors, one style, and the numbers beside each.

Every function in :data:`FIGURES` draws one figure of what is shown, a
:class:`gradlab.compare.figures.bands.Shown`, or gives None where nobody recorded that. A new one is
such a function and its place there, under the name of its files. The words of the captions are left
to the paper.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from gradlab.compare.figures import (
    adjoint_heatmap,
    matched,
    over_lag,
    over_training,
    phase_diagram,
)
from gradlab.compare.figures.bands import Shown
from gradlab.compare.figures.style import STYLE, looks_of, save
from gradlab.compare.groups import counted, groups_of, once
from gradlab.compare.recorded import Recorded

__all__ = ["FIGURES", "draw"]

FIGURES = {
    "adjoint_over_lag": over_lag.adjoint,
    "transport_over_lag": over_lag.transport,
    "adjoint_heatmap": adjoint_heatmap.page,
    "loss": over_training.loss,
    "metric": over_training.metric,
    "decades": over_training.decades,
    "decades_per_100": over_training.rate,
    "horizon": over_training.horizon,
    "slope": over_training.slope,
    "lyapunov": over_training.lyapunov,
    "phase_diagram": phase_diagram.page,
    "matched": matched.page,
}
"""What draws each figure, by its name."""


def draw(
    runs: Sequence[Recorded], folder: str | os.PathLike[str], step: int | None = None
) -> list[Path]:
    """Draw what the runs recorded, a group (all but the seed the same) a line.

    Lines are means over the runs that finished (over what there is where none has), shades their
    95 % intervals over seeds; where one would leave what the figure can be, the range over runs,
    and the CSV says which. A configuration and seed that is there twice counts once. Each figure
    comes as PDF, SVG and PNG, and with a CSV of the plotted numbers in full, one row a point. The
    same runs give the same bytes.

    Args:
      runs: of any task, model and length; those of different lengths align by lag.
      folder: where to write; made if missing.
      step: training step of the figures over lag, the nearest measured one; None for the last.

    Returns:
      The files written.
    """
    import matplotlib

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    runs = once(runs)
    groups = [group for group in groups_of(runs) if counted(group.runs)] if runs else []
    written: list[Path] = []
    with matplotlib.rc_context(STYLE):
        shown = Shown(runs, groups, looks_of(groups), step)
        for name, page in FIGURES.items():
            found = page(shown)
            if found is not None:
                written += save(found, folder, name)
    return written
