"""How fast the gradient vanishes or explodes over training: the adjoint's slope."""

from __future__ import annotations

from gradlab.compare.figures.bands import Shown
from gradlab.compare.figures.over_training import page_over_training
from gradlab.compare.figures.style import Page, level


def page(shown: Shown) -> Page | None:
    """The slope of the adjoint's logarithm over lag, over training step; 0 dotted."""
    found = page_over_training(shown, "adjoint_slope", "adjoint slope (nats per step)")
    for axes in found.figure.axes if found else ():
        if axes.get_xlabel():
            level(axes, 0)
    return found
