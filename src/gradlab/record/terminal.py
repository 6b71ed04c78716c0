"""Progress and verdict of a run on the terminal."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, TextIO, cast

import numpy as np
from rich.console import Console, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from gradlab.errors import visible
from gradlab.record.base import AT_LENGTH, Description, Outcome, Row, baseline_of
from gradlab.record.output import Shown

PLAIN_LINES = 10
"""About this many progress lines are printed where nothing can be kept up to date."""
PER_SECOND = 4
"""How often a terminal is drawn anew."""
BURST = 0.05
"""Rows that come within so many seconds were measured in one call; it says nothing of the speed."""
_ROBUST_FIRST = (
    "decades_lost",
    "decades_per_100",
    "adjoint_line_r2",
    "adjoint_slope",
    "memory_horizon",
)
_COLOURS = {"finished": "green", "diverged": "red", "crashed": "red"}


class Screen:
    """Where progress is shown: lines, and on a terminal something that is kept up to date.

    Args:
      stream: where to print; standard output if None.
    """

    def __init__(self, stream: TextIO | None = None):
        self.console: Console = console_for(stream or sys.stdout)
        self.live: Live | None = None

    def _begin_live(self, drawn: Callable[[], RenderableType]) -> None:
        """Show what ``drawn`` gives from now on, if this is a terminal."""
        if self.console.is_terminal and not self.console.is_dumb_terminal:
            self.live = Live(
                console=self.console, get_renderable=drawn, refresh_per_second=PER_SECOND
            )
            self.live.start()

    def _end_live(self) -> bool:
        """Draw it once more and leave it; whether there was anything."""
        if self.live is None:
            return False
        self.live.stop()
        self.live = None
        return True

    def _print(self, text: str, **style: Any) -> None:
        print_line(self.console, text, **style)


class Terminal(Screen):
    """A sink that shows a header, progress, and at the end a table and the verdict.

    On a terminal one live line is kept up to date; elsewhere (a file, a pipe) about ten plain
    lines are printed, without any escape codes.

    Args:
      stream: where to print; standard output if None.
    """

    def open(self, description: Description) -> None:
        """Print the header line; start the live line on a terminal."""
        self.baseline = baseline_of(description.baseline, ("val", "train", "test"))
        self.steps = description.facts.get("steps")
        self.layers = list(description.coords.get("layer", []))
        self.start: tuple[float, int] | None = None
        self.opened, self.next_line, self.shown = time.monotonic(), 0.0, -1
        self.measured: int | None = None
        self._print(_header(description, self.baseline), style="bold")
        self.recorded = description.recorded
        if description.resumed:
            self._print(f"going on; rows up to step {self.recorded} are recorded already")
        self.last: tuple[int, float, dict[str, Any]] | None = None  # step, moment, figures
        self._begin_live(lambda: Text(self._line()))

    def log(self, row: Row) -> None:
        """Show the latest figures; of a run that is resumed, those that are new."""
        if row.scalars:  # else it is the step at which the run diverged, which was not made
            self.measured = row.step
        if row.step <= self.recorded:
            return
        now = time.monotonic()
        self.start = self.start or (now, row.step)
        latest: dict[str, Any] = {**(self.last[2] if self.last else {}), **row.scalars}
        if "adjoint_slope" in row.arrays:
            latest["adjoint_slope"] = row.arrays["adjoint_slope"]
        self.last = row.step, now, latest  # put into words when it is drawn, maybe by a thread
        if not self.live and row.step >= self.next_line:
            self._print(self._line())
            self.shown = row.step
            self.next_line = row.step + (self.steps or 0) / PLAIN_LINES

    def close(self, outcome: Outcome) -> None:
        """Print the last progress line, a table of the final figures, and the verdict."""
        if not self._end_live() and self.last and self.last[0] != self.shown:
            self._print(self._line())
        figures = _table(outcome, self.measured)
        if figures.row_count:
            self.console.print(figures)
        told = outcome.reason.startswith(outcome.status)  # as "diverged at step 3: ..."
        ending = outcome.reason if told else f"{outcome.status}: {outcome.reason}".rstrip(": ")
        for line in ending.split("\n"):
            self._print(line, style=_COLOURS.get(outcome.status, "yellow"))
        for line in outcome.verdict:
            self._print(line)

    def _line(self) -> str:
        """Where the run stands, by its latest row."""
        if self.last is None:
            return "compiling…"
        step, now, latest = self.last
        total = f"/{self.steps}" if self.steps else ""
        parts = [f"step {step}{total}"]
        for key in ("train/loss", "val/loss"):
            if key in latest:
                parts.append(f"{key} {latest[key]:.4g}")
        if len(parts) > 1 and self.baseline:
            parts[-1] += f" (baseline {self.baseline['loss']:.4g})"
        if "adjoint_slope" in latest:
            slopes = np.ravel(latest["adjoint_slope"])
            per_layer = " ".join(f"{slope:+.3g}" for slope in slopes)
            parts.append(f"adjoint slope {per_layer} nats/step")
        return "  ".join([*parts, *self._speed(step, now)])

    def _speed(self, step: int, now: float) -> list[str]:
        since, first = self.start or (now, step)
        if step <= first or now <= since:
            return []
        if now - since < BURST:
            since, first = self.opened, self.recorded
        rate = (step - first) / (now - since)
        parts = [f"{rate:.3g} steps/s"]
        if self.steps:
            parts.append(f"{duration((self.steps - step) / rate)} left")
        return parts


def console_for(stream: TextIO | None, width: int = 100) -> Console:
    """Where to print: in colours on a terminal, else plain text in ``width`` columns."""
    safe = Shown(stream)
    tty = safe.isatty()
    return Console(
        file=cast(TextIO, safe),
        force_terminal=tty,
        no_color=None if tty else True,
        width=None if tty else width,
        highlight=False,
        markup=False,
        emoji=False,
    )


def print_line(console: Console, text: str, **style: Any) -> None:
    """Print one line, however long; control characters in it are shown, and do nothing."""
    console.print(Text(visible(text), **style), soft_wrap=True)


def _header(description: Description, baseline: Mapping[str, Any] | None) -> str:
    forms = {"model": "{}", "parameters": "{:,} parameters", "task": "task {}", "T": "T = {}"}
    facts = [
        (form, description.facts[key]) for key, form in forms.items() if key in description.facts
    ]
    parts = [description.name, *(form.format(fact) for form, fact in facts)]
    if baseline:
        parts.append(f"baseline “{baseline['name']}”: loss {baseline['loss']:.4g}")
    return " · ".join(parts)


def _table(outcome: Outcome, measured: int | None) -> Table:
    """The final figures, each with the training step that it is of.

    Args:
      outcome: of the run.
      measured: the last step that was measured; None if there is none.
    """
    table = Table(show_header=False, box=None, padding=(0, 2))
    table.add_column()
    table.add_column(justify="right")
    table.add_column()
    best = outcome.summary.get("best/step")
    for name in sorted(outcome.summary, key=_place):
        if AT_LENGTH not in name:  # the verdict has them side by side
            table.add_row(name, figure(outcome.summary[name]), _of_step(name, measured, best))
    speed = outcome.timings.get("steps_per_second")
    if speed is not None:
        table.add_row("steps per second", figure(speed))
    overhead = outcome.timings.get("probe_overhead")
    if overhead is not None:
        table.add_row("a probed step (probe_overhead)", f"{overhead:.3g} × a plain step")
    look = outcome.timings.get("close_look")
    if look is not None:
        table.add_row("one close look", f"{look:.3g} s")
    return table


def _place(name: str) -> int:
    """Of a final figure: training, then what is robust of the gradient, other probes, scores."""
    if name == "steps" or name.startswith("train/"):
        return 0
    if name == "best/step" or name.startswith(("val/", "test/")):
        return len(_ROBUST_FIRST) + 2
    probe = name.partition("/")[0]
    known = probe in _ROBUST_FIRST
    return 1 + (_ROBUST_FIRST.index(probe) if known else len(_ROBUST_FIRST))


def _of_step(name: str, measured: int | None, best: float | None) -> str:
    """The training step that a final figure is of, in words."""
    if name in ("steps", "best/step"):
        return ""
    if name.startswith(("val/", "test/")):
        return "" if best is None else f"step {best:,.0f}, best in validation"
    if measured is None:
        return ""
    is_mean = name in ("train/loss", "train/clip_rate", "train/penalty")  # since the row before
    return f"{'mean up to ' if is_mean else ''}step {measured:,}"


def figure(value: float | None) -> str:
    """A number with four digits."""
    if value is None or not isinstance(value, int | float | np.number):
        return str(value)
    return f"{value:.4g}" if math.isfinite(value) else str(float(value))


def duration(seconds: float) -> str:
    """``1:02:03`` or ``2:03``."""
    minutes, seconds = divmod(round(max(0.0, seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
