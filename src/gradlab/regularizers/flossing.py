"""Gradient flossing: Lyapunov exponents pushed to where gradients survive."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax import lax

from gradlab.bptt.closeup import Closeup, LayerView
from gradlab.bptt.products import random_orthonormal
from gradlab.errors import BadInput, number, whole_number
from gradlab.regularizers.base import Regularizer


@dataclass(frozen=True)
class Flossing(Regularizer):
    """Asks the largest Lyapunov exponents to be 0, so that directions neither die nor explode.

    Definition: with λ_i the finite-time Lyapunov exponents of an example (by QR over its real
    steps, nats per step), ``(1/k) Σ_{i ≤ k} (λ_i - target)²``; the mean over layers and examples.
    Differentiated through everything, states and Jacobians alike.

    An example in which one of the k directions is lost (k exceeds the rank of a step Jacobian, as
    with dead ReLUs or exactly saturated units) has an exponent of minus infinity, which no gradient
    can lift; it is left out of the mean. :meth:`check_model` refuses a model where that is every
    example.

    Source: Engelken (2023), "Gradient flossing".

    Cost: k tangents of every step, T/interval QR decompositions of (S, k) for each example, and the
    derivatives of both, one step after another; memory O(T E k S). No Jacobian is formed. With 16
    exponents of 4 examples this took about ten plain gradients of a batch of 32 (H = 64, on two
    CPU cores), with 4 exponents three: use few of both.

    How to use it: before training (``alone`` steps on the penalty alone, then ``until`` equal to
    it), to begin from a network whose gradients reach all of the sequence; or again while it trains
    (``until: null``), with a small weight. Exponents at 0 let k directions of gradient pass at full
    strength. As many directions as the task must hold at once are enough; pushing all of them to 0
    leaves nothing that forgets. In a chaotic network the derivative through many states explodes
    itself: use a shorter sequence, or clip.

    Args:
      exponents: k, the largest ones that are pushed; at most the size of the state is used.
      target: where to, in nats per step.
      interval: steps between QR decompositions; at least 1. Too long, and rounding takes the
        smaller exponents.

    The others are as in :class:`gradlab.regularizers.base.Regularizer`.
    """

    name: ClassVar[str] = "flossing"

    alone: int = 100
    until: int | None = 100
    examples: int | None = 4
    exponents: int = 16
    target: float = 0.0
    interval: int = 1

    def check(self) -> None:
        """See the base."""
        super().check()
        whole_number("trainer.flossing.exponents", self.exponents, 1)
        number("trainer.flossing.target", self.target, -100, 100, otherwise=" of nats per step")
        whole_number("trainer.flossing.interval", self.interval, 1)

    def penalty(self, closeup: Closeup) -> jax.Array:
        """See the class; ()."""
        found = [self._exponents(layer) for layer in closeup.layers]
        alive = jnp.stack([alive for _, alive in found])
        distance = jnp.stack([jnp.mean(jnp.square(own - self.target), -1) for own, _ in found])
        count = jnp.maximum(jnp.sum(alive), 1).astype(distance.dtype)
        return jnp.sum(jnp.where(alive, distance, 0)) / count

    def check_model(self, closeup: Closeup) -> None:
        """Refuse a model that keeps fewer directions than are asked for; see the base."""
        super().check_model(closeup)
        if self.interval > closeup.length:
            whole_number("trainer.flossing.interval", self.interval, 1, closeup.length)
        if not any(self._exponents(layer)[1].any() for layer in closeup.layers):
            raise BadInput(
                "trainer.flossing.exponents",
                self.exponents,
                "no more exponents than directions that survive every step (the rank of the step"
                " Jacobians)",
                f"trainer.flossing.exponents={max(self.exponents // 2, 1)}",
            )

    def _exponents(self, layer: LayerView) -> tuple[jax.Array, jax.Array]:
        """``(E, k)`` exponents of one layer, 0 where not alive, and ``(E,)`` whether alive."""
        growth = tangent_growth(layer, self.exponents, self.interval)
        # What falls this far behind within an interval is rounding and no direction any more.
        depth = math.log(10 * jnp.finfo(growth.dtype).eps)
        behind = growth - jnp.max(growth, axis=-1, keepdims=True)
        alive = jnp.all(jnp.isfinite(growth) & (behind > depth), axis=(0, 2))
        real = jnp.sum(layer.mask, axis=0)
        total = jnp.sum(jnp.where(alive[:, None], growth, 0), axis=0)
        return total / jnp.maximum(real, 1)[:, None].astype(total.dtype), alive & (real > 0)


def tangent_growth(layer: LayerView, count: int, interval: int) -> jax.Array:
    """What :func:`gradlab.bptt.products.qr_growth` gives, without forming the Jacobians.

    Each step pushes ``count`` tangents forward, which costs ``count / S`` of its Jacobian, and far
    less again when it is differentiated.

    Returns:
      ``(T', E, count)`` in nats per interval, with ``count`` at most S.
    """
    length, examples, size = layer.before.shape
    missing = -length % interval
    reads = jax.tree.map(
        lambda array: jnp.pad(array, [(0, missing)] + [(0, 0)] * (array.ndim - 1)).reshape(
            -1, interval, *array.shape[1:]
        ),
        (layer.reads, layer.mask),
    )
    start = jnp.asarray(random_orthonormal(size, min(count, size)).T, layer.before.dtype)

    def through(rows: jax.Array, now: Any) -> tuple[jax.Array, None]:
        read, real = now
        _, push = jax.linearize(lambda state: layer.step(state, read), read.state)
        return jnp.where(real[:, None, None], jax.vmap(push, 1, 1)(rows), rows), None

    def over(rows: jax.Array, group: Any) -> tuple[jax.Array, jax.Array]:
        grown, _ = lax.scan(through, rows, group)
        q, r = jnp.linalg.qr(_finite_gradient(grown).mT)
        return q.mT, jnp.log(jnp.abs(jnp.diagonal(r, axis1=-2, axis2=-1)))

    return lax.scan(over, jnp.broadcast_to(start, (examples, *start.shape)), reads)[1]


@jax.custom_vjp
def _finite_gradient(rows: jax.Array) -> jax.Array:
    """The same ``(E, k, S)``; an example whose cotangent is not finite gets none.

    The derivative of a QR decomposition is nan where a direction is lost, even for an example that
    counts for nothing.
    """
    return rows


def _forward(rows: jax.Array) -> tuple[jax.Array, None]:
    return rows, None


def _backward(_: None, cotangent: jax.Array) -> tuple[jax.Array]:
    finite = jnp.all(jnp.isfinite(cotangent), axis=(1, 2), keepdims=True)
    return (jnp.where(finite, cotangent, 0),)


_finite_gradient.defvjp(_forward, _backward)
