"""Reading files of a folder that somebody may have sent: regular ones, of a size that is to be had.

A pipe would keep a reader waiting for ever, a device never ends, and a file can say that it holds
more than there is memory for.
"""

from __future__ import annotations

import json
import math
import os
import stat
from pathlib import Path
from typing import Any, BinaryIO

SMALL = 2**22
"""Most bytes of a file that is read whole."""
DEPTH = 64
"""Most levels of a nest."""
MANY = 10**5
"""Most values of a nest."""
LARGEST = 2**64
"""Largest whole number, either way."""
NO_LINK = getattr(os, "O_NOFOLLOW", 0)
"""Flag for a file that is written: what a link in a folder leads to is not changed."""
_READY = sum(getattr(os, name, 0) for name in ("O_NONBLOCK", "O_CLOEXEC", "O_BINARY"))


class NotRegular(OSError):
    """A folder, a pipe or a device where a file should be."""


def open_regular(path: Path, flags: int = os.O_RDONLY) -> BinaryIO:
    """A file to read, without waiting for anybody.

    Raises:
      OSError: if it cannot be opened; :class:`NotRegular` if it is no file.
    """
    descriptor = os.open(path, flags | _READY, 0o666)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise NotRegular(f"{path.name} is no regular file")
    return open(descriptor, "rb" if flags == os.O_RDONLY else "r+b", buffering=0)


def read_regular(path: Path, most: int = SMALL) -> bytes:
    """All of a file.

    Raises:
      OSError: as for :func:`open_regular`; or if it holds more than ``most`` bytes.
    """
    with open_regular(path) as file:
        content = b""
        while len(content) <= most and (more := file.read(most + 1 - len(content))):
            content += more
    if len(content) > most:
        raise OSError(f"{path.name} holds more than {most:,} bytes")
    return content


def read_json(path: Path, most: int = SMALL) -> Any:
    """What a file holds as strict JSON, of finite numbers and of texts that can be written.

    Raises:
      OSError: as for :func:`read_regular`.
      ValueError: if it is not such JSON, or is nested too deeply or too large for a run.
    """
    text = read_regular(path, most).decode("utf-8")
    try:
        found = json.loads(text, parse_constant=_no_number)
    except RecursionError:
        raise ValueError(f"it is nested more than {DEPTH} levels deep") from None
    check_nest(found)
    return found


def _no_number(word: str) -> Any:
    raise ValueError(f"{word} is no number of JSON")


def check_nest(nest: Any) -> None:
    """Refuse what no reader should have to expect, and no writer must write.

    Raises:
      ValueError: saying what it is.
    """
    level, count = [nest], 0
    for _ in range(DEPTH):
        below: list[Any] = []
        for one in level:
            if isinstance(one, str):
                one.encode()  # half of a surrogate pair cannot be written
            elif isinstance(one, dict):
                below += one
                below += one.values()
            elif isinstance(one, list):
                below += one
            elif isinstance(one, int | float) and not abs(one) <= LARGEST:
                _check_size(one)
        count += len(below)
        if count > MANY:
            raise ValueError(f"it holds more than {MANY:,} values")
        if not below:
            return
        level = below
    raise ValueError(f"it is nested more than {DEPTH} levels deep")


def _check_size(number: float) -> None:
    """A whole number has limits; another is finite."""
    if isinstance(number, int) or not math.isfinite(number):
        raise ValueError("it holds a number that is too large")
