"""One row a setting: what its runs came to, as mean ± 95 % interval over seeds."""

from __future__ import annotations

import csv
import io
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from gradlab.compare.groups import by_settings, once, repeats, short, shown
from gradlab.compare.jobs import FINISHED
from gradlab.compare.recorded import HORIZON, LOST, PER_100, R2, SLOPE
from gradlab.compare.runs import SEED, Entry, settings_that_differ
from gradlab.compare.statistics import Estimate, bounds_of, estimate
from gradlab.errors import visible
from gradlab.record.shard import replace

CSV = "sweep.csv"
HEADINGS = {
    "val/loss": "val/loss",
    "test/loss": "test/loss",
    "test/accuracy": "test/accuracy",
    LOST: "decades lost\n(lag 0 to last)",
    PER_100: "decades lost\n(per 100 steps)",
    R2: "R² of\nthat line",
    SLOPE: "adjoint slope\n(nats/step)",
    HORIZON: "horizon\n(steps to 1/e)",
    "lyapunov_exponent": "λ₁\n(nats/step)",
    "steps_per_second": "steps/s",
}
"""The figures of the table, most wanted first."""
INSTEAD = {"test/loss": "test/accuracy", SLOPE: PER_100}
"""Figures that are left out where another is there."""
WHEN = (
    "losses and accuracies are of the parameters best in validation, the gradient's figures of the "
    "last row"
)
"""Of which step figures are."""
MOST_ROWS = 40
"""Most settings that are printed; the file has them all."""


@dataclass(frozen=True)
class Averages:
    """The runs that differ by their seed alone, and what they came to.

    Attributes:
      values: of the settings that differ in the sweep, the seed left out.
      runs: all of them, one of each configuration and seed.
      figures: estimates over those that finished, by name.
    """

    values: Mapping[str, Any]
    runs: Sequence[Entry]
    figures: Mapping[str, Estimate]

    @property
    def finished(self) -> int:
        """How many finished; the figures are theirs."""
        return sum(run.status == FINISHED for run in self.runs)

    @property
    def others(self) -> dict[str, int]:
        """How many ended, or stand, otherwise: status -> count."""
        return dict(Counter(run.status for run in self.runs if run.status != FINISHED))


def settings_of(runs: Sequence[Entry]) -> list[Averages]:
    """The runs by setting, in the order in which the settings first come."""
    differ = settings_that_differ(runs)
    differ.pop(SEED, None)
    wanted = figures_of(runs)
    found = []
    for values, each in by_settings(differ, runs):
        those = once(each)
        finished = [run for run in those if run.status == FINISHED]
        figures = {name: average(finished, name) for name in wanted}
        found.append(Averages(values, those, figures))
    return found


def average(runs: Sequence[Entry], name: str) -> Estimate:
    """The mean of a figure over runs, each a sample of its own."""
    longest = max((run.length for run in runs), default=math.nan)
    return estimate((run.figure(name) for run in runs), bounds_of(name, longest))


def figures_of(runs: Sequence[Entry]) -> list[str]:
    """Which figures of :data:`HEADINGS` any of the finished runs has."""
    finished = [run for run in runs if run.status == FINISHED]
    found = [name for name in HEADINGS if any(run.key_of(name) for run in finished)]
    return [name for name in found if INSTEAD.get(name) not in found]


def heading(name: str) -> str:
    """A figure of :data:`HEADINGS` in words, in one line."""
    return " ".join(HEADINGS[name].split())


def printed(settings: Sequence[Averages], width: int) -> tuple[Table, list[str]]:
    """The table for a terminal of so many columns, and what it had no room for, in words."""
    figures = list(settings[0].figures) if settings else []
    left_out = []
    while True:
        table = _table(settings[:MOST_ROWS], figures)
        if len(figures) < 2 or Console(width=10_000).measure(table).maximum <= width:
            break
        left_out.insert(0, figures.pop())
    words = [heading(name) for name in left_out]
    if len(settings) > MOST_ROWS:
        words.append(f"{len(settings) - MOST_ROWS} more settings")
    return table, words


