"""Numbers of any size in float32: a mantissa array and one power of two per example.

An adjoint that falls by one half at each of 5000 steps ends near 10^-1505, where float32 ends at
10^-38. Here the array keeps its shape and dtype and is multiplied by powers of two only, which
changes no bit of it, while the exponent is counted beside it in int32.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
from jax import lax

ZERO = -(2**30)
"""The exponent of an example whose mantissa is exactly zero: below every other exponent."""


LOG10_2 = 0.30102999566398120
"""log10(2), from binary exponents to decades."""


class Scaled(NamedTuple):
    """``mantissa * 2**exponent``, one exponent for each example.

    Attributes:
      mantissa: a pytree of arrays ``(*E, ...)``, all with the same leading axes ``E``.
      exponent: ``E`` int32.
    """

    mantissa: Any
    exponent: jax.Array

    @classmethod
    def of(cls, tree: Any, axes: int) -> Self:
        """A pytree of plain arrays with ``axes`` leading example axes, as normalised numbers."""
        first = jax.tree.leaves(tree)[0]
        return cls(tree, jnp.zeros(first.shape[:axes], jnp.int32)).normalise()

    def of_batch(self) -> Self:
        """The same numbers with one exponent for the last of the example axes; normalised."""
        exponent = jnp.max(self.exponent, axis=-1)
        by = self.exponent - exponent[..., None]
        own = jax.tree.map(
            lambda leaf: times(leaf, _pow2_or_zero(by, real_type(leaf))), self.mantissa
        )
        return type(self)(own, exponent)

    def of_each(self, batch: int) -> Self:
        """The same numbers, with an exponent for each of so many examples more; normalised."""
        exponent = jnp.broadcast_to(self.exponent[..., None], (*self.exponent.shape, batch))
        return type(self)(self.mantissa, exponent).normalise()

    def normalise(self) -> Self:
        """The same numbers with every example's largest mantissa in [1, 2) (or exactly 0)."""
        axes = self.exponent.ndim
        leaves = jax.tree.leaves(self.mantissa)
        sizes = [magnitude(leaf, axes) for leaf in leaves]
        widest = max((size.dtype for size in sizes), key=lambda dtype: dtype.itemsize)
        largest = jnp.stack([size.astype(widest) for size in sizes]).max(0)
        by = exponent_of(largest)
        mantissa = jax.tree.map(lambda leaf: times(leaf, pow2(-by, real_type(leaf))), self.mantissa)
        return type(self)(mantissa, jnp.where(largest == 0, ZERO, self.exponent + by))

    def align(self, other: Scaled) -> tuple[Self, Any]:
        """These and the other's mantissa at the larger exponent; both must be normalised."""
        exponent = jnp.maximum(self.exponent, other.exponent)

        def to_common(tree: Any, own: jax.Array) -> Any:
            return jax.tree.map(
                lambda leaf: times(leaf, _pow2_or_zero(own - exponent, real_type(leaf))), tree
            )

        own = type(self)(to_common(self.mantissa, self.exponent), exponent)
        return own, to_common(other.mantissa, other.exponent)

    def add(self, other: Scaled) -> Self:
        """The sum, normalised; both must be normalised."""
        aligned, addend = self.align(other)
        total = jax.tree.map(jnp.add, aligned.mantissa, addend)
        return aligned._replace(mantissa=total).normalise()

    def plain(self) -> Any:
        """The numbers themselves, rounded to 0 or inf where their dtype ends."""
        return shift(self.mantissa, self.exponent)

    def pull(
        self, transpose: Callable[[Any], Any], cotangents: Any, together: bool
    ) -> tuple[Any, Any, Any]:
        """A step transposed: ``transpose(cotangents)`` with the parameters' part at its true scale.

        Args:
          transpose: from cotangents to those of parameters, state and input.
          cotangents: mantissas of these exponents.
          together: the parameters' part is transposed at the largest exponent of all examples and
            scaled afterwards: for a step that mixes examples, and for one whose own numbers have
            few exponents. What the small examples lose is nothing beside the sum.
        """
        params, state, x = transpose(cotangents)
        if not together:
            params, _, _ = transpose(shift(cotangents, self.exponent))
            return params, state, x
        largest = jnp.max(self.exponent)
        if self.exponent.ndim:
            params, _, _ = transpose(shift(cotangents, self.exponent - largest))
        return shift(params, largest), state, x


