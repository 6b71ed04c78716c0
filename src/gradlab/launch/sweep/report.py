"""What is seen at the end of a sweep: the table, what failed and why, and how to resume it."""

from __future__ import annotations

import logging
import re
import shlex
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from gradlab.compare.jobs import ENDED
from gradlab.errors import BadInput, first_line
from gradlab.launch.resume import KEY, config_dir_of, quoted
from gradlab.launch.session import shown
from gradlab.record.private import scrub

if TYPE_CHECKING:
    from rich.console import Console

    from gradlab.compare.runs import Entry

UNFINISHED = ("crashed", "killed", "interrupted", "never began")
"""A run with one of these statuses can be resumed, or begun."""
MOST_NAMED = 20
"""Most failures that are listed one by one."""
PLAIN_WIDTH = 160
"""Columns that are taken where there is no terminal to ask."""

_log = logging.getLogger(__name__)


def report(
    folder: Path | None,
    stream: TextIO | None = None,
    refused: Sequence[str] = (),
    jobs: Sequence[Sequence[str]] | None = None,
) -> None:
    """Print how a sweep went; write ``sweep.csv``, the phase diagram and the page into its folder.

    Of a sweep of one run that finished only the page's path is printed. Trouble on the way is one
    line of warning: the runs are safe, and a sweep does not fail because it cannot be reported.

    Args:
      folder: of the sweep; with None, or if there is none, nothing is done.
      stream: where to print; standard output if None.
      refused: names of the jobs whose configuration was refused, ``job NUMBER (...)``; they have
        no folder.
      jobs: the overrides of every job that was planned, if they are known; one that has no folder
        and was not refused never began.
    """
    if folder is None or not folder.is_dir():
        return
    try:
        _report(folder, stream or sys.stdout, refused, jobs or ())
    except Exception as error:  # noqa: BLE001  (whatever it is, the sweep itself is done)
        reason = f"{type(error).__name__}: {first_line(error)}"
        _log.warning("the sweep cannot be reported (%s); its runs are not affected", reason)


def _report(
    folder: Path, stream: TextIO, refused: Sequence[str], jobs: Sequence[Sequence[str]]
) -> None:
    from gradlab.compare.chosen import recorded_of_some
    from gradlab.compare.page import NAME, write
    from gradlab.compare.progress import Progress
    from gradlab.compare.runs import runs_in
    from gradlab.record.terminal import console_for

    progress = Progress()
    runs = runs_in(folder, progress=progress)
    runs += _not_started(folder, runs, refused, jobs)
    failed = [run for run in runs if run.status != "finished"]
    console = console_for(stream, PLAIN_WIDTH)
    written = _files(runs, folder) if len(runs) > 1 else []
    if runs:
        written.append(write(recorded_of_some(runs, progress=progress), folder / NAME))
    if len(runs) > 1:
        _numbers(runs, console)
    if failed or refused:
        _failures(runs, refused, console)
    unmade = _unmade(runs, console)
    unfinished = [run for run in failed if run.status in UNFINISHED]
    if unmade or (unfinished and len(runs) > 1):
        count = "one" if len(unfinished) == 1 else len(unfinished)
        aims = [f"resume the {count} unfinished"] if unfinished else []
        aims += ["make what is left"] if unmade else []
        _print(console, "")
        _print(console, f"to {' and '.join(aims)}:")
        _print(console, f"  {_resuming(folder)}", style="bold")
    if written:
        _print(console, "")
    for path in written:
        _print(console, f"{_KIND[path.suffix]}: {shown(path)}")


def _not_started(
    folder: Path, runs: Sequence[Entry], refused: Sequence[str], jobs: Sequence[Sequence[str]]
) -> list[Entry]:
    """The jobs that nobody has begun, as when a sweep was ended in its midst."""
    from gradlab.compare.runs import NEVER_BEGAN, Entry

    known = {run.number for run in runs}
    if None in known:  # then a job without a folder cannot be told from one with it
        return []
    known |= {int(found[1]) for name in refused if (found := re.match(r"job (\d+)\b", name))}
    names = {run.name for run in runs}
    found = []
    for number, overrides in enumerate(jobs):
        if number not in known:
            name = str(number) if str(number) not in names else f"job {number}"
            said = NEVER_BEGAN, "the sweep ended before it", tuple(scrub(overrides))
            found.append(Entry(folder / name, name, *said, number=number))
    return found


