"""The gates of cells that do not name them: Flax's own, read from their weights.

Flax cells run as they are; only their gates have to be computed beside them for the probes.
"""

from __future__ import annotations

from functools import singledispatch
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from gradlab.cells.base import Cell
from gradlab.cells.gru import GRUGates
from gradlab.cells.lstm import LSTMGates


class GateView(NamedTuple):
    """How to see the gates of one kind of cell.

    Attributes:
      names: the gates, with values in [0, 1].
      retention: the one of them that multiplies the old state, or None.
    """

    names: tuple[str, ...]
    retention: str | None


@singledispatch
def gate_view(cell: nnx.RNNCellBase) -> GateView:
    """Which gates can be seen in ``cell``; none in a cell that is not known."""
    return GateView((), None)


@gate_view.register
def _(cell: Cell) -> GateView:
    kept = cell.retention_gate
    names = cell.gate_names if kept is None else dict.fromkeys((*cell.gate_names, kept))
    return GateView(tuple(names), kept)


@gate_view.register(nnx.LSTMCell)
@gate_view.register(nnx.OptimizedLSTMCell)
def _(cell: nnx.RNNCellBase) -> GateView:
    return GateView(("i", "f", "o"), "f")


@gate_view.register
def _(cell: nnx.GRUCell) -> GateView:
    return GateView(("r", "z"), "z")


@singledispatch
def gates(cell: nnx.RNNCellBase, carry: Any, x: jax.Array) -> NamedTuple | None:
    """The gates' activations ``(..., H)`` when the state is ``carry`` and x is read, or None."""
    return None


@gates.register
def _(cell: Cell, carry: Any, x: jax.Array) -> NamedTuple:
    return cell.gates(carry, x)


@gates.register
def _(cell: nnx.LSTMCell, carry: Any, x: jax.Array) -> LSTMGates:
    h = carry[1]
    return LSTMGates(
        i=cell.gate_fn(cell.ii(x) + cell.hi(h)),
        f=cell.gate_fn(cell.if_(x) + cell.hf(h)),
        o=cell.gate_fn(cell.io(x) + cell.ho(h)),
        c_tilde=cell.activation_fn(cell.ig(x) + cell.hg(h)),
    )


@gates.register
def _(cell: nnx.OptimizedLSTMCell, carry: Any, x: jax.Array) -> LSTMGates:
    i, f, g, o = jnp.split(cell.dense_i(x) + cell.dense_h(carry[1]), 4, axis=-1)
    return LSTMGates(cell.gate_fn(i), cell.gate_fn(f), cell.gate_fn(o), cell.activation_fn(g))


@gates.register
def _(cell: nnx.GRUCell, carry: Any, x: jax.Array) -> GRUGates:
    x_r, x_z, x_n = jnp.split(cell.dense_i(x), 3, axis=-1)
    h_r, h_z, h_n = jnp.split(cell.dense_h(carry), 3, axis=-1)
    r, z = cell.gate_fn(x_r + h_r), cell.gate_fn(x_z + h_z)
    return GRUGates(r, z, cell.activation_fn(x_n + r * h_n))
