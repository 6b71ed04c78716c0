"""The state of any cell as one real vector, as Jacobians and their products need it.

Shapes: any leading axes; ``S`` numbers of state for each example.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax


def flat(array: jax.Array, axes: int) -> jax.Array:
    """``(*lead, *shape) -> (*lead, n)`` real: what is in the last so many axes, in a row.

    Of complex numbers the real parts and then the imaginary ones. In at least float32.
    """
    array = array.reshape(*array.shape[: array.ndim - axes], -1)
    if jnp.iscomplexobj(array):
        array = jnp.concatenate([array.real, array.imag], axis=-1)
    return array.astype(jnp.promote_types(array.dtype, jnp.float32))


def flat_cotangent(array: jax.Array, axes: int) -> jax.Array:
    """The gradient by :func:`flat` numbers, from JAX's cotangent of the array itself.

    JAX's cotangent of a complex z is ``∂ℓ/∂Re z - i ∂ℓ/∂Im z``.
    """
    return flat(jnp.conj(array), axes)


class Part(NamedTuple):
    """One leaf of a carry.

    Attributes:
      index: its place among the carry's leaves.
      shape: of one example.
      dtype: its own.
      place: where it lies in the vector.
    """

    index: int
    shape: tuple[int, ...]
    dtype: Any
    place: slice


class Packing:
    """Where each part of a state lies in one real vector ``(S,)``.

    The parts stand in the carry's order. What else a carry holds, a counter for example, is no part
    of it.

    Args:
      carry: one with leaves ``(E, ...)``; arrays or their shapes.
      names: of all its leaves, in order.
      states: those that are packed.
    """

    def __init__(self, carry: Any, names: Sequence[str], states: Sequence[str]):
        leaves = jax.tree.leaves(carry)
        chosen = [(i, leaf) for i, leaf in enumerate(leaves) if names[i] in states]
        ends = list(accumulate((_width(leaf) for _, leaf in chosen), initial=0))
        self.parts = {
            names[i]: Part(i, leaf.shape[1:], leaf.dtype, slice(*ends))
            for (i, leaf), ends in zip(chosen, pairwise(ends), strict=True)
        }
        self.size = ends[-1]

    def pack(self, carry: Any) -> jax.Array:
        """``(*lead, S)`` from a carry with leaves ``(*lead, ...)``."""
        return self._joined(flat, carry)

    def pack_cotangent(self, cotangent: Any) -> jax.Array:
        """The gradient by the vector, from JAX's cotangent of a carry."""
        return self._joined(flat_cotangent, cotangent)

    def _joined(self, rows: Callable[[jax.Array, int], jax.Array], carry: Any) -> jax.Array:
        leaves = jax.tree.leaves(carry)
        each = [rows(leaves[part.index], len(part.shape)) for part in self.parts.values()]
        return jnp.concatenate(each, axis=-1)

    def unpack(self, packed: jax.Array, carry: Any) -> Any:
        """The carry with this state ``(*lead, S)`` in it; what else it holds is kept."""
        leaves, tree = jax.tree.flatten(carry)
        for name, part in self.parts.items():
            leaves[part.index] = self.leaf(name, packed[..., part.place])
        return jax.tree.unflatten(tree, leaves)

    def leaf(self, name: str, numbers: jax.Array) -> jax.Array:
        """One leaf ``(*lead, ...)`` from its own numbers ``(*lead, n)``."""
        part = self.parts[name]
        if jnp.issubdtype(part.dtype, jnp.complexfloating):
            numbers = lax.complex(*jnp.split(numbers, 2, axis=-1))
        return numbers.reshape(*numbers.shape[:-1], *part.shape).astype(part.dtype)


def _width(leaf: Any) -> int:
    """How many real numbers a leaf ``(E, ...)`` holds of each example."""
    return math.prod(leaf.shape[1:]) * (2 if jnp.issubdtype(leaf.dtype, jnp.complexfloating) else 1)
