"""How often the runs are right: their accuracy over training, with the baseline."""

from __future__ import annotations

from gradlab.compare.figures.bands import Shown
from gradlab.compare.figures.loss import page_of
from gradlab.compare.figures.style import Page


def page(shown: Shown) -> Page | None:
    """Accuracy over training step, where the task has one."""
    names = {"train/accuracy": "training", "val/accuracy": "validation"}
    return page_of(shown, names, "accuracy", logs=False)
