"""Two settings against each other: where the gradient survives, and where training succeeds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from gradlab.compare.groups import by_settings, once
from gradlab.compare.jobs import DIVERGED, FINISHED
from gradlab.compare.runs import SEED, Entry, is_number, settings_that_differ
from gradlab.compare.table import as_csv
from gradlab.record.shard import replace

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure

PNG, CSV = "phase_diagram.png", "phase_diagram.csv"
FILLED = 0.5
"""Least share of cells with a run; with fewer the runs are no grid, as those of a random search."""
SUCCESS = 0.9
"""A run succeeds if its loss is below this share of the baseline's.

A model that has learned nothing comes within a hair of the baseline, on either side of it.
"""
DECADES = 30
"""Positive figures that differ by more than this factor get colours by their logarithm."""
LABELS = {
    "task.length": "sequence length T (steps)",
    "model.hidden": "hidden width H (units)",
    "model.layers": "layers",
    "optimizer.learning_rate": "learning rate",
    "optimizer.clip_norm": "clip threshold (gradient norm)",
    "trainer.batch": "batch B (examples)",
    "trainer.steps": "training (steps)",
}
GENERIC = ("scale", "stddev", "value", "weight", "gain", "bias")
"""Last words of keys that say too little without the word before them."""
TOO_GENERAL = ("model", "cell", "task", "optimizer", "trainer", "rule")


class Panel(NamedTuple):
    """One figure of the runs over the grid.

    Attributes:
      name: of the column in the file.
      title: over the panel.
      label: beside its colours.
      colours: of matplotlib.
      middle: whether 0 is the middle of the colours.
    """

    name: str
    title: str
    label: str
    colours: str
    middle: bool


SLOPE = Panel(
    "adjoint_slope",
    "Does the gradient vanish or explode?",
    "adjoint slope (nats per step)\nbelow 0: vanishes going back in time",
    "RdBu_r",
    True,
)
HORIZON = Panel(
    "memory_horizon",
    "Where has it first fallen by e?",
    "memory horizon (steps)\nT: nowhere in the sequence",
    "viridis",
    False,
)
LYAPUNOV = Panel(
    "lyapunov_exponent",
    "Do small changes of the state grow?",
    "largest Lyapunov exponent λ₁\n(nats per step); above 0: they grow",
    "RdBu_r",
    True,
)
SHARE = Panel(
    "success",
    f"Does training succeed? (loss below {SUCCESS:g} × baseline)",
    "share of seeds that succeed",
    "viridis",
    False,
)
RATIO = Panel(
    "loss_over_baseline_log10",
    "Does training succeed?",
    "log₁₀ of loss over baseline\nbelow 0: better than it",
    "PRGn_r",
    True,
)


@dataclass(frozen=True)
class Diagram:
    """Runs over a grid of two settings.

    Attributes:
      keys: of the settings along x and y.
      x, y: their values, ascending, ``(X,)`` and ``(Y,)``.
      figures: the mean over the finished runs of each cell by name, ``(Y, X)``; NaN for none.
      runs, finished, diverged: counts, ``(Y, X)``.
      trained: whether the runs made more than one step; their rows are at initialisation else.
      when: at which training step the figures were measured, in words.
      subject: what the runs are about, in words.
    """

    keys: tuple[str, str]
    x: np.ndarray
    y: np.ndarray
    figures: Mapping[str, np.ndarray]
    runs: np.ndarray
    finished: np.ndarray
    diverged: np.ndarray
    trained: bool
    when: str
    subject: str

    def panels(self) -> list[Panel]:
        """What there is to be shown, at most four."""
        several = self.finished.max(initial=0) > 1
        success = [SHARE if several else RATIO] if self.trained else []
        wanted = [SLOPE, HORIZON, LYAPUNOV, *success]
        return [panel for panel in wanted if np.isfinite(self.figures[panel.name]).any()]


def grid(
    x: Sequence[float], y: Sequence[float], values: Sequence[float]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Points as a grid: the sorted ``x`` and ``y``, and the mean of the finite values of each cell.

    Returns:
      ``(X,)``, ``(Y,)`` and ``(Y, X)``; NaN in a cell without a finite value.
    """
    value = np.asarray(values, float)
    known = np.isfinite(value)
    across, up, total = _sums(x, y, np.where(known, value, 0.0))
    count = _sums(x, y, known.astype(int))[2]
    return across, up, np.where(count > 0, total / np.maximum(count, 1), np.nan)


