"""Slow, independent ways to the numbers that the unroll gives."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx


def as_float64(module: nnx.Module) -> nnx.Module:
    """A copy of a cell or model with float64 parameters, for use under ``jax.enable_x64``."""
    graph, state = nnx.split(module)
    wide = jax.tree.map(
        lambda a: (
            jnp.asarray(np.asarray(a, np.float64)) if jnp.issubdtype(a.dtype, jnp.floating) else a
        ),
        state,
    )
    copy = nnx.merge(graph, wide)
    for _, node in nnx.iter_graph(copy):
        if getattr(node, "dtype", None) is jnp.float32:
            node.dtype = jnp.float64
    return copy


def flat(carry: Any) -> jax.Array:
    """One example's state as a vector ``(S,)``."""
    return jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(carry)])


class Walk(NamedTuple):
    """What each of some examples goes through, by the cell alone.

    Attributes:
      before, after: ``(T, E, S)``, the packed states.
      jacobians: ``(T, E, S, S)``, of each step's new state by the old one; rows = output.
      parts: the slice of each leaf of the carry in S; the last is h.
    """

    before: np.ndarray
    after: np.ndarray
    jacobians: np.ndarray
    parts: list[slice]


def walked(cell: nnx.RNNCellBase, inputs: Any) -> Walk:
    """Explicit float64 step Jacobians along the way from a state of zeros.

    Args:
      cell: with float64 parameters.
      inputs: ``(T, E, I)``.
    """
    first = cell.initialize_carry((1, inputs.shape[-1]), nnx.Rngs(0))
    leaves, tree = jax.tree.flatten(first)
    sizes = np.cumsum([0, *(leaf.size for leaf in leaves)])

    def step(state: jax.Array, x: jax.Array) -> jax.Array:
        return flat(cell(jax.tree.unflatten(tree, jnp.split(state, sizes[1:-1])), x)[0])

    def along(state: jax.Array, x: jax.Array) -> Any:
        new = jax.vmap(step)(state, x)
        return new, (state, new, jax.vmap(jax.jacfwd(step))(state, x))

    start = jnp.zeros((inputs.shape[1], sizes[-1]), jnp.float64)
    walk = jax.jit(lambda inputs: jax.lax.scan(along, start, inputs)[1])
    found = map(np.asarray, walk(jnp.asarray(inputs, jnp.float64)))
    return Walk(*found, [slice(int(a), int(b)) for a, b in pairwise(sizes)])


def jacobian_product_adjoints(jacobians: np.ndarray, direct: np.ndarray) -> np.ndarray:
    """``(T, E, S)``: ∂ℓ/∂s_t from step Jacobians multiplied in order.

    Args:
      jacobians: as in :class:`Walk`.
      direct: ``(T, E, S)``, the part of each adjoint that does not come through the next state.
    """
    adjoints = direct.copy()
    for t in reversed(range(len(direct) - 1)):
        adjoints[t] += np.einsum("eij,ei->ej", jacobians[t + 1], adjoints[t + 1])
    return adjoints