def notes(settings: Sequence[Averages], runs: Sequence[Entry]) -> list[str]:
    """How to read the table of these runs, in sentences without an end."""
    found = []
    told = [one for setting in settings for one in setting.figures.values() if one.n > 1]
    if told:
        words = ["mean ± 95 % interval (Student's t) over the finished runs of a setting"]
        if any(one.is_range for one in told):
            words.append(
                "(a to b), the range over runs, where that would leave what a figure can be"
            )
        if any(one.is_same for one in told):
            words.append("(identical) where all runs agree but for rounding")
        found.append("; ".join(words))
    names = {name for setting in settings for name in setting.figures}
    if any("/" in name for name in names) and names & {LOST, PER_100, SLOPE, HORIZON}:
        found.append(WHEN)
    left_out = len(runs) - sum(len(one.runs) for one in settings)
    return [*found, *([repeats(left_out)] if left_out else [])]


def write_csv(runs: Sequence[Entry], path: Path) -> None:
    """One line a run: its name, how it ended, the settings that differ, and all of its summary.

    Numbers are written in full; an empty cell is a figure that is not there or not finite.
    """
    differ = settings_that_differ(runs)
    figures = list(dict.fromkeys(key for run in runs for key in run.summary))
    rows: list[list[Any]] = [["run", "status", "reason", *differ, *figures]]
    for index, run in enumerate(runs):
        settings = [values[index] for values in differ.values()]
        numbers = [run.summary.get(key, math.nan) for key in figures]
        row = [run.name, run.status, run.reason, *settings, *numbers]
        rows.append(["" if isinstance(v, float) and not math.isfinite(v) else v for v in row])
    replace(path, as_csv(rows))


def as_csv(rows: Iterable[Sequence[Any]]) -> bytes:
    """Rows as a file of comma-separated values."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode(errors="backslashreplace")  # names that are no UTF-8


def with_interval(found: Estimate, n: int) -> str:
    """``0.1234 ± 0.0012``: two digits of the interval; with its n if that is not ``n``."""
    mean, half = found.mean, found.half
    if math.isnan(mean):
        return "–"
    if math.isnan(half):
        text = f"{mean:.4g}"
        if found.is_same:
            text += " (identical)"
        elif found.is_range:
            text += f" (range {found.low:.4g} to {found.high:.4g})"
    else:
        digits = 1 - math.floor(math.log10(half))
        if digits > 7 or max(abs(mean), half) >= 1e6:
            text = f"{mean:.4g} ± {half:.2g}"
        else:
            own = 2 - math.floor(math.log10(abs(mean))) if mean else 0  # no fewer than 3 of its own
            mean, half = round(mean, max(digits, own)), round(half, digits)
            decimals = min(max(digits, own, 0), 7)
            text = f"{mean:.{decimals}f} ± {half:.{max(digits, 0)}f}"
    return text if found.n == n else f"{text} (n={found.n})"


def _table(settings: Sequence[Averages], figures: Sequence[str]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    names = short(settings[0].values if settings else ())
    for key, name in names.items():
        numeric = all(isinstance(one.values[key], int | float) for one in settings)
        table.add_column(visible(name), justify="right" if numeric else "left", no_wrap=True)
    table.add_column("runs", justify="left", no_wrap=True)
    first = next((run.first_layer for one in settings for run in one.runs if run.first_layer), "")
    for name in figures:
        layer = any("/layer_" in (run.key_of(name) or "") for one in settings for run in one.runs)
        more = f"\n{first}" if first and layer else ""
        table.add_column(HEADINGS[name] + more, justify="right", no_wrap=True)
    for one in settings:
        words = [with_interval(one.figures[name], one.finished) for name in figures]
        cells = [text.replace("(range ", "(") for text in words]  # what that is stands in the notes
        others = [f"{count} {visible(status)}" for status, count in one.others.items()]
        runs = ", ".join([str(one.finished), *others])
        table.add_row(*(visible(shown(one.values[key])) for key in names), runs, *cells)
    return table
