"""The gated recurrent unit, reset after the product: ``h' = (1 - z) n + z h``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from gradlab.bptt.written.base import Gates, Weights, WrittenStep, activated


class WrittenGRU(WrittenStep):
    """Of :class:`gradlab.cells.GRU` and ``nnx.GRUCell``; blocks in the order r, z, n."""

    states = 1
    names = ("r", "z", "n")

    def __init__(self, cell: Any):
        super().__init__(cell)
        self.functions = (cell.gate_fn, cell.gate_fn, cell.activation_fn)

    @staticmethod
    def linears(cell: Any) -> list[nnx.Linear]:
        """See :meth:`WrittenStep.linears`."""
        return [cell.dense_i, cell.dense_h]

    @staticmethod
    def weights(cell: Any) -> Weights:
        """See :meth:`WrittenStep.weights`."""
        return Weights.of(cell.dense_i, cell.dense_h)

    def gates(self, from_x: jax.Array, from_h: jax.Array, h: jax.Array) -> Gates:
        """See :meth:`WrittenStep.gates`; the fourth value is what r multiplies."""
        (x_r, x_z, x_n), (h_r, h_z, h_n) = (jnp.split(s, 3, axis=-1) for s in (from_x, from_h))
        of_r, of_z, of_n = self.functions
        (r, pull_r), (z, pull_z) = activated(of_r, x_r + h_r), activated(of_z, x_z + h_z)
        n, pull_n = activated(of_n, x_n + r * h_n)
        return Gates((r, z, n, h_n), (pull_r, pull_z, pull_n))

    def after(self, state: Sequence[jax.Array], values: Sequence[jax.Array]) -> list[jax.Array]:
        """See :meth:`WrittenStep.after`."""
        _, z, n, _ = values
        return [(1.0 - z) * n + z * state[0]]

    def transpose(
        self, state: Sequence[jax.Array], gates: Gates, adjoint: Sequence[jax.Array]
    ) -> tuple[Any, list[Any]]:
        """See :meth:`WrittenStep.transpose`."""
        r, z, n, h_n = gates.values
        pull_r, pull_z, pull_n = gates.pulls
        by_n = pull_n(adjoint[0] * (1.0 - z))
        by_z = pull_z(adjoint[0] * (state[0] - n))
        by_r = pull_r(by_n * h_n)
        return (jnp.concatenate([by_r, by_z, by_n * r], axis=-1), by_n), [adjoint[0] * z]

    @staticmethod
    def sides(sums: Any) -> tuple[jax.Array, jax.Array]:
        """See :meth:`WrittenStep.sides`; they differ in n, where r multiplies that of the state."""
        of_h, by_n = sums
        width = by_n.shape[-1]
        return jnp.concatenate([of_h[..., : 2 * width], by_n], axis=-1), of_h
