"""Models side by side at equal hidden size, and at an equal number of parameters."""

from __future__ import annotations

import bisect
import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from gradlab.compare.groups import (
    MODEL,
    by_settings,
    called,
    once,
    settings_of_course,
    short,
    shown,
)
from gradlab.compare.jobs import FINISHED
from gradlab.compare.runs import SEED, Entry, part, same
from gradlab.compare.statistics import Estimate
from gradlab.compare.table import average, figures_of

HIDDEN = "model.hidden"
TOLERANCE = 0.15
"""By which share of the smaller one two counts of parameters may differ and still be matched."""
TASK = ("task", "task.length")
"""Settings that the words for a task and its length say."""
BLOCKS = {"rnn": 1, "lstm": 4, "gru": 3}
"""How many H×(I + H + 1) blocks a cell of gradlab has, of the models whose counts are foretold."""


class Sized(NamedTuple):
    """The finished runs of one model of one size.

    Attributes:
      model: its name, with the settings that only this model has.
      hidden: H.
      parameters: how many it has; 0 where that was not recorded.
      runs: how many there are.
      figures: of :func:`gradlab.compare.table.figures_of`, as estimates over the runs.
    """

    model: str
    hidden: int
    parameters: int
    runs: int
    figures: Mapping[str, Estimate]


class Level(NamedTuple):
    """Rows that are matched, of two models at least; all else is equal.

    Attributes:
      label: what they have in common.
      rows: by model, as these first come.
    """

    label: str
    rows: tuple[Sized, ...]


class Matched(NamedTuple):
    """All levels of one way to match models.

    Attributes:
      by: ``"hidden size"`` or ``"parameters"``.
      levels: from small to large, for each task and each further setting.
      note: where there are none, why, and what to run.
    """

    by: str
    levels: tuple[Level, ...]
    note: str = ""


class _Cell(NamedTuple):
    """A row, and what is equal in the rows that it may be compared with."""

    where: tuple[Any, ...]
    words: str
    base: str
    row: Sized
    runs: Sequence[Entry]


def matched(runs: Sequence[Entry]) -> tuple[Matched, Matched]:
    """Models at equal hidden size, and at parameter counts within :data:`TOLERANCE`.

    Only finished runs count, and only runs of the same task and length with all other settings
    equal stand in one level. Settings that only one of the models has (a forget bias) tell rows
    apart.
    """
    cells = _cells(once([run for run in runs if run.status == FINISHED and run.hidden]))
    by_hidden, by_parameters = _by_hidden(cells), _by_parameters(cells)
    few = "" if _models(cells) > 1 else _one_model([cell.base for cell in cells])
    return (
        Matched("hidden size", by_hidden, "" if by_hidden else few or _no_hidden(cells)),
        Matched("parameters", by_parameters, "" if by_parameters else few or _no_parameters(cells)),
    )


def _cells(runs: Sequence[Entry]) -> list[_Cell]:
    differ = settings_of_course(runs)
    names = short(differ)
    for key in (SEED, MODEL, HIDDEN):
        differ.pop(key, None)
    own = {key for key, values in differ.items() if any(value is None for value in values)}
    wanted = figures_of(runs)
    several = len({run.problem for run in runs}) > 1
    cells = []
    told_apart = by_settings(differ, runs, lambda run: (run.model, run.hidden, run.problem))
    for settings, those in told_apart:
        first = those[0]
        equals = {
            key: f"{names[key]} = {shown(value)}"
            for key, value in settings.items()
            if value is not None
        }
        row = Sized(
            ", ".join([first.model, *(words for key, words in equals.items() if key in own)]),
            first.hidden,
            first.parameters,
            len(those),
            {name: average(those, name) for name in wanted},
        )
        words = [first.task] if several else []
        words += [said for key, said in equals.items() if key not in own and key not in TASK]
        told = (same(value) for key, value in settings.items() if key not in own)
        where = (first.problem, *told)
        cells.append(_Cell(where, ", ".join(words), first.model, row, those))
    return cells


