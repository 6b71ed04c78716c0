"""The code of a module's own that stands before, between and after its recurrent layers.

It is a function of the parameters and of what the layers give, to what the layers read and what
the module gives. Whatever it does, its transpose is linear: so adjoints of any size pass through
it, as those of 2^64 times the same size at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend import core
from jax.interpreters.partial_eval import dce_jaxpr

from gradlab.bptt.passes import is_inexact, wide
from gradlab.bptt.scaling import ZERO, Scaled, shift

BAND, BAND_OF_HALF = 64, 8
"""How far, in powers of two, cotangents that are pulled back together may lie apart."""


class Between:
    """A traced function, whose results can be transposed one by one.

    Args:
      function: of ``arguments``; any pytrees.
      arguments: where it is traced.

    Attributes:
      leaves: those of the arguments.
      arguments, results: their trees, with the position of each leaf.
    """

    def __init__(self, function: Callable[..., Any], *arguments: Any):
        self._closed, shapes = jax.make_jaxpr(function, return_shape=True)(*arguments)
        self.leaves, tree = jax.tree.flatten(arguments)
        self.arguments: Any = tree.unflatten(range(len(self.leaves)))
        self._shapes, tree = jax.tree.flatten(shapes)
        self.results: Any = tree.unflatten(range(len(self._shapes)))

    def live(self, results: Any) -> list[int]:
        """The positions, of some results, that have a derivative."""
        return [at for at in jax.tree.leaves(results) if is_inexact(self._shapes[at])]

    def reads(self, results: Any) -> list[int]:
        """The positions of the leaves of the arguments that some results are computed from."""
        wanted = set(jax.tree.leaves(results))
        outputs = [at in wanted for at in range(len(self._shapes))]
        _, used = dce_jaxpr(self._closed.jaxpr, outputs)
        return [at for at, one in enumerate(used) if one and is_inexact(self.leaves[at])]

    def transpose(self, results: Any) -> tuple[list[int], Callable[[Sequence[jax.Array]], Any]]:
        """Which leaves :meth:`reads`, and the map from cotangents of :meth:`live` to theirs."""
        reads, live = self.reads(results), self.live(results)

        def part(*values: jax.Array) -> list[jax.Array]:
            leaves = list(self.leaves)
            for at, value in zip(reads, values, strict=True):
                leaves[at] = value
            found = core.jaxpr_as_fun(self._closed)(*leaves)
            return [found[at] for at in live]

        _, pull = jax.vjp(part, *(self.leaves[at] for at in reads))
        types = [self._shapes[at].dtype for at in live]

        def transposed(cotangents: Sequence[jax.Array]) -> Any:
            each = zip(cotangents, types, strict=True)
            return wide(pull([one.astype(dtype) for one, dtype in each]))

        return reads, transposed


def in_bands(
    pull: Callable[[Sequence[jax.Array]], Sequence[jax.Array]],
    cotangents: Sequence[Scaled],
    axes: Sequence[int | None],
    like: Sequence[jax.Array],
) -> list[Any]:
    """A linear map of cotangents of any size.

    Those within 2^64 of the largest go through it together, then the next: what the map itself
    joins it joins in plain numbers, and what it keeps apart loses nothing.

    Args:
      pull: the map.
      cotangents: of single arrays, normalised.
      axes: of each result how many leading axes have an exponent of their own; None: it is wanted
        in plain numbers.
      like: arrays of the results' shapes.

    Returns:
      For each result a :class:`gradlab.bptt.scaling.Scaled`, or an array.
    """
    width = BAND_OF_HALF if any(leaf.dtype.itemsize == 2 for leaf in like) else BAND
    nothing = [jnp.zeros_like(wide(leaf)) for leaf in like]
    empty = [
        leaf if own is None else Scaled.of(leaf, own)
        for leaf, own in zip(nothing, axes, strict=True)
    ]

    def left(state: Any) -> jax.Array:
        return _highest(state[0]) > ZERO

    def band(state: Any) -> Any:
        exponents, totals = state
        top = _highest(exponents)
        now = [exponent > jnp.maximum(top - width, ZERO) for exponent in exponents]
        given = [
            shift(only(one.mantissa, own), jnp.where(own, exponent - top, 0))
            for one, own, exponent in zip(cotangents, now, exponents, strict=True)
        ]
        found = [_at(*one, top) for one in zip(pull(given), axes, strict=True)]
        totals = [
            one.add(more) if isinstance(one, Scaled) else one + more
            for one, more in zip(totals, found, strict=True)
        ]
        rest = [jnp.where(own, ZERO, e) for own, e in zip(now, exponents, strict=True)]
        return rest, totals

    start = [one.exponent for one in cotangents], empty
    return lax.while_loop(left, band, start)[1]


def _highest(exponents: Sequence[jax.Array]) -> jax.Array:
    return jnp.max(jnp.stack([jnp.max(exponent) for exponent in exponents]))


def only(leaf: jax.Array, wanted: jax.Array) -> jax.Array:
    """What is wanted of a leaf, by its leading axes; else 0."""
    return jnp.where(wanted.reshape(wanted.shape + (1,) * (leaf.ndim - wanted.ndim)), leaf, 0)


def _at(leaf: jax.Array, axes: int | None, exponent: jax.Array) -> Any:
    if axes is None:
        return shift(leaf, exponent)
    own = Scaled.of(leaf, axes)
    return own._replace(exponent=jnp.where(own.exponent == ZERO, ZERO, own.exponent + exponent))
