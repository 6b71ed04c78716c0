"""The record of one run: its directory, its checkpoints, and the sinks that show it."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import jax
import numpy as np

from gradlab.bptt.parts import by_name
from gradlab.experiment import Experiment, build_steps
from gradlab.probes.setting import coords_of
from gradlab.record.base import (
    AT_LENGTH,
    FIGURES,
    Description,
    Outcome,
    Row,
    Sink,
    Variable,
    crashed,
)
from gradlab.record.directory import RunDirectory
from gradlab.record.lags import FORGET, RESIDUAL
from gradlab.record.sinks import Guarded
from gradlab.record.verdict import Network, against_baseline, at_other_lengths, verdict
from gradlab.tasks.base import Split
from gradlab.training.checkpoint import FOLDER as CHECKPOINTS
from gradlab.training.checkpoint import Checkpoints, Position
from gradlab.training.compile_cache import compile_cache
from gradlab.training.loop import SECONDS, Member
from gradlab.training.step import Steps

if TYPE_CHECKING:
    from gradlab.record.reader import Run

# What reads and draws runs is imported when that is due: xarray and pandas take long to load.

FLUSH_SECONDS = 2.0 - 2 * SECONDS
"""Least time between two flushes. A row waits for the end of its call, and, when the first of those
with it was flushed, until the first of a later call is: two seconds at most, if a step is short."""
SCALARS = {
    "train/loss": "mean training loss since the last row",
    "train/grad_norm": "global gradient norm before clipping",
    "train/clip_rate": "share of steps since the last row whose gradient was clipped",
    "train/penalty": "mean penalty of the regularizer since the last row, before its weight",
    "val/loss": "validation loss",
    "val/accuracy": "validation accuracy",
}


class Recording:
    """Where one run goes. First :meth:`open`, then training with :meth:`member`, then the ends.

    Args:
      experiment: the parts of the run.
      folder: the run directory.
      sinks: further places for the measurements; what goes wrong there is logged and ends nothing.
      resume: resume the run in ``folder`` from its last checkpoint.

    Attributes:
      steps: the step functions.
      key: JAX random key of the run.
      description: what is known of the run before its first step; from :meth:`open` on.
      is_open: whether the directory is being written to.

    Raises:
      BadInput: for parts that do not fit together, or a run that cannot be resumed.
    """

    description: Description

    def __init__(
        self, experiment: Experiment, folder: Path, sinks: Sequence[Sink] = (), *, resume=False
    ):
        self.experiment, self.folder = experiment, folder
        self.earlier = _whole(folder) if resume else None
        segments = self.earlier.info.get("facts", {}).get("segments") if self.earlier else "auto"
        self.steps = build_steps(experiment, split=split_of(self.earlier), segments=segments)
        self.key = key_of(experiment)
        self.checkpoints = Checkpoints(folder / CHECKPOINTS)
        self.directory, self.last = RunDirectory(folder, FLUSH_SECONDS), _LastRows()
        self.is_open = False
        self.others = [Guarded(sink) for sink in sinks]

    def open(self) -> None:
        """Take the folder, and find the position to resume from.

        Raises:
          BadInput: if the folder is taken, or no checkpoint fits.
          CannotRecord: if it cannot be written to.
        """
        try:
            self.position = self.checkpoints.restore(self.steps, self.key) if self.earlier else None
            self.description = describe(self.experiment, self.steps, self.earlier)
            self.directory.open(self.description)
            self.is_open = True
        except BaseException:
            self.checkpoints.close()
            raise

    def member(self, ended: Callable[[Outcome], None] | None = None) -> Member:
        """Open the other sinks, and give the run as the loop wants it.

        Args:
          ended: called with the outcome as soon as there is one.
        """
        for sink in (self.last, *self.others):
            sink.open(self.description)
        if self.earlier is not None:
            from gradlab.record.finish import replay

            replay(self.earlier, [self.last, *self.others])
        self.checkpoints.prepare()

        def has_ended(member: Member) -> None:
            if ended is not None and member.outcome is not None:
                ended(member.outcome)

        return Member(
            [self.directory, self.last, *self.others],
            self.position,
            recorded=self.description.recorded,
            last_row=self.last.row,
            save=self._save,
            ended=has_ended,
        )

    def _save(self, position: Position) -> None:
        self.directory.flush()  # so that no checkpoint is ahead of the rows
        self.checkpoints.save(position)

    def close(self, outcome: Outcome, left: Sequence[str] = ()) -> None:
        """Complete the outcome with its verdict, and make everything measured safe.

        Args:
          outcome: of the run.
          left: what :meth:`finish` is to make of it, or who takes over after :meth:`release`; the
            folder stays locked until then.

        Raises:
          CannotRecord: if the directory or a checkpoint cannot be written.
        """
        self.is_open = False
        if outcome.status != "crashed":
            outcome.verdict = self._verdict() + against_baseline(outcome, self.description)
            lengths = self.experiment.trainer.test_lengths
            outcome.verdict += at_other_lengths(outcome, self.description, lengths)
        try:
            self.checkpoints.close()  # first: a run that has finished is never without its last one
        except BaseException as error:
            reason = crashed(error).reason
            self.directory.close(Outcome("crashed", reason, outcome.summary, outcome.timings))
            raise
        if outcome.status == "crashed":
            left = [part for part in left if part != FIGURES]
        self.directory.close(outcome, left)

    def parts(self, *, figures: bool) -> list[str]:
        """What :meth:`finish` makes of the run."""
        return [FIGURES] * figures + [sink.part for sink in self.others if sink.part]

    def finish(self, outcome: Outcome) -> None:
        """Draw the figures if they are left to do, then close the other sinks.

        Raises:
          CannotRecord: if no figure can be written.
        """
        from gradlab.record.finish import complete

        complete(self.directory, self.others, outcome)

    def release(self) -> None:
        """Let another process do what is left."""
        self.directory.release()

    def close_sinks(self, outcome: Outcome) -> None:
        """Close the other sinks of a run whose figures another process has drawn, or could not.

        Raises:
          BadInput: if somebody else is writing to the folder.
          CannotRecord: if it cannot be recorded.
        """
        from gradlab.record.finish import complete

        try:
            self.directory.reopen()
        finally:
            complete(self.directory, self.others, outcome, draws=False)

    def _verdict(self) -> list[str]:
        if self.last.row is None:
            return []
        setting, task = self.steps.setting, self.experiment.task
        network = Network(
            layers=self.steps.names,
            length=task.length,
            gate=setting.retention,
            memory="c" if "c" in setting.states else "h",
            earlier_steps_have_loss=task.readout == "every",
            backward=self.experiment.config.get("trainer", {}).get("backward", "full"),
        )
        return verdict(self.last.row, network, self.last.paths)


def _whole(folder: Path) -> Run:
    """The run in a folder, refused where it is damaged."""
    from gradlab.record.reader import check_whole, open_run

    run = open_run(folder)
    check_whole(run)
    return run


class _LastRows:
    """A sink that keeps, of the steps that were made, the last row and the last with the paths."""

    row: Row | None = None
    paths: Row | None = None

    def open(self, description: Description) -> None:
        """Nothing to prepare."""

    def log(self, row: Row) -> None:
        """Keep it, unless it shows the step at which the run diverged."""
        if row.scalars:
            self.row = row
            if {FORGET, RESIDUAL} <= row.arrays.keys():
                self.paths = row

    def close(self, outcome: Outcome) -> None:
        """Nothing to end."""


def key_of(experiment: Experiment) -> jax.Array:
    """The random key of its training."""
    return jax.random.fold_in(jax.random.key(experiment.seed), 1)


def split_of(earlier: Run | None) -> int | None:
    """Over how many devices the run that is resumed split its batches; None if that is not known.

    One of an earlier version did so only where it was told to.
    """
    if earlier is None:
        return None
    told = earlier.config.get("trainer", {}).get("mesh") == "data"
    return earlier.info.get("facts", {}).get("split", None if told else 1)


def describe(
    experiment: Experiment,
    steps: Steps,
    earlier: Run | None = None,
) -> Description:
    """What is known before the first step; ``earlier`` is the run that is resumed."""
    task = experiment.task
    units = {"loss": "mean squared error" if task.loss == "mse" else "nats"}
    units |= {"accuracy": "1", "clip_rate": "1", "penalty": "1"}
    absent = {
        "val/accuracy": task.loss != "cross_entropy",
        "train/clip_rate": not experiment.optimizer.clips,
        "train/penalty": experiment.regularizer is None,
    }
    variables = {
        name: Variable((), units.get(name.partition("/")[2], "loss/parameter"), long_name)
        for name, long_name in SCALARS.items()
        if not absent.get(name)
    }
    params = by_name(steps.first_params)
    coords = {
        "layer": steps.names,
        "parameter": list(params),
        **coords_of(steps.probes, steps.setting),
    }
    splits: tuple[Split, ...] = ("train", "val", "test")
    baselines = {str(split): task.baseline(split) for split in splits}
    for length, other in steps.test_tasks.items():
        baselines[f"test{AT_LENGTH}{length}"] = other.baseline("test")
    return Description(
        name=experiment.name,
        config=experiment.config,
        variables=variables | steps.variables,
        coords=coords,
        baseline={name: guess._asdict() for name, guess in baselines.items()},
        facts={
            "task": type(task).__name__,
            "task_in_words": task.describe(),
            "model": experiment.model_name,
            "cell": steps.setting.cell,
            "parameters": sum(int(np.prod(p.shape)) for p in params.values()),
            "readout": task.readout,
            "T": task.length,
            "steps": experiment.trainer.steps,
            "split": steps.mesh.devices,
            **({"not_split": steps.mesh.reason} if steps.mesh.reason else {}),
            **({"segments": steps.segments} if steps.segments else {}),
            "devices": [str(device) for device in jax.devices()],
            "compile_cache": compile_cache(),
            "overrides": list(experiment.overrides),
            "probes_left_out": dict(steps.left_out),
        },
        id=earlier.info["id"] if earlier else secrets.token_hex(4),
        resumed=earlier is not None,
        recorded=int(max(earlier.scalars["step"].values, default=-1)) if earlier else -1,
    )