def _by_hidden(cells: Sequence[_Cell]) -> tuple[Level, ...]:
    return tuple(
        Level(_label(f"H = {hidden}", those[0]), tuple(cell.row for cell in those))
        for places in _places(cells)
        for hidden in sorted({cell.row.hidden for cell in places})
        if _models(those := [cell for cell in places if cell.row.hidden == hidden]) > 1
    )


def _by_parameters(cells: Sequence[_Cell]) -> tuple[Level, ...]:
    levels = []
    for places in _places(cells):
        place = {id(cell): index for index, cell in enumerate(places)}
        for those in sorted(_closest(places), key=_middle):
            order = sorted(those, key=lambda cell: place[id(cell)])
            label = f"about {_round(_middle(those)):,} parameters"
            levels.append(Level(_label(label, those[0]), tuple(cell.row for cell in order)))
    return tuple(levels)


def _closest(cells: Sequence[_Cell]) -> list[list[_Cell]]:
    """Cells within the tolerance of each other, none of them twice.

    First those of most models, and of these the closest; then likewise of the rest.
    """
    cells = sorted((c for c in cells if c.row.parameters > 0), key=lambda c: c.row.parameters)
    counts = np.array([cell.row.parameters for cell in cells], float)
    free = np.ones(len(cells), bool)
    best: dict[int, tuple[tuple[int, float], list[int]]] = {}
    stale = slice(None)
    taken = []
    while free.any():
        for index in np.arange(len(cells))[stale][free[stale]].tolist():
            end = np.searchsorted(counts, counts[index] * (1 + TOLERANCE), "right")
            best[index] = _best(cells, counts, index + np.flatnonzero(free[index:end]))
        (models, _), those = max(
            (best[k] for k in np.flatnonzero(free).tolist()), key=lambda one: one[0]
        )
        if models < 2:
            break
        taken.append([cells[k] for k in those])
        free[those] = False
        reach = counts[min(those)] / (1 + TOLERANCE) * (1 - 1e-9)  # of those that saw them
        stale = slice(int(np.searchsorted(counts, reach)), max(those) + 1)
    return taken


def _best(
    cells: Sequence[_Cell], counts: np.ndarray, window: np.ndarray
) -> tuple[tuple[int, float], list[int]]:
    """Of cells, by position, the one of each name that is nearest to their middle.

    How many models these are and how close they lie comes first.
    """
    own = counts[window]
    middle = np.exp(np.mean(np.log(own)))
    nearest: dict[str, int] = {}
    for k in window[np.argsort(np.abs(own - middle), kind="stable")].tolist():
        nearest.setdefault(cells[k].row.model, k)
    those = list(nearest.values())
    closeness = counts[those].min() / counts[those].max()
    return (_models([cells[k] for k in those]), float(closeness)), those


def _places(cells: Sequence[_Cell]) -> list[list[_Cell]]:
    """Cells that may be compared with each other."""
    return [those for _, those in by_settings({}, cells, lambda cell: cell.where)]


# --- what to run where nothing matches ------------------------------------------------------------


def _no_hidden(cells: Sequence[_Cell]) -> str:
    sizes: dict[str, set[int]] = {}
    for cell in cells:
        sizes.setdefault(cell.base, set()).add(cell.row.hidden)
    told = (f"{called(model)}: H = {', '.join(map(str, sorted(H)))}" for model, H in sizes.items())
    return (
        f"No two models of one size have all other settings equal ({'; '.join(told)}). "
        "A sweep over model= with one model.hidden gives them."
    )


