"""How the figures look on paper: sizes, fonts, colours, legends and files."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from gradlab.compare.groups import ACRONYMS, MODEL, Group, called, shown
from gradlab.compare.phase_diagram import is_geometric, name_of
from gradlab.compare.runs import is_number, same
from gradlab.compare.table import as_csv
from gradlab.record.figures.common import GREY, PALETTE, spread
from gradlab.record.shard import replace

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure

SINGLE, DOUBLE = 3.35, 6.9
"""Widths of a paper's column and of its page, in inches."""
FORMATS = ("pdf", "svg", "png")
MOST_NAMED = 8
"""Most groups that each have a colour and a name of their own."""
LONGEST = 44
"""Most letters of a label."""
DASHES: tuple[Any, ...] = ("-", (0, (4.5, 1.6)), (0, (5, 1.2, 1.2, 1.2)), (0, (2.4, 1.2)))
DOTTED: Any = (0, (1, 1.3))
"""Kept for what is no group: bounds and levels of reference."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
COLOURS = (*PALETTE, "#999999")
STYLE: dict[Any, Any] = {
    **dict.fromkeys(("font.size", "axes.titlesize", "axes.labelsize"), 8),
    **dict.fromkeys(("xtick.labelsize", "ytick.labelsize"), 7),
    **dict.fromkeys(("legend.fontsize", "legend.title_fontsize"), 7),
    "legend.frameon": False,
    "legend.handlelength": 2.4,
    "legend.columnspacing": 1.2,
    "legend.borderaxespad": 0.2,
    **dict.fromkeys(("axes.spines.top", "axes.spines.right"), False),
    **dict.fromkeys(("axes.grid", "axes.axisbelow"), True),
    "grid.linewidth": 0.4,
    "grid.color": "#DDDDDD",
    **dict.fromkeys(("axes.linewidth", "xtick.major.width", "ytick.major.width"), 0.6),
    **dict.fromkeys(("xtick.minor.width", "ytick.minor.width"), 0.4),
    **dict.fromkeys(("xtick.major.size", "ytick.major.size"), 2.5),
    **dict.fromkeys(("xtick.minor.size", "ytick.minor.size"), 1.5),
    "lines.linewidth": 1.2,
    "lines.markersize": 3.5,
    "hatch.linewidth": 0.4,
    "savefig.dpi": 300,
    "figure.dpi": 100,
    "pdf.fonttype": 42,
    "svg.fonttype": "none",
    "svg.hashsalt": "gradlab",
    "text.usetex": False,
}


class Page(NamedTuple):
    """A figure and the numbers in it.

    Attributes:
      figure: of matplotlib.
      rows: the first is the header; then one row a point.
    """

    figure: Figure
    rows: Sequence[Sequence[Any]]


class Look(NamedTuple):
    """How a group is drawn."""

    colour: Any
    dashes: Any
    marker: str


@dataclass(frozen=True)
class Looks:
    """How all groups are drawn, and what says so.

    Attributes:
      of: a look for each group.
      names: (words, look) of each key of the legend.
      bar: colours of a numeric setting, its name and its values, where there are too many to be
        named.
    """

    of: Sequence[Look]
    names: Sequence[tuple[str, Look]]
    bar: tuple[Normalize, str, np.ndarray] | None = None

    @property
    def few(self) -> bool:
        """Whether each group has its own key; bands over seeds are drawn only then."""
        return self.bar is None and len(self.of) == len(self.names)


def looks_of(groups: Sequence[Group]) -> Looks:
    """A look for each group: by model where it differs, its settings by dashes.

    Of many groups the colour says the value of the number by which most of them differ, or else
    the value of the setting with fewest.
    """
    if len(groups) <= MOST_NAMED:
        return _each(groups)
    keys = list(groups[0].values)
    counts = {key: len({same(group.values[key]) for group in groups}) for key in keys}
    numbers = [
        key for key in keys if counts[key] > 2 and all(is_number(g.values[key]) for g in groups)
    ]
    if numbers:
        return _by_number(groups, max(numbers, key=lambda key: counts[key]))
    return _by_word(groups, min(keys, key=lambda key: counts[key]))


def safe(text: str) -> str:
    """A name from a run as a label: no formula, not hidden, in one line, not too long."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    line = line if len(line) <= LONGEST else f"{line[: LONGEST - 1]}…"
    return (" " if line.startswith("_") else "") + line.replace("$", r"\$")


def new_page(across: int = 1, down: int = 1, *, height: float = 1.95, **options: Any) -> Any:
    """A figure with its panels, ``(down, across)``; one of a column's width if it has one panel."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    width = SINGLE if across == 1 else DOUBLE if across > 2 else DOUBLE * 0.78
    engine = ConstrainedLayoutEngine(w_pad=0.03, h_pad=0.03, wspace=0.03, hspace=0.03)
    figure = Figure(figsize=(width, height * down + 0.35), layout=engine)
    return figure, figure.subplots(down, across, squeeze=False, **options)


def new_grid(count: int, most: int, across: str, up: str, **options: Any) -> tuple[Any, list[Axes]]:
    """A figure with ``count`` panels, at most ``most`` side by side, and the words at its edges.

    Args:
      count: of the panels.
      most: in a row.
      across: what is along the horizontal axes; said below the lowest panels.
      up: what is along the vertical axes; said at the left.
      **options: of :func:`new_page`.
    """
    columns = min(count, most)
    figure, grid = new_page(columns, -(-count // columns), **options)
    panels = list(grid.ravel())
    for unused in panels[count:]:
        unused.remove()
    for axes in grid[:, 0]:
        axes.set_ylabel(up)
    for axes in panels[:count][-columns:]:
        axes.set_xlabel(across)
        axes.tick_params(labelbottom=True)
    return figure, panels[:count]


def add_keys(page: Figure, axes_of: Sequence[Axes], looks: Looks, more: Sequence[Any] = ()) -> None:
    """The legend over the panels, and the colour bar beside them."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.lines import Line2D

    keys = [Line2D([], [], color=look.colour, ls=look.dashes, label=w) for w, look in looks.names]
    keys += more
    if len(keys) > 1 or more:
        add_legend(page, keys)
    if looks.bar:
        norm, name, values = looks.bar
        bar = page.colorbar(ScalarMappable(norm, _colours()), ax=list(axes_of), aspect=30, pad=0.02)
        some = values[spread(len(values), 5)]
        bar.set_ticks(list(some), labels=[f"{value:.3g}" for value in some])
        bar.minorticks_off()
        bar.set_label(name)
        bar.outline.set_linewidth(0.6)  # type: ignore[operator]


