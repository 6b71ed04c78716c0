"""Whether what reaches far back is one direction, whatever was asked at the end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
from jax import lax

from gradlab.bptt.closeup import Closeup, LayerView
from gradlab.bptt.products import random_orthonormal
from gradlab.bptt.scaling import Scaled
from gradlab.bptt.steps import Read
from gradlab.probes.base import CloseProbe, Setting, by_lag, over_layers
from gradlab.variable import Variable


@dataclass(frozen=True)
class AdjointAlignment(CloseProbe):
    """How much the adjoints of different lags, and of different examples, point the same way.

    Definition: with ``a_k = ∂ℓ/∂s`` the total adjoint of the whole state, k steps back from the
    example's own last real step, and ``|cos(a, b)| = |⟨a, b⟩| / (‖a‖ ‖b‖)``:
    ``adjoint_cosine_end_over_lag`` is ``|cos(a_k, a_0)|``; ``adjoint_cosine_next_over_lag`` is
    ``|cos(a_k, a_{k-1})|``, nan at k = 0; ``adjoint_cosine_examples_over_lag`` is ``|cos|`` between
    an example and the next one (after the last comes the first) at the same k, nan if there is one
    alone; ``adjoint_cosine_lyapunov_over_lag`` is ``|cos(a_k, v_k)|``, where ``v_k`` is the
    direction to which the transport pulls every vector: ``v_0`` is fixed and random, and ``v_k`` is
    ``J^T v_{k-1}`` brought to length 1, whatever the loss; J is the network's own, also where
    ``trainer.backward`` cuts a way of the adjoint. Means over the examples whose adjoints
    there are not zero, and that go so far back; nan if there are none.

    Source: Oseledets (1968) for the direction; Legras & Vautard (1996) and Kuptsov & Parlitz (2012)
    call it the leading forward Lyapunov vector, since the future makes it: of the long-term
    Jacobian from here to the end it is the leading right singular vector.

    Cost: one backward pass of the layer for the direction, beside that for the adjoints; O(T E S)
    memory, and no Jacobian.

    Mask: lags count from each example's own last real step, in the order in which the direction
    reads, and a padded step enters neither a mean nor a direction. At a long lag the mean is over
    the longer examples alone; a pair needs both.

    Limits: two random directions in S dimensions have ``|cos|`` of about ``0.8/√S``, and ``v_k``
    begins as one: near the end it says nothing. It comes to its direction as fast as the two
    largest Lyapunov exponents are apart, ``exp(-(λ_1 - λ_2) k)``; where they are equal, as with a
    pair of complex eigenvalues, both turn on without coming to rest. With few examples the mean
    between examples is rough. In float32 a cosine is right to about 10⁻⁶, so that 1 - cos below
    that is 1.

    How to read it: near 1 in all of them far back says that what is left of the gradient is one
    direction: every example and every loss then teaches the early steps the same thing, only with
    another factor, and what it asks for is lost but for one number. Low between examples although
    high from one lag to the next: each example keeps a way of its own. Low from one lag to the
    next: the transport turns the gradient, as a rotation or a chaotic network does. With a loss at
    every step the adjoint also holds what comes in late and has not yet been turned.
    """

    preset: ClassVar[str] = "research"

    def variables(self, setting: Setting) -> dict[str, Variable]:
        """Four curves over lag."""
        with_what = {
            "end": "that at lag 0",
            "next": "that one step later",
            "examples": "that of another example at the same lag",
            "lyapunov": "the direction to which the transport pulls every vector",
        }
        return {
            f"adjoint_cosine_{name}_over_lag": Variable(
                ("layer", "back"), "1", f"|cos| of the adjoint with {what}, by lag"
            )
            for name, what in with_what.items()
        }

    def __call__(self, closeup: Closeup) -> dict[str, jax.Array]:
        """See the class."""
        return over_layers(alignment, closeup.layers)


def alignment(layer: LayerView) -> dict[str, jax.Array]:
    """The four curves of one layer, ``(T,)`` each."""
    adjoint, real = _by_own_lag(layer.adjoint.mantissa, layer.mask)
    pulled, _ = _by_own_lag(pulled_direction(layer), layer.mask)
    unit = jnp.where(real[..., None], _unit(adjoint), jnp.nan)
    later = jnp.concatenate([jnp.full_like(unit[:1], jnp.nan), unit[:-1]])
    other = jnp.roll(unit, -1, axis=1) if unit.shape[1] > 1 else jnp.full_like(unit, jnp.nan)
    partners = {"end": unit[:1], "next": later, "examples": other, "lyapunov": pulled}
    return {
        f"adjoint_cosine_{name}_over_lag": _mean(jnp.abs(jnp.sum(unit * partner, axis=-1)))
        for name, partner in partners.items()
    }


def pulled_direction(layer: LayerView) -> jax.Array:
    """``(T, E, S)``: where the transposed Jacobians pull every vector, as unit vectors.

    At each example's last real step a random one. nan before a step that leaves nothing of it.
    """
    _, examples, size = layer.after.shape
    start = jnp.asarray(random_orthonormal(size, 1)[:, 0], layer.after.dtype)

    def back(direction: jax.Array, now: tuple[Read, jax.Array]):
        read, real = now
        _, transpose = jax.vjp(lambda state: layer.step(state, read), read.state)
        (earlier,) = transpose(direction)
        return jnp.where(real[:, None], _unit(earlier), direction), direction

    start = jnp.tile(start, (examples, 1))
    return lax.scan(back, start, (layer.reads, layer.mask), reverse=True)[1]


def _by_own_lag(vectors: jax.Array, mask: jax.Array) -> tuple[jax.Array, jax.Array]:
    """``(T, E, S)`` and the mask by steps back from each example's own last real step."""
    one = jax.vmap(lambda part: by_lag(part[None], mask[None])[0][0], in_axes=-1, out_axes=-1)
    return one(vectors), by_lag(mask[None], mask[None])[1][0]


def _unit(vectors: jax.Array) -> jax.Array:
    """Vectors of length 1, ``(..., S)``; nan for zero and for what is not finite."""
    mantissa = Scaled.of(vectors, vectors.ndim - 1).mantissa
    return mantissa / jnp.linalg.norm(mantissa, axis=-1, keepdims=True)


def _mean(cosines: jax.Array) -> jax.Array:
    """Over examples ``(T, E) -> (T,)``, of those that are known; nan if none is."""
    return jnp.nanmean(jnp.minimum(cosines, 1), axis=-1)
