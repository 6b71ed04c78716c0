"""What the figures share: style, page, panels, marks, and the choice of training steps."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray
from xarray import Dataset

from gradlab.record.base import OWN_LOOP
from gradlab.record.keys import spread as spread
from gradlab.record.lags import values_by_lag
from gradlab.variable import over_lag_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure
else:  # matplotlib is imported when something is drawn
    Axes = Figure = Any

Info = Mapping[str, Any]
"""All of ``run.json``."""
LINES = 6
"""Most training steps shown as lines."""
FLOAT32_ZERO = -44.85
"""log10 of the smallest positive float32."""

# Okabe and Ito's colours, told apart with every kind of colour vision.
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#555555"
PURPLE, YELLOW, SKY = "#CC79A7", "#E69F00", "#56B4E9"
PALETTE = (BLUE, ORANGE, GREEN, PURPLE, YELLOW, SKY, "#000000")
DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1.5, 2)))
"""Line styles, the second way to tell lines apart."""
STYLE: dict[Any, Any] = {
    "font.size": 13,
    "axes.titlesize": 14,
    "axes.labelsize": 13,
    "legend.fontsize": 12,
    "figure.titlesize": 16,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "lines.linewidth": 2.0,
    "savefig.dpi": 120,
}
WIDEST = 52
"""Letters of a title over one panel, of two side by side."""
LAG = "lag: timesteps back from the end of the sequence"
OWN_LAG = "lag: timesteps back from each example's own end"
BOUND: dict[str, Any] = {
    "label": "bound (γσ_max)^lag,\nlast step",
    "color": PURPLE,
    "linestyle": "--",
    "zorder": 1,
}
"""How Pascanu's bound is drawn."""


def colour(k: int) -> str:
    """Of the ``k``-th line; they come again after seven."""
    return PALETTE[k % len(PALETTE)]


def dashes(k: int) -> Any:
    """Of the ``k``-th line; they come again after four."""
    return DASHES[k % len(DASHES)]


def heat_colours() -> Colormap:
    """The heatmaps' colours: viridis, black for exactly zero, light grey for not measured."""
    import matplotlib

    return matplotlib.colormaps["viridis"].with_extremes(under="black", bad="lightgrey")


def colour_limits(values: np.ndarray) -> tuple[float, float]:
    """Lowest and highest finite value, always apart; (0, 1) if there is none."""
    finite = values[np.isfinite(values)]
    if not finite.size:
        return 0.0, 1.0
    low, high = float(finite.min()), float(finite.max())
    return (low, high) if high > low else (low - 0.5, high + 0.5)


# --- page and panels ------------------------------------------------------------------------------


