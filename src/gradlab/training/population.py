"""Many members in one compiled program, each with numbers, weights and data of its own.

Members that differ in numbers only (a learning rate, a clip threshold, a weight decay, what their
weights were drawn with) share a program: the numbers are arguments of it. On a CPU the members are
dealt out to the host's devices and go one after another on each, which keeps the caches warm; on an
accelerator all members of a device go through every operation together (``at_once``).
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from gradlab.errors import BadInput
from gradlab.training import lift
from gradlab.training.memory import free, gigabytes
from gradlab.training.program import (
    HeldOut,
    Landed,
    Measured,
    compiled,
    held_out,
    scores,
    test_at,
)
from gradlab.training.step import State, Steps, Values
from gradlab.training.stretch import Block, make, most_blocks, plan_of

PARTS = ("optimizer", "task", "regularizer", "probes")
"""What of :class:`~gradlab.training.step.Steps` may hold numbers, besides the model."""
AtOnce = int | Literal["measure"] | None
TRIED = 3
"""Steps by which two ways of making them are compared."""
_AXIS = "members"
_UNTRACEABLE = (jax.errors.JAXTypeError, TypeError)


class Untraceable(Exception):
    """Some numbers decide what the program is, so that members that differ in them cannot share it.

    Attributes:
      paths: of the numbers, as in :func:`numbers_of`.
    """

    def __init__(self, paths: set[str]):
        self.paths = paths
        super().__init__(", ".join(sorted(paths)))


def numbers_of(steps: Steps) -> dict[str, float]:
    """Every float that a member's program depends on, by its path (``optimizer.learning_rate``)."""
    found = {}
    for part in PARTS:
        found |= lift.numbers(getattr(steps, part), part)
    return found | _numbers_of_model(steps.model(steps.first))


def together(one: Steps, other: Steps) -> bool:
    """Whether two members can share a program: they are alike in all but numbers and arrays."""
    same = ("batch", "examples", "shape", "setting", "names", "backward")
    return (
        all(getattr(one, what) == getattr(other, what) for what in same)
        and one.test_tasks.keys() == other.test_tasks.keys()
        and one.variables == other.variables
        and _shapes(one) == _shapes(other)
        and all(lift.alike(getattr(one, part), getattr(other, part)) for part in PARTS)
        and _graph_without_numbers(one) == _graph_without_numbers(other)
    )


