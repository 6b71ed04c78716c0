"""What the runs learn: their losses over training, with the baseline."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from gradlab.compare.figures.bands import (
    Shown,
    baseline_of,
    draw_band,
    fit_height,
    rows_of,
    units_of,
)
from gradlab.compare.figures.over_training import STEP, in_full, series_band, set_log
from gradlab.compare.figures.style import DOTTED, Page, add_keys, key_of, level, new_page
from gradlab.record.figures.common import GREY

WIDE = 8.0
"""Losses that differ by more than this factor get a logarithmic axis, and geometric means."""


def page(shown: Shown) -> Page | None:
    """Training and validation loss over training step, each in its panel."""
    names = {"train/loss": "training", "val/loss": "validation"}
    return page_of(shown, names, "loss", logs=_is_wide(shown, list(names)))


def page_of(shown: Shown, names: dict[str, str], figure_name: str, *, logs: bool) -> Page | None:
    """Scalars of the whole model over training step, each in its panel, with the baseline."""
    mean = "geometric_mean" if logs else "mean"
    rows: list[list[Any]] = [shown.header("variable", "step", mean, "low", "high", "runs")]
    found = {
        name: [series_band(group, name, None, logs=logs) for group in shown.groups]
        for name in names
    }
    found = {name: bands for name, bands in found.items() if any(b is not None for b in bands)}
    if not found:
        return None
    figure, grid = new_page(len(found), sharey=True)
    axes_of, keys, guesses = list(grid[0]), [], []
    for axes, (name, bands) in zip(axes_of, found.items(), strict=True):
        for group, look, one in zip(shown.groups, shown.looks.of, bands, strict=True):
            if one is not None:
                draw_band(axes, one, look, shade=shown.looks.few, power=logs)
                rows += rows_of([*shown.told(group), name], in_full(one) if logs else one)
        axes.set_xlabel(STEP)
        axes.margins(x=0)
        guess = baseline_of(shown.runs, f"{name.partition('/')[0]}/{figure_name}")
        if math.isfinite(guess) and (guess > 0 or not logs):
            level(axes, guess)
            guesses.append(guess)
            keys = [key_of("baseline", color=GREY, linestyle=DOTTED, linewidth=0.9)]
        if len(found) > 1:
            axes.set_title(names[name])
    drawn = [one for bands in found.values() for one in bands if one is not None]
    if logs:
        set_log(axes_of, drawn, guesses)
    else:
        fit_height(axes_of, drawn, guesses)
    axes_of[0].set_ylabel(_label(shown, list(found), names, figure_name))
    add_keys(figure, axes_of, shown.looks, keys)
    return Page(figure, rows)


def _label(shown: Shown, found: list[str], names: dict[str, str], figure_name: str) -> str:
    units = {units_of(shown.runs, name) for name in found}
    unit = units.pop() if len(units) == 1 else ""
    which = f"{names[found[0]]} " if len(found) == 1 else ""
    return f"{which}{figure_name}" + (f" ({unit})" if unit not in ("", "1") else "")


def _is_wide(shown: Shown, names: list[str]) -> bool:
    values = [
        series.values.ravel()
        for run in shown.runs
        for name in names
        if (series := run.series(name)) is not None
    ]
    every = np.concatenate(values) if values else np.array([])
    every = every[np.isfinite(every)]
    return bool(every.size and every.min() > 0 and every.max() > WIDE * every.min())
