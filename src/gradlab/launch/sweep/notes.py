"""Notes in a sweep's folder: how a job ended that did not finish, in whichever process."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

from gradlab.record.private import scrub

NOTES = ".notes"


@dataclass(frozen=True)
class Note:
    """How a job ended that did not finish.

    Attributes:
      number: of the job.
      message: why.
      refused: whether its configuration was at fault.
    """

    number: int
    message: str
    refused: bool = False


def leave_note(sweep: Path, note: Note) -> None:
    """Write a note, whole or not at all."""
    folder = sweep / NOTES
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f"{note.number}.partial"
    partial.write_text(json.dumps(scrub(asdict(note))), encoding="utf-8")
    partial.rename(folder / f"{note.number}.json")


def read_notes(sweep: Path) -> dict[int, Note]:
    """The notes in a sweep's folder, by number."""
    written = [path.read_text(encoding="utf-8") for path in (sweep / NOTES).glob("*.json")]
    return {note.number: note for note in (Note(**json.loads(text)) for text in written)}


def drop_notes(sweep: Path) -> None:
    """Take the notes out of a sweep's folder."""
    shutil.rmtree(sweep / NOTES, ignore_errors=True)
