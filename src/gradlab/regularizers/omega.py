"""The vanishing-gradient penalty Ω."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
from jax import lax

from gradlab.bptt import scaling
from gradlab.bptt.closeup import Closeup, LayerView
from gradlab.regularizers.base import Regularizer


@dataclass(frozen=True)
class Omega(Regularizer):
    """Asks every step to keep the norm of the gradient that actually passes through it.

    Definition: ``Ω = Σ_t (‖(∂ℓ/∂s_{t+1}) J_{t+1}‖ / ‖∂ℓ/∂s_{t+1}‖ - 1)²`` over the real steps after
    the first, with s the whole state; the mean over examples, the sum over layers. A step whose
    adjoint is exactly zero adds nothing. The adjoint is that of the true loss, whatever
    ``trainer.backward`` cuts. As in the paper, only the immediate derivative is taken:
    states and adjoints are constants, and J_{t+1} depends on the parameters only directly.

    Source: Pascanu, Mikolov & Bengio (2013), equations 9 and 10.

    Cost: one more transposed step and its derivative at each t, all in parallel over time, beside
    one forward and one backward pass for the adjoints.

    How to use it: from the first step on, beside the task's loss. The sum grows with the length of
    the sequence, so that longer ones need a smaller weight. It fights vanishing and explosion
    alike, along the direction of the error only, and leaves the other directions free; clip the
    gradient besides.

    Args: as :class:`gradlab.regularizers.base.Regularizer`.
    """

    name: ClassVar[str] = "omega"

    def penalty(self, closeup: Closeup) -> jax.Array:
        """See the class; ()."""
        return jnp.sum(jnp.stack([omega(layer) for layer in closeup.layers]))


def omega(layer: LayerView) -> jax.Array:
    """Ω of one layer, the mean over examples, ()."""
    adjoint = lax.stop_gradient(layer.adjoint.mantissa)
    reads = jax.tree.map(lambda leaf: lax.stop_gradient(leaf[1:]), layer.reads)
    counts = layer.mask[1:] & layer.mask[:-1] & jnp.any(adjoint[1:] != 0, axis=-1)
    # What is not counted may be nan, whose gradient no mask after the fact would keep out.
    adjoint = jnp.where(counts[..., None], adjoint[1:], 0)
    _, pull = jax.vjp(lambda states: jax.vmap(layer.step)(states, reads), reads.state)
    log2_ratio = _log2_norm(pull(adjoint)[0]) - _log2_norm(adjoint)
    ratio = jnp.exp2(jnp.where(counts, log2_ratio, 0))
    return jnp.sum(jnp.square(ratio - 1)) / layer.mask.shape[1]


def _log2_norm(vectors: jax.Array) -> jax.Array:
    """log2 of the 2-norms of ``(T, E, S)``, with gradient 0 at exactly 0 (where it is -inf)."""
    exponent = scaling.exponent_of(scaling.magnitude(lax.stop_gradient(vectors), 2))
    near_one = vectors * scaling.pow2(-exponent, vectors.dtype)[..., None]
    squares = jnp.sum(jnp.square(near_one), axis=-1)
    log2 = 0.5 * jnp.log2(jnp.where(squares > 0, squares, 1)) + exponent.astype(squares.dtype)
    return jnp.where(squares > 0, log2, -jnp.inf)
