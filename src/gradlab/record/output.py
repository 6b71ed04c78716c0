"""Standard output and error: what is merely shown there can neither end a run nor tell a secret."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable
from typing import Any, TextIO, TypeVar

from gradlab.record.private import hide

T = TypeVar("T")


class _Nowhere(io.TextIOBase):
    """Where nothing is shown."""

    def write(self, text: str) -> int:
        """See ``io``."""
        return len(text)


class Shown:
    """A text stream that hands on what it can, and never fails.

    Characters that the other stream cannot hold are replaced, and so are secrets. When it is
    closed, full, or has lost its reader, nothing is shown from then on.

    Args:
      stream: the other one; None: there is none.
    """

    def __init__(self, stream: TextIO | None):
        self._stream = stream or _Nowhere()

    def write(self, text: str) -> int:
        """See ``io``."""
        self._try(lambda: self._write(hide(text)), None)
        return len(text)

    def writelines(self, lines: Any) -> None:
        """See ``io``."""
        self.write("".join(lines))

    def flush(self) -> None:
        """See ``io``."""
        self._try(lambda: self._stream.flush(), None)

    def isatty(self) -> bool:
        """See ``io``."""
        return self._try(lambda: self._stream.isatty(), False)

    @property
    def encoding(self) -> str:
        """See ``io``."""
        return getattr(self._stream, "encoding", None) or "utf-8"

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _write(self, text: str) -> None:
        try:
            self._stream.write(text)
        except UnicodeEncodeError:
            self._stream.write(text.encode(self.encoding, "replace").decode(self.encoding))

    def _try(self, action: Callable[[], T], otherwise: T) -> T:
        try:
            return action()
        except BlockingIOError:  # its reader is too slow; what comes later may find room
            return otherwise
        except (OSError, ValueError):  # of one that was closed it is a ValueError
            self._stream = _Nowhere()
            return otherwise


def protect() -> None:
    """From here on nothing that this process shows can end it; once is enough."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:  # closed: the next file to be opened would be taken for it
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    for name in ("stdout", "stderr"):
        if not isinstance(stream := getattr(sys, name), Shown):
            setattr(sys, name, Shown(stream))