class Population:
    """The program of many members; see :class:`gradlab.training.program.Program`.

    Args:
      members: the step functions of each, any two of them :func:`together`.
      keys: the JAX random key of each.
      eval_batch: examples scored at once.
      at_once: how many members of a device go through an operation together; None: one on a CPU,
        on an accelerator as many as its memory holds; ``"measure"``: one or all, whichever makes
        steps faster here.
      devices: to deal the members out to; None: all of this process.

    Raises:
      Untraceable: if members differ in a number that their program cannot take as an argument.
      BadInput: if they need more memory than there is.
    """

    def __init__(
        self,
        members: Sequence[Steps],
        keys: Sequence[jax.Array],
        eval_batch: int,
        *,
        at_once: AtOnce = None,
        devices: Sequence[Any] | None = None,
    ):
        if any(member.mesh.devices > 1 for member in members):
            allowed = "null for a population: its members, not its batches, go to the devices"
            raise BadInput("trainer.mesh", "data", allowed)
        self.size = len(members)
        devices = list(devices or jax.local_devices())[: self.size]
        each = -(-self.size // len(devices))
        on_cpu = devices[0].platform == "cpu"
        self._try = (1, each) if at_once == "measure" and each > 1 else ()
        chosen = at_once if isinstance(at_once, int) else None
        self.at_once = min(chosen or (1 if on_cpu else each), each)
        self.rows = len(devices) * self.at_once * -(-each // self.at_once)
        self.devices = devices
        self._mesh = jax.make_mesh(
            (len(devices),), (_AXIS,), axis_types=(AxisType.Auto,), devices=devices
        )
        numbers = [numbers_of(member) for member in members]
        differing = {path for path in numbers[0] if len({str(own[path]) for own in numbers}) > 1}
        opened = [_opened(member, differing) for member in members]
        self.steps = opened[0]
        self._own = self._placed(
            [
                ({path: own[path] for path in sorted(differing & own.keys())}, member.rest)
                for own, member in zip(numbers, opened, strict=True)
            ]
        )
        states = [member.start(key) for member, key in zip(opened, keys, strict=True)]
        self._refuse_too_large(states[0])
        self._put(states)
        self._each_its_task = any(path.startswith("task.") for path in differing)
        self._splits = self._held_out(members, eval_batch)
        self._members, self._eval_batch = list(members), eval_batch
        self._tests_at: dict[int, Any] = {}
        self._inspect = jax.jit(lambda own, state, data: self._bound(own).inspect(state, data))
        try:
            self._lowered = self._lower()
        except _UNTRACEABLE:
            if not differing:
                raise
            raise Untraceable(self._at_fault()) from None

    # What a call does, for one member.

    def _bound(self, own: tuple[Mapping[str, Any], Any]) -> Steps:
        """The step functions with a member's own numbers."""
        values, rest = own
        steps = copy.copy(self.steps)
        for part in PARTS:
            setattr(steps, part, lift.replaced(getattr(steps, part), values, part))
        steps.rest = rest
        return steps

    def _stretch_one(self, state: State, own: Any, plan: jax.Array, data: Any):
        return make(self._bound(own), state, data, plan, self.rows)

    def _measure_one(self, state: State, own: Any, due: jax.Array, data: Any):
        return _if(due, lambda: self._bound(own).measure(state, data))

    def _score_one(self, values: Values, own: Any, due: jax.Array, split: Any, shared: Any):
        of = shared if split is None else split
        return _if(due, lambda: scores(self._bound(own), values, of))

    # The calls.

    def compile(self) -> None:
        """See :meth:`gradlab.training.program.Program.compile`.

        Raises:
          BadInput: if not even one member at once fits into memory.
        """
        began = time.perf_counter()
        if self._try:
            self.at_once = min(self._try, key=self._seconds_of_steps)
            self._lowered = self._lower()
        while True:
            programs = compiled(*self._lowered)
            if (needed := self._needs(programs)) <= free(self.devices[0]):
                break
            if self.at_once == 1:
                raise self._too_large(needed)
            self.at_once //= 2
            self._lowered = self._lower()
        self._stretch, self._measure, *score = programs
        self._score: dict[HeldOut, Any] = {"val": score[0], "test": score[-1]}
        self._score_at = self._over(self._score_one)  # compiled when a member ends
        self.compile_seconds = time.perf_counter() - began

    def _seconds_of_steps(self, at_once: int) -> float:
        """How long a few steps of all members take, whose results are thrown away."""
        self.at_once = at_once
        tried = [Block(TRIED, measured=False)]
        plan = self._planned(dict.fromkeys(range(self.size), tried))
        lowered = self._over(self._stretch_one).lower(self._state, (self._own, plan), self._data)
        (stretch,) = compiled(lowered)
        jax.block_until_ready(stretch(self._state, (self._own, plan), self._data))
        began = time.perf_counter()
        jax.block_until_ready(stretch(self._state, (self._own, plan), self._data))
        return time.perf_counter() - began

    def _lower(self) -> list[Any]:
        """What a run needs, traced: stretch, measure, a score for each shape of split."""
        due, plan = self._dealt(()), self._planned({})
        stretch = self._over(self._stretch_one, donate_argnums=0)
        lowered = [
            stretch.lower(self._state, (self._own, plan), self._data),
            self._over(self._measure_one).lower(self._state, (self._own, due), self._data),
        ]
        self.most_blocks = most_blocks(lowered[0].out_info, axis=1)
        shapes = []
        for cut in self._splits.values():
            if _shapes_of(cut) not in shapes:
                shapes.append(_shapes_of(cut))
                own, shared = self._dealt_split(cut)
                taking = (self._state.values, (self._own, due, own))
                lowered.append(self._over(self._score_one).lower(*taking, shared))
        return lowered

    def _needs(self, programs: Sequence[Any]) -> int:
        """Bytes of memory of the largest of some programs: on a CPU all devices share it."""
        on_cpu = self.devices[0].platform == "cpu"
        return (len(self.devices) if on_cpu else 1) * max(map(_bytes, programs))

    def resume(self, states: Mapping[int, State]) -> None:
        """See :meth:`gradlab.training.program.Program.resume`."""
        self._put([states.get(member) or self.state(member) for member in range(self.size)])

    def _put(self, states: Sequence[State]) -> None:
        raw = [state._replace(key=jax.random.key_data(state.key)) for state in states]
        placed = self._placed(raw)
        impl = jax.random.key_impl(states[0].key)
        self._impl = impl
        self._state = placed._replace(key=jax.random.wrap_key_data(placed.key, impl=impl))
        self._host: State | None = None
        self._steps_done = {i: int(state.step) for i, state in enumerate(states)}

    def state(self, member: int) -> State:
        """See :meth:`gradlab.training.program.Program.state`; on the host."""
        here = _row_of(self._on_host(), member)
        return here._replace(key=jax.random.wrap_key_data(here.key, impl=self._impl))

    def step(self, member: int) -> int:
        """See :meth:`gradlab.training.program.Program.step`."""
        return self._steps_done[member]

    def send(self, plans: Mapping[int, Sequence[Block]]) -> None:
        """See :meth:`gradlab.training.program.Program.send`."""
        self._wait()
        taking = (self._own, self._planned(plans))
        self._state, self._sent = self._stretch(self._state, taking, self._data)
        self._sent_to, self._host = tuple(plans), None

    def land(self) -> Landed:
        """See :meth:`gradlab.training.program.Program.land`."""
        landed = Landed(self._sent_to, jax.block_until_ready(self._sent), _row_of)
        self._steps_done |= landed.step
        return landed

    def _wait(self) -> None:
        jax.block_until_ready(self._state)

    def measure(self, members: Collection[int]) -> dict[int, Measured]:
        """See :meth:`gradlab.training.program.Program.measure`."""
        self._wait()
        taking = (self._own, self._dealt(members))
        return self._by_member(self._measure(self._state, taking, self._data), members)

    def score(
        self,
        split: HeldOut,
        members: Collection[int],
        values: Mapping[int, Values] | None = None,
        *,
        length: int | None = None,
    ) -> dict[int, dict[str, float]]:
        """See :meth:`gradlab.training.program.Program.score`."""
        self._wait()
        if values is None:
            of = self._state.values
        else:  # of those that take no part anything will do
            of = self._placed([values.get(i, values[min(values)]) for i in range(self.size)])
        call = self._score[split] if length is None else self._score_at
        own, shared = self._dealt_split(
            self._splits[split] if length is None else self._test_at(length)
        )
        taking = (self._own, self._dealt(members), own)
        scores = self._by_member(call(of, taking, shared), members)
        return {i: {name: float(value) for name, value in s.items()} for i, s in scores.items()}

    def inspect(self, member: int) -> Any:
        """See :meth:`gradlab.training.program.Program.inspect`."""
        own = _row_of(jax.device_get(self._own), member)
        return jax.device_get(self._inspect(own, self.state(member), self._data))

    # Between the members and the devices.

    @property
    def _data(self) -> Any:
        return self.steps.task.data

    def _over(self, function: Callable[..., Any], **options: Any) -> Any:
        """``function(first, *others, shared)`` of every member, jitted with ``options``.

        As ``call(first, others, shared)``, where the first two are stacked.
        """
        batch = self.at_once if self.at_once > 1 else None

        def on_a_device(first: Any, others: Any, shared: Any) -> Any:
            def one(own: Any) -> Any:
                return function(own[0], *own[1], shared)

            return lax.map(one, (first, others), batch_size=batch)

        split, whole = P(_AXIS), P()
        return jax.jit(
            jax.shard_map(
                on_a_device,
                mesh=self._mesh,
                in_specs=(split, split, whole),
                out_specs=split,
                check_vma=False,
            ),
            **options,
        )

    def _placed(self, trees: Sequence[Any]) -> Any:
        """Trees of arrays, one a member, as one tree whose arrays have a member axis."""
        here = jax.device_get(list(trees))
        here += here[-1:] * (self.rows - len(here))  # filled up; never due
        stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *here)
        stacked = jax.tree.map(jnp.asarray, stacked)
        return self._dealt_out(stacked)

    def _dealt(self, members: Collection[int]) -> jax.Array:
        """Which rows take part."""
        row = np.zeros(self.rows, bool)
        row[list(members)] = True
        return self._dealt_out(row)

    def _planned(self, plans: Mapping[int, Sequence[Block]]) -> jax.Array:
        """The steps of every row; none where none are planned."""
        return self._dealt_out(np.stack([plan_of(plans.get(i, ())) for i in range(self.rows)]))

    def _dealt_out(self, rows: Any) -> Any:
        return jax.device_put(rows, NamedSharding(self._mesh, P(_AXIS)))

    def _by_member(self, tree: Any, members: Collection[int]) -> dict[int, Any]:
        here = jax.device_get(tree)
        return {member: _row_of(here, member) for member in members}

    def _on_host(self) -> State:
        if self._host is None:
            raw = self._state._replace(key=jax.random.key_data(self._state.key))
            # Copied, for a view would keep the devices from using this memory again.
            self._host = jax.tree.map(np.array, jax.device_get(raw))
        assert self._host is not None
        return self._host

    def _held_out(self, members: Sequence[Steps], eval_batch: int) -> dict[HeldOut, Any]:
        """The splits: those of one member where all have the same task, else stacked."""
        if not self._each_its_task:
            return dict(held_out(self.steps.task, eval_batch))
        own = [held_out(member.task, eval_batch) for member in members]
        return {split: self._placed([one[split] for one in own]) for split in own[0]}

    def _test_at(self, length: int) -> Any:
        """The same of the test split at another length; kept, for members end one by one."""
        if length not in self._tests_at:
            members = self._members if self._each_its_task else self._members[:1]
            own = [test_at(member, length, self._eval_batch) for member in members]
            self._tests_at[length] = self._placed(own) if self._each_its_task else own[0]
        return self._tests_at[length]

    def _dealt_split(self, split: Any) -> tuple[Any, Any]:
        """A split as what each member has of its own, and what they share."""
        return (split, None) if self._each_its_task else (None, split)

    def _at_fault(self) -> set[str]:
        """The numbers that cannot be arguments, found one by one."""
        (values, rest), state = _row_of((self._own, self._state), 0)
        constants = {path: float(value) for path, value in values.items()}

        def fails(path: str) -> bool:
            def look(value: jax.Array) -> Any:
                steps = self._bound(({**constants, path: value}, rest))
                return steps.probe(state, self._data), steps.measure(state, self._data)

            try:
                jax.eval_shape(look, values[path])
            except _UNTRACEABLE:
                return True
            return False

        return {path for path in values if fails(path)} or set(values)

    def _refuse_too_large(self, state: State) -> None:
        """Before anything is laid out: the old states, the new ones, and the best parameters."""
        leaves = jax.tree.leaves(state._replace(key=None))
        own = sum(leaf.nbytes for leaf in leaves)
        if (needed := 3 * self.rows * own) > free(self.devices[0]):
            raise self._too_large(needed)

    def _too_large(self, needed: int) -> BadInput:
        there = free(self.devices[0])
        fit = max(1, int(self.size * there / needed))
        return BadInput(
            "hydra.launcher",
            f"{self.size} members that need about {gigabytes(needed)} together",
            f"members that fit into the {gigabytes(there)} of memory that are free",
            f"hydra.sweeper.max_batch_size={fit}, or a smaller model.hidden or trainer.batch",
        )


def _row_of(tree: Any, member: int) -> Any:
    return jax.tree.map(lambda leaf: leaf[member], tree)


def _if(due: jax.Array, act: Callable[[], Any]) -> Any:
    """What ``act`` gives where a member is due; else zeros."""

    def skip() -> Any:
        shapes = jax.eval_shape(act)
        return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)

    return lax.cond(due, act, skip)


