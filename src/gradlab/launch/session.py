"""What this process knows of the command it serves, and how it says no."""

from __future__ import annotations

import os
import shutil
import sys
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn, Protocol

from gradlab.errors import BadInput, CannotRecord, visible_lines
from gradlab.launch.multihost import Company


class Watch(Protocol):
    """Something that keeps an eye on the jobs of a sweep until it is told to stop."""

    def stop(self) -> None:
        """Look once more, and end."""
        ...


@dataclass
class Session:
    """What this process knows of the command it serves.

    Attributes:
      process: its id; None in another process, where a launcher runs a job.
      began: whether a job has begun, so that the configuration must have been composed.
      existed: folders that were there before the command and must outlive it.
      sweep: the folder of a sweep, or None.
      refused: names of the jobs of a sweep that were refused.
      company: the other processes of the run, if it is spread over several.
      failed: names of those that did not end by themselves, or could not be recorded to their end.
      jobs: of a sweep, the overrides of each of its jobs; None if they are not known beforehand.
      watcher: of a sweep whose jobs run in other processes, or None.
    """

    process: int | None = None
    began: bool = False
    existed: set[Path] = field(default_factory=set)
    sweep: Path | None = None
    refused: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    company: Company = field(default_factory=Company)
    jobs: list[list[str]] | None = None
    watcher: Watch | None = None

    def renew(self) -> None:
        """Begin again, with the next command in the same process."""
        vars(self).update(vars(Session(process=os.getpid())))

    def has_begun(self, folder: Path) -> bool:
        """Whether an earlier start of this job, in another process, made its run directory."""
        if self.process is not None or self.sweep is None:
            return False
        inside = {path for path in (folder, *folder.parents) if self.sweep in path.parents}
        return not inside & self.existed

    def refuse_job(self, name: str, error: BadInput) -> float:
        """End a single run, whose ``name`` is empty; in a sweep let the job's siblings go on."""
        if not name:
            refuse(str(error))
        if os.getpid() != self.process:
            raise error  # to be brought to the process that is watched
        tell(f"{name}: {error}")
        self.refused.append(name)
        return float("nan")

    def fail_job(self, name: str, error: BadInput | CannotRecord) -> None:
        """Say that a job of a sweep could not be recorded; let its siblings go on."""
        tell(f"{name}: {error}")
        self.failed.append(name)

    def leave_nothing(self, folder: Path | None, made: str) -> None:
        """Undo what this command did to a folder, if that is no more than Hydra's ``made``."""
        if folder is None or not folder.is_dir():
            return
        new = set(folder.iterdir()) - self.existed
        if not new <= {folder / made}:
            return
        for path in new:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        for path in (folder, *folder.parents):
            if path in self.existed:
                break
            with suppress(OSError):  # something else is in it
                path.rmdir()


session = Session()
"""Of the command being served."""


def refuse(message: str) -> NoReturn:
    """End the command with one message and exit code 2."""
    tell(message)
    sys.exit(2)


def tell(message: object) -> None:
    """Say something on standard error."""
    print(f"gradlab: {visible_lines(message, indent='')}", file=sys.stderr)


def occupied(key: str, folder: Path) -> BadInput:
    """For a folder that holds a run or a sweep already."""
    hint = "another folder, or move the earlier one away"
    return BadInput(key, shown(folder), "a folder that holds no run and no sweep yet", hint)


def shown(path: Path) -> str:
    """A path as short as it can be typed from here."""
    path = path.absolute()
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)