class Sums(NamedTuple):
    """K sums of scaled numbers over their examples, of each of N arrays, at its own exponents.

    Attributes:
      mantissa: N arrays ``(K, ...)``.
      exponent: ``(N, K)`` int32.
    """

    mantissa: list[jax.Array]
    exponent: jax.Array

    @classmethod
    def of(cls, values: Sequence[Scaled], wanted: jax.Array) -> Self:
        """The sums over the examples that are wanted in each.

        Each at the largest exponent of its own examples: what the others lose to it is nothing
        beside the sum.

        Args:
          values: N of them, ``(E, ...)`` with exponents ``(E,)``, normalised.
          wanted: ``(K, E)`` bool.
        """
        exponents = jnp.stack([value.exponent for value in values])
        chosen = wanted[None] & (exponents > ZERO)[:, None]
        own = jnp.where(chosen, exponents[:, None], ZERO)
        largest = jnp.max(own, axis=-1)
        dtype = values[0].mantissa.dtype
        weights = shift(chosen.astype(dtype), own - largest[..., None])
        return cls([_weighted(weights[n], one.mantissa) for n, one in enumerate(values)], largest)

    def add(self, other: Sums) -> Self:
        """The sums of both, at the larger exponents."""
        exponent = jnp.maximum(self.exponent, other.exponent)
        own, others = self._factors(exponent), other._factors(exponent)
        pairs = zip(self.mantissa, other.mantissa, strict=True)
        totals = [
            old * _per_example(own[n], old) + new * _per_example(others[n], new)
            for n, (old, new) in enumerate(pairs)
        ]
        return type(self)(totals, exponent)

    def total(self) -> tuple[list[jax.Array], jax.Array]:
        """Of each array the sum of its K, ``(...)``, and its exponent, ``(N,)``."""
        largest = jnp.max(self.exponent, axis=1)
        weights = self._factors(largest[:, None])
        return [_weighted(weights[n], part) for n, part in enumerate(self.mantissa)], largest

    def _factors(self, exponent: jax.Array) -> jax.Array:
        ones = jnp.ones(self.exponent.shape, self.mantissa[0].dtype)
        return shift(ones, self.exponent - exponent)


def _weighted(weights: jax.Array, array: jax.Array) -> jax.Array:
    """The sum of ``weights[..., e] * array[e]`` over e."""
    return jnp.tensordot(weights, array, axes=1, precision=lax.Precision.HIGHEST)


def _bits(dtype: Any) -> tuple[Any, int, int]:
    info = jnp.finfo(dtype)
    integer = {16: jnp.int16, 32: jnp.int32, 64: jnp.int64}[info.bits]
    return integer, info.nmant, -info.minexp + 1


def pow2(exponent: jax.Array, dtype: Any) -> jax.Array:
    """``2.0**exponent`` without rounding, for integer exponents clipped to the normal range."""
    integer, mantissa_bits, bias = _bits(dtype)
    clipped = jnp.clip(exponent, 1 - bias, bias).astype(integer)
    return lax.bitcast_convert_type((clipped + bias) << mantissa_bits, dtype)