def new_figure(panels: int, columns: int = 0, width: float = 6.5) -> Figure:
    """A figure of the right size: up to two panels side by side, or ``columns`` of them."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    across = columns or min(panels, 2)
    down = panels if columns else -(-panels // 2)
    size = (max(9.5, width * across), 1.6 + 4.0 * down)
    return Figure(figsize=size, layout=ConstrainedLayoutEngine(h_pad=0.1, w_pad=0.1))


def set_title(figure: Figure, words: str) -> None:
    """The title over all panels, smaller where it would be wider than the figure."""
    title = figure.suptitle(words)
    shrink = 0.95 * figure.bbox.width / title.get_window_extent().width
    if shrink < 1:
        title.set_fontsize(float(title.get_fontsize()) * shrink)


def panels(
    figure: Figure, count: int, xlabel: str = LAG, *, sharex: bool = False, sharey: bool = True
) -> list[Axes]:
    """``count`` panels, two side by side."""
    across = min(count, 2)
    shared: dict[str, Any] = {"sharex": sharex, "sharey": sharey}
    grid = figure.subplots(-(-count // across), across, squeeze=False, **shared).ravel()
    for unused in grid[count:]:
        unused.remove()
    for axes in grid[:count]:
        axes.set_xlabel(xlabel)
    return list(grid[:count])


class Page:
    """A figure in the making: the question that it answers, panels, and a legend at last.

    Args:
      info: of the run; the title tells the subject.
      question: what the figure answers, the first line of the title.
      hint: how to read it, the second.
      panels: how many there are, up to two side by side.
      columns: this many side by side instead, and ``panels`` rows of them.
      last: the training step that is shown, if it is one alone.
      width: of a panel in inches.
      height: of the figure in inches, if not by the number of panels.
    """

    def __init__(
        self,
        info: Info,
        question: str,
        hint: str,
        panels: int = 1,
        columns: int = 0,
        *,
        last: Dataset | None = None,
        width: float = 6.5,
        height: float | None = None,
    ):
        self.figure, self.shape = new_figure(panels, columns, width), (panels, columns or 1)
        if height is not None:
            self.figure.set_figheight(height)
        step = "" if last is None else f", step {int(last['step']):,}"
        set_title(self.figure, f"{question}{subject(info)}{step}\n{hint}")

    def layers(self, curves: Dataset, ylabel: str, xlabel: str = LAG) -> Iterator[tuple[int, Axes]]:
        """The position of each layer, and a panel for it with title and labels."""
        for row, axes in enumerate(panels(self.figure, curves.sizes["layer"], xlabel)):
            axes.set_title(layer_title(curves, row))
            axes.set_ylabel(ylabel)
            yield row, axes

    def grid(self, **shared: Any) -> np.ndarray:
        """A panel for each row and column."""
        return self.figure.subplots(*self.shape, squeeze=False, **shared)

    def legend(
        self,
        keys: Sequence[Any] | None = None,
        title: str | None = "at training step",
        **style: Any,
    ) -> Figure:
        """The figure, with a legend at its right; of every label if no ``keys`` are given."""
        keys, place = handles_of(self.figure) if keys is None else keys, "outside right center"
        self.figure.legend(handles=keys, loc=place, title=title, **style)
        return self.figure

    def legend_below(self, columns: int) -> Figure:
        """The figure, with a legend of every label below it."""
        handles = handles_of(self.figure)
        self.figure.legend(handles=handles, loc="outside lower center", ncols=columns)
        return self.figure


def line(axes: Axes, panel: Dataset, name: str, **style: Any) -> None:
    """The variable ``name`` of one layer and training step over lag, if it was recorded."""
    if name in panel:
        lag, values = by_lag(panel, name)
        plot(axes, lag, values, **style)


def plot(axes: Axes, x: np.ndarray, y: np.ndarray, **style: Any) -> None:
    """A line through the finite values; a value between two that are not is a dot."""
    y = finite(np.asarray(y, float))
    gap = np.isnan(np.pad(y, 1, constant_values=np.nan))
    alone = np.flatnonzero(gap[:-2] & ~gap[1:-1] & gap[2:])
    if len(alone) and "marker" not in style:
        style |= {"marker": "o", "markevery": list(alone)}
    axes.plot(x, y, **style)


def mark_float32(axes_of: Sequence[Axes]) -> list[Any]:
    """A line where plain float32 ends in panels that go that deep; its key for the legend."""
    deep = [axes for axes in axes_of if axes.get_ylim()[0] < FLOAT32_ZERO]
    label = "plain float32\nreads 0 below"
    style = {"color": ORANGE, "linestyle": "-.", "linewidth": 1.4, "zorder": 1}
    return [axes.axhline(FLOAT32_ZERO, label=label, **style) for axes in deep][:1]


def mark_level(axes: Axes, level: float, label: str) -> Any:
    """A dotted horizontal line of reference; its key for the legend."""
    return axes.axhline(level, color=GREY, linestyle=":", linewidth=1.6, zorder=1, label=label)


@contextmanager
def within(axes_of: Sequence[Axes]) -> Iterator[None]:
    """What is drawn inside changes the height of panels of one height by a margin at most."""
    low, high = axes_of[0].get_ylim()
    yield
    new_low, new_high = axes_of[0].get_ylim()
    margin = 0.15 * (high - low)
    axes_of[0].set_ylim(max(new_low, low - margin), min(new_high, high + margin))


def heatmap(axes: Axes, values: xarray.DataArray, low: float, high: float) -> Any:
    """Colour ``values`` (step, another dimension); exact zeros go below the scale."""
    array = np.where(np.isneginf(values.values), low - 1.0, values.values)
    across, up = values.dims
    mesh = axes.pcolormesh(
        edges(values[across].values),
        edges(values[up].values),
        np.ma.masked_invalid(array.T),
        cmap=heat_colours(),
        vmin=low,
        vmax=high,
        rasterized=True,
    )
    axes.grid(False)
    return mesh


def whole_numbers(axes: Axes) -> None:
    """Ticks of the x axis at whole numbers only."""
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def key(label: str, **style: Any) -> Any:
    """A key of a legend: a line, grey unless ``style`` says otherwise."""
    from matplotlib.lines import Line2D

    return Line2D([], [], **{"color": GREY, **style}, label=label)


def handles_of(figure: Figure) -> list[Any]:
    """One legend key for each label in any of the panels."""
    found: dict[str, Any] = {}
    for axes in figure.axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    return list(found.values())


def layer_title(curves: Dataset, row: int, more: str = "", widest: int = WIDEST) -> str:
    """``layer 0: more``; the layer is left out where there is but one."""
    layer = "" if curves.sizes["layer"] == 1 else f"layer {curves['layer'].values[row]}"
    return titled(layer, more, widest)


def titled(name: str, more: str, widest: int = WIDEST) -> str:
    """``name: more`` over one panel, in two lines or more where one would be too wide."""
    first, *others = more.split("\n")
    line = ": ".join(filter(None, [name, first]))
    lines = [line] if len(line) <= widest else [*textwrap.wrap(name, widest), first]
    return "\n".join(filter(None, [*lines, *others]))


def gate_of(curves: Dataset, info: Info, name: str, row: int) -> str:
    """The retention gate of a layer, of which the variable ``name`` tells; empty if it has none.

    In a module whose layers are of several kinds the variable's own attribute has all of them.
    """
    layers = info.get("facts", {}).get("layers")
    if layers:
        return layers.get(str(curves["layer"].values[row]), {}).get("gate", "")
    return curves[name].attrs.get("gate", "")


def close_look(info: Info, probes: str, option: str) -> str:
    """What takes a close look: an option of the command line, or a call in a loop of one's own."""
    own = info.get("facts", {}).get("loop") == OWN_LOOP
    return f'recorder.look(..., probes=["{probes}"])' if own else option


