"""An eye on a sweep whose jobs run in other processes."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TextIO

from gradlab.compare.jobs import ENDED, INFO, Standing, folders, standing
from gradlab.launch.sweep.jobs import name_of
from gradlab.launch.sweep.notes import Note, read_notes
from gradlab.record.terminal import duration

ORDER = ("finished", "diverged", "running", "starting")
"""What is told first, and in this order."""
GOING = {"running", "starting", "interrupted", "killed"}
"""Not ended, or perhaps to be begun again: what a cluster stopped is queued again."""
SHARE = 0.02
"""Most of its time that the watcher spends on looking."""


class Watcher:
    """A thread that prints a line whenever the states of a sweep's jobs change.

    It sees a job whose process was killed, for which a launcher may wait for ever.

    Args:
      sweep: the folder of the sweep.
      jobs: the overrides of every job, if they are known.
      seconds: between two looks, at least.
      stream: where to print; standard output if None.
    """

    def __init__(
        self,
        sweep: Path,
        jobs: Sequence[Sequence[str]] | None,
        seconds: float = 1.0,
        stream: TextIO | None = None,
    ):
        self.sweep, self.jobs, self.seconds = sweep, jobs, seconds
        self.stream = stream or sys.stdout
        self._begun = time.monotonic()
        self._ended: dict[tuple[Path, int], Standing] = {}
        self._early: int | None = None
        self._said = ""
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="gradlab-watch", daemon=True)

    def start(self) -> None:
        """Begin to look."""
        self._thread.start()

    def stop(self) -> None:
        """Look once more, and end."""
        if not self._stopped.is_set():
            self._stopped.set()
            self._thread.join()
            self.look()

    def look(self) -> None:
        """Print how the jobs stand, unless that was said before."""
        begun = [self._standing(folder) for folder in folders(self.sweep)]
        states = self._states(begun, read_notes(self.sweep))
        ended = sum(len(names) for status, names in states.items() if status not in GOING)
        if self._early is None:
            self._early = ended
        said = self._in_words(states)
        if said and said != self._said:
            self._said = said
            print(f"sweep: {said}{self._left(ended)}", file=self.stream, flush=True)

    def _standing(self, folder: Path) -> Standing:
        """How a job stands; one that has ended is read again only if its record has changed."""
        try:
            seen = folder, (folder / INFO).stat().st_mtime_ns
        except OSError:
            return standing(folder)
        found = self._ended.get(seen) or standing(folder)
        if found.status in ENDED:
            self._ended[seen] = found
        return found

    def _watch(self) -> None:
        pause = 0.0
        while not self._stopped.wait(pause):
            before = time.monotonic()
            self.look()
            pause = max(self.seconds, (time.monotonic() - before) / SHARE)

    def _states(self, begun: Sequence[Standing], notes: Mapping[int, Note]) -> dict[str, list[str]]:
        """The names of the jobs in each state."""
        states: dict[str, list[str]] = {status: [] for status in ORDER}
        for one in begun:
            broken = one.number in notes and one.status in ("starting", "running")
            status = "crashed" if broken else one.status
            states.setdefault(status, []).append(name_of(one.number, self.jobs, one.folder))
        gone = set(notes) - {one.number for one in begun}  # with their folders
        for number in sorted(gone):
            status = "refused" if notes[number].refused else "crashed"
            states.setdefault(status, []).append(name_of(number, self.jobs))
        return states

    def _in_words(self, states: Mapping[str, Sequence[str]]) -> str:
        known = sum(map(len, states.values()))
        if not known and not self.jobs:
            return ""
        total = f"/{len(self.jobs)}" if self.jobs else ""
        parts = [f"{len(states['finished'])}{total} finished"]
        parts += [_counted(status, names) for status, names in states.items()][1:]
        if self.jobs and len(self.jobs) > known:
            parts.append(f"{len(self.jobs) - known} waiting")
        return ", ".join(filter(None, parts))

    def _left(self, ended: int) -> str:
        """The time that is left, if the rest goes like what has ended since the beginning."""
        since = ended - (self._early or 0)
        if not self.jobs or since <= 0 or ended >= len(self.jobs):
            return ""
        each = (time.monotonic() - self._begun) / since
        return f"  about {duration(each * (len(self.jobs) - ended))} left"


def _counted(status: str, names: Sequence[str]) -> str:
    """How many are in a state; those that something has happened to are named, three at most."""
    if not names:
        return ""
    if status in ORDER:
        return f"{len(names)} {status}"
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{len(names)} {status}: {', '.join(names[:3])}{more}"
