"""Models at equal hidden size, and at an equal number of parameters."""

from __future__ import annotations

from typing import Any

from gradlab.compare.figures.bands import Shown
from gradlab.compare.figures.style import (
    COLOURS,
    MARKERS,
    Page,
    add_legend,
    new_page,
    places_of,
    safe,
)
from gradlab.compare.groups import called
from gradlab.compare.matched import Level, Matched, matched
from gradlab.compare.recorded import HORIZON, LOST
from gradlab.compare.statistics import Estimate, estimate
from gradlab.record.figures.common import spread

LABELS = {
    LOST: "decades lost over the sequence",
    HORIZON: "memory horizon (timesteps)",
    "test/accuracy": "test accuracy",
    "test/loss": "test loss",
    "val/loss": "validation loss",
}
"""Figures that are drawn: of the first two, and of the others, the first that there is."""
MOST_LEVELS = 8


def page(shown: Shown) -> Page | None:
    """Points with 95 % intervals: a column for each way to match, a row for each figure.

    Where an interval would leave what the figure can be, the bar is the range over runs.
    """
    found = [one for one in matched([run.entry for run in shown.runs]) if one.levels]
    names = {
        name for one in found for level in one.levels for row in level.rows for name in row.figures
    }
    there = [name for name in LABELS if name in names]
    fall = (LOST, HORIZON)
    wanted = [name for name in there if name in fall][:1]
    wanted += [name for name in there if name not in fall][:1]
    if not found or not wanted:
        return None
    crowded = any(_room(one) > (44 if len(found) == 1 else 38) for one in found)
    height = 1.75 + (0.55 / len(wanted) if crowded else 0)
    figure, grid = new_page(len(found), len(wanted), height=height, sharey="row", sharex="col")
    header = ["matched_by", "level", "model", "hidden", "parameters", "runs"]
    rows: list[list[Any]] = [[*header, "figure", "mean", "low", "high", "low_high"]]
    models = places_of([row.model for one in found for level in one.levels for row in level.rows])
    for column, one in enumerate(found):
        for axes, name in zip(grid[:, column], wanted, strict=True):
            rows += _draw(axes, one, name, models)
            _name_levels(axes, one, crowded=crowded)
        several = len(_levels(one)) < len(one.levels)
        more = f" ({len(_levels(one))} of {len(one.levels)})" if several else ""
        grid[0, column].set_title(f"equal {one.by}{more}")
    for axes, name in zip(grid[:, 0], wanted, strict=True):
        axes.set_ylabel(LABELS[name])
    keys = {h.get_label(): h for axes in grid.ravel() for h in axes.get_legend_handles_labels()[0]}
    figure.align_ylabels(grid[:, 0])
    add_legend(figure, list(keys.values()))
    return Page(figure, rows)


def _draw(axes: Any, found: Matched, name: str, models: dict[str, int]) -> list[list[Any]]:
    rows: list[list[Any]] = []
    levels = _levels(found)
    width = 0.5 / max(len(models) - 1, 1)
    order = sorted(models, key=lambda model: models[model])
    for place, level in enumerate(levels):
        for row in level.rows:
            index = order.index(row.model)
            one = row.figures.get(name, estimate([]))
            at = place + (index - (len(models) - 1) / 2) * width
            _point(axes, at, one, row.model, models[row.model])
            told = [found.by, level.label, row.model, row.hidden, row.parameters, row.runs]
            kind = "range" if one.is_range else "95 % interval"
            rows.append([*told, name, one.mean, one.low, one.high, kind])
    return rows


def _name_levels(axes: Any, found: Matched, *, crowded: bool) -> None:
    levels = _levels(found)
    axes.set_xticks(range(len(levels)), [_short(level.label) for level in levels])
    axes.tick_params(axis="x", length=0)
    if crowded:
        for text in axes.get_xticklabels():
            text.set(rotation=30, ha="right", rotation_mode="anchor")
    axes.set_xlim(-0.5, len(levels) - 0.5)
    axes.grid(False, axis="x")


def _room(found: Matched) -> int:
    """How many letters the names of the levels need side by side."""
    return sum(len(_short(level.label)) + 3 for level in _levels(found))


def _levels(found: Matched) -> list[Level]:
    """The levels that are drawn, evenly spread where there are many."""
    return [found.levels[index] for index in spread(len(found.levels), MOST_LEVELS)]


def _point(axes: Any, at: float, found: Estimate, model: str, index: int) -> None:
    name, *settings = model.split(", ")
    axes.errorbar(
        [at],
        [found.mean],
        yerr=[[found.mean - found.low], [found.high - found.mean]]
        if found.low < found.high
        else None,
        color=COLOURS[index % len(COLOURS)],
        marker=MARKERS[index % len(MARKERS)],
        linestyle="none",
        capsize=2,
        elinewidth=1.0,
        label=safe(", ".join([called(name), *settings])),
    )


def _short(label: str) -> str:
    return safe(label.replace("about ", "≈ ").replace(" parameters", ""))
