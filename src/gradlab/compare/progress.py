"""How far a long reading has come, on standard error."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TextIO, TypeVar, cast

from gradlab.record.terminal import console_for

PATIENCE = 1.0
"""Seconds after which a terminal shows how far it is."""
LINE_EVERY = 10.0
"""Seconds between two lines where there is no terminal; what is faster is not told."""

T = TypeVar("T")


class Progress:
    """Tells how far it is: a bar on a terminal, elsewhere a line now and then.

    Args:
      stream: where; standard error if None.
    """

    def __init__(self, stream: TextIO | None = None):
        self.console = console_for(stream or cast(TextIO, sys.stderr))

    def over(self, things: Iterable[T], what: str, count: int | None = None) -> Iterator[T]:
        """Each of ``things``, while it is told how many of them are done.

        Args:
          things: what is worked through.
          what: is done with them, in words: ``reading the arrays of runs``.
          count: how many there are, if that is known.
        """
        if self.console.is_terminal and not self.console.is_dumb_terminal:
            return self._bar(things, what, count)
        return self._lines(things, what, count)

    def say(self, text: str) -> None:
        """A line of its own."""
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def _lines(self, things: Iterable[T], what: str, count: int | None) -> Iterator[T]:
        told = time.monotonic()
        for done, thing in enumerate(things):
            if (now := time.monotonic()) - told >= LINE_EVERY:
                self.say(f"{what}: {done:,}" + (f" of {count:,}" if count else ""))
                told = now
            yield thing

    def _bar(self, things: Iterable[T], what: str, count: int | None) -> Iterator[T]:
        from rich.progress import Progress as Bar

        with Bar(console=self.console, transient=True, disable=False) as bar:
            task = bar.add_task(what, total=count, visible=False)
            began = time.monotonic()
            for thing in things:
                yield thing
                bar.update(task, advance=1, visible=time.monotonic() - began > PATIENCE)
