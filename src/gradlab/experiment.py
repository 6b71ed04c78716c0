"""One experiment from its parts to its verdict: what is left when configuration is done."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from gradlab.checkpoint import FOLDER as CHECKPOINTS
from gradlab.checkpoint import Checkpoints, Position, from_bytes
from gradlab.errors import BadInput, CannotRecord, LostPeer, at_least
from gradlab.interruption import Interruption
from gradlab.mesh import mesh_of
from gradlab.model import MakeCell, SequenceModel
from gradlab.optimizer import Optimizer
from gradlab.probes.base import Probe
from gradlab.record.base import Description, Outcome, Row, Sink, Variable
from gradlab.record.directory import RunDirectory
from gradlab.record.figures import draw
from gradlab.record.guarded import Guarded
from gradlab.record.reader import Run, open_run, recorded_rows
from gradlab.regularizers.base import Regularizer
from gradlab.schedule import Schedule
from gradlab.step import Steps, by_name, parameter_names, setting_of, supported
from gradlab.tasks.base import Task
from gradlab.train import Trainer, train
from gradlab.verdict import verdict

SCALARS = {
    "train/loss": "mean training loss since the last row",
    "train/grad_norm": "global gradient norm before clipping",
    "train/clip_rate": "share of steps since the last row whose gradient was clipped",
    "train/penalty": "mean penalty of the regularizer since the last row, before its weight",
    "val/loss": "validation loss",
    "val/accuracy": "validation accuracy",
}


@dataclass(frozen=True)
class Experiment:
    """The parts of a run.

    Attributes:
      name: shown and recorded.
      model_name: likewise, e.g. ``"lstm"``.
      make_cell: ``make_cell(in_features, hidden_features, rngs=rngs)``.
      hidden, layers, bidirectional: of the model.
      task, optimizer, trainer: as built.
      probes: name -> probe.
      probes_by_preset: whether a preset chose the probes; then those that the model cannot use are
        left out with a recorded reason, else they are refused.
      close, close_examples: when the close probes look, and at how many examples.
      regularizer: a penalty beside the task's loss, or None.
      seed: of the weights and the training data.
      config: nested plain dicts, recorded as they are.
      overrides: what was said on the command line to make this configuration, recorded likewise.
    """

    name: str
    model_name: str
    make_cell: MakeCell
    hidden: int
    layers: int
    bidirectional: bool
    task: Task
    optimizer: Optimizer
    trainer: Trainer
    probes: Mapping[str, Probe]
    probes_by_preset: bool
    seed: int
    close: Schedule = Schedule(50, key="probe.every")  # noqa: RUF009  (it is frozen)
    close_examples: int = 4
    regularizer: Regularizer | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    overrides: Sequence[str] = ()


def build_steps(experiment: Experiment) -> tuple[Steps, dict[str, str]]:
    """The step functions of an experiment, and why some of its probes were left out.

    Raises:
      BadInput: for a cell that returns a wrong carry, a probe or regularizer that the model
        cannot use, or a batch that cannot be split over the devices.
    """
    task = experiment.task
    model = SequenceModel(
        experiment.make_cell,
        features=task.features,
        symbols=task.symbols,
        hidden=experiment.hidden,
        layers=experiment.layers,
        outputs=task.outputs,
        readout=task.readout,
        bidirectional=experiment.bidirectional,
        rngs=nnx.Rngs(experiment.seed),
    )
    optimizer = experiment.optimizer
    setting = setting_of(model.layers, model.width, length=task.length, clips=optimizer.clips)
    probes, reasons = supported(experiment.probes, setting, by_preset=experiment.probes_by_preset)
    steps = Steps(
        model,
        task,
        optimizer,
        probes,
        experiment.trainer.batch,
        examples=experiment.close_examples,
        regularizer=experiment.regularizer,
        mesh=mesh_of(experiment.trainer.mesh, experiment.trainer.batch),
    )
    _check_regularizer(steps, experiment.regularizer)
    return steps, reasons


def _check_regularizer(steps: Steps, regularizer: Regularizer | None) -> None:
    if regularizer is not None:
        state = steps.start(jax.random.key(0))
        batch = steps.draw(state, steps.task.data)
        regularizer.check_model(steps.closeup(state.params, batch, regularizer.examples))


def describe(
    experiment: Experiment,
    steps: Steps,
    left_out: Mapping[str, str],
    earlier: Run | None = None,
) -> Description:
    """What is known before the first step; ``earlier`` is the run that is gone on with."""
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
    coords: dict[str, list[Any]] = {
        "layer": steps.names,
        "t": list(range(task.length)),
        "gate": list(steps.setting.gates),
        "parameter": parameter_names(steps.first_params),
    }
    for probe in steps.probes.values():
        coords |= probe.coords(steps.setting)
    return Description(
        name=experiment.name,
        config=experiment.config,
        variables=variables | steps.variables,
        coords=coords,
        baseline={split: task.baseline(split)._asdict() for split in ("train", "val", "test")},
        facts={
            "task": type(task).__name__,
            "task_in_words": task.describe(),
            "model": experiment.model_name,
            "cell": steps.setting.cell,
            "parameters": sum(int(np.prod(p.shape)) for p in params.values()),
            "readout": task.readout,
            "T": task.length,
            "steps": experiment.trainer.steps,
            "devices": [str(device) for device in jax.devices()],
            "overrides": list(experiment.overrides),
            "probes_left_out": dict(left_out),
        },
        id=earlier.info["id"] if earlier else secrets.token_hex(4),
        resumed=earlier is not None,
        recorded=int(max(earlier.scalars["step"].values, default=-1)) if earlier else -1,
    )


class _LastRow:
    """A sink that keeps the last row of a step that was made, for the verdict."""

    row: Row | None = None

    def open(self, description: Description) -> None:
        """Nothing to prepare."""

    def log(self, row: Row) -> None:
        """Keep it, unless it shows the step at which the run diverged."""
        if row.scalars:
            self.row = row

    def close(self, outcome: Outcome) -> None:
        """Nothing to end."""


def run(
    experiment: Experiment,
    folder: Path,
    sinks: Sequence[Sink],
    *,
    resume: bool = False,
    figures: bool = True,
    company: Callable[[Position | None], AbstractContextManager[None]] = nullcontext,
) -> Outcome:
    """Run an experiment in ``folder`` and show it to ``sinks``.

    The run directory is written besides, and the figures are drawn before the sinks are closed.

    Args:
      experiment: its parts.
      folder: the run directory.
      sinks: further places for the measurements; what goes wrong there is logged and ends nothing.
      resume: go on with the run in ``folder``, from its last checkpoint.
      figures: whether to draw ``figures/*.png``.
      company: from the position where the run begins, what to hold while it trains: the other
        processes that it is spread over do the same within it, see :func:`take_part`.

    Raises:
      BadInput: before anything is recorded, for parts that do not fit together, or that do not fit
        the run that is to be gone on with.
      CannotRecord: if the run directory can no longer be written to. What is in it stays.
    """
    steps, left_out = build_steps(experiment)
    key = _key(experiment)
    earlier = open_run(folder) if resume else None
    if earlier is not None and earlier.damage:
        raise BadInput("trainer.resume", str(folder), f"a run that is whole; {earlier.damage[0]}")
    checkpoints = Checkpoints(folder / CHECKPOINTS)
    directory, last, others = RunDirectory(folder), _LastRow(), [Guarded(sink) for sink in sinks]
    with Interruption() as interruption:
        try:
            position = checkpoints.restore(steps, key) if earlier else None
            description = describe(experiment, steps, left_out, earlier)
            directory.open(description)
        except BaseException:
            checkpoints.close()
            raise
        outcome = Outcome("crashed", "ended before the first step")
        try:
            for sink in (last, *others):
                sink.open(description)
            if earlier is not None:
                _replay(earlier, [last, *others])

            def save(position: Position) -> None:
                directory.flush()  # so that no checkpoint is ahead of the rows
                checkpoints.save(position)

            checkpoints.prepare()
            with company(position):
                outcome, _ = train(
                    experiment.trainer,
                    steps,
                    key,
                    [directory, last, *others],
                    close=experiment.close,
                    position=position,
                    recorded=description.recorded,
                    last_row=last.row,
                    save=save,
                    interruption=interruption,
                )
            outcome.signal = interruption.signal
            outcome.verdict = _verdict(experiment, steps, last.row)
            outcome.verdict += against_baseline(outcome, description)
            checkpoints.close()
        except KeyboardInterrupt as error:
            outcome = Outcome("interrupted", str(error) or "interrupted before the first step")
        except BaseException as error:
            outcome = Outcome("crashed", _reason(error))
            raise
        finally:
            _end(outcome, directory, checkpoints, others, figures=figures)
    return outcome


def take_part(experiment: Experiment, position: bytes, interruption: Interruption) -> None:
    """Make the steps of a run that another process leads and records.

    Args:
      experiment: as there.
      position: where it begins, from :func:`gradlab.checkpoint.to_bytes`; empty for the start.
      interruption: asks all of them to end.
    """
    steps, _ = build_steps(experiment)
    key = _key(experiment)
    at = from_bytes(position, steps.start(key)) if position else None
    train(
        experiment.trainer,
        steps,
        key,
        [],
        close=experiment.close,
        position=at,
        interruption=interruption,
    )


def _key(experiment: Experiment) -> jax.Array:
    """The random key of its training."""
    return jax.random.fold_in(jax.random.key(experiment.seed), 1)


def _replay(earlier: Run, sinks: Sequence[Sink]) -> None:
    """Show the rows of a run that is gone on with."""
    for row in recorded_rows(earlier):
        for sink in sinks:
            sink.log(row)


def _end(
    outcome: Outcome,
    directory: RunDirectory,
    checkpoints: Checkpoints,
    others: Sequence[Sink],
    *,
    figures: bool,
) -> None:
    """Close everything; the measurements are safe before anything is drawn from them."""
    try:
        directory.close(outcome)
        if figures and outcome.status != "crashed":
            _draw(directory.path)
    finally:
        try:
            checkpoints.close()
        finally:
            for sink in others:
                sink.close(outcome)


def _reason(error: BaseException) -> str:
    if isinstance(error, CannotRecord):
        return f"cannot record: {error.reason}"
    if isinstance(error, LostPeer):
        return f"another process of the run is gone ({error.reason})"
    return f"{type(error).__name__}: {error}"


def _draw(folder: Path) -> None:
    recorded = open_run(folder)
    try:
        draw(recorded.curves, recorded.scalars, recorded.info, folder / "figures")
    except OSError as error:
        raise CannotRecord(str(folder), error.strerror or str(error)) from error


def _verdict(experiment: Experiment, steps: Steps, row: Row | None) -> list[str]:
    if row is None:
        return []
    return verdict(
        row.arrays,
        steps.names,
        length=experiment.task.length,
        every_step_has_loss=experiment.task.readout == "every",
        gate=steps.setting.retention,
    )


def against_baseline(outcome: Outcome, description: Description) -> list[str]:
    """One line that says whether the model beat the guess without memory on the test split."""
    baseline, summary = description.baseline["test"], outcome.summary
    if "test/loss" not in summary:
        return []
    score, guess = summary["test/loss"], baseline["loss"]
    word = "beats" if score < guess else "does not beat"
    line = f"test loss {score:.4g} {word} the baseline {guess:.4g} ({baseline['name']})"
    if baseline.get("accuracy") is not None and "test/accuracy" in summary:
        line += f"; test accuracy {summary['test/accuracy']:.1%} against {baseline['accuracy']:.1%}"
    return [line]


def check_experiment(experiment: Experiment) -> None:
    """Refuse sizes that no model can have.

    Raises:
      BadInput: naming the key.
    """
    for key in ("hidden", "layers"):
        value = getattr(experiment, key)
        if value < 1:
            raise BadInput(f"model.{key}", value, "a whole number of at least 1")
    at_least("probe.examples", experiment.close_examples, 1)
    if not 0 <= experiment.seed < 2**32:
        raise BadInput("seed", experiment.seed, f"a whole number from 0 to {2**32 - 1}")
