"""Steps whose transpose is written by hand, for the cells that nearly everybody runs.

Any cell's step can be transposed by JAX, at a price: the adjoint's mantissas and the parameters'
gradient at its true scale take a transposition each. Here one cotangent, that of the gates' sums,
serves both: the mantissas go back through the recurrent weights, and the weights' gradient is one
product of it with what they multiply, times the power of two of each example.

:func:`written_of` says whether a cell is one of these; one family a file.

Where there is room, the forward pass keeps the gates, and the product is formed once for all steps
after the backward loop. Otherwise the gates are made again, and the product is summed in the loop.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from flax.nnx.nn import dtypes
from jax import lax

from gradlab.bptt.form import Step
from gradlab.bptt.scaling import Scaled, shift
from gradlab.bptt.written.base import Gates, Weights, WrittenStep
from gradlab.bptt.written.gru import WrittenGRU
from gradlab.bptt.written.lstm import WrittenLSTM, WrittenLSTMCell
from gradlab.bptt.written.rnn import WrittenRNN
from gradlab.cells.stock import GRU, LSTM, SimpleRNN

FAMILIES: dict[type[Any], type[WrittenStep]] = {
    SimpleRNN: WrittenRNN,
    nnx.SimpleCell: WrittenRNN,
    LSTM: WrittenLSTM,
    nnx.OptimizedLSTMCell: WrittenLSTM,
    nnx.LSTMCell: WrittenLSTMCell,
    GRU: WrittenGRU,
    nnx.GRUCell: WrittenGRU,
}
"""By exact type: a subclass may have changed anything."""

KEPT_AT_MOST = 2**27
"""Bytes of gates that the forward pass keeps, of one direction of one layer."""


def written_of(step: Step, carry: Any, inputs: Any) -> Written | None:
    """The written step of a cell, or None where only JAX knows it.

    Args:
      step: of the cell.
      carry: of a batch, arrays or their shapes.
      inputs: ``(T, B, ...)``, or the shape.
    """
    cell, form = step.module(step.moved), step.form
    family = FAMILIES.get(type(cell))
    if family is None or step.moved or form.shared or form.half or not form.is_leaf:
        return None
    leaves = jax.tree.leaves(carry)
    arrays = [*leaves, inputs, *jax.tree.leaves(nnx.state(cell, nnx.Param))]
    dtype = leaves[0].dtype
    usual = (
        len(leaves) == family.states
        and form.at_h == family.states - 1
        and all(form.live)
        and all(form.batched)
        and inputs.ndim == 3
        and dtype in (jnp.float32, jnp.float64)
        and all(array.dtype == dtype for array in arrays)
        and not {"step", "__call__"} & vars(cell).keys()
        and all(_is_usual(linear, dtype) for linear in family.linears(cell))
    )
    return Written(family(cell), step, inputs) if usual else None


def _is_usual(linear: Any, dtype: Any) -> bool:
    """Whether a layer does ``x @ kernel + bias`` in this type and nothing else."""
    return (
        type(linear) is nnx.Linear
        and linear.dtype in (None, dtype)
        and linear.dot_general is lax.dot_general
        and linear.precision is None
        and linear.preferred_element_type is None
        and linear.promote_dtype is dtypes.promote_dtype
    )


class Written:
    """The step of one of these cells over time: what the passes ask for, as of `passes.Generic`.

    Args:
      family: its step and transpose.
      step: of the cell.
      inputs: ``(T, B, I)``.

    Attributes:
      keeps: whether the forward pass is to keep the gates.
    """

    def __init__(self, family: WrittenStep, step: Step, inputs: Any):
        self._family, self._form = family, step.form

        def weights(fixed: Sequence[Any]) -> Weights:
            return family.weights(step.module((), fixed))

        self._weights, self._to_variables = jax.vjp(weights, step.fixed)
        size = inputs.shape[0] * inputs.shape[1] * self._weights.h.shape[-1]
        self.keeps = family.keeps and size * inputs.dtype.itemsize <= KEPT_AT_MOST

    def __call__(self, carry: Any, x: jax.Array) -> tuple[Any, tuple[jax.Array, ...]]:
        """The new carry, and the values of the gates to be kept."""
        leaves, tree = jax.tree.flatten(carry)
        values = self._gates(leaves, x).values
        return tree.unflatten(self._family.after(leaves, values)), values

    def _gates(self, leaves: Sequence[jax.Array], x: jax.Array) -> Gates:
        return self._family.gates(*self._weights.sums(x, leaves[-1]), leaves[-1])

    def final(self, _: Any) -> tuple[list[Any], list[Any]]:
        """Nothing: no step changes a Variable."""
        return [], []

    def zeros(self, kept: Any) -> Any:
        """What the loop begins to sum; nothing where the gates are kept."""
        return None if kept is not None else jax.tree.map(jnp.zeros_like, self._weights)

    def at(
        self, before: Any, _: Any, x: jax.Array, kept: tuple[jax.Array, ...] | None
    ) -> WrittenTransposed:
        """The step from here on, transposed."""
        leaves = jax.tree.leaves(before)
        if kept is not None:
            gates = self._family.again(kept)
        else:
            gates = self._gates(leaves, x)
            # Whether others read them or not, they are calculated by the same program.
            gates = gates._replace(values=lax.optimization_barrier(gates.values))
        products = None if kept is not None else self._products
        return WrittenTransposed(self._family, self._weights, leaves, x, gates, products)

    def finish(
        self, trace: Any, total: Any, from_x: Any, made: Any, exponent: jax.Array
    ) -> tuple[Any, Any]:
        """The gradient of the weights over all steps, and the cotangents of what they read."""
        if made is None:
            return total, from_x
        by_x, _ = self._family.sides(made)
        h = self._form.hidden(trace.before)
        return self._products(trace.inputs, h, exponent, made), [by_x @ self._weights.x.T]

    def gradient(self, total: Weights, *_: Any) -> list[Any]:
        """Of each array of the Variables, from that of the weights."""
        return self._to_variables(total)[0]

    def _products(self, x: jax.Array, h: jax.Array, exponent: jax.Array, sums: Any) -> Weights:
        """The gradient of the weights: what they multiply, times the cotangents of the sums.

        Args:
          x: ``(*E, I)``, for any axes of examples E.
          h: ``(*E, H)``.
          exponent: ``E``, of two, by which the cotangents are multiplied.
          sums: of :meth:`WrittenStep.transpose`.
        """
        by_x, by_h = self._family.sides(sums)
        one = jnp.ones((*x.shape[:-1], 1), x.dtype)
        _, _, x_bias, h_bias = self._weights
        widths = x.shape[-1], h.shape[-1]
        if by_x is by_h:
            whole = _product([x, h, one], exponent, by_x)
            own_x, own_h, bias = jnp.split(whole, [widths[0], sum(widths)])
            of_x = of_h = bias
        else:
            own_x, of_x = jnp.split(_product([x, one], exponent, by_x), widths[:1])
            own_h, of_h = jnp.split(_product([h, one], exponent, by_h), widths[1:])
        return Weights(
            own_x,
            own_h,
            None if x_bias is None else of_x[0],
            None if h_bias is None else of_h[0],
        )


def _product(rows: Sequence[jax.Array], exponent: jax.Array, by: jax.Array) -> jax.Array:
    """The sum over all examples of rows, side by side, times ``by * 2**exponent``."""
    left = shift(jnp.concatenate(rows, axis=-1), exponent)
    return left.reshape(-1, left.shape[-1]).T @ by.reshape(-1, by.shape[-1])


class WrittenTransposed(NamedTuple):
    """A step's transpose at one point; compare `passes.Transposed`.

    Attributes:
      family: of the cell.
      weights: its.
      state: leaves of the carry before the step.
      x: what it read.
      at: its gates.
      products: from ``(x, h, exponent, sums)`` to the gradient of the weights; None: that is formed
        after the loop.
    """

    family: WrittenStep
    weights: Weights
    state: list[jax.Array]
    x: jax.Array
    at: Gates
    products: Callable[..., Weights] | None

    @property
    def gates(self) -> dict[str, jax.Array]:
        """The gates, ``(B, H)`` by their names in :mod:`gradlab.cells.stock`."""
        return dict(zip(self.family.names, self.at.values, strict=False))

    def add_output(self, adjoint: Scaled, _: Any) -> Scaled:
        """The output is h: there is nothing to add."""
        return adjoint

    def pull(self, adjoint: Scaled, cotangents: Any, total: Any) -> tuple[Any, Any, Any, Any]:
        """See `passes.Transposed.pull`."""
        leaves, *_ = cotangents
        sums, earlier = self.family.transpose(self.state, self.at, leaves)
        by_x, by_h = self.family.sides(sums)
        through = by_h @ self.weights.h.T
        last = earlier[-1]
        earlier = [*earlier[:-1], through if last is None else through + last]
        if self.products is None:
            return total, sums, (earlier, []), []
        own = self.products(self.x, self.state[-1], adjoint.exponent, sums)
        total = jax.tree.map(jnp.add, total, own)
        return total, None, (earlier, []), [by_x @ self.weights.x.T]
