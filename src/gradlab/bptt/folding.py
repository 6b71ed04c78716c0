"""What is made of the gates of each step while the backward pass goes over it.

Gates kept over time would take ``O(T B H)`` memory, and to compute them again would cost a third of
a forward pass. The backward pass has those of a step at hand when it transposes it, so a *fold*
reads them there, from the last step to the first, and keeps what is small.

Shapes: time-major ``(T, B, ...)``, in the direction's own reading order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax import lax

from gradlab.bptt.form import Step
from gradlab.cells import stock


class Gates(NamedTuple):
    """The gates of one step, in at least float32.

    Attributes:
      named: gate name -> ``(B, H)`` activations, in the cell's own order.
      retention: those of the gate that multiplies the old state, or None.
    """

    named: Mapping[str, jax.Array]
    retention: jax.Array | None


class Folded(NamedTuple):
    """What came of the gates of one direction, small arrays of floats.

    Attributes:
      rows: a tree of arrays ``(T, B)``.
      sums: a tree of sums over the examples, such as ``(T, H)`` or ``()``: those of a batch are the
        sums of those of its parts.
    """

    rows: Any = ()
    sums: Any = ()


class Fold(Protocol):
    """A reduction of the gates over time, from the last step to the first. Hashable."""

    def begin(self, gates: Gates) -> Any:
        """What is carried before the last step; only the shapes of the gates may be read."""
        ...

    def step(self, carry: Any, gates: Gates, real: jax.Array | None) -> tuple[Any, Any]:
        """What is carried on to the step before, and what is kept of this one.

        Args:
          carry: from the step after.
          gates: of this one.
          real: ``(B,)`` bool, where the step is real; None: everywhere.
        """
        ...

    def finish(self, carry: Any, kept: Any) -> Folded:
        """The result, of what is carried beyond the first step and what was kept, over T."""
        ...


class Folds(NamedTuple):
    """What is to be made of the gates of a cell.

    Attributes:
      each: any number of folds; the gates of the cell can be seen if there are some.
      examples: of how many examples, the first; None: of all.
    """

    each: tuple[Fold, ...] = ()
    examples: int | None = None


@partial(jax.tree_util.register_dataclass, data_fields=["folded"], meta_fields=["folds"])
@dataclass(frozen=True)
class Tap:
    """What a pass is handed for folds; its "gradient" holds the results.

    Attributes:
      folds: what to do.
      folded: of each, zeros of the shapes of the result.
    """

    folds: Folds
    folded: list[Folded]


class Folding:
    """The folds of one cell's gates at once; without any it does nothing.

    Args:
      folds: see :class:`Folds`.
      step: of the cell.
    """

    def __init__(self, folds: Folds, step: Step):
        self._folds, self._step, self._few = folds, step, slice(folds.examples)

    def begin(self, before: Any, moved: Sequence[Any], x: jax.Array) -> list[Any]:
        """What is carried before the last step; given where any step begins."""
        if not self._folds.each:
            return []
        gates = jax.eval_shape(self._gates, before, moved, x)
        return [fold.begin(gates) for fold in self._folds.each]

    def step(
        self,
        carries: Sequence[Any],
        before: Any,
        moved: Sequence[Any],
        x: jax.Array,
        real: jax.Array | None,
        found: Mapping[str, jax.Array] | None,
    ) -> tuple[list[Any], list[Any]]:
        """What is carried on, and what is kept of this step.

        Args:
          carries: from the step after.
          before, moved, x: where the step begins, and what it reads.
          real: ``(B,)`` bool, where it is real; None: everywhere.
          found: its gates, where they are known.
        """
        if not self._folds.each:
            return [], []
        gates = self._gates(before, moved, x, found)
        real = None if real is None else real[self._few]
        pairs = zip(self._folds.each, carries, strict=True)
        with jax.default_matmul_precision("highest"):  # whatever the cell's products are made in
            both = [fold.step(carry, gates, real) for fold, carry in pairs]
        return [carry for carry, _ in both], [kept for _, kept in both]

    def finish(self, carries: Sequence[Any], kept: Sequence[Any]) -> list[Folded]:
        """What came of it."""
        every = zip(self._folds.each, carries, kept, strict=True)
        return [fold.finish(carry, own) for fold, carry, own in every]

    def tap(self, before: Any, x: jax.Array, length: int) -> Tap:
        """A tap for a pass over so many steps."""
        moved = self._step.moved

        def run() -> list[Folded]:
            def one(carries: Any, _: None) -> Any:
                return self.step(carries, before, moved, x, None, None)

            return self.finish(*lax.scan(one, self.begin(before, moved, x), length=length))

        shapes = jax.eval_shape(run)
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        return Tap(self._folds, zeros)

    def _gates(self, before: Any, moved: Sequence[Any], x: jax.Array, found: Any = None) -> Gates:
        cell, few = self._step.module(moved), self._few
        view = stock.gate_view(cell)
        if found is None:
            leaves, tree = jax.tree.flatten(before)
            pairs = zip(self._step.form.batched, leaves, strict=True)
            own = tree.unflatten([leaf[few] if batched else leaf for batched, leaf in pairs])
            at: Any = stock.gates(cell, own, x[few])
            found = at._asdict()
        named = {name: _wide(found[name][few]) for name in view.names}
        return Gates(named, named.get(view.retention or ""))


def fold_over(fold: Fold, gates: Gates, mask: jax.Array) -> Folded:
    """A fold over gates that are all there, ``(T, B, H)`` each, with a mask ``(T, B)``."""
    begun = fold.begin(jax.tree.map(lambda gate: gate[0], gates))

    def one(carry: Any, read: Any) -> Any:
        here, real = read
        in_order = {name: here.named[name] for name in gates.named}  # which JAX does not keep
        return fold.step(carry, here._replace(named=in_order), real)

    return fold.finish(*lax.scan(one, begun, (gates, mask), reverse=True))


def _wide(gate: jax.Array) -> jax.Array:
    return gate.astype(jnp.float32) if jnp.finfo(gate.dtype).bits < 32 else gate