def exponent_of(magnitude: jax.Array) -> jax.Array:
    """``floor(log2(magnitude))`` of non-negative numbers as int32; 0 where not finite or zero.

    Subnormal numbers count as the smallest normal one.
    """
    integer, mantissa_bits, bias = _bits(magnitude.dtype)
    exponent = (lax.bitcast_convert_type(magnitude, integer) >> mantissa_bits) - bias
    usable = jnp.isfinite(magnitude) & (magnitude > 0)
    # 2**-bias would be subnormal, so the largest shift is one short of the largest exponent.
    return jnp.where(usable, jnp.clip(exponent, 1 - bias, bias - 1), 0).astype(jnp.int32)


def real_type(leaf: jax.Array) -> Any:
    """The dtype of an array's real part."""
    return jnp.finfo(leaf.dtype).dtype


def times(leaf: jax.Array, factor: jax.Array) -> jax.Array:
    """``leaf * factor``, real factors of each example; both parts of complex numbers."""
    own = _per_example(factor, leaf)
    if jnp.iscomplexobj(leaf):
        return lax.complex(leaf.real * own, leaf.imag * own)
    return leaf * own


def _per_example(factor: jax.Array, leaf: jax.Array) -> jax.Array:
    return factor.reshape(factor.shape + (1,) * (leaf.ndim - factor.ndim))


def shift(tree: Any, exponent: jax.Array) -> Any:
    """``tree * 2**exponent`` per example: exact, to 0 below the float range and to inf above it."""

    def leaf_shift(leaf: jax.Array) -> jax.Array:
        # Two factors, since the product may be in range when the power of two alone is not.
        half = exponent // 2
        low, high = pow2(half, real_type(leaf)), pow2(exponent - half, real_type(leaf))
        return times(times(leaf, low), high)

    return jax.tree.map(leaf_shift, tree)


def magnitude(leaf: jax.Array, axes: int) -> jax.Array:
    """The largest absolute value of each example; ``axes`` counts the leading example axes."""
    folded = _folded(jnp.maximum, jnp.abs(leaf), axes)
    return jnp.max(folded, axis=tuple(range(axes, leaf.ndim)))


def _folded(combine: Callable[..., jax.Array], leaf: jax.Array, axes: int) -> jax.Array:
    """``leaf`` with its last axis folded in halves, down to a few numbers beside each other.

    A processor reduces along the last axis number by number, and side by side when told so.
    """
    while leaf.ndim > axes and leaf.shape[-1] > 8 and leaf.shape[-1] % 2 == 0:
        leaf = combine(*jnp.split(leaf, 2, axis=-1))
    return leaf


def _pow2_or_zero(exponent: jax.Array, dtype: Any) -> jax.Array:
    """``2.0**exponent`` for exponents <= 0, and 0 where that is below the normal range."""
    _, _, bias = _bits(dtype)
    return jnp.where(exponent > -bias, pow2(exponent, dtype), jnp.zeros((), dtype))


def log2_norm(leaf: jax.Array, exponent: jax.Array) -> jax.Array:
    """log2 of the 2-norm of each example of ``leaf * 2**exponent``; -inf where exactly zero.

    Args:
      leaf: ``(*E, ...)``; the norm is over every axis after ``E``.
      exponent: ``E`` int32.
    """
    axes = tuple(range(exponent.ndim, leaf.ndim))
    by = exponent_of(magnitude(leaf, exponent.ndim))
    near_one = times(leaf, pow2(-by, real_type(leaf)))
    parts = (near_one.real, near_one.imag) if jnp.iscomplexobj(leaf) else (near_one,)
    folded = [_folded(jnp.add, jnp.square(part), exponent.ndim) for part in parts]
    squares = sum(jnp.sum(part, axis=axes) for part in folded)
    return 0.5 * jnp.log2(squares) + (exponent + by).astype(real_type(leaf))


def log10_norm(leaf: jax.Array, exponent: jax.Array) -> jax.Array:
    """The same in log10."""
    return log2_norm(leaf, exponent) * LOG10_2


# The same as functions.
normalise = Scaled.normalise
scale = Scaled.of
align = Scaled.align
add = Scaled.add
plain = Scaled.plain
