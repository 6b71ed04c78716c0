"""Progress of many runs at once: the members of a population, or the jobs of a sweep."""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple, Self, TextIO

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from gradlab.errors import visible
from gradlab.record.terminal import PLAIN_LINES, Screen, duration, figure

STATES = {
    "running": "",
    "compiling": "cyan",
    "crashed": "red",
    "killed": "red",
    "diverged": "red",
    "refused": "red",
    "interrupted": "yellow",
    "finished": "green",
    "waiting": "bright_black",
}
"""What a member can be at, the one to be shown first coming first, with its colour."""
OPEN = ("waiting", "compiling", "running")
"""A member in one of these states has not ended."""
ROWS = 16
"""Most members that get a line of their own on a terminal."""
WINDOW = 30.0
"""Seconds over which the speed is taken."""
SHOWN = ("train/loss", "val/loss")


class _Seen(NamedTuple):
    """What is shown, as it stood at one moment."""

    states: list[str]
    steps: list[int]
    scalars: list[Mapping[str, float]]
    counts: dict[str, int]
    left: int
    speed: float | None


class SweepProgress(Screen):
    """Shows how far the members of a sweep are, in what state, and how long it takes yet.

    On a terminal a bar over the steps of all members, how many are in which state, steps per second
    and time left, and a table of the most interesting members are kept up to date. Elsewhere (a
    file, a pipe) about ten plain lines are printed over the whole sweep, and one for each member
    that ends otherwise than finished.

    All methods may be called from any thread. :meth:`show` only notes what it is told; drawing is
    done by a thread of its own, four times a second.

    Args:
      names: of the members, as they are to be shown.
      total_steps: how many steps each will make.
      stream: where to print; standard output if None.
    """

    def __init__(
        self, names: Sequence[str], total_steps: Sequence[int], stream: TextIO | None = None
    ):
        super().__init__(stream)
        if len(names) != len(total_steps):
            raise ValueError(f"{len(names)} names, but {len(total_steps)} numbers of steps")
        self.names, self.totals = list(map(visible, names)), [int(total) for total in total_steps]
        self._lock = threading.RLock()
        self._states = ["waiting"] * len(self.names)
        self._steps = [0] * len(self.names)
        self._scalars: list[Mapping[str, float]] = [{}] * len(self.names)
        self._counts = dict.fromkeys(STATES, 0) | {"waiting": len(self.names)}
        self._total = sum(self.totals)
        self._left = self._total
        self._made = 0  # steps that were seen to be made; those of a run that went on are not
        self._samples: deque[tuple[float, int]] = deque()
        self._next_line = self._total / PLAIN_LINES
        self._began = time.monotonic()
        self._stopped = False

    def start(self) -> None:
        """Begin to show."""
        self._began = time.monotonic()
        count = len(self.names)
        text = f"sweep of {count} {'member' if count == 1 else 'members'}, {self._total:,} steps"
        self._print(text, style="bold")
        self._begin_live(self._drawn)

    def show(
        self, index: int, state: str, step: int, scalars: Mapping[str, float] | None = None
    ) -> None:
        """Note where a member stands.

        Args:
          index: of the member.
          state: one of :data:`STATES`.
          step: how many steps it has made, those of earlier processes included.
          scalars: its latest figures; ``train/loss`` and ``val/loss`` are shown. Earlier ones stay.

        Raises:
          ValueError: for a state that there is not.
        """
        if state not in STATES:
            raise ValueError(f"{state!r} is none of {', '.join(STATES)}")
        now = time.monotonic()
        with self._lock:
            before, at = self._states[index], self._steps[index]
            if before in OPEN:
                self._left -= self.totals[index] - at
            if state in OPEN:
                self._left += self.totals[index] - step
            if before == "running":
                self._made += step - at
            self._counts[before] -= 1
            self._counts[state] += 1
            self._states[index], self._steps[index] = state, step
            if scalars:
                self._scalars[index] = {**self._scalars[index], **scalars}
            self._sample(now)
            line = None if self.live else self._line(index, before)
        if line:
            self._print(line)

    def note(self, text: str) -> None:
        """Print a line above what is kept up to date."""
        self._print(text)

    def stop(self) -> None:
        """Show where everything stands and end; a second call does nothing."""
        with self._lock:
            if self._stopped:
                return
            self._stopped = True
        if not self._end_live():  # what is drawn once more is without the table
            self._print(self._summary(self._seen()))

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self.stop()

    def _sample(self, now: float) -> None:
        """Keep steps over time, once a second, over the last half minute."""
        samples = self._samples
        if not samples:
            if self._counts["running"]:
                samples.append((now, self._made))
        elif now - samples[-1][0] >= 1:
            samples.append((now, self._made))
            while len(samples) > 2 and now - samples[1][0] >= WINDOW:
                samples.popleft()

    def _seen(self) -> _Seen:
        with self._lock:
            counts = {state: count for state, count in self._counts.items() if count}
            lists = list(self._states), list(self._steps), list(self._scalars)
            speed = None
            if self._samples:
                then, made = self._samples[0]
                passed = time.monotonic() - then
                if passed > 0 and self._made > made:
                    speed = (self._made - made) / passed
            return _Seen(*lists, counts, self._left, speed)

    # Plain lines.

    def _line(self, index: int, before: str) -> str | None:
        """A line for a member that has failed, or for a tenth of the way."""
        state = self._states[index]
        if before in OPEN and state not in OPEN and state != "finished":
            at = f"at step {self._steps[index]:,} of {self.totals[index]:,}"
            return f"{self.names[index]}: {state} {at}"
        done = self._total - self._left
        if done < self._next_line or self._stopped:
            return None
        while self._next_line <= done:
            self._next_line += max(self._total / PLAIN_LINES, 1)
        return self._summary(self._seen()) if self._left else None  # the last is printed at the end

    def _summary(self, seen: _Seen) -> str:
        return "  ".join([f"{self._done(seen)} steps", _by_state(seen.counts), *self._speed(seen)])

    def _done(self, seen: _Seen) -> str:
        return f"{self._total - seen.left:,}/{self._total:,}"

    def _speed(self, seen: _Seen) -> list[str]:
        parts = [] if seen.speed is None else [f"{_speed(seen.speed)} member-steps/s"]
        if not seen.left or self._stopped:
            parts.append(f"in {duration(time.monotonic() - self._began)}")
        elif seen.speed is not None:
            parts.append(f"{duration(seen.left / seen.speed)} left")
        return parts

    # The terminal.

    def _drawn(self) -> RenderableType:
        seen = self._seen()
        done = self._total - seen.left
        head = Table.grid(padding=(0, 1), expand=True)
        head.add_column(ratio=1)
        head.add_column(no_wrap=True)
        bar = ProgressBar(total=max(self._total, 1), completed=done)
        words = "  ".join([f"{self._done(seen)} steps", *self._speed(seen)])
        head.add_row(bar, Text(words))
        states = Text(" · ").join(
            Text(f"{count} {state}", style=STATES[state]) for state, count in seen.counts.items()
        )
        if self._stopped:
            return Group(head, states)
        return Group(head, states, self._members(seen))

    def _members(self, seen: _Seen) -> RenderableType:
        shown, hidden = self._chosen(seen.states)
        figures = [key for key in SHOWN if any(key in seen.scalars[index] for index in shown)]
        rows = [
            [
                seen.states[index],
                f"{seen.steps[index]:,}/{self.totals[index]:,}",
                *(
                    figure(seen.scalars[index][key]) if key in seen.scalars[index] else ""
                    for key in figures
                ),
            ]
            for index in shown
        ]
        names = ["state", "step", *figures]
        widths = [max(map(len, column)) for column in zip(names, *rows, strict=True)]
        room = max(self.console.width - sum(width + 2 for width in widths) - 2, 6)
        table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
        table.add_column("member", overflow="ellipsis", no_wrap=True, max_width=room)
        for name in names:
            side = "left" if name == "state" else "right"
            table.add_column(name, justify=side, no_wrap=True)
        for index, (state, *cells) in zip(shown, rows, strict=True):
            table.add_row(self.names[index], Text(state, style=STATES[state]), *cells)
        return Group(table, *self._rest(seen.states[index] for index in hidden))

    def _chosen(self, states: Sequence[str]) -> tuple[list[int], list[int]]:
        """Members with a line of their own, and those without; some lines are kept for failures."""
        rank = {state: place for place, state in enumerate(STATES)}
        order = sorted(range(len(states)), key=lambda index: rank[states[index]])
        room = max(1, min(ROWS, self.console.height - 5))
        busy = [index for index in order if states[index] in ("running", "compiling")]
        failed = [index for index in order if states[index] not in (*OPEN, "finished")]
        kept = room - min(len(failed), room // 4)
        first = busy[:kept] + order[len(busy) :]
        return first[:room], busy[kept:] + first[room:]

    def _rest(self, states: Iterable[str]) -> list[Text]:
        """How many members have no line, by state."""
        words = _by_state(Counter(states))
        return [Text(f"and {words}", style="bright_black")] if words else []


def _by_state(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {state}" for state, count in counts.items())


def _speed(speed: float) -> str:
    return f"{speed:,.0f}" if speed >= 100 else f"{speed:.3g}"
