"""Gradient flossing: Lyapunov exponents pushed to where gradients survive."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp

from gradlab.closeup import Closeup, LayerView
from gradlab.errors import BadInput
from gradlab.products import qr_growth
from gradlab.regularizers.base import Regularizer


@dataclass(frozen=True)
class Flossing(Regularizer):
    """Asks the largest Lyapunov exponents to be 0, so that directions neither die nor explode.

    Definition: with λ_i the finite-time Lyapunov exponents of an example (by QR over its real
    steps, nats per step), ``(1/k) Σ_{i ≤ k} (λ_i - target)²``; the mean over layers and examples.
    Differentiated through everything, states and Jacobians alike.

    An example in which one of the k directions is lost (k exceeds the rank of a step Jacobian, as
    with dead ReLUs or exactly saturated units) has an exponent of minus infinity, which no gradient
    can lift; it is left out of the mean, and so is one whose derivative is not finite.
    :meth:`check_model` refuses a model where that is every example.

    Source: Engelken (2023), "Gradient flossing".

    Cost: O(T E S²) memory for the step Jacobians, and T/interval QR decompositions of (S, k) for
    each example with their derivatives: far above a plain gradient, so that few examples are used.

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
        if self.exponents < 1:
            raise self._bad("exponents", "a number of exponents, at least 1")
        if not math.isfinite(self.target):
            raise self._bad("target", "a finite number of nats per step")
        if self.interval < 1:
            raise self._bad("interval", "a number of steps, at least 1")

    def penalty(self, closeup: Closeup) -> jax.Array:
        """See the class; ()."""
        found = [self._exponents(layer) for layer in closeup.layers]
        alive = jnp.stack([alive for _, alive in found])
        distance = jnp.stack([jnp.mean(jnp.square(own - self.target), -1) for own, _ in found])
        return jnp.sum(jnp.where(alive, distance, 0)) / jnp.maximum(jnp.sum(alive), 1)

    def check_model(self, closeup: Closeup) -> None:
        """Refuse a model that keeps fewer directions than are asked for; see the base."""
        super().check_model(closeup)
        alive = [jnp.any(self._exponents(layer)[1]) for layer in closeup.layers]
        if not any(bool(one) for one in alive):
            raise BadInput(
                "trainer.flossing.exponents",
                self.exponents,
                "no more exponents than directions that survive every step (the rank of the step"
                " Jacobians)",
                f"trainer.flossing.exponents={max(self.exponents // 2, 1)}",
            )

    def _exponents(self, layer: LayerView) -> tuple[jax.Array, jax.Array]:
        """``(E, k)`` exponents of one layer, 0 where not alive, and ``(E,)`` whether alive."""
        jacobians = layer.jacobian
        count = min(self.exponents, jacobians.shape[-1])
        growth = qr_growth(_finite_gradient(jacobians), count, self.interval)
        # What falls this far behind within an interval is rounding and no direction any more.
        depth = math.log(10 * jnp.finfo(growth.dtype).eps)
        behind = growth - jnp.max(growth, axis=-1, keepdims=True)
        alive = jnp.all(jnp.isfinite(growth) & (behind > depth), axis=(0, 2))
        real = jnp.maximum(jnp.sum(layer.mask, axis=0), 1)
        total = jnp.sum(jnp.where(alive[:, None], growth, 0), axis=0)
        return total / real[:, None], alive & jnp.any(layer.mask, axis=0)


@jax.custom_vjp
def _finite_gradient(jacobians: jax.Array) -> jax.Array:
    """The same ``(T, E, S, S)``; an example whose cotangent is not finite gets none at all."""
    return jacobians


def _forward(jacobians: jax.Array) -> tuple[jax.Array, None]:
    return jacobians, None


def _backward(_: None, cotangent: jax.Array) -> tuple[jax.Array]:
    finite = jnp.all(jnp.isfinite(cotangent), axis=(0, 2, 3), keepdims=True)
    return (jnp.where(finite, cotangent, 0),)


_finite_gradient.defvjp(_forward, _backward)
