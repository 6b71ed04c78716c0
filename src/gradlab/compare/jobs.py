"""The jobs of a sweep by their folders: which they are, the number of each, and how it stands."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from gradlab.record.files import read_json, read_regular
from gradlab.record.lock import is_written

INFO = "run.json"  # as in record.directory, which takes a second to import
FINISHED, DIVERGED = "finished", "diverged"
ENDED = (FINISHED, DIVERGED)
"""Of runs with one of these statuses nothing is left to do."""
DEPTH = 8
"""Folders deep that jobs are looked for."""
_NUMBER = re.compile(r"^  job:\n(?:(?:    .*)?\n)*?    num: (\d{1,9})$", re.MULTILINE)


class Standing(NamedTuple):
    """How a job of a sweep stands that has begun.

    Attributes:
      folder: the run directory.
      number: of the job in its sweep; None if the folder does not say.
      status: as in :attr:`gradlab.record.reader.Run.status`; ``starting`` before there is a record.
      reason: in words, as the run recorded it.
    """

    folder: Path
    number: int | None
    status: str
    reason: str


def folders(folder: Path, depth: int = DEPTH) -> Iterator[Path]:
    """The run directories in a folder, by name; what is in a run directory is not looked at.

    Jobs may lie several folders deep, as ``hydra.sweep.subdir`` says. A folder that cannot be
    looked into comes too, for its reader to say why.
    """
    try:
        inner = {entry.name: entry for entry in os.scandir(folder)}
    except FileNotFoundError:
        return
    except OSError:
        yield folder
        return
    if INFO in inner or ".hydra" in inner:
        yield folder
    elif depth:
        for name in sorted(inner, key=natural):
            if inner[name].is_dir(follow_symlinks=False) and not name.startswith("."):
                yield from folders(folder / name, depth - 1)


def number_of(folder: Path) -> int | None:
    """The number of the job that began in a folder, in the latest sweep that did so.

    Hydra writes it down. Only where it has not, the folder's name counts: by default the two are
    the same, but ``hydra.sweep.subdir`` can make any number the name.
    """
    try:
        text = read_regular(folder / ".hydra" / "hydra.yaml").decode()
    except (OSError, ValueError):
        text = ""
    if found := _NUMBER.search(text):
        return int(found[1])
    return int(folder.name) if folder.name.isdecimal() else None


def standing(folder: Path) -> Standing:
    """How the job in ``folder`` stands."""
    info = _info(folder)
    status = str(info.get("status", "starting"))
    if status == "running" and is_written(folder) is False:
        # It may have ended between the two looks.
        info = _info(folder)
        status = str(info.get("status", "starting")).replace("running", "killed")
    return Standing(folder, number_of(folder), status, str(info.get("reason") or ""))


def natural(text: str) -> list[tuple[int, str]]:
    """What texts are sorted by so that the numbers in them count as numbers."""
    parts = re.split(r"(\d+)", text)
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts]


def _info(folder: Path) -> dict[str, Any]:
    try:
        info = read_json(folder / INFO)
    except (OSError, ValueError):  # not there yet, or for a moment not to be read
        return {}
    return info if isinstance(info, dict) else {}
