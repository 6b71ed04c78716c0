"""The compiled step functions of one or many members, and the states they change.

:class:`Program` is what the loop (:mod:`gradlab.training.loop`) needs of the device; it steps all
of its members in one call. Here is the program of a single run; that of many is in
:mod:`gradlab.training.population`. What goes out is on the host: floats and numpy arrays.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, Protocol, get_args

import jax
import jax.numpy as jnp
import numpy as np

from gradlab.bptt.precision import in_all_digits
from gradlab.model import per_example_accuracy, per_example_loss
from gradlab.tasks.base import Batch, Task
from gradlab.training.step import Report, State, Steps, Values

HeldOut = Literal["val", "test"]
"""The splits that are scored."""
Measured = dict[str, np.ndarray]


class Program(Protocol):
    """Some members of one kind, stepped together, known by their numbers from 0.

    A call names the members that take part in it, and answers for those.

    Attributes:
      steps: the step functions of a member; what they say of names and shapes holds for all.
      compile_seconds: how long :meth:`compile` took.
    """

    steps: Steps
    compile_seconds: float

    def compile(self) -> None:
        """Compile what a run needs, so that nothing is compiled between steps."""
        ...

    def resume(self, states: Mapping[int, State]) -> None:
        """Put members at the states that they are resumed from."""
        ...

    def state(self, member: int) -> State:
        """The state of a member."""
        ...

    def step(self, member: int) -> int:
        """How many steps a member has made."""
        ...

    def alive(self) -> Sequence[bool]:
        """Whether each member's numbers are finite so far."""
        ...

    def advance(self, counts: Mapping[int, int]) -> dict[int, Report]:
        """So many plain steps of each member; means over them."""
        ...

    def probe(self, members: Collection[int]) -> dict[int, tuple[Report, Measured]]:
        """One measured step."""
        ...

    def measure(self, members: Collection[int]) -> dict[int, Measured]:
        """What the close probes see, without a step."""
        ...

    def score(
        self,
        split: HeldOut,
        members: Collection[int],
        values: Mapping[int, Values] | None = None,
        *,
        length: int | None = None,
    ) -> dict[int, dict[str, float]]:
        """Mean loss, and accuracy for classification, on a split.

        Args:
          split: which.
          members: see above.
          values: arrays of the model of each of them; None for those of its state.
          length: of the sequences, one of ``Steps.test_tasks``, for the test split; None for that
            of the task. Compiled, and the sequences made, when first asked for.
        """
        ...

    def inspect(self, member: int) -> Any:
        """:meth:`gradlab.training.step.Steps.inspect` of a member's next step, on the host."""
        ...


class Solo:
    """The program of a single run; see :class:`Program`.

    Args:
      steps: its step functions.
      key: JAX random key of the run.
      eval_batch: examples scored at once.
    """

    def __init__(self, steps: Steps, key: jax.Array, eval_batch: int):
        self.steps, self.eval_batch, mesh = steps, eval_batch, steps.mesh
        self.data = mesh.replicate(steps.task.data)
        self._state = mesh.replicate(steps.start(key))
        self._splits = mesh.replicate(held_out(steps.task, eval_batch, mesh.devices))
        self._scores = mesh.jit(lambda values, chunks: scores(steps, values, chunks))

    def compile(self) -> None:
        """See :meth:`Program.compile`."""
        began, mesh = time.perf_counter(), self.steps.mesh
        self._advance, self._probe, self._measure = compiled(
            mesh.jit(self.steps.advance).lower(self._state, self.data, np.int32(0)),
            mesh.jit(self.steps.probe).lower(self._state, self.data),
            mesh.jit(self.steps.measure).lower(self._state, self.data),
        )
        self.compile_seconds = time.perf_counter() - began

    def resume(self, states: Mapping[int, State]) -> None:
        """See :meth:`Program.resume`."""
        self._state = self.steps.mesh.replicate(states[0])

    def state(self, member: int = 0) -> State:
        """See :meth:`Program.state`; on the device."""
        return self._state

    def step(self, member: int = 0) -> int:
        """See :meth:`Program.step`."""
        return int(self._state.step)

    def alive(self) -> list[bool]:
        """See :meth:`Program.alive`."""
        return [bool(self._state.alive)]

    def advance(self, counts: Mapping[int, int]) -> dict[int, Report]:
        """See :meth:`Program.advance`."""
        count = np.int32(counts[0])
        self._state, report = jax.block_until_ready(self._advance(self._state, self.data, count))
        return {0: jax.device_get(report)}

    def probe(self, members: Collection[int] = (0,)) -> dict[int, tuple[Report, Measured]]:
        """See :meth:`Program.probe`."""
        self._state, *seen = jax.block_until_ready(self._probe(self._state, self.data))
        report, measured = jax.device_get(seen)
        return {0: (report, measured)}

    def measure(self, members: Collection[int] = (0,)) -> dict[int, Measured]:
        """See :meth:`Program.measure`."""
        return {0: jax.device_get(jax.block_until_ready(self._measure(self._state, self.data)))}

    def score(
        self,
        split: HeldOut,
        members: Collection[int] = (0,),
        values: Mapping[int, Values] | None = None,
        *,
        length: int | None = None,
    ) -> dict[int, dict[str, float]]:
        """See :meth:`Program.score`."""
        mesh = self.steps.mesh
        of = self._state.values if values is None else mesh.replicate(values[0])
        if length is None:
            cut = self._splits[split]
        else:
            cut = mesh.replicate(test_at(self.steps, length, self.eval_batch))
        found = self._scores(of, cut)
        return {0: {name: float(value) for name, value in found.items()}}

    def inspect(self, member: int = 0) -> Any:
        """See :meth:`Program.inspect`."""
        inspect = self.steps.mesh.jit(self.steps.inspect)
        return jax.device_get(inspect(self._state, self.data))


