"""What is made of a run when it has ended, from its run directory alone."""

from __future__ import annotations

import importlib
import logging
import multiprocessing
import multiprocessing.connection
import os
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import BrokenExecutor, Future, ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, Self

import xarray

from gradlab.errors import CannotRecord, first_line
from gradlab.record import figures
from gradlab.record.base import FIGURES, Description, Outcome, Sink, Variable
from gradlab.record.directory import RunDirectory
from gradlab.record.output import protect
from gradlab.record.reader import Run, check_whole, open_run, recorded_rows
from gradlab.record.sinks import Guarded, sinks_of
from gradlab.record.wandb.sink import WandbSink

TENSORBOARD = "tensorboard"
_log = logging.getLogger(__name__)


def parts_of(record: Mapping[str, Any]) -> list[str]:
    """What is to be made of a run when it has ended, by the section ``record`` of its config.

    Each is called as in ``left``, where ``run.json`` keeps what of it is not made yet.
    """
    wanted = {
        FIGURES: record["figures"],
        WandbSink.part: record["wandb"]["mode"] != "disabled",
        TENSORBOARD: record["tensorboard"],
    }
    return [part for part, is_wanted in wanted.items() if is_wanted]


def in_words(parts: Sequence[str]) -> str:
    """``figures, W&B and TensorBoard``, of the parts of a run."""
    names = {FIGURES: "figures", WandbSink.part: "W&B", TENSORBOARD: "TensorBoard"}
    *others, last = [names.get(part, part) for part in parts]
    return f"{', '.join(others)} and {last}" if others else last


def draw_figures(folder: Path) -> None:
    """Draw ``figures/*.png`` of the run in ``folder``; warn of one that cannot be drawn.

    Raises:
      CannotRecord: if they cannot be written.
    """
    recorded = open_run(folder)
    curves, scalars = recorded.curves, recorded.scalars
    for name in figures.FIGURES:
        try:
            figures.draw_one(name, curves, scalars, recorded.info, folder / FIGURES)
        except OSError as error:
            raise CannotRecord(str(folder), error.strerror or str(error)) from error
        except Exception as error:  # noqa: BLE001  (it would fail again; the others are worth it)
            reason = f"{type(error).__name__}: {first_line(error)}"
            _log.warning("the figure %s of %s cannot be drawn (%s)", name, folder, reason)


def replay(earlier: Run, sinks: Sequence[Sink]) -> None:
    """Show sinks every row that was recorded."""
    for row in recorded_rows(earlier):
        for sink in sinks:
            sink.log(row)


def complete(
    directory: RunDirectory, sinks: Sequence[Guarded], outcome: Outcome, *, draws: bool = True
) -> None:
    """Do what is left of a run whose outcome is recorded: draw its figures, close the other sinks.

    Each part that is done is taken out of what is left, so that the run can be killed at any
    moment and resumed. In the end others may write to the directory.

    Args:
      directory: of the run, held by this process.
      sinks: opened, and shown every row.
      outcome: of the run.
      draws: whether to draw the figures, if they are left to do.

    Raises:
      CannotRecord: if no figure can be written, or not what is done.
    """
    try:
        if draws and FIGURES in directory.left:
            draw_figures(directory.path)
            directory.done(FIGURES)
    finally:
        try:
            for sink in sinks:
                sink.close(outcome)
                if sink.complete and FIGURES not in directory.left:  # W&B shows them
                    directory.done(sink.part)
        finally:
            directory.release()


class Finished(NamedTuple):
    """What :func:`finish` did: the parts that it made, and how to see the run on W&B."""

    done: tuple[str, ...]
    on_wandb: str


def finish(folder: Path, record: Mapping[str, Any], *, again: bool = False) -> Finished:
    """Do what is left of a run that has ended, as far as ``record`` asks for it.

    Everything is made from the run directory alone; nothing is trained or compiled.

    Args:
      folder: the run directory, closed.
      record: the section ``record`` of its configuration.
      again: whether another process may have begun with it.

    Raises:
      BadInput: if another process is doing that, or the run is damaged.
      CannotRecord: if no figure can be written.
    """
    directory = RunDirectory(folder)
    directory.reopen()
    try:
        run = open_run(folder)
        check_whole(run)
        wanted = [part for part in directory.left if part in parts_of(record)]
        sinks, wandb = sinks_of({**record, "terminal": False}, folder)
        guarded = [one for one in map(Guarded, sinks) if one.part in wanted]
        if WandbSink.part in wanted:
            # Now, not in its thread while figures are drawn: of two threads that parse source at
            # one moment, as packages do that are being imported, CPython 3.11 can fail one.
            importlib.import_module("wandb")
        description, outcome = told(run, again=again)
        for sink in guarded:
            sink.open(description)
        replay(run, guarded)
        complete(directory, guarded, outcome, draws=record["figures"])
    finally:
        directory.release()
    left = open_run(folder).left
    return Finished(tuple(part for part in wanted if part not in left), wandb.how_to_see())


def told(run: Run, *, again: bool = False) -> tuple[Description, Outcome]:
    """What the sinks were told of a run, from its directory.

    Args:
      run: one that has ended.
      again: whether they may have been told before.
    """
    info, datasets = run.info, (run.scalars, run.curves)
    arrays = {str(name): array for one in datasets for name, array in one.items()}
    coords = {
        str(name): coord.values.tolist()
        for name, coord in run.curves.coords.items()
        if name not in ("step", "lag")
    }
    description = Description(
        name=info["name"],
        config=info["config"],
        variables={name: variable_of(array) for name, array in arrays.items()},
        coords=coords,
        baseline=info["baseline"],
        facts=info["facts"] | {key: info[key] for key in ("devices", "overrides")},
        id=info["id"],
        resumed=again or bool(info["resumed"]),
    )
    head = {key: info[key] for key in ("steps_per_second", "probe_overhead")}
    summary = {key: value for key, value in run.summary.items() if key in info["summary"]}
    timings = {**head, **info["timings"]}
    outcome = Outcome(info["status"], info["reason"], summary, timings, info["verdict"])
    return description, outcome


def variable_of(array: xarray.DataArray) -> Variable:
    """What a recorded array is."""
    attrs = dict(array.attrs)
    dims = tuple(str(dim) for dim in array.dims if dim != "step")
    return Variable(dims, attrs.pop("units"), attrs.pop("long_name"), attrs)


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
        self, folder: Path, record: Mapping[str, Any], *, again: bool = False
    ) -> Future[Finished]:
        """:func:`finish`, elsewhere and soon."""
        try:
            return self.begin().submit(finish, folder, record, again=again)
        except BrokenExecutor:  # a process was ended from outside; others for those to come
            self._pool = None
            return self.begin().submit(finish, folder, record, again=again)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=error is not None)


def _prepare() -> None:
    """Import what takes long, beside the first compilation."""
    import signal

    import matplotlib

    threading.Thread(target=_end_with_parent, name="gradlab-parent", daemon=True).start()
    for name in ("SIGINT", "SIGHUP"):  # they are for the process that trains
        if (number := getattr(signal, name, None)) is not None:
            signal.signal(number, signal.SIG_IGN)
    protect()
    logging.basicConfig(format="gradlab: %(message)s")
    matplotlib.use("agg")
    import matplotlib.figure
    import wandb  # noqa: F401
    import zarr  # noqa: F401


def _end_with_parent() -> None:
    """End this process when the one that started it is gone: nobody would tell it any more.

    At once, also in the midst of a figure: what is not done is still left in the run's record.
    """
    parent = multiprocessing.parent_process()
    if parent is not None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)
