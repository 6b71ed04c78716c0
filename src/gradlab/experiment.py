"""The parts of a run: what is left when configuration is done."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
from flax import nnx

from gradlab.errors import BadInput, cannot_be, whole_number
from gradlab.model import MakeCell, SequenceModel
from gradlab.probes.base import Probe
from gradlab.regularizers.base import Regularizer
from gradlab.tasks.base import Task, at_length
from gradlab.training.loop import Trainer
from gradlab.training.mesh import mesh_of
from gradlab.training.optimizer import Optimizer
from gradlab.training.schedule import Schedule
from gradlab.training.step import Steps


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


def build_steps(experiment: Experiment) -> Steps:
    """The step functions of an experiment.

    Raises:
      BadInput: for a cell that returns a wrong carry, a probe or regularizer that the model
        cannot use, a batch that cannot be split over the devices, or a length that the task
        cannot be tested at.
    """
    task, lengths = experiment.task, experiment.trainer.test_lengths
    test_tasks = {length: at_length(task, length, "trainer.test_lengths") for length in lengths}
    model = _model(experiment)
    steps = Steps(
        model,
        task,
        experiment.optimizer,
        experiment.probes,
        experiment.trainer.batch,
        examples=experiment.close_examples,
        regularizer=experiment.regularizer,
        mesh=mesh_of(experiment.trainer.mesh, experiment.trainer.batch),
        test_tasks=test_tasks,
        probes_by_preset=experiment.probes_by_preset,
    )
    _check_regularizer(steps, experiment.regularizer)
    return steps


def _model(experiment: Experiment) -> SequenceModel:
    """The model, untrained.

    Raises:
      BadInput: for a cell that cannot be made, with what it says itself.
    """
    task = experiment.task
    try:
        return SequenceModel(
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
    except BadInput:
        raise
    except Exception as error:
        raise BadInput("model.cell", experiment.model_name, cannot_be(error)) from error


def _check_regularizer(steps: Steps, regularizer: Regularizer | None) -> None:
    if regularizer is not None:
        state = steps.start(jax.random.key(0))
        batch = steps.draw(state, steps.task.data)
        regularizer.check_model(steps.closeup(state.params, batch, regularizer.examples))


def check_experiment(experiment: Experiment) -> None:
    """Refuse sizes that no model can have.

    Raises:
      BadInput: naming the key.
    """
    whole_number("model.hidden", experiment.hidden, 1)
    whole_number("model.layers", experiment.layers, 1)
    whole_number("probe.examples", experiment.close_examples, 1)
    whole_number("seed", experiment.seed, 0, 2**32 - 1)