# --- which training steps ------------------------------------------------------------------------


def measured(curves: Dataset, name: str) -> np.ndarray:
    """Positions along ``step`` at which ``name`` was measured."""
    if name not in curves or not curves[name].size:
        return np.array([], int)
    values = curves[name]
    # The ends tell for almost every variable, and a long run is not read as a whole for it.
    rows = _not_nan(values.isel(t=[0, -1])) if "t" in values.dims else np.array([], int)
    return rows if len(rows) else _not_nan(values)


def _not_nan(values: xarray.DataArray) -> np.ndarray:
    others = [dim for dim in values.dims if dim != "step"]
    return np.flatnonzero(values.notnull().any(others).values)


def last_measured(curves: Dataset, *names: str) -> Dataset | None:
    """The last training step at which the first recorded one of ``names`` was measured."""
    for name in names:
        rows = measured(curves, name)
        if len(rows):
            return curves.isel(step=rows[-1])
    return None


def last_value(curves: Dataset, name: str, row: int) -> float:
    """``name`` of the layer at ``row``, where it was measured last; NaN if it never was."""
    last = last_measured(curves, name)
    return math.nan if last is None else float(last[name].isel(layer=row))


def several_measured(curves: Dataset, name: str, most: int = LINES) -> Dataset | None:
    """Training steps at which ``name`` was measured, early ones denser, or None."""
    rows = measured(curves, name)
    return curves.isel(step=rows[early_and_late(len(rows), most)]) if len(rows) else None


def each_step(chosen: Dataset) -> Iterator[tuple[Dataset, dict[str, Any]]]:
    """One training step after the other, each with the colour and the label of its line."""
    steps = chosen["step"].values
    for k, shade in enumerate(step_colours(len(steps))):
        yield chosen.isel(step=k), {"color": shade, "label": f"step {steps[k]:,}"}


def all_measured(curves: Dataset, name: str) -> Dataset | None:
    """Every training step at which ``name`` was measured, or None."""
    rows = measured(curves, name)
    return curves.isel(step=rows) if len(rows) else None


def those_measured(curves: Dataset, names: Iterable[str]) -> dict[str, Dataset]:
    """Those of ``names`` that were measured, each with every training step at which it was."""
    found = {name: all_measured(curves, name) for name in names}
    return {name: rows for name, rows in found.items() if rows is not None}


def recorded(scalars: Dataset, names: Iterable[str]) -> dict[str, xarray.DataArray]:
    """The scalars among ``names`` that were measured, each at the steps at which it was."""
    found = {name: scalars[name].dropna("step") for name in names if name in scalars}
    return {name: values for name, values in found.items() if values.size}


def early_and_late(length: int, most: int) -> np.ndarray:
    """Positions denser at the start, where training changes most; both ends included."""
    fractions = np.linspace(0, 1, min(length, most)) ** 2
    return np.unique((fractions * (length - 1)).round().astype(int))


def step_colours(count: int) -> list[Any]:
    """Dark for early, bright for late; the brightest yellow is left out, it fades on white."""
    import matplotlib

    return list(matplotlib.colormaps["viridis"](np.linspace(0.0, 0.88, count)))


# --- numbers and words ---------------------------------------------------------------------------


def by_lag(panel: Dataset, name: str) -> tuple[np.ndarray, np.ndarray]:
    """The lag ascending ``(T,)`` and the values along it ``(..., T)``."""
    values = values_by_lag(panel, name)
    return np.arange(values.shape[-1]), values


def lag_label(curves: Dataset, name: str) -> str:
    """What the lag of :func:`by_lag` counts from, to go under an axis."""
    return OWN_LAG if over_lag_name(name) in curves else LAG


def finite(values: np.ndarray) -> np.ndarray:
    """NaN, which is not drawn, in place of infinities."""
    return np.where(np.isfinite(values), values, np.nan)


def first_finite(values: np.ndarray) -> float:
    """The first finite value, or 0."""
    found = values[np.isfinite(values)]
    return float(found[0]) if found.size else 0.0


def edges(centres: np.ndarray) -> np.ndarray:
    """Borders of the cells around ``centres``, one more than there are centres."""
    if len(centres) == 1:
        return np.array([centres[0] - 0.5, centres[0] + 0.5])
    middle = (centres[1:] + centres[:-1]) / 2
    first, last = 2 * centres[0] - middle[0], 2 * centres[-1] - middle[-1]
    return np.concatenate([[first], middle, [last]])


def subject(info: Mapping[str, Any]) -> str:
    """What the run is about, to go after a title: model, task and T."""
    facts = info.get("facts", {})
    parts = [str(facts[key]) for key in ("model", "task") if facts.get(key)]
    if facts.get("T"):
        parts.append(f"T = {facts['T']}")
    return f"  {', '.join(parts)}" if parts else ""