def _no_parameters(cells: Sequence[_Cell]) -> str:
    if not any(cell.row.parameters for cell in cells):
        return "The runs did not record how many parameters they have."
    counts = "; ".join(
        f"{called(cell.base)} {cell.row.parameters:,} at H = {cell.row.hidden}"
        for cell in {(c.base, c.row.hidden): c for c in cells}.values()
    )
    within = f"within {TOLERANCE:.0%}".replace("%", " %")
    words = f"No two models have as many parameters {within} ({counts}). "
    return words + (_foretold(cells) or "Sweep model.hidden of one of them to match the other.")


def _foretold(cells: Sequence[_Cell]) -> str:
    """The hidden sizes that match the largest model, where the counts leave no doubt of them.

    The input width and the number of outputs are those whole numbers that give every recorded
    count by the cells' formula; without such numbers nothing is foretold.
    """
    runs = [run for cell in cells for run in cell.runs]
    layers = {run.layers for run in runs}
    known = all(
        run.model in BLOCKS and not part(run.config, "model").get("bidirectional") for run in runs
    )
    if len(_places(cells)) > 1 or len(layers) != 1 or not known:
        return ""
    (L,) = layers
    fit = _widths([(c.base, c.row.hidden, c.row.parameters) for c in cells], L)
    if fit is None:
        return ""
    goal = max(cells, key=lambda cell: cell.row.parameters)
    told = []
    for model in dict.fromkeys(cell.base for cell in cells):
        if model != goal.base:
            counts = functools.partial(_count, model, fit, L)
            above = bisect.bisect_left(range(8 * goal.row.hidden), goal.row.parameters, key=counts)
            sizes = (max(above - 1, 1), max(above, 1))
            H = min(sizes, key=lambda size: abs(counts(size) - goal.row.parameters))
            told.append(f"model={model} model.hidden={H} ({counts(H):,})")
    return f"To match the {called(goal.base)}'s {goal.row.parameters:,}, run {' and '.join(told)}."


def _count(model: str, widths: tuple[int, int], layers: int, hidden: int) -> int:
    return parameters_of(model, hidden, *widths, layers)


def parameters_of(model: str, hidden: int, features: int, outputs: int, layers: int = 1) -> int:
    """How many parameters gradlab's own model has: its cells, each with one bias, and the readout.

    Args:
      model: one of :data:`BLOCKS`.
      hidden: H.
      features: I, or the number of symbols.
      outputs: O.
      layers: L.
    """
    first = hidden * (features + hidden + 1)
    others = (layers - 1) * hidden * (2 * hidden + 1)
    return BLOCKS[model] * (first + others) + outputs * (hidden + 1)


def _widths(counts: Sequence[tuple[str, int, int]], layers: int) -> tuple[int, int] | None:
    """Input width and outputs from (model, H, parameters), if whole numbers give all exactly."""
    A = np.array([[BLOCKS[model] * H, H + 1] for model, H, _ in counts], float)
    rest = [P - parameters_of(model, H, 0, 0, layers) for model, H, P in counts]
    if np.linalg.matrix_rank(A) < 2:
        return None
    fit = np.rint(np.linalg.lstsq(A, np.array(rest, float), rcond=None)[0])
    features, outputs = map(int, fit)
    exact = all(parameters_of(m, H, features, outputs, layers) == P for m, H, P in counts)
    return (features, outputs) if exact and min(features, outputs) > 0 else None


def _one_model(models: Sequence[str]) -> str:
    if not models:
        return "No run has finished."
    return f"There is one model only, {called(models[0])}; a sweep over model= gives more."


# --- small things ---------------------------------------------------------------------------------


def _label(words: str, cell: _Cell) -> str:
    return ", ".join(filter(None, [words, cell.words]))


def _models(cells: Sequence[_Cell]) -> int:
    return len({cell.base for cell in cells})


def _middle(cells: Sequence[_Cell]) -> float:
    """The geometric mean of the counts."""
    return float(np.exp(np.mean([np.log(cell.row.parameters) for cell in cells])))


def _round(value: float) -> int:
    """To two digits."""
    return int(float(f"{value:.2g}"))
