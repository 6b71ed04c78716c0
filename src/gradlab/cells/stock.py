"""What is inside cells that do not say: Flax's own gates and recurrent matrices.

Flax cells run as they are; only what the probes look at has to be found beside them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import singledispatch
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from gradlab.cells.base import Cell
from gradlab.cells.gru import GRU, GRUGates
from gradlab.cells.gru_reset_before import GRUResetBefore
from gradlab.cells.lstm import LSTM, LSTMGates
from gradlab.cells.rnn import ACTIVATIONS, SimpleRNN


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


def retention(cell: nnx.RNNCellBase, carry: Any, x: jax.Array) -> jax.Array | None:
    """Activations of the gate that multiplies the old state, ``(..., H)``, or None."""
    name = gate_view(cell).retention
    return None if name is None else getattr(gates(cell, carry, x), name)


@singledispatch
def recurrent_matrices(cell: nnx.RNNCellBase) -> dict[str, jax.Array]:
    """The matrices ``(H, H)`` that multiply h, by the gate or candidate they feed.

    Rows are outputs, so that h is a column: the transpose of Flax's kernels. Empty for a cell that
    is not known.
    """
    return {}


@recurrent_matrices.register
def _(cell: Cell) -> dict[str, jax.Array]:
    return cell.recurrent_matrices()


def _blocks(dense: nnx.Linear, names: tuple[str, ...]) -> dict[str, jax.Array]:
    parts = jnp.split(dense.kernel[...], len(names), axis=-1)
    return {name: part.T for name, part in zip(names, parts, strict=True)}


@recurrent_matrices.register(SimpleRNN)
@recurrent_matrices.register(nnx.SimpleCell)
def _(cell: Any) -> dict[str, jax.Array]:
    return _blocks(cell.dense_h, ("h",))


@recurrent_matrices.register(LSTM)
@recurrent_matrices.register(nnx.OptimizedLSTMCell)
def _(cell: Any) -> dict[str, jax.Array]:
    return _blocks(cell.dense_h, ("i", "f", "c_tilde", "o"))


@recurrent_matrices.register
def _(cell: nnx.LSTMCell) -> dict[str, jax.Array]:
    named = {"i": cell.hi, "f": cell.hf, "c_tilde": cell.hg, "o": cell.ho}
    return {name: dense.kernel[...].T for name, dense in named.items()}


@recurrent_matrices.register(GRU)
@recurrent_matrices.register(nnx.GRUCell)
def _(cell: Any) -> dict[str, jax.Array]:
    return _blocks(cell.dense_h, ("r", "z", "n"))


@recurrent_matrices.register
def _(cell: GRUResetBefore) -> dict[str, jax.Array]:
    return {**_blocks(cell.dense_rz, ("r", "z")), **_blocks(cell.dense_n, ("n",))}


class PlainRNN(NamedTuple):
    """A cell that is ``h' = φ(W h + drive(x))``, as theory has it.

    Attributes:
      activation: the name of φ; empty if it has none that is known.
      steepest: γ, the largest slope of φ; nan if φ is not known.
      drive: ``drive(x)``, the input's share of the pre-activation with the bias, ``(..., H)``.
    """

    activation: str
    steepest: float
    drive: Callable[[jax.Array], jax.Array]


STEEPEST = {"tanh": 1.0, "relu": 1.0, "sigmoid": 0.25, "identity": 1.0}


def plain_rnn(cell: nnx.RNNCellBase) -> PlainRNN | None:
    """The cell as a plain recurrent network, or None if it is none."""
    known = isinstance(cell, SimpleRNN)
    if isinstance(cell, nnx.SimpleCell):
        known = not cell.residual
    if not known:
        return None
    own: Any = cell
    same = [name for name, fn in ACTIVATIONS.items() if fn is own.activation_fn]
    name = same[0] if same else ""
    return PlainRNN(name, STEEPEST.get(name, float("nan")), own.dense_i)
