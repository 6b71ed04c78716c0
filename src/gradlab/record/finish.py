"""What is made of a run when it has ended, from its run directory alone."""

from __future__ import annotations

import logging
import multiprocessing
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from pathlib import Path
from typing import Any, Self

from gradlab.errors import CannotRecord
from gradlab.record.base import Description, Outcome, Sink
from gradlab.record.figures import draw
from gradlab.record.output import protect
from gradlab.record.reader import Run, open_run, recorded_rows
from gradlab.record.sinks import Guarded, sinks_of


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


def finish(
    folder: Path, description: Description, outcome: Outcome, record: Mapping[str, Any]
) -> None:
    """Draw the figures of a run that has ended, and show it whole to the sinks that it asks for.

    Args:
      folder: the run directory, closed.
      description: of the run.
      outcome: of the run.
      record: the section ``record`` of its configuration.

    Raises:
      CannotRecord: if no figure can be written.
    """
    if record["figures"] and outcome.status != "crashed":
        draw_figures(folder)
    sinks = [Guarded(sink) for sink in sinks_of(record, folder)[0]]
    if not sinks:
        return
    for sink in sinks:
        sink.open(description)
    replay(open_run(folder), sinks)
    for sink in sinks:
        sink.close(outcome)


def needs_finishing(record: Mapping[str, Any]) -> bool:
    """Whether there is anything for :func:`finish` to do, by the section ``record``."""
    return record["figures"] or record["tensorboard"] or record["wandb"]["mode"] != "disabled"


class Finisher:
    """Processes in which runs are finished, while others are trained in this one.

    Args:
      workers: how many.
    """

    def __init__(self, workers: int):
        self.workers = workers
        self._pool: ProcessPoolExecutor | None = None

    def begin(self) -> ProcessPoolExecutor:
        """Start the processes, if they are not there yet; they make themselves ready."""
        if self._pool is None:
            context = multiprocessing.get_context("spawn")  # a fork after jax has run hangs
            self._pool = ProcessPoolExecutor(self.workers, context, initializer=_prepare)
            for _ in range(self.workers):
                self._pool.submit(int)  # nothing, so that a process starts
        return self._pool

    def finish(
        self, folder: Path, description: Description, outcome: Outcome, record: Mapping[str, Any]
    ) -> Future[None]:
        """:func:`finish`, elsewhere and soon."""
        if needs_finishing(record):
            return self.begin().submit(finish, folder, description, outcome, record)
        done: Future[None] = Future()
        done.set_result(None)
        return done

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=error is not None)


def _prepare() -> None:
    """Import what takes long, beside the first compilation."""
    import signal

    import matplotlib

    for name in ("SIGINT", "SIGHUP"):  # they are for the process that trains
        if (number := getattr(signal, name, None)) is not None:
            signal.signal(number, signal.SIG_IGN)
    protect()
    logging.basicConfig(format="gradlab: %(message)s")
    matplotlib.use("agg")
    import matplotlib.figure
    import wandb  # noqa: F401
    import zarr  # noqa: F401
