"""The simple recurrent network: ``h' = φ(x W_x + b + h W_h [+ h])``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
from flax import nnx

from gradlab.bptt.written.base import Gates, Weights, WrittenStep, activated


class WrittenRNN(WrittenStep):
    """Of :class:`gradlab.cells.SimpleRNN` and ``nnx.SimpleCell``."""

    states = 1
    names = ()

    def __init__(self, cell: Any):
        super().__init__(cell)
        self.functions = (cell.activation_fn,)
        self.residual = getattr(cell, "residual", False)

    @staticmethod
    def linears(cell: Any) -> list[nnx.Linear]:
        """See :meth:`WrittenStep.linears`."""
        return [cell.dense_i, cell.dense_h]

    @staticmethod
    def weights(cell: Any) -> Weights:
        """See :meth:`WrittenStep.weights`."""
        return Weights.of(cell.dense_i, cell.dense_h)

    def gates(self, from_x: jax.Array, from_h: jax.Array, h: jax.Array) -> Gates:
        """See :meth:`WrittenStep.gates`; the one value is the new h."""
        total = from_x + from_h
        value, pull = activated(self.functions[0], total + h if self.residual else total)
        return Gates((value,), (pull,))

    def after(self, state: Sequence[jax.Array], values: Sequence[jax.Array]) -> list[jax.Array]:
        """See :meth:`WrittenStep.after`."""
        return list(values)

    def transpose(
        self, state: Sequence[jax.Array], gates: Gates, adjoint: Sequence[jax.Array]
    ) -> tuple[Any, list[Any]]:
        """See :meth:`WrittenStep.transpose`."""
        sums = gates.pulls[0](adjoint[0])
        return sums, [sums if self.residual else None]