def diagram(runs: Sequence[Entry]) -> Diagram | None:
    """The runs over the two settings by which they differ, besides the seed.

    None unless these are two, both numbers, and the runs a grid of them; cells may be missing, up
    to half of all.

    The figures are those of each run's ``summary``, so of its last recorded row: at initialisation
    for runs of a single step, since a row is of the parameters before its step. Success is judged
    by the test loss where there is one, of the parameters best in validation.
    """
    differ = settings_that_differ(runs)
    differ.pop(SEED, None)
    if len(differ) != 2 or not all(is_number(v) for values in differ.values() for v in values):
        return None
    x_key, y_key = differ
    cells = by_settings(differ, runs)
    placed = [(values, run) for values, those in cells for run in once(those)]
    runs = [run for _, run in placed]
    x, y = ([values[key] for values, _ in placed] for key in (x_key, y_key))
    size = len(set(map(float, x))) * len(set(map(float, y)))
    if FILLED * size > len(runs):  # no array is made of the many cells of a random search
        return None
    across, up, runs_of = _sums(x, y, [1] * len(runs))
    if min(runs_of.shape) < 2 or np.mean(runs_of > 0) < FILLED:
        return None
    names = [panel.name for panel in (SLOPE, HORIZON, LYAPUNOV, SHARE, RATIO)]
    figures = {
        name: grid(x, y, [_figure(run, name) for run in runs])[2]
        for name in [*names, "mean_field_exponent"]
    }
    when, trained = _when(runs)
    return Diagram(
        (x_key, y_key),
        across,
        up,
        figures,
        runs=runs_of,
        finished=_sums(x, y, [int(run.status == FINISHED) for run in runs])[2],
        diverged=_sums(x, y, [int(run.status == DIVERGED) for run in runs])[2],
        trained=trained,
        when=when,
        subject=_subject(runs, (x_key, y_key)),
    )


def write(found: Diagram, folder: Path) -> list[Path]:
    """Draw ``phase_diagram.png`` and write its numbers into ``phase_diagram.csv``.

    Returns:
      The paths of the files, the picture's first; the table alone where nothing was measured.
    """
    replace(folder / CSV, as_csv(table_rows(found)))
    page = picture(found)
    if page is None:
        return [folder / CSV]
    page.savefig(folder / PNG)
    return [folder / PNG, folder / CSV]


def picture(found: Diagram) -> Figure | None:
    """The figure, or None if there is nothing to be shown."""
    import matplotlib

    from gradlab.record.figures.common import STYLE, new_figure, panels, set_title

    wanted = found.panels()
    if not wanted:
        return None
    with matplotlib.rc_context(STYLE):
        page = new_figure(len(wanted), width=7.2)
        set_title(page, f"How the gradient travels  {found.subject}\n{found.when}")
        for panel, axes in zip(wanted, panels(page, len(wanted), "", sharey=False), strict=True):
            axes.set_title(panel.title)
            bar = draw_panel(axes, found, panel, SCREEN)
            bar.set_label(panel.label, fontsize=12)
            for axis, key in zip((axes.xaxis, axes.yaxis), found.keys, strict=True):
                name = name_of(key)
                axis.set_label_text(name if name == key else f"{name}\n{key}")
                axis.label.set_fontsize(12)
        if handles := keys_of(found, SCREEN):
            page.legend(handles=handles, loc="outside lower center", ncols=2)
    return page


def name_of(key: str) -> str:
    """A setting in words, with its unit where that is known."""
    if key in LABELS:
        return LABELS[key]
    words = [word for word in key.split(".") if word not in TOO_GENERAL] or [key]
    if words[-1] == "forget_bias":
        return "forget bias"
    few = words[-2:] if words[-1] in GENERIC else words[-1:]
    return " ".join(few).replace("_", " ")


def is_geometric(values: np.ndarray) -> bool:
    """Whether values are spaced by a ratio rather than by a difference."""
    if values[0] <= 0:
        return False
    if len(values) == 2:
        return bool(values[1] / values[0] >= 5)

    def unevenness(gaps: np.ndarray) -> float:
        return float(gaps.std() / gaps.mean())

    return unevenness(np.diff(np.log(values))) < unevenness(np.diff(values))


# --- from runs to cells ---------------------------------------------------------------------------