def add_legend(page: Figure, keys: Sequence[Any]) -> None:
    """A legend over all panels, in as few rows as its words need."""
    lengths = [len(str(key.get_label())) + 8 for key in keys]
    room = int(page.get_figwidth() * 15)
    columns = len(keys) if sum(lengths) <= room else max(1, room // max(lengths))
    page.legend(handles=list(keys), loc="outside upper center", ncols=min(columns, len(keys)))


def level(axes: Axes, value: float) -> None:
    """A dotted line of reference."""
    axes.axhline(value, color=GREY, linestyle=DOTTED, linewidth=0.9, zorder=1.5)


def save(page: Page, folder: Path, name: str) -> list[Path]:
    """Write ``NAME.pdf``, ``.svg``, ``.png`` and ``NAME.csv``; the same bytes each time."""
    metadata: dict[str, Any] = {
        "pdf": {"CreationDate": None, "Creator": "gradlab"},
        "svg": {"Date": None, "Creator": "gradlab"},
        "png": {"Software": "gradlab"},
    }
    written = []
    page.figure.draw_without_rendering()  # lays it out, once for all formats
    page.figure.set_layout_engine("none")
    for kind in FORMATS:
        content = io.BytesIO()
        page.figure.savefig(content, format=kind, metadata=metadata[kind])
        replace(folder / f"{name}.{kind}", content.getvalue())
        written.append(folder / f"{name}.{kind}")
    rows = [[_cell(value) for value in row] for row in page.rows]
    replace(folder / f"{name}.csv", as_csv(rows))
    return [*written, folder / f"{name}.csv"]


def _cell(value: Any) -> Any:
    """A number in full; an empty cell is one that is not there."""
    if isinstance(value, float | np.floating):
        return "" if np.isnan(value) else float(value)
    return value


def _each(groups: Sequence[Group]) -> Looks:
    models = places_of([group.model for group in groups])
    by_model = len(groups) > 0 and MODEL in groups[0].values and len(models) > 1
    variants = Counter[str]()
    found = []
    for index, group in enumerate(groups):
        place = variant = index
        if by_model:
            place = models[group.model]
            variant = place if len(models) == len(groups) else variants[group.model]
            variants[group.model] += 1
        dashes, marker = DASHES[variant % len(DASHES)], MARKERS[variant % len(MARKERS)]
        found.append(Look(COLOURS[place % len(COLOURS)], dashes, marker))
    return Looks(found, [(safe(g.label), look) for g, look in zip(groups, found, strict=True)])


def places_of(models: Sequence[str]) -> dict[str, int]:
    """Which colour each model has; those of :data:`ACRONYMS` have theirs in every figure."""
    places = dict(zip(ACRONYMS, range(len(ACRONYMS)), strict=True))
    for model in models:
        places.setdefault(model, len(places))
    return {model: places[model] for model in models}


def _by_number(groups: Sequence[Group], key: str) -> Looks:
    from matplotlib.colors import LogNorm, Normalize

    values = np.array([float(group.values[key]) for group in groups])
    kind = LogNorm if is_geometric(np.unique(values)) else Normalize
    norm = kind(float(values.min()), float(values.max()))
    models = list(dict.fromkeys(group.model for group in groups))
    several = 1 < len(models) <= len(DASHES)
    dashes = [DASHES[models.index(group.model)] if several else "-" for group in groups]
    colours = _colours()
    found = [Look(colours(norm(v)), d, "") for v, d in zip(values, dashes, strict=True)]
    names = [
        (safe(called(model)), Look(GREY, DASHES[place], ""))
        for place, model in enumerate(models if several else [])
    ]
    return Looks(found, names, (norm, safe(name_of(key)), np.unique(values)))


def _by_word(groups: Sequence[Group], key: str) -> Looks:
    words = list(dict.fromkeys(shown(group.values[key]) for group in groups))
    named = words if len(words) <= MOST_NAMED else words[: MOST_NAMED - 1]
    looks = {
        word: Look(COLOURS[place], DASHES[place % len(DASHES)], MARKERS[place])
        for place, word in enumerate(named)
    }
    other = Look("#CCCCCC", "-", "")
    found = [looks.get(shown(group.values[key]), other) for group in groups]
    names = [(safe(called(word)), look) for word, look in looks.items()]
    if len(named) < len(words):
        names.append((f"{len(words) - len(named)} others", other))
    return Looks(found, names)


def _colours() -> Any:
    """Viridis without its brightest end, which fades on white."""
    import matplotlib
    from matplotlib.colors import ListedColormap

    return ListedColormap(matplotlib.colormaps["viridis"](np.linspace(0.0, 0.9, 256)))
