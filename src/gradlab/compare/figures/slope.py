"""How fast the gradient vanishes or explodes over training: the adjoint's slope."""

from __future__ import annotations

from gradlab.compare.figures.bands import Shown
from gradlab.compare.figures.over_training import page_over_training
from gradlab.compare.figures.style import Page


def page(shown: Shown) -> Page | None:
    """The slope of the adjoint's logarithm over lag, over training step; 0 dotted."""
    label = "adjoint slope (nats per step)"
    return page_over_training(shown, "adjoint_slope", label, reference=0.0)
