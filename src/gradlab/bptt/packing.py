"""The state of any cell as one real vector, as Jacobians and their products need it.

Shapes: any leading axes; ``S`` numbers of state for each example.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

Numbers = Mapping[str, jax.Array]
"""Real numbers of each part of a state by its name, ``(..., n)``."""


def flat(array: jax.Array, axes: int) -> jax.Array:
    """``(*lead, *shape) -> (*lead, n)`` real: what is in the last so many axes, in a row.

    Of complex numbers the real parts and then the imaginary ones. In at least float32.
    """
    array = array.reshape(*array.shape[: array.ndim - axes], -1)
    if jnp.iscomplexobj(array):
        array = jnp.concatenate([array.real, array.imag], axis=-1)
    return _wide(array)


def _wide(array: jax.Array) -> jax.Array:
    """The same in float32 where it is in half precision."""
    return array if jnp.finfo(array.dtype).bits >= 32 else array.astype(jnp.float32)


def flat_cotangent(array: jax.Array, axes: int) -> jax.Array:
    """The gradient by :func:`flat` numbers, from JAX's cotangent of the array itself.

    JAX's cotangent of a complex z is ``∂ℓ/∂Re z - i ∂ℓ/∂Im z``.
    """
    return flat(jnp.conj(array), axes)


def real_form(array: jax.Array) -> jax.Array:
    """The same as real numbers, in at least float32: a complex array has a last axis of two more.

    That holds the real and the imaginary part.
    """
    if jnp.iscomplexobj(array):
        return jnp.stack([array.real, array.imag], axis=-1)
    return _wide(array)


def real_gradient(array: jax.Array) -> jax.Array:
    """The gradient by the numbers of :func:`real_form`, from JAX's of the array itself."""
    return real_form(jnp.conj(array))


def from_real_form(array: jax.Array, dtype: Any) -> jax.Array:
    """The array of this type that :func:`real_form` was made from."""
    if jnp.issubdtype(dtype, jnp.complexfloating):
        array = lax.complex(array[..., 0], array[..., 1])
    return array.astype(dtype)


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
        leaves = jax.tree.leaves(carry)
        return _joined(flat(leaves[one.index], len(one.shape)) for one in self.parts.values())

    def pack_cotangent(self, cotangents: Sequence[jax.Array]) -> jax.Array:
        """The gradient by the vector, from JAX's cotangents of the parts in their order."""
        pairs = zip(cotangents, self.parts.values(), strict=True)
        return _joined(flat_cotangent(leaf, len(part.shape)) for leaf, part in pairs)

    def split(self, packed: jax.Array) -> Numbers:
        """The numbers of each part, ``(*lead, n)``, from ``(*lead, S)``."""
        return {name: packed[..., part.place] for name, part in self.parts.items()}

    def unpack(self, numbers: Numbers, carry: Any) -> Any:
        """The carry with the parts that have these numbers; what else it holds is kept."""
        leaves, tree = jax.tree.flatten(carry)
        for name, part in self.parts.items():
            leaves[part.index] = self.leaf(name, numbers[name])
        return jax.tree.unflatten(tree, leaves)

    def leaf(self, name: str, numbers: jax.Array) -> jax.Array:
        """One leaf ``(*lead, ...)`` from its own numbers ``(*lead, n)``."""
        part = self.parts[name]
        if jnp.issubdtype(part.dtype, jnp.complexfloating):
            numbers = lax.complex(*jnp.split(numbers, 2, axis=-1))
        return numbers.reshape(*numbers.shape[:-1], *part.shape).astype(part.dtype)


def _joined(rows: Iterable[jax.Array]) -> jax.Array:
    """Rows of numbers in one, in the widest of their types."""
    each = list(rows)
    widest = max((row.dtype for row in each), key=lambda dtype: jnp.finfo(dtype).bits)
    return jnp.concatenate([row.astype(widest) for row in each], axis=-1)


def _width(leaf: Any) -> int:
    """How many real numbers a leaf ``(E, ...)`` holds of each example."""
    return math.prod(leaf.shape[1:]) * (2 if jnp.issubdtype(leaf.dtype, jnp.complexfloating) else 1)
