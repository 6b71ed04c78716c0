"""The one way gradlab refuses: which key, what was given, what is allowed, what to try."""

from __future__ import annotations

import difflib
import functools
import numbers
import traceback
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal


class BadInput(Exception):
    """A refusal the user can act on. The command line prints it and ends with exit code 2.

    Args:
      key: the configuration key or argument at fault, as the user would type it
        (``"task.length"``).
      given: the value that was given.
      allowed: what would have been accepted, in words.
      hint: what to try next, in words; empty if ``allowed`` says it all.
    """

    def __init__(self, key: str, given: object, allowed: str, hint: str = ""):
        self.key, self.given, self.allowed, self.hint = key, given, allowed, hint
        shown = "nothing (null)" if given is None else _short(repr(given))
        lines = [f"{visible(key)}: got {shown}", f"  allowed: {visible_lines(allowed)}"]
        if hint:
            lines.append(f"  try: {visible_lines(hint)}")
        super().__init__("\n".join(lines))

    def __reduce__(self):
        # So that a launcher can bring it back from another process.
        return type(self), (self.key, self.given, self.allowed, self.hint)


class CannotRecord(Exception):
    """A run directory that can no longer be written to. The command line prints it and ends.

    Args:
      folder: the run directory.
      reason: what the system said, e.g. ``"No space left on device"``.
      lost: whether the folder is no longer there, so that nothing in it can be resumed.
      resumed_by: how to resume it; empty: on the command line.
    """

    def __init__(self, folder: str, reason: str, *, lost: bool = False, resumed_by: str = ""):
        self.folder, self.reason, self.lost = folder, reason, lost
        self.resumed_by = resumed_by
        place = visible(folder)
        kept = (
            "  what was recorded before can be read; when it can be written to, resume it by\n"
            f"  {resumed_by or f'trainer.resume={place}'}"
        )
        said = [f"cannot record to {place}: {visible(reason)}", *([] if lost else [kept])]
        super().__init__("\n".join(said))

    def __reduce__(self):
        more = {"lost": self.lost, "resumed_by": self.resumed_by}
        return functools.partial(type(self), **more), (self.folder, self.reason)


class LostPeer(Exception):
    """Another process of the same run is gone. The command line prints it and ends.

    Args:
      reason: how that was noticed.
    """

    def __init__(self, reason: str):
        self.reason = first_line(reason)[:300]
        super().__init__(
            f"another process of this run is gone or did something else ({self.reason})\n"
            "  its own last words say why; trainer.resume resumes it from the last checkpoint"
        )


def first_line(error: object) -> str:
    """The first line of what an error says, fit to be shown; empty if it says nothing."""
    return visible((str(error).strip().splitlines() or [""])[0])


def visible(text: object) -> str:
    r"""``text`` as one line that does nothing to a terminal: ``\x1b`` for an escape, ``\n`` …"""
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in str(text)
    )


def visible_lines(text: object, indent: str = "    ") -> str:
    """The same, with line breaks kept; the lines after the first begin with ``indent``."""
    return f"\n{indent}".join(map(visible, str(text).split("\n")))


def cannot_be(cause: BaseException) -> str:
    """What to allow in place of something whose making ended with ``cause``."""
    where = traceback.extract_tb(cause.__traceback__)
    place = f" ({Path(where[-1].filename).name}, line {where[-1].lineno})" if where else ""
    said = f"{type(cause).__name__}: {first_line(cause)[:300]}"
    return f"arguments that it can have; with these, making it ends with {said}{place}"


def _short(text: str) -> str:
    return text if len(text) <= 300 else f"{text[:200]}… ({len(text)} characters)"


def nearest(word: str, known: Iterable[str], n: int = 3) -> list[str]:
    """The ``n`` names in ``known`` most like ``word``, best first; empty if none is alike."""
    return difflib.get_close_matches(word, sorted(known), n=n, cutoff=0.5)


MOST = 2**31 - 1
"""The largest whole number that a device counts to."""


def whole_number(
    key: str, value: object, minimum: int, maximum: int = MOST, otherwise: str = ""
) -> None:
    """Refuse ``value`` with :class:`BadInput` unless it is an integer in [minimum, maximum].

    Args:
      key: as of :class:`BadInput`.
      value: what was given; true and false are no numbers.
      minimum, maximum: both allowed.
      otherwise: what is allowed besides, in words, e.g. ``", or null for all"``.
    """
    whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if whole and minimum <= int(value) <= maximum:  # type: ignore[call-overload]
        return
    small = maximum == MOST and not (whole and int(value) > MOST)  # type: ignore[call-overload]
    span = f"of at least {minimum}" if small else f"from {minimum} to {maximum}"
    raise BadInput(key, value, f"a whole number {span}{otherwise}")


def number(
    key: str,
    value: object,
    low: float,
    high: float,
    ends: Literal["[]", "[)", "(]", "()"] = "[]",
    otherwise: str = "",
) -> None:
    """Refuse ``value`` with :class:`BadInput` unless it is a number between ``low`` and ``high``.

    Args:
      key: as of :class:`BadInput`.
      value: what was given; true and false are no numbers, and nan is in no range.
      low, high: the ends of the range.
      ends: which of them belong to it, as mathematicians write it: ``"[)"`` is the lower one only.
      otherwise: what is allowed besides, in words, e.g. ``", or null for no clipping"``.
    """
    at = _float(value)
    above = low <= at if ends[0] == "[" else low < at
    below = at <= high if ends[1] == "]" else at < high
    if above and below:
        return
    first = f"from {low:g}" if ends[0] == "[" else f"above {low:g}"
    last = f" to {high:g}" if ends[1] == "]" else f" and below {high:g}"
    what = "a positive number," if low > 0 else "a number"
    raise BadInput(key, value, f"{what} {first}{last}{otherwise}")


def _float(value: Any) -> float:
    """As a float; nan for what is no number, or beyond all floats."""
    if isinstance(value, bool | str | bytes):
        return float("nan")
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return float("nan")
