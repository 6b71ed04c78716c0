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
        lines = [f"{key}: got {shown}", f"  allowed: {allowed}"]
        if hint:
            lines.append(f"  try: {hint}")
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
        kept = (
            "  what was recorded before can be read; when it can be written to, resume it by\n"
            f"  trainer.resume={folder}"
        )
        said = [f"cannot record to {folder}: {reason}", *([] if lost else [kept])]
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
    """The first line of what an error says; empty if it says nothing."""
    return (str(error).strip().splitlines() or [""])[0]


def nearest(word: str, known: Iterable[str], n: int = 3) -> list[str]:
    """The ``n`` names in ``known`` most like ``word``, best first; empty if none is alike."""
    return difflib.get_close_matches(word, sorted(known), n=n, cutoff=0.5)


def at_least(key: str, value: int | float, minimum: int | float) -> None:
    """Refuse ``value`` with :class:`BadInput` when it is below ``minimum``."""
    if value < minimum:
        raise BadInput(key, value, f"a number of at least {minimum}")
