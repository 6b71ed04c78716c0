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
from gradlab.training.step import State, Steps, Values
from gradlab.training.stretch import Block, Stretch, make, most_blocks, plan_of

HeldOut = Literal["val", "test"]
"""The splits that are scored."""
Measured = dict[str, np.ndarray]


class Landed:
    """A call that has been awaited: where it has led to, and what it has seen on the way.

    Args:
      members: who took part.
      made: what the call gave back; the arrays of many members have a member axis.
      of: the part of one member in such a tree on the host.

    Attributes:
      step: steps done, by member.
      alive: whether all of them were finite, by member.
    """

    def __init__(self, members: Collection[int], made: Stretch, of: Callable[[Any, int], Any]):
        self._members, self._made, self._of = members, made, of
        step, alive = jax.device_get((made.step, made.alive))
        self.step = {member: int(of(step, member)) for member in members}
        self.alive = {member: bool(of(alive, member)) for member in members}

    def stretches(self) -> dict[int, Stretch]:
        """All of it, on the host, by member."""
        here = jax.device_get(self._made)
        return {member: self._of(here, member) for member in self._members}


class Program(Protocol):
    """Some members of one kind, stepped together, known by their numbers from 0.

    A call names the members that take part in it, and answers for those. Steps are made by
    :meth:`send`, which returns at once, and :meth:`land`, which waits. Between the two the host may
    do what it likes, but for other calls of the program. (The program itself never has two calls
    under way: with collectives over the devices of a host, jax 0.10.2 can hang.)

    Attributes:
      steps: the step functions of a member; what they say of names and shapes holds for all.
      compile_seconds: how long :meth:`compile` took.
      most_blocks: how many blocks of steps a call may have.
    """

    steps: Steps
    compile_seconds: float
    most_blocks: int

    def compile(self) -> None:
        """Compile what a run needs, so that nothing is compiled between steps."""
        ...

    def resume(self, states: Mapping[int, State]) -> None:
        """Put members at the states that they are resumed from."""
        ...

    def state(self, member: int) -> State:
        """A copy of the state of a member."""
        ...

    def step(self, member: int) -> int:
        """How many steps a member had made when last a call was awaited."""
        ...

    def send(self, plans: Mapping[int, Sequence[Block]]) -> None:
        """Have the devices make these steps of each member, in order."""
        ...

    def land(self) -> Landed:
        """Wait for what was sent last."""
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
        self._copy = mesh.jit(copy_of)
        self._sent: Stretch | None = None
        self._step = 0
        self._looks = steps if mesh.processes > 1 else steps.on_one_device()

    def compile(self) -> None:
        """See :meth:`Program.compile`."""
        began, mesh, steps = time.perf_counter(), self.steps.mesh, self.steps

        def stretch(state: State, data: Any, plan: jax.Array) -> tuple[State, Stretch]:
            return make(steps, state, data, plan)

        lowered = mesh.jit(stretch, donate_argnums=0).lower(self._state, self.data, plan_of(()))
        self.most_blocks = most_blocks(lowered.out_info)
        self._stretch, self._measure = compiled(
            lowered, self._looks.mesh.jit(self._looks.measure).lower(*self._seen())
        )
        self.resume({0: self._state})
        self.compile_seconds = time.perf_counter() - began

    def resume(self, states: Mapping[int, State]) -> None:
        """See :meth:`Program.resume`."""
        mesh = self.steps.mesh
        self._state = self._copy(mesh.replicate(states[0]))  # what is sent is given away
        self._step = int(self._state.step)

    def state(self, member: int = 0) -> State:
        """See :meth:`Program.state`; on the device."""
        self._wait()
        return jax.block_until_ready(self._copy(self._state))

    def step(self, member: int = 0) -> int:
        """See :meth:`Program.step`."""
        return self._step

    def send(self, plans: Mapping[int, Sequence[Block]]) -> None:
        """See :meth:`Program.send`."""
        self._wait()
        plan = self.steps.mesh.place(plan_of(plans[0]))
        self._state, self._sent = self._stretch(self._state, self.data, plan)

    def land(self) -> Landed:
        """See :meth:`Program.land`."""
        assert self._sent is not None
        landed = Landed((0,), jax.block_until_ready(self._sent), lambda tree, _: tree)
        self._step = landed.step[0]
        return landed

    def _wait(self) -> None:
        jax.block_until_ready(self._state)

    def measure(self, members: Collection[int] = (0,)) -> dict[int, Measured]:
        """See :meth:`Program.measure`."""
        self._wait()
        return {0: jax.device_get(self._measure(*self._seen()))}

    def _seen(self) -> tuple[State, Any]:
        """What a close look is at: on one device, for on each it would be the same work again."""
        return self.steps.mesh.of_first((self._state, self.data))

    def score(
        self,
        split: HeldOut,
        members: Collection[int] = (0,),
        values: Mapping[int, Values] | None = None,
        *,
        length: int | None = None,
    ) -> dict[int, dict[str, float]]:
        """See :meth:`Program.score`."""
        self._wait()
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


def copy_of(tree: Any) -> Any:
    """The same arrays in other memory, for a compiled function."""

    def copy(leaf: jax.Array) -> jax.Array:
        is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        return jax.random.clone(leaf) if is_key else jnp.copy(leaf)

    return jax.tree.map(copy, tree)


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
