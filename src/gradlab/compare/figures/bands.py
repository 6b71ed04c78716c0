"""What is drawn of a group: the mean over its runs, and how far they spread, along one axis."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np

from gradlab.compare.figures.style import Look, Looks
from gradlab.compare.groups import Group, counted, only
from gradlab.compare.recorded import Curve, Recorded, Series
from gradlab.compare.statistics import UNBOUNDED, estimates
from gradlab.record.figures.common import finite, plot, spread

if TYPE_CHECKING:
    from matplotlib.axes import Axes

C = TypeVar("C", Curve, Series)

MOST_LAGS = 1000
"""Most points of a line over lag."""
THIN = 0.8
"""Width of lines where there are too many for a shade each, in points."""
MARGIN = 0.3
"""Room for intervals above and below the means, as a share of their range."""
MOST_LAYERS = 4
"""Most layers that have a panel of their own."""


class Band(NamedTuple):
    """Runs of a group along an axis.

    Attributes:
      x: ascending, ``(N,)``.
      mean: over the runs that have a value there, ``(N,)``; -inf where one of them is.
      low, high: as :func:`gradlab.compare.statistics.estimates` has them.
      n: how many runs there are.
      is_range: whether ``low`` and ``high`` are the range over runs, not the 95 % interval.
    """

    x: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray
    n: np.ndarray
    is_range: bool = False

    @property
    def kind(self) -> str:
        """What ``low`` and ``high`` are, in a word for a file."""
        return "range" if self.is_range else "95 % interval"


@dataclass(frozen=True)
class Shown:
    """All that the panels draw from.

    Attributes:
      runs: all of them.
      groups: those with a run whose numbers count.
      looks: one for each group.
      step: training step that is asked for; None for the last of each run.
    """

    runs: Sequence[Recorded]
    groups: Sequence[Group]
    looks: Looks
    step: int | None = None
    _kept: dict[Any, Curve | None] = field(default_factory=dict)

    @cached_property
    def layers(self) -> list[str]:
        """The layers that are drawn, of all runs."""
        every = list(
            dict.fromkeys(n for g in self.groups for r in counted(g.runs) for n in r.layers)
        )
        return [every[index] for index in spread(len(every), MOST_LAYERS)]

    def header(self, *columns: str) -> list[str]:
        """The first row of a file: what a group is, then the columns."""
        return ["group", *(self.groups[0].values if self.groups else ()), *columns]

    def told(self, group: Group) -> list[Any]:
        """The first cells of each row of a group."""
        return [group.label, *group.values.values()]

    def at(self, run: Recorded, name: str) -> Curve | None:
        """A curve at the training step that is drawn: the measured one nearest to ``step``."""
        key = (run.entry.path, name)
        if key not in self._kept:
            curve = run.curve(name, most_lags=MOST_LAGS)
            if curve is not None:
                row = -1 if self.step is None else int(np.abs(curve.steps - self.step).argmin())
                curve = Curve(curve.steps[[row]], curve.lags, curve.values[[row]])
            self._kept[key] = curve
        return self._kept[key]


def band(
    lines: Sequence[tuple[np.ndarray, np.ndarray]], bounds: tuple[float, float] = UNBOUNDED
) -> Band | None:
    """Lines ``(x, y)`` of a group's runs, aligned by ``x``; they cannot leave ``bounds``.

    NaN is no value. Points that fewer than half of the runs have are left out, so that a line does
    not jump where runs end. None without any value.
    """
    known = [(x[~np.isnan(y)], y[~np.isnan(y)]) for x, y in lines]
    known = [(x, y) for x, y in known if len(x)]
    if not known:
        return None
    x = np.unique(np.concatenate([x for x, _ in known]))
    table = np.full((len(known), len(x)), np.nan)
    for row, (places, y) in zip(table, known, strict=True):
        row[np.searchsorted(x, places)] = y
    n = (~np.isnan(table)).sum(0)
    enough = n >= len(known) / 2
    return Band(x[enough], *estimates(table[:, enough], bounds))


def draw_bands(
    shown: Shown, axes: Axes, bands: Sequence[Band | None], *, power: bool = False
) -> list[tuple[Group, Look, Band]]:
    """Draw a band for each group that has one: the mean as a line, the interval as a shade.

    Args:
      shown: what is drawn.
      axes: where.
      bands: one for each group, or None.
      power: whether ten to the power of them is shown.

    Returns:
      The groups that have one, how they look, and their bands.
    """
    axes.margins(x=0)
    every = zip(shown.groups, shown.looks.of, bands, strict=True)
    drawn = [(group, look, one) for group, look, one in every if one is not None]
    for _, look, one in drawn:
        low, mean, high = finite(one.low), finite(one.mean), finite(one.high)
        if power:
            low, mean, high = (np.power(10.0, np.clip(v, -300, 300)) for v in (low, mean, high))
        style: dict[str, Any] = {"color": look.colour, "linestyle": look.dashes}
        if not shown.looks.few:
            style |= {"linewidth": THIN}
        if len(one.x) == 1:
            style |= {"marker": look.marker or "o"}
        plot(axes, one.x, mean, **style)
        if shown.looks.few and np.isfinite(low).any():
            axes.fill_between(one.x, low, high, color=look.colour, alpha=0.18, linewidth=0)
    return drawn


def fit_height(
    axes_of: Sequence[Axes], found: Sequence[Band], also: Sequence[float], *, power: bool = False
) -> None:
    """A height that the means and ``also`` fill; wide intervals, as of two runs, are cut off."""
    means = np.concatenate([one.mean for one in found])
    means = np.append(np.power(10.0, means) if power else means, also)
    means = means[np.isfinite(means) & ((means > 0) | (not power))]
    if not len(means):
        return
    ends = np.array([means.min(), means.max()])
    now = np.array(axes_of[0].get_ylim())
    if power:
        ends, now = np.log10(ends), np.log10(np.maximum(now, 1e-300))
    room = MARGIN * (ends[1] - ends[0]) or np.inf
    low, high = max(now[0], ends[0] - room), min(now[1], ends[1] + room)
    axes_of[0].set_ylim(*(np.power(10.0, (low, high)) if power else (low, high)))


def over_runs(
    group: Group,
    line: Callable[[Recorded], tuple[np.ndarray, np.ndarray] | None],
    bounds: tuple[float, float] = UNBOUNDED,
) -> Band | None:
    """The band of what ``line`` gives for each run that counts."""
    lines = [found for run in counted(group.runs) if (found := line(run)) is not None]
    return band(lines, bounds)


def layer_of(run: Recorded, layer: str, found: C | None) -> C | None:
    """What was found in a run, with the values ``(S, …)`` of a layer by its name alone; or None."""
    if found is None or layer not in run.layers[: found.values.shape[1]]:
        return None
    return found._replace(values=found.values[:, run.layers.index(layer)])


def baseline_of(runs: Sequence[Recorded], name: str) -> float:
    """The baseline's figure if it is the same for all runs; NaN else."""
    guesses = (run.entry.baseline(name) for run in runs)
    return only((guess for guess in guesses if not math.isnan(guess)), math.nan)


def rows_of(told: Sequence[Any], found: Band, *more: Any) -> list[list[Any]]:
    """A row for each point: what it is of, where it is, mean, low, high, n."""
    points = zip(found.x, found.mean, found.low, found.high, found.n, strict=True)
    return [[*told, *more, *point] for point in points]


def units_of(runs: Sequence[Recorded], name: str) -> str:
    """The units that the runs recorded for a scalar; empty without, or where they disagree."""
    known = (run.run.scalars for run in runs if run.run is not None)
    return only((str(one[name].attrs.get("units", "")) for one in known if name in one), "")
