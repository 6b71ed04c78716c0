"""A sink that may fail without ending the run."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from gradlab.record.base import Description, Outcome, Row, Sink

_log = logging.getLogger(__name__)


class Guarded:
    """Hands everything on to ``sink``; at its first failure one warning is logged and it is left.

    Args:
      sink: anything but the run directory, which alone must not fail.
    """

    def __init__(self, sink: Sink):
        self.sink: Sink | None = sink
        self.name = type(sink).__name__

    def open(self, description: Description) -> None:
        """Open the sink."""
        self._try("open", description)

    def log(self, row: Row) -> None:
        """Show it a row."""
        self._try("log", row)

    def close(self, outcome: Outcome) -> None:
        """Close it."""
        self._try("close", outcome)

    def _try(self, what: str, argument: Any) -> None:
        if self.sink is None:
            return
        action: Callable[[Any], None] = getattr(self.sink, what)
        try:
            action(argument)
        except Exception as error:  # noqa: BLE001  (the run directory has it all)
            self.sink = None
            lines = str(error).strip().splitlines() or [""]
            reason = f"{type(error).__name__}: {lines[0]}"
            _log.warning("%s fails and is left alone from here on (%s)", self.name, reason)
