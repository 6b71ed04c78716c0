"""How far back the gradient reaches over training: the memory horizon."""

from __future__ import annotations

from gradlab.compare.figures.bands import Shown
from gradlab.compare.figures.over_training import page_over_training
from gradlab.compare.figures.style import Page, level
from gradlab.compare.groups import counted, length_of


def page(shown: Shown) -> Page | None:
    """The lag at which the adjoint has fallen by e, over training step; T dotted."""
    found = page_over_training(shown, "memory_horizon", "memory horizon (timesteps)", logs=True)
    lengths = {length_of(run.entry) for group in shown.groups for run in counted(group.runs)}
    if found is not None and len(lengths) == 1:
        T = lengths.pop()
        for axes in found.figure.axes:
            low, high = axes.get_ylim()
            if T > 0 and low < T <= 1.6 * high and axes.get_xlabel():
                level(axes, T)
    return found
