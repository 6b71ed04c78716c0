"""The long short-term memory: ``c' = f c + i c̃``, ``h' = o φ(c')``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from gradlab.bptt.written.base import Gates, Weights, WrittenStep, activated


class WrittenLSTM(WrittenStep):
    """Of :class:`gradlab.cells.LSTM` and ``nnx.OptimizedLSTMCell``, blocks i, f, c̃, o."""

    states = 2
    names = ("i", "f", "c_tilde", "o")

    def __init__(self, cell: Any):
        super().__init__(cell)
        gate, self.activation = cell.gate_fn, cell.activation_fn
        self.functions = (gate, gate, self.activation, gate)

    @staticmethod
    def linears(cell: Any) -> list[nnx.Linear]:
        """See :meth:`WrittenStep.linears`."""
        return [cell.dense_i, cell.dense_h]

    @staticmethod
    def weights(cell: Any) -> Weights:
        """See :meth:`WrittenStep.weights`."""
        return Weights.of(cell.dense_i, cell.dense_h)

    def gates(self, from_x: jax.Array, from_h: jax.Array, h: jax.Array) -> Gates:
        """See :meth:`WrittenStep.gates`."""
        blocks = jnp.split(from_x + from_h, 4, axis=-1)
        found = [activated(*pair) for pair in zip(self.functions, blocks, strict=True)]
        values, pulls = zip(*found, strict=True)
        return Gates(values, pulls)

    def after(self, state: Sequence[jax.Array], values: Sequence[jax.Array]) -> list[jax.Array]:
        """See :meth:`WrittenStep.after`."""
        i, f, c_tilde, o = values
        c = f * state[0] + i * c_tilde
        return [c, o * self.activation(c)]

    def transpose(
        self, state: Sequence[jax.Array], gates: Gates, adjoint: Sequence[jax.Array]
    ) -> tuple[Any, list[Any]]:
        """See :meth:`WrittenStep.transpose`."""
        i, f, c_tilde, o = gates.values
        by_c, by_h = adjoint
        shown, pull = activated(self.activation, f * state[0] + i * c_tilde)
        by_c = by_c + pull(by_h * o)
        by_values = (by_c * c_tilde, by_c * state[0], by_c * i, by_h * shown)
        pairs = zip(gates.pulls, by_values, strict=True)
        return jnp.concatenate([own(by) for own, by in pairs], axis=-1), [by_c * f, None]


class WrittenLSTMCell(WrittenLSTM):
    """Of ``nnx.LSTMCell``, where each block is a layer of its own."""

    @staticmethod
    def linears(cell: Any) -> list[nnx.Linear]:
        """See :meth:`WrittenStep.linears`."""
        from_x, from_h = (cell.ii, cell.if_, cell.ig, cell.io), (cell.hi, cell.hf, cell.hg, cell.ho)
        return [*from_x, *from_h]

    @staticmethod
    def weights(cell: Any) -> Weights:
        """See :meth:`WrittenStep.weights`."""
        pairs = ((cell.ii, cell.hi), (cell.if_, cell.hf), (cell.ig, cell.hg), (cell.io, cell.ho))
        blocks = [Weights.of(*pair) for pair in pairs]
        return jax.tree.map(lambda *own: jnp.concatenate(own, axis=-1), *blocks)
