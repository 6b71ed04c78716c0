"""What is made of a run when it has ended, from its run directory alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from gradlab.errors import CannotRecord
from gradlab.record.base import Sink
from gradlab.record.figures import draw
from gradlab.record.reader import Run, open_run, recorded_rows


def draw_figures(folder: Path) -> None:
    """Draw ``figures/*.png`` of the run in ``folder``.

    Raises:
      CannotRecord: if they cannot be written.
    """
    recorded = open_run(folder)
    try:
        draw(recorded.curves, recorded.scalars, recorded.info, folder / "figures")
    except OSError as error:
        raise CannotRecord(str(folder), error.strerror or str(error)) from error


def replay(earlier: Run, sinks: Sequence[Sink]) -> None:
    """Show sinks every row that was recorded."""
    for row in recorded_rows(earlier):
        for sink in sinks:
            sink.log(row)
