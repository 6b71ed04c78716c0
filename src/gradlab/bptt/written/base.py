"""The contract of a written step: what a cell's file says of its forward step and its transpose.

Every one of these cells is ``(x W_x + b_x, h W_h + b_h) -> gates -> new state``. So its transpose
is the cotangent of these two sums, elementwise, and products that are the same for all of them.

Shapes: ``B`` examples, ``I`` input width, ``H`` hidden width, ``N`` columns, ``H`` for each gate.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from gradlab.cells.stock import ACTIVATIONS

Pull = Callable[[jax.Array], jax.Array]
"""From the cotangent of a function's value to that of its argument."""

SLOPES: dict[Any, Callable[[jax.Array], jax.Array]] = {
    jax.nn.sigmoid: lambda y: y * (1 - y),
    jnp.tanh: lambda y: (1 + y) * (1 - y),
    jax.nn.relu: lambda y: (y > 0).astype(y.dtype),
    ACTIVATIONS["identity"]: jnp.ones_like,
}
"""Derivatives as JAX has them, from the value of the function."""


def from_value(function: Any, value: jax.Array) -> Pull:
    """The transpose of a function of :data:`SLOPES` where it has this value."""
    return lambda cotangent: cotangent * SLOPES[function](value)


def activated(function: Any, argument: jax.Array) -> tuple[jax.Array, Pull]:
    """The value of any function of an array, and its transpose there."""
    if function in SLOPES:
        value = function(argument)
        return value, from_value(function, value)
    value, pull = jax.vjp(function, argument)
    return value, lambda cotangent: pull(cotangent)[0]


class Weights(NamedTuple):
    """A cell's parameters as its two sums use them.

    Attributes:
      x: ``(I, N)``.
      h: ``(H, N)``.
      x_bias: ``(N,)``, or None.
      h_bias: likewise.
    """

    x: jax.Array
    h: jax.Array
    x_bias: jax.Array | None
    h_bias: jax.Array | None

    @classmethod
    def of(cls, x: nnx.Linear, h: nnx.Linear) -> Weights:
        """Those of two linear layers."""
        biases = (None if one.bias is None else one.bias[...] for one in (x, h))
        return cls(x.kernel[...], h.kernel[...], *biases)

    def sums(self, x: jax.Array, h: jax.Array) -> tuple[jax.Array, jax.Array]:
        """What the gates are made of, ``(B, N)`` each: of the input, and of the state."""
        from_x, from_h = x @ self.x, h @ self.h
        return (
            from_x if self.x_bias is None else from_x + self.x_bias[None],
            from_h if self.h_bias is None else from_h + self.h_bias[None],
        )


class Gates(NamedTuple):
    """The gates of one step.

    Attributes:
      values: ``(B, H)`` each, in the order of :attr:`WrittenStep.names`, and what else is needed
        to transpose the step.
      pulls: of those that a function gives, its transpose.
    """

    values: tuple[jax.Array, ...]
    pulls: tuple[Pull, ...]


class WrittenStep(ABC):
    """The step of one family of cells, and its transpose.

    Args:
      cell: a cell of an exact type in :data:`gradlab.bptt.written.FAMILIES`.

    Attributes:
      states: how many leaves the carry has; h is the last.
      names: of the gates, as in :mod:`gradlab.cells.stock`.
      functions: of each gate, in that order.
    """

    states: ClassVar[int]
    names: ClassVar[tuple[str, ...]]
    functions: tuple[Any, ...]

    def __init__(self, cell: Any):
        self.cell = cell

    @staticmethod
    @abstractmethod
    def linears(cell: Any) -> list[nnx.Linear]:
        """All linear layers of a cell."""

    @staticmethod
    @abstractmethod
    def weights(cell: Any) -> Weights:
        """The parameters of a cell; a linear function of them."""

    @abstractmethod
    def gates(self, from_x: jax.Array, from_h: jax.Array, h: jax.Array) -> Gates:
        """The gates from the two sums and the old h."""

    @abstractmethod
    def after(self, state: Sequence[jax.Array], values: Sequence[jax.Array]) -> list[jax.Array]:
        """The new state from the old one and the gates."""

    @abstractmethod
    def transpose(
        self, state: Sequence[jax.Array], gates: Gates, adjoint: Sequence[jax.Array]
    ) -> tuple[Any, list[jax.Array]]:
        """Cotangents of the sums (see :meth:`sides`), and of the old state but through the sums."""

    @staticmethod
    def sides(sums: Any) -> tuple[jax.Array, jax.Array]:
        """The cotangents of the sums of the input and of the state, ``(..., N)``."""
        return sums, sums

    @property
    def keeps(self) -> bool:
        """Whether the gates' values are enough to transpose a step."""
        return all(function in SLOPES for function in self.functions)

    def again(self, values: Sequence[jax.Array]) -> Gates:
        """The gates from their values."""
        pairs = zip(self.functions, values, strict=False)
        return Gates(tuple(values), tuple(from_value(*pair) for pair in pairs))
