"""Whether somebody is writing to a run directory: a lock that ends with its process."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path
from typing import Any

from gradlab.errors import BadInput
from gradlab.record.files import NO_LINK, NotRegular, open_regular

LOCK = "writer.lock"
RESERVE = 2**16
"""Bytes kept in the lock file, given free when the disk is full and the end is to be recorded."""


class Lock:
    """The right to write to a run directory; the system takes it back however its process ends.

    Args:
      folder: the run directory.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.file: Any = None

    def acquire(self) -> None:
        """Take the lock.

        Raises:
          BadInput: if another process, or another run of this one, holds it.
        """
        self.file = open_regular(self.folder / LOCK, os.O_RDWR | os.O_CREAT | NO_LINK)
        for _ in range(20):  # a reader that looks whether somebody writes holds it for a moment
            if _try(self.file, exclusive=True) is not False:
                break
            time.sleep(0.05)
        else:
            self.file.seek(0)
            writer = self.file.read(500).decode(errors="replace").strip()
            self.release()
            allowed = f"a run that nobody is writing to; {writer or 'a process'} is"
            raise BadInput("run", str(self.folder), allowed, "wait until it has ended, or stop it")
        self.file.truncate(0)
        writer = f"process {os.getpid()} on {socket.gethostname()}"
        self.file.write(writer.encode().ljust(RESERVE))

    def is_lost(self) -> bool:
        """Whether the folder whose lock was taken is there no longer, or is another one by now."""
        if self.file is None:
            return False
        try:
            there = os.stat(self.folder / LOCK)
        except OSError:
            return True
        return not os.path.samestat(os.fstat(self.file.fileno()), there)

    def free_reserve(self) -> None:
        """Give the disk some room for the last words."""
        if self.file is not None:
            self.file.truncate(0)

    def release(self) -> None:
        """Let others write."""
        if self.file is not None:
            self.file.close()
            self.file = None


def is_written(folder: Path) -> bool | None:
    """Whether somebody holds the lock of a run directory; None where that cannot be known."""
    try:
        file = open_regular(folder / LOCK)
    except (FileNotFoundError, NotRegular):
        return False
    except OSError:
        return None
    with file:
        free = _try(file, exclusive=False)
    return None if free is None else not free


def _try(file: Any, *, exclusive: bool) -> bool | None:
    """Whether the lock was there to take; None where the file system or the platform has none."""
    try:
        import fcntl
    except ImportError:
        return None
    kind = fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH
    try:
        fcntl.flock(file.fileno(), kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True
