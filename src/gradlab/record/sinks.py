"""The sinks besides the run directory, none of which may end a run."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from gradlab.errors import first_line
from gradlab.record.base import Description, Outcome, Row, Sink
from gradlab.record.wandb.sink import WandbSink

_log = logging.getLogger(__name__)


def sinks_of(record: Mapping[str, Any], folder: Path) -> tuple[list[Sink], WandbSink]:
    """The sinks of a run, and the one that can say how to see it on W&B.

    Args:
      record: the section ``record`` of the configuration.
      folder: the run directory.

    Raises:
      BadInput: for one whose package is not installed.
    """
    wandb = WandbSink(folder, **record["wandb"])
    sinks: list[Sink] = [] if record["wandb"]["mode"] == "disabled" else [wandb]
    if record["tensorboard"]:
        from gradlab.record.tensorboard_sink import TensorBoardSink

        sinks.append(TensorBoardSink(folder))
    if record["terminal"]:
        from gradlab.record.terminal import Terminal

        sinks.append(Terminal())
    return sinks, wandb


class Guarded:
    """Hands everything on to ``sink``; at its first failure one warning is logged and it is left.

    Args:
      sink: anything but the run directory, which alone must not fail.

    Attributes:
      part: what the sink makes of a run, as ``run.json`` names it when it is left to do; empty for
        one that only shows it.
    """

    def __init__(self, sink: Sink):
        self.sink: Sink | None = sink
        self.name = type(sink).__name__
        self.part: str = getattr(sink, "part", "")

    @property
    def complete(self) -> bool:
        """After :meth:`close`: whether the sink has kept all that it was shown."""
        return self.sink is not None and getattr(self.sink, "complete", True)

    def open(self, description: Description) -> None:
        """Open the sink."""
        self._try("open", description)

    def extend(self, description: Description) -> None:
        """Tell it of further variables, if it has to know them."""
        if hasattr(self.sink, "extend"):
            self._try("extend", description)

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
            reason = f"{type(error).__name__}: {first_line(error)}"
            _log.warning("%s fails and is left alone from here on (%s)", self.name, reason)
