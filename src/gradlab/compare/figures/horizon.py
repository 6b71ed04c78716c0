"""How far back the gradient reaches over training: the memory horizon."""

from __future__ import annotations

import math

from gradlab.compare.figures.bands import Shown
from gradlab.compare.figures.over_training import page_over_training
from gradlab.compare.figures.style import Page
from gradlab.compare.groups import counted, length_of


def page(shown: Shown) -> Page | None:
    """The lag at which the adjoint has fallen by e, over training step; T dotted."""
    lengths = {length_of(run.entry) for group in shown.groups for run in counted(group.runs)}
    T = lengths.pop() if len(lengths) == 1 else math.nan
    label = "memory horizon (timesteps)"
    return page_over_training(shown, "memory_horizon", label, reference=T, logs=True)