def _sums(
    x: Sequence[float], y: Sequence[float], values: Any
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The sorted ``x`` and ``y``, and the sum of the values in each cell, ``(Y, X)``."""
    across, column = np.unique(np.asarray(x, float), return_inverse=True)
    up, row = np.unique(np.asarray(y, float), return_inverse=True)
    found = np.zeros((len(up), len(across)), np.asarray(values).dtype)
    np.add.at(found, (row, column), values)
    return across, up, found


def _figure(run: Entry, name: str) -> float:
    if name == SHARE.name and run.status == DIVERGED:
        return 0.0
    if run.status != FINISHED:
        return math.nan
    if name not in (SHARE.name, RATIO.name):
        return run.figure(name)
    split = "test" if "test/loss" in run.summary else "val"
    guess = run.baseline(f"{split}/loss")
    ratio = run.figure(f"{split}/loss") / guess if guess else math.nan
    if name == SHARE.name:
        return math.nan if math.isnan(ratio) else float(ratio < SUCCESS)
    return math.log10(ratio) if ratio > 0 else math.nan


def _when(runs: Sequence[Entry]) -> tuple[str, bool]:
    """At which step the summaries' figures were measured, and whether that is after training."""
    steps = {run.summary.get("steps", math.nan) for run in runs if run.status == FINISHED}
    if steps == {1}:
        return "at initialisation", False
    if len(steps) == 1 and math.isfinite(made := next(iter(steps))):
        return f"after training, at step {made - 1:,.0f}", True
    return "after training, at the last recorded step of each run", True


def _subject(runs: Sequence[Entry], keys: Sequence[str]) -> str:
    run = next((run for run in runs if run.config), runs[0])
    task = str(run.facts.get("task") or "") if "task.length" in keys else run.task
    layer = next((run.first_layer for run in runs if run.first_layer), "")
    return ", ".join(filter(None, [run.model, task, layer]))


def table_rows(found: Diagram) -> list[list[Any]]:
    """The header, and a row for each cell with a run: settings, counts, figures in full."""
    rows: list[list[Any]] = [[*found.keys, "runs", "finished", "diverged", *found.figures]]
    for row, column in np.argwhere(found.runs > 0):
        counts = [int(one[row, column]) for one in (found.runs, found.finished, found.diverged)]
        values = [float(array[row, column]) for array in found.figures.values()]
        cells = [repr(value) if math.isfinite(value) else "" for value in values]
        rows.append([f"{found.x[column]:.12g}", f"{found.y[row]:.12g}", *counts, *cells])
    return rows


# --- drawing --------------------------------------------------------------------------------------


class Look(NamedTuple):
    """How a diagram is drawn for a reader at some distance.

    Attributes:
      scale: of widths and marks.
      outline: width of the white line around a level line, in points.
      ticks: at most so many on an axis.
      edge: width of the edge of the legend's patches, in points; None for matplotlib's own.
      words: of the legend: level lines measured and by theory, cells without a run and (if that is
        said) without a number, crosses.
    """

    scale: float
    outline: float
    ticks: int
    edge: float | None
    words: tuple[str, str, str, str, str]


SCREEN = Look(
    1.0,
    4.5,
    8,
    None,
    (
        "λ₁ = 0, measured",
        "λ₁ = 0, mean-field theory",
        "no run, or none that finished",
        "no finite number",
        "a run diverged",
    ),
)
PAPER = Look(
    0.5,
    2.2,
    6,
    0,
    ("λ₁ = 0, measured", "λ₁ = 0, mean field", "no finished run", "", "diverged"),
)
_LEVELS: dict[str, tuple[str, Any]] = {
    "lyapunov_exponent": ("black", "-"),
    "mean_field_exponent": ("#D55E00", "--"),
}
"""Figures whose crossing of 0 is drawn as a line: colour and dashes."""
_WIDTH = 2.2
"""Of these lines, in points."""
_NO_RUN: dict[str, Any] = {"facecolor": "white", "edgecolor": "#999999", "hatch": "////"}
_NO_NUMBER: dict[str, Any] = {"facecolor": "#BBBBBB", "edgecolor": "#BBBBBB"}


def draw_panel(axes: Axes, found: Diagram, panel: Panel, look: Look, **options: Any) -> Any:
    """Draw a panel but for its words; ``options`` are of its colour bar, which is given."""
    from matplotlib.colors import LogNorm
    from matplotlib.patches import Rectangle
    from matplotlib.patheffects import Normal, Stroke

    from gradlab.record.figures.common import edges, spread

    values = found.figures[panel.name]
    # Cells lie along the logarithm where values are spaced by a ratio.
    x, y = (np.log10(v) if is_geometric(v) else v for v in (found.x, found.y))
    x_edges, y_edges = edges(x), edges(y)
    axes.grid(False)
    for row, column in np.argwhere(~np.isfinite(values)):
        left, right = map(float, x_edges[column : column + 2])
        low, high = map(float, y_edges[row : row + 2])
        style = _NO_NUMBER if found.finished[row, column] else _NO_RUN
        cell = Rectangle((left, low), right - left, high - low, zorder=0.5, linewidth=0, **style)
        axes.add_patch(cell)
    norm, extend = norm_of(values, panel)
    mesh = axes.pcolormesh(
        x_edges,
        y_edges,
        np.ma.masked_invalid(values),
        cmap=panel.colours,
        norm=norm,
        zorder=1,
        rasterized=True,
    )
    plain = "%g" if isinstance(norm, LogNorm) else None
    bar = axes.figure.colorbar(mesh, ax=axes, extend=extend, format=plain, **options)
    for name, (colour, dashes) in _LEVELS.items():
        if crosses(found.figures[name]):
            style = {"colors": colour, "linestyles": dashes, "linewidths": _WIDTH * look.scale}
            field = np.ma.masked_invalid(found.figures[name])
            line = axes.contour(x, y, field, levels=[0.0], zorder=3, **style)
            line.set_path_effects([Stroke(linewidth=look.outline, foreground="white"), Normal()])
    for row, column in np.argwhere(found.diverged > 0):
        for colour, width in (("white", 4.0), ("black", 1.6)):
            mark: Any = {"markeredgewidth": width * look.scale, "markersize": 7.0 * look.scale}
            axes.plot(x[column], y[row], "x", color=colour, zorder=4, **mark)
    for axis, values_of, places in ((axes.xaxis, found.x, x), (axes.yaxis, found.y, y)):
        some = spread(len(values_of), look.ticks)
        axis.set_ticks(places[some], [f"{value:.3g}" for value in values_of[some]])
    axes.set_xlim(x_edges[0], x_edges[-1])
    axes.set_ylim(y_edges[0], y_edges[-1])
    return bar


def keys_of(found: Diagram, look: Look) -> list[Any]:
    """What lines, hatches and crosses mean."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    *levels, no_run, no_number, diverged = look.words
    keys: list[Any] = [
        Line2D([], [], color=colour, linestyle=dashes, linewidth=_WIDTH * look.scale, label=label)
        for (name, (colour, dashes)), label in zip(_LEVELS.items(), levels, strict=True)
        if crosses(found.figures[name])
    ]
    if (found.finished == 0).any():
        keys.append(Patch(label=no_run, linewidth=look.edge, **_NO_RUN))
    shown = [found.figures[panel.name] for panel in found.panels()]
    if no_number and any((~np.isfinite(v) & (found.finished > 0)).any() for v in shown):
        keys.append(Patch(label=no_number, **_NO_NUMBER))
    if found.diverged.any():
        keys.append(Line2D([], [], color="black", marker="x", linestyle="none", label=diverged))
    return keys


def crosses(values: np.ndarray) -> bool:
    """Whether 0 lies within the finite values."""
    finite = values[np.isfinite(values)]
    return bool(finite.size and finite.min() < 0 < finite.max())


def norm_of(values: np.ndarray, panel: Panel) -> tuple[Normalize, str]:
    """What becomes which colour, a few extreme cells left beyond, and at which ends there are."""
    from matplotlib.colors import LogNorm, Normalize

    if panel is SHARE:
        return Normalize(0.0, 1.0), "neither"
    finite = values[np.isfinite(values)]
    if panel.middle:
        end = _end(np.abs(finite)) or 1.0
        low, high = -end, end
    else:
        low = float(finite.min())
        high = max(_end(finite), low * 1.01, low + 1e-9)
    beyond = (finite.min() < low, finite.max() > high)
    extend = {(False, False): "neither", (True, False): "min", (False, True): "max"}
    wide = not panel.middle and 0 < DECADES * low < high
    return (LogNorm if wide else Normalize)(low, high), extend.get(beyond, "both")


def _end(values: np.ndarray) -> float:
    """The largest value, or one near it where a few would leave the others one colour."""
    most = float(np.quantile(values, 0.97))
    return most if values.max() > 2 * most > 0 else float(values.max())
