"""Jobs that a launcher runs in other processes: what they say, and how they end, comes home.

Hydra hands only the first failure of a sweep to the process that waits, and a job that is ended
from outside hands over nothing. So a job that fails leaves a note in the sweep's folder; where the
other process shares the terminal, what a job prints goes into its own folder.
"""

from __future__ import annotations

import io
import logging
import os
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from gradlab.compare.jobs import ENDED, folders, standing
from gradlab.errors import BadInput
from gradlab.launch.objective import Worth
from gradlab.launch.session import session, tell
from gradlab.launch.sweep.jobs import name_of, planned
from gradlab.launch.sweep.notes import NOTES, Note, drop_notes, leave_note, read_notes
from gradlab.record.output import protect
from gradlab.record.private import scrub_text

OUTPUT = "output.txt"
"""Where a job that shares the terminal with others prints to, in its run directory."""
_AT_HOME = ("BasicLauncher", "PopulationLauncher")


class Ended(Exception):
    """A job that was ended from outside, or could not be recorded, in a process of a pool."""


def watch(config: DictConfig, sweep: Path) -> None:
    """Note the jobs of a sweep that is about to begin; keep an eye on those in other processes.

    Args:
      config: of the sweep, with its section ``hydra``.
      sweep: its folder.
    """
    session.jobs = planned(config)
    if str(config.hydra.launcher.get("_target_")).endswith(_AT_HOME):
        return
    from gradlab.launch.sweep.watch import Watcher

    drop_notes(sweep)  # those of an earlier command
    session.watcher = Watcher(sweep, session.jobs)
    session.watcher.start()


def bring_home(work: Callable[[], Worth], folder: Path) -> Worth:
    """Do the work of a job; in another process what goes wrong leaves a note.

    Args:
      work: trains, and gives what a sweeper is told.
      folder: the run directory.

    Returns:
      What ``work`` gives; NaN for a job that is refused.

    Raises:
      Exception: what ``work`` raises, or :class:`Ended` where it would end the process of a pool.
    """
    sweep = session.sweep
    if session.process is not None or sweep is None:
        return work()
    number = HydraConfig.get().job.num
    (sweep / NOTES / f"{number}.json").unlink(missing_ok=True)
    protect()
    # jax says at every start on a machine without a TPU that it found none.
    logging.getLogger("jax._src.xla_bridge").setLevel(logging.ERROR)
    by_submitit = "SUBMITIT_EXECUTOR" in os.environ  # which has a process and a log for each job
    if not by_submitit:
        logging.basicConfig(format=f"gradlab: job {number}: %(message)s", force=True)
    try:
        with nullcontext() if by_submitit else _printing_to(folder / OUTPUT):
            return work()
    except BadInput as error:
        leave_note(sweep, Note(number, str(error), refused=True))
        return float("nan")
    except SystemExit as error:
        if by_submitit:  # which may have asked for it to be queued again
            raise
        reason = standing(folder).reason or f"ended with exit code {error.code}"
        leave_note(sweep, Note(number, reason))
        raise Ended(reason) from None
    except Exception as error:
        traceback.print_exc()  # which does not travel with the error
        leave_note(sweep, Note(number, f"{type(error).__name__}: {error}"))
        raise


def tell_losses(error: Exception | None = None) -> None:
    """Name the jobs of a sweep that did not finish in another process, and why.

    Args:
      error: what the launcher, or a job through it, raised.
    """
    if session.watcher is None or session.sweep is None:
        return
    session.watcher.stop()
    notes = read_notes(session.sweep)
    refused, failed = _losses(session.sweep, session.jobs, notes)
    drop_notes(session.sweep)
    told = scrub_text(str(error))
    if error is not None and not any(told in note.message for note in notes.values()):
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        said = f"{type(error).__name__}: {' '.join(lines[:3])}"
        tell(f"the launcher has given up: {said}")
        session.failed.append("the launcher")
        if set(failed.values()) <= {"never began"} and not refused:  # as the launcher has said
            failed = {}
    for name, reason in (refused | failed).items():
        tell(f"{name}: {reason}")
    session.refused += refused
    session.failed += failed


def _losses(
    sweep: Path, jobs: Sequence[Sequence[str]] | None, notes: Mapping[int, Note]
) -> tuple[dict[str, str], dict[str, str]]:
    """Which jobs were refused, and which others did not finish, by name, with reasons."""
    standings = list(map(standing, folders(sweep)))
    begun = {one.number: one for one in standings if one.number is not None}
    unknown = [one for one in standings if one.number is None]
    numbers = {*notes, *begun}
    if not unknown:  # else a job without a folder cannot be told from one with it
        numbers |= {*range(len(jobs or ()))}
    refused: dict[str, str] = {}
    failed: dict[str, str] = {}
    numbered = [(number, begun.get(number)) for number in sorted(numbers)]
    for number, one in [*numbered, *((None, one) for one in unknown)]:
        note = None if number is None else notes.get(number)
        name = name_of(number, jobs, one.folder if one else None)
        if note is not None:
            (refused if note.refused else failed)[name] = note.message
        elif one is None:
            failed[name] = "never began"
        elif one.status not in ENDED:
            failed[name] = one.reason or one.status
    return refused, failed


@contextmanager
def _printing_to(path: Path) -> Iterator[None]:
    """What is printed goes into a file, which is there once something is."""
    with _Late(path) as file, redirect_stdout(file):
        yield


class _Late(io.TextIOBase):
    """A text file that is opened when something is written to it."""

    def __init__(self, path: Path):
        self.path = path
        self.file: io.TextIOWrapper | None = None

    def write(self, text: str) -> int:
        """See ``io``."""
        if self.file is None:
            self.file = open(self.path, "a", encoding="utf-8", buffering=1)  # noqa: SIM115
        return self.file.write(scrub_text(text))

    def close(self) -> None:
        """See ``io``."""
        super().close()
        if self.file is not None:
            self.file.close()
