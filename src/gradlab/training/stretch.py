"""Many steps in one compiled call, some of them measured.

Which steps are measured, and how many there are, are arguments: nothing is compiled anew. The call
gives back what every step reports and, stacked, what the measured ones saw.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend import core

from gradlab.bptt.precision import in_all_digits
from gradlab.training.step import Report, State, Steps

STEPS = 1000
"""Most steps of a call."""
ROWS = 64
"""Most blocks of a call, and with them most measured steps."""
BYTES = 2**26
"""Of what the measured steps of a call saw, of all members together, at most; one step's may be
more."""


class Block(NamedTuple):
    """Some steps of a call.

    Attributes:
      plain: how many steps are made without measurements.
      measured: whether one more is made, and measured.
    """

    plain: int
    measured: bool

    @property
    def steps(self) -> int:
        """How many there are."""
        return self.plain + self.measured


def plan_of(blocks: Sequence[Block]) -> np.ndarray:
    """What a call makes, :data:`ROWS` blocks at most, as one array that any such call takes.

    Returns:
      (ROWS + 1, 2) int32: how many blocks there are; then of each its plain steps, and 1 if one
      more is measured, else 0.
    """
    plan = np.zeros((ROWS + 1, 2), np.int32)
    plan[0] = len(blocks)
    for i, block in enumerate(blocks, 1):
        plan[i] = block
    return plan


class Stretch(NamedTuple):
    """What a call gives back, besides the state.

    Attributes:
      step: () int32, steps done; those that were not finite, and all after them, are not.
      alive: () bool, whether all were finite.
      reports: (STEPS + 1, 4) float32, the :class:`~gradlab.training.step.Report` of each step made,
        in their order; the rest is of no meaning.
      rows: name -> array with an axis of blocks in front: what the measured step of each saw.
    """

    step: Any
    alive: Any
    reports: Any
    rows: dict[str, Any]

    def by_block(self, blocks: Sequence[Block]) -> Iterator[tuple[np.ndarray, dict[str, Any]]]:
        """Of each block in turn the reports, ``(steps, 4)``, and what its measured step saw."""
        begin = 0
        for i, block in enumerate(blocks):
            reports = self.reports[begin : begin + block.steps]
            begin += block.steps
            yield reports, {name: array[i] for name, array in self.rows.items()}


@in_all_digits
def make(
    steps: Steps, state: State, data: Any, plan: jax.Array, members: int = 1
) -> tuple[State, Stretch]:
    """Make the steps of a plan, for a compiled function.

    Args:
      steps: the step functions.
      state: before them.
      data: of the task.
      plan: which steps, as :func:`plan_of` says them.
      members: how many make theirs in the same call; bounds memory only.
    """
    probe, (_, _, one_row) = _traced(lambda state: steps.probe(state, data), state)
    nothing = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), one_row)
    no_report = Report(*(jnp.float32(0) for _ in Report._fields))
    room = _most(one_row, members)

    def put(reports: jax.Array, made: jax.Array, report: Report) -> jax.Array:
        return lax.dynamic_update_index_in_dim(reports, jnp.stack(report), made, 0)

    def plain(_, carry):
        state, reports, made = carry
        state, report = steps.plain(state, data)
        return state, put(reports, made, report), made + 1

    def block(i, carry):
        *carry, rows = carry
        count, measured = plan[i + 1]
        state, reports, made = lax.fori_loop(0, count, plain, tuple(carry))
        state, report, row = lax.cond(
            measured > 0, lambda: probe(state), lambda: (state, no_report, nothing)
        )
        rows = jax.tree.map(
            lambda all_, own: lax.dynamic_update_index_in_dim(all_, own, i, 0), rows, row
        )
        return state, put(reports, made, report), made + measured, rows

    rows = jax.tree.map(lambda leaf: jnp.zeros((room, *leaf.shape), leaf.dtype), one_row)
    reports = jnp.zeros((STEPS + 1, len(Report._fields)), jnp.float32)
    carry = (state, reports, jnp.int32(0), rows)
    state, reports, _, rows = lax.fori_loop(0, plan[0, 0], block, carry)
    return state, Stretch(state.step, state.alive, reports, rows)


def _traced(function: Callable[[State], Any], state: State) -> tuple[Callable[[State], Any], Any]:
    """The same function, and the shapes of what it gives; it is traced once only."""
    program, shapes = jax.make_jaxpr(function, return_shape=True)(state)

    def call(state: State) -> Any:
        found = core.jaxpr_as_fun(program)(*jax.tree.leaves(state))
        return jax.tree.unflatten(jax.tree.structure(shapes), found)

    return call, shapes


def _most(row: dict[str, Any], members: int) -> int:
    """How many measured steps' arrays are kept."""
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in row.values())
    return max(1, min(ROWS, BYTES // max(1, size * members)))


def most_blocks(shapes: tuple[State, Stretch], axis: int = 0) -> int:
    """How many blocks a call may have, by the shapes of what :func:`make` gives.

    Args:
      shapes: of that.
      axis: of the blocks.
    """
    return min((leaf.shape[axis] for leaf in shapes[1].rows.values()), default=ROWS)