# Numbers that cells hold.


def _numbers_of_model(model: nnx.Module) -> dict[str, float]:
    return {
        path: value
        for path, module, name in _attributes(model)
        if isinstance(value := vars(module)[name], float)
    }


def _attributes(model: nnx.Module):
    for place, module in nnx.iter_modules(model):
        for name in list(vars(module)):
            yield ".".join(["model", *map(str, place), name]), module, name


def _opened(steps: Steps, paths: set[str]) -> Steps:
    """The same step functions, with the model's floats at ``paths`` among its arrays."""
    if not any(path.startswith("model.") for path in paths):
        return steps
    model = steps.model(steps.first)
    for path, module, name in list(_attributes(model)):
        if path in paths:
            setattr(module, name, nnx.data(jnp.asarray(vars(module)[name])))
    opened = copy.copy(steps)
    opened.hold(model)
    return opened


def _graph_without_numbers(steps: Steps) -> Any:
    model = steps.model(steps.first)
    numbers = _numbers_of_model(model)
    if not numbers:
        return steps.graph
    for path, module, name in list(_attributes(model)):
        if path in numbers:
            setattr(module, name, 0.0)
    return nnx.split(model, nnx.Param, ...)[0]


def _shapes(steps: Steps) -> Any:
    return _shapes_of((steps.first, steps.rest, steps.task.data))


def _shapes_of(tree: Any) -> Any:
    leaves, structure = jax.tree.flatten(tree)
    return structure, [(leaf.shape, leaf.dtype) for leaf in leaves]


# Memory.


def _bytes(program: Any) -> int:
    found = program.memory_analysis()
    if found is None:
        return 0
    parts = ("argument_size_in_bytes", "output_size_in_bytes", "temp_size_in_bytes")
    return sum(getattr(found, part) for part in parts)
