"""The one way gradlab refuses: which key, what was given, what is allowed, what to try."""

from __future__ import annotations

import difflib
import functools
from collections.abc import Iterable


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
        shown = "nothing (null)" if given is None else repr(given)
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
    """

    def __init__(self, folder: str, reason: str, *, lost: bool = False):
        self.folder, self.reason, self.lost = folder, reason, lost
        place = visible(folder)
        kept = (
            "  what was recorded before can be read; when it can be written to, resume it by\n"
            f"  trainer.resume={place}"
        )
        said = [f"cannot record to {place}: {visible(reason)}", *([] if lost else [kept])]
        super().__init__("\n".join(said))

    def __reduce__(self):
        return functools.partial(type(self), lost=self.lost), (self.folder, self.reason)


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


def nearest(word: str, known: Iterable[str], n: int = 3) -> list[str]:
    """The ``n`` names in ``known`` most like ``word``, best first; empty if none is alike."""
    return difflib.get_close_matches(word, sorted(known), n=n, cutoff=0.5)


def at_least(key: str, value: int | float, minimum: int | float) -> None:
    """Refuse ``value`` with :class:`BadInput` when it is below ``minimum``."""
    if value < minimum:
        raise BadInput(key, value, f"a number of at least {minimum}")
