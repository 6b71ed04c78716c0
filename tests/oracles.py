"""Slow, independent ways to the numbers that the unroll gives."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx


def as_float64(module: nnx.Module) -> nnx.Module:
    """A copy of a cell or model with float64 parameters, for use under ``jax.enable_x64``."""
    graph, state = nnx.split(module)
    wide = jax.tree.map(
        lambda a: a.astype(jnp.float64) if jnp.issubdtype(a.dtype, jnp.floating) else a, state
    )
    copy = nnx.merge(graph, wide)
    for _, node in nnx.iter_graph(copy):
        if getattr(node, "dtype", None) is jnp.float32:
            node.dtype = jnp.float64
    return copy


def flat(carry: Any) -> jax.Array:
    """One example's state as a vector ``(S,)``."""
    return jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(carry)])


def jacobian_product_adjoints(
    cell: nnx.RNNCellBase, inputs: np.ndarray, carry: Any, loss: Callable[[jax.Array], jax.Array]
) -> tuple[np.ndarray, list[slice]]:
    """∂ℓ/∂s_t for one example, from explicit float64 step Jacobians multiplied in order.

    Args:
      cell: with float64 parameters.
      inputs: ``(T, I)``.
      carry: the first state, leaves ``(H,)``.
      loss: from the outputs ``(T, H)`` to a number.

    Returns:
      ``(T, S)`` adjoints and the slice of each leaf in S.
    """
    leaves, tree = jax.tree.flatten(carry)
    sizes = np.cumsum([0, *(leaf.size for leaf in leaves)])
    parts = [slice(int(a), int(b)) for a, b in pairwise(sizes)]

    def step(vector: jax.Array, x: jax.Array) -> jax.Array:
        state = jax.tree.unflatten(
            tree, [vector[p].reshape(leaf.shape) for p, leaf in zip(parts, leaves, strict=True)]
        )
        return flat(cell(state, x)[0])

    states, jacobians = [], []
    vector = flat(carry)
    for x in inputs:
        jacobians.append(np.asarray(jax.jacfwd(step)(vector, jnp.asarray(x))))
        vector = step(vector, jnp.asarray(x))
        states.append(np.asarray(vector))
    hidden = parts[-1]
    outputs = jnp.stack([jnp.asarray(state[hidden]) for state in states])
    direct = np.zeros((len(inputs), int(sizes[-1])))
    direct[:, hidden] = np.asarray(jax.grad(loss)(outputs))
    adjoints = np.zeros_like(direct)
    later = np.zeros(int(sizes[-1]))
    for t in reversed(range(len(inputs))):
        later = direct[t] + (jacobians[t + 1].T @ later if t + 1 < len(inputs) else 0)
        adjoints[t] = later
    return adjoints, parts
