"""The parts of a run: what is left when configuration is done."""

from __future__ import annotations

import dataclasses
import functools
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
from flax import nnx

from gradlab.bptt.segments import about_root
from gradlab.bptt.unroll import initial_carries
from gradlab.errors import BadInput, cannot_be, whole_number
from gradlab.model import InitialState, MakeCell, SequenceModel, moving
from gradlab.probes.base import CloseProbe, Probe
from gradlab.regularizers.base import Regularizer
from gradlab.tasks.base import Generated, Task, at_length
from gradlab.training.loop import Segments, Trainer
from gradlab.training.memory import Need, check_memory, fits, free
from gradlab.training.mesh import DataMesh, best_mesh, mesh_of
from gradlab.training.optimizer import Optimizer
from gradlab.training.schedule import Schedule
from gradlab.training.step import Steps

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Experiment:
    """The parts of a run.

    Attributes:
      name: shown and recorded.
      model_name: likewise, e.g. ``"lstm"``.
      make_cell: ``make_cell(in_features, hidden_features, rngs=rngs)``.
      hidden, layers, bidirectional, initial_state: of the model.
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
    initial_state: InitialState = "zero"
    config: Mapping[str, Any] = field(default_factory=dict)
    overrides: Sequence[str] = ()


def build_steps(
    experiment: Experiment, *, split: int | None = None, segments: Segments = "auto"
) -> Steps:
    """The step functions of an experiment.

    Args:
      experiment: its parts.
      split: over how many devices the run that is resumed split its batches: ``trainer.mesh=auto``
        keeps to it where it can, and where it changes a warning is logged. None: for a new run.
      segments: what "auto" stands for in ``trainer.segments``, where a run is resumed that was cut
        into these, or not at all.

    Raises:
      BadInput: for a cell that returns a wrong carry, a probe, regularizer or way back that the
        model cannot use, a batch that cannot be split over the devices, or a length that the task
        cannot be tested at.
    """
    task, lengths = experiment.task, experiment.trainer.test_lengths
    test_tasks = {length: at_length(task, length, "trainer.test_lengths") for length in lengths}
    kind = experiment.trainer.mesh
    mesh = mesh_of(None if kind == "auto" else kind, experiment.trainer.batch)
    _check_memory(experiment, mesh)
    close = any(isinstance(probe, CloseProbe) for probe in experiment.probes.values())
    each = 6 if close else 2 if experiment.probes else 1
    _say_cost(experiment.layers * (2 if experiment.bidirectional else 1), each)
    model = _model(experiment)
    if kind == "auto":
        mesh = best_mesh(experiment.trainer.batch, _work(experiment, model), split)
    if split not in (None, mesh.devices):
        many = f"{mesh.devices} device{'s' if mesh.devices > 1 else ''}"
        change = "resumed over %s where it was split over %d before: the last bits will differ"
        _log.warning(change, many, split)
    steps = Steps(
        model,
        task,
        experiment.optimizer,
        experiment.probes,
        experiment.trainer.batch,
        examples=experiment.close_examples,
        regularizer=experiment.regularizer,
        mesh=mesh,
        test_tasks=test_tasks,
        probes_by_preset=experiment.probes_by_preset,
        backward=experiment.trainer.backward,
        segments=_segments(experiment, mesh, segments),
        products=experiment.trainer.products,
    )
    _check_regularizer(steps, experiment.regularizer)
    return steps


def _work(experiment: Experiment, model: SequenceModel) -> float:
    """Multiply-adds of one example's forward pass through the layers, about.

    Nothing of a model that would train otherwise on parts of a batch, by statistics of it or random
    numbers, nor where most of the work is a penalty's, which is not split.
    """
    if moving(model, experiment.trainer.batch) or experiment.regularizer is not None:
        return 0.0
    weights = jax.tree.leaves(nnx.state(model.layers, nnx.Param))
    return float(experiment.task.length * sum(weight.size for weight in weights))


@functools.cache  # once for all the runs of a sweep that are alike
def _say_cost(layers: int, each: int) -> None:
    """Say how long compiling will take, where that is a minute or more: layers are unrolled.

    Args:
      layers: how many, in all directions.
      each: seconds that each takes, on two CPU cores; see docs/decisions.md.
    """
    if (seconds := each * layers) >= 60:
        message = "each of %d layers is compiled by itself, which takes some %d minutes in all"
        _log.warning(message, layers, round(seconds / 60))


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
            initial_state=experiment.initial_state,
            rngs=nnx.Rngs(experiment.seed),
        )
    except BadInput:
        raise
    except Exception as error:
        raise BadInput("model.cell", experiment.model_name, cannot_be(error)) from error


SHARE = 0.25
"""Of the free memory: where the states of a batch take more, "auto" cuts time into segments."""


def _segments(experiment: Experiment, mesh: DataMesh, automatic: Segments) -> int | None:
    """How many segments time is cut into; the same for all processes of a run."""
    asked, length = experiment.trainer.segments, experiment.task.length
    asked = automatic if asked == "auto" else asked
    if asked != "auto":
        return asked
    device, each = jax.local_devices()[0], experiment.layers * (1 + experiment.bidirectional)

    def large(state: int) -> bool:
        numbers = length * experiment.trainer.batch * each * state // _parts(mesh)
        return 4 * numbers > SHARE * free(device)

    # First with more than any cell has, since it takes a moment to look at one.
    cuts = length > 3 and large(8 * experiment.hidden) and large(_sizes(experiment)[1])
    if not mesh.agree(int(cuts)):
        return None
    segments = about_root(length)
    message = "the states of a step would take much of the memory: time is cut into %d segments"
    _log.warning(message + " (trainer.segments)", segments)
    return segments


def _parts(mesh: DataMesh) -> int:
    """How many memories the devices have: on a host they share one, elsewhere each has its own."""
    return mesh.processes if jax.default_backend() == "cpu" else mesh.devices


ROW = 100
"""Bytes that a recorded row takes at least while its step is to come."""


def _check_memory(experiment: Experiment, mesh: DataMesh) -> None:
    """Refuse with :class:`BadInput` what cannot fit."""
    device, hidden = jax.local_devices()[0], experiment.hidden
    width = experiment.task.symbols or experiment.task.features
    # More than any cell has; only where that is too much is it worth the time to look closely.
    ample = 100 * experiment.layers * hidden * (hidden + width), 8 * hidden
    if not fits(_needs(experiment, mesh, *ample), device):
        check_memory(_needs(experiment, mesh, *_sizes(experiment)), device)


def _needs(experiment: Experiment, mesh: DataMesh, parameters: int, state: int) -> list[Need]:
    """The least that a run holds at one time, without what the compiler adds.

    Args:
      experiment: its parts.
      mesh: of its devices.
      parameters: how many the model has.
      state: the size of the state of a layer.
    """
    task, trainer = experiment.task, experiment.trainer
    length, width, hidden = task.length, task.symbols or task.features, experiment.hidden
    directions = experiment.layers * (2 if experiment.bidirectional else 1)
    kept = directions
    if trainer.segments is not None:  # then at most what a layer or a readout reads of all steps
        below = experiment.layers - (task.readout == "last")
        kept = below * (directions // experiment.layers)
    step, parts = width + kept * hidden, _parts(mesh)
    needs = [
        Need(
            3 * 4 * parameters,
            "model.layers" if experiment.layers > hidden else "model.hidden",
            experiment.layers if experiment.layers > hidden else hidden,
            f"{parameters:,} parameters, their gradient and their update",
        ),
        Need(
            4 * length * trainer.batch * step // parts,
            "trainer.batch" if trainer.batch > length else "task.length",
            max(trainer.batch, length),
            "the states of one batch",
        ),
        Need(
            ROW * (trainer.log.most(trainer.steps) + experiment.close.most(trainer.steps)),
            "trainer.steps",
            trainer.steps,
            "the rows to be recorded",
        ),
    ]
    if isinstance(task, Generated):
        longest, many = max(length, *trainer.test_lengths, 1), task.held_out_examples
        key, given = "task.held_out_examples", many
        if longest > many:
            key = "task.length" if longest == length else "trainer.test_lengths"
            given = longest
        needs.append(Need(8 * longest * many * width, key, given, "the examples held out"))
    close = [p.examples for p in experiment.probes.values() if isinstance(p, CloseProbe)]
    examples = min(max(close, default=0), experiment.close_examples, trainer.batch)
    key = "task.length" if length > hidden else "model.hidden"
    jacobians = 4 * length * examples * state**2
    needs.append(Need(jacobians, key, max(length, hidden), "the Jacobians that probes look at"))
    return needs


def _sizes(experiment: Experiment) -> tuple[int, int]:
    """How many parameters, and the size of a layer's state, without making any of it.

    All layers but the first are alike. ``(0, 0)`` for a cell that cannot be made without numbers.
    """

    def look(layers: int) -> tuple[int, int]:
        def sizes() -> Any:
            model = _model(dataclasses.replace(experiment, layers=layers))
            carry = initial_carries(model.layers, (1, 1, model.width))[-1][0]
            return nnx.state(model, nnx.Param), carry

        params, carry = jax.eval_shape(sizes)
        state = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(carry))
        return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params)), state

    try:
        one, state = look(1)
        more = look(2)[0] - one if experiment.layers > 1 else 0
    except Exception:  # noqa: BLE001  (if it is a fault, making it says so)
        return 0, 0
    return one + (experiment.layers - 1) * more, state


def _check_regularizer(steps: Steps, regularizer: Regularizer | None) -> None:
    if regularizer is not None:
        state = steps.start(jax.random.key(0))
        batch = steps.draw(state, steps.task.data)
        regularizer.check_model(steps.closeup(state.values, batch, regularizer.examples))


def check_experiment(experiment: Experiment) -> None:
    """Refuse sizes that no model can have.

    Raises:
      BadInput: naming the key.
    """
    whole_number("model.hidden", experiment.hidden, 1, 2**24)
    whole_number("model.layers", experiment.layers, 1, 10_000)
    whole_number("probe.examples", experiment.close_examples, 1)
    whole_number("seed", experiment.seed, 0, 2**32 - 1)