_KIND = {".csv": "numbers", ".png": "figure", ".html": "compare"}


def _files(runs: Sequence[Entry], folder: Path) -> list[Path]:
    """Write the numbers and the phase diagram, if there is one; gives the paths."""
    from gradlab.compare import phase_diagram, table

    table.write_csv(runs, folder / table.CSV)
    found = phase_diagram.diagram(runs)
    diagram = [] if found is None else phase_diagram.write(found, folder)
    return [folder / table.CSV, *diagram]


def _numbers(runs: Sequence[Entry], console: Console) -> None:
    """The table, on the console."""
    from gradlab.compare import table

    settings = table.settings_of(runs)
    _print(console, "")
    _print(console, _heading(runs), style="bold")
    if any(one.figures for one in settings):
        page, left_out = table.printed(settings, console.width)
        console.print(page, soft_wrap=True)
        for line in table.notes(settings, runs):
            _print(console, line)
        if left_out:
            _print(console, f"in {table.CSV} besides: {', '.join(left_out)}")


def _heading(runs: Sequence[Entry]) -> str:
    """``sweep of 8 runs: 6 finished, 1 diverged, 1 crashed``."""
    counts = Counter({"finished": 0})
    counts.update(run.status for run in runs)
    words = ", ".join(f"{count} {status}" for status, count in counts.items())
    return f"sweep of {len(runs)} runs: {words}"


def _failures(runs: Sequence[Entry], refused: Sequence[str], console: Console) -> None:
    from gradlab.compare.runs import settings_that_differ

    differ = settings_that_differ(runs)
    lines = [f"{name}: refused, see above" for name in refused]
    for index, run in enumerate(runs):
        if run.status != "finished":
            lines.append(f"{_job(run, differ, index)}: {_ending(run)}")
    _listed("not finished", lines, console)


def _unmade(runs: Sequence[Entry], console: Console) -> bool:
    """Name the runs that ended and whose figures, for one, were never made; whether there are."""
    from gradlab.compare.runs import settings_that_differ
    from gradlab.record.directory import left_of
    from gradlab.record.finish import in_words

    ended = [(i, left_of(run.info)) for i, run in enumerate(runs) if run.status in ENDED]
    if not any(left for _, left in ended):
        return False
    differ = settings_that_differ(runs)
    lines = [f"{_job(runs[i], differ, i)}: {in_words(left)}" for i, left in ended if left]
    _listed("left to do", lines, console)
    return True


def _listed(heading: str, lines: Sequence[str], console: Console) -> None:
    _print(console, "")
    _print(console, f"{heading}:", style="bold")
    for line in lines[:MOST_NAMED]:
        _print(console, f"  {line}", style="red")
    if (more := len(lines) - MOST_NAMED) > 0:
        _print(console, f"  and {more} more")


def _job(run: Entry, differ: Mapping[str, Sequence[Any]], index: int) -> str:
    name = run.name if run.number is None else run.number
    return f"job {name}{_settings(run, differ, index)}"


def _settings(run: Entry, differ: Mapping[str, Sequence[Any]], index: int) -> str:
    """What sets this run apart, in brackets."""
    from gradlab.compare import table

    own = [f"{key}={table.shown(v[index])}" for key, v in differ.items() if v[index] is not None]
    words = " ".join(own or run.overrides)
    return f" ({words})" if words else ""


def _ending(run: Entry) -> str:
    """Status and reason in one line; the reason alone where it begins with the status."""
    reason = first_line(run.reason)
    if reason.startswith(run.status):
        return reason
    return f"{run.status}: {reason}" if reason else run.status


def _resuming(folder: Path) -> str:
    """The command that resumes what is unfinished in a sweep."""
    path = shown(folder)
    if not all(c.isalnum() or c in "/._-~:%+@" for c in path):  # Hydra's grammar wants quotes
        path = quoted(path)
    given = ""
    with suppress(BadInput):  # of a sweep that another hand has spoiled
        given = config_dir_of(folder)
    own = f"--config-dir {shlex.quote(given)} " if given else ""
    return f"python -m gradlab -m {own}{shlex.quote(f'{KEY}={path}')}"


def _print(console: Console, text: str, style: str = "") -> None:
    from gradlab.record.terminal import print_line

    print_line(console, text, style=style)
