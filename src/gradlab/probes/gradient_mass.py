"""How many steps back most of the gradient lies."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from gradlab.errors import number
from gradlab.probes.base import Seen, Setting, StepProbe, pow10, state_log10
from gradlab.variable import Variable


@dataclass(frozen=True)
class GradientMass(StepProbe):
    """How many of the last steps hold 95 % of the adjoints' norms.

    Definition: with ``a_t = ‖∂ℓ/∂s_t‖`` of the whole state s and ``A(n)`` the sum of a_t over the
    last n real steps of an example, linear between integers, ``gradient_mass_horizon`` is the
    smallest n with ``A(n) = share · A(T)``; the mean over examples. It is ``share · T`` for a flat
    curve, and below 1 where all of it is at the last step. Examples without any adjoint are left
    out.

    Source: none; the step-wise norms are those of Pascanu, Mikolov & Bengio (2013).

    Cost: O(T B) beside the adjoints that are seen anyway.

    Mask: counted in real steps from each example's own end, to its own sum; the mean is over
    examples of different lengths, so that the horizon of a padded batch mixes their windows.

    Limits: at most T, however slowly the gradient falls. What is 10^-38 of the largest norm counts
    as nothing beside it.

    How to read it: the window that backpropagation truly uses. Truncating it further back than this
    changes little. Where ``memory_horizon`` finds the first fall by e, this one weighs the whole
    curve: a long low tail, or a second hump, counts by its area.

    Args:
      share: of the sum, above 0 and below 1.
    """

    share: float = 0.95

    def __post_init__(self):
        number("probe.measure.gradient_mass.share", self.share, 0, 1, "()")

    def variables(self, setting: Setting) -> dict[str, Variable]:
        """One variable over layers."""
        name = f"last steps that hold {self.share:g} of the sum of |∂ℓ/∂s_t|"
        return {"gradient_mass_horizon": Variable(("layer",), "steps", name)}

    def __call__(self, seen: Seen) -> dict[str, jax.Array]:
        """See the class."""
        log10 = jnp.where(seen.mask, state_log10(seen.adjoints), -jnp.inf)
        found = mass_horizon(log10[:, ::-1], seen.mask[:, ::-1], self.share)
        some = jnp.any(log10 != -jnp.inf, axis=1)
        total = jnp.sum(jnp.where(some, found, 0), axis=-1)
        return {"gradient_mass_horizon": total / jnp.sum(some, axis=-1).astype(total.dtype)}


def mass_horizon(log10: jax.Array, mask: jax.Array, share: float) -> jax.Array:
    """The horizon of curves over lag, ``(L, T, B) -> (L, B)``; nan if nothing or not finite."""
    # Relative to the largest: what underflows then is nothing beside it.
    mass = pow10(log10 - jnp.max(log10, axis=1, keepdims=True))
    upto = jnp.cumsum(mass, axis=1)
    wanted = share * upto[:, -1:]
    last = jnp.argmax(upto >= wanted, axis=1, keepdims=True)
    mass_there, upto_there, steps = (
        jnp.take_along_axis(array, last, axis=1)[:, 0]
        for array in (mass, upto, jnp.cumsum(mask, axis=1))
    )
    return steps.astype(mass.dtype) - (upto_there - wanted[:, 0]) / mass_there
