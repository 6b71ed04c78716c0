"""Order or chaos over training: the largest Lyapunov exponent."""

from __future__ import annotations

from gradlab.compare.figures.bands import Shown
from gradlab.compare.figures.over_training import page_over_training
from gradlab.compare.figures.style import Page


def page(shown: Shown) -> Page | None:
    """The largest Lyapunov exponent, over training step; 0 dotted."""
    label = "λ₁ (nats per step)"
    return page_over_training(shown, "lyapunov_exponent", label, reference=0.0)