def compiled(*lowered: Any) -> list[Callable[..., Any]]:
    """What was lowered, compiled side by side: the compiler lets go of Python's lock."""
    with ThreadPoolExecutor() as pool:
        return list(pool.map(lambda one: one.compile(), lowered))


def held_out(task: Task, chunk: int, devices: int = 1) -> dict[HeldOut, tuple[Batch, jax.Array]]:
    """The held-out splits of a task for :func:`scores`, ``chunk`` examples at a time.

    Args:
      task: whose.
      chunk: rounded up to a multiple of the devices.
      devices: that each chunk is split over.
    """
    return {split: in_chunks(task.held_out(split), chunk, devices) for split in get_args(HeldOut)}


def test_at(steps: Steps, length: int, chunk: int) -> tuple[Batch, jax.Array]:
    """The test split at one of ``steps.test_tasks`` for :func:`scores`.

    Args:
      steps: whose.
      length: of the sequences.
      chunk: examples at a time at the task's own length; fewer where the sequences are longer, so
        that they need no more memory.
    """
    own = steps.task.length
    chunk = max(1, chunk * own // max(own, length))
    return in_chunks(steps.test_tasks[length].held_out("test"), chunk, steps.mesh.devices)


@in_all_digits
def scores(steps: Steps, values: Values, split: tuple[Batch, jax.Array]) -> dict[str, jax.Array]:
    """Mean loss and, for classification, accuracy of a split from :func:`held_out`, () each.

    Of the model in Flax's eval mode: dropout drops nothing, and a batch normalisation takes the
    statistics that it has.
    """
    task = steps.task
    chunks, real = split

    def score(values: Values, chunk: Batch) -> tuple[tuple[()], dict[str, jax.Array]]:
        model = steps.model(values)
        model.eval()
        outputs = model(chunk.inputs, chunk.mask).outputs
        answer = (outputs, chunk.targets, chunk.weights)
        found = {"loss": per_example_loss(task.loss, *answer)}
        if task.loss == "cross_entropy":
            found["accuracy"] = per_example_accuracy(*answer)
        return (), found

    of_chunk = steps.mesh.over_batch(score, rows=0)
    each = jax.lax.map(lambda chunk: of_chunk(values, chunk)[1], chunks)
    return jax.tree.map(
        lambda x: jnp.sum(jnp.where(real, x, 0)) / jnp.sum(real).astype(x.dtype), each
    )


def in_chunks(batch: Batch, chunk: int, devices: int = 1) -> tuple[Batch, jax.Array]:
    """A split as chunks with a new leading axis, the last filled up, and which rows are real."""
    count = batch.inputs.shape[1]
    chunk = math.ceil(min(chunk, count) / devices) * devices
    chunks = math.ceil(count / chunk)
    rows = np.minimum(np.arange(chunks * chunk), count - 1)

    def cut(array: jax.Array, examples_axis: int) -> jax.Array:
        picked = jnp.take(array, rows, axis=examples_axis)
        parts = jnp.split(picked, chunks, axis=examples_axis)
        return jnp.stack(parts)

    time_major_targets = batch.weights is not None
    cut_batch = Batch(
        cut(batch.inputs, 1),
        cut(batch.targets, 1 if time_major_targets else 0),
        None if batch.weights is None else cut(batch.weights, 1),
        None if batch.mask is None else cut(batch.mask, 1),
    )
    real = jnp.arange(chunks * chunk).reshape(chunks, chunk) < count
    return cut_batch, real
