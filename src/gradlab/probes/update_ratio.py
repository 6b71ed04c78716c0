"""How far one step moves each parameter."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from gradlab.probes.base import Seen, Setting, StepProbe, Unsupported, norm
from gradlab.variable import Variable


@dataclass(frozen=True)
class UpdateRatio(StepProbe):
    """``‖Δθ‖ / ‖θ‖`` for each parameter array, Δθ being what the optimizer adds.

    Definition: the 2-norm of what one step adds to an array over that of the array before it.

    Source: the notes of Stanford's course CS231n (2015), "Neural Networks Part 3", ratio of
    weights to updates.

    Cost: O(|θ|), no memory.

    Mask: padded steps have no part in the gradients, and so none in the update.

    Limits: of a whole array: single units may move much further. The optimizer's state is in it, so
    that after one large gradient it stays up for as long as the moments remember. Right to
    rounding at any size.

    How to read it: around 10^-3 is a common healthy size. Much larger, and a few steps rewrite the
    parameter; much smaller, and it hardly learns. nan where the parameter is exactly zero, as a
    bias is before its first step.
    """

    def variables(self, setting: Setting) -> dict[str, Variable]:
        """One variable over parameters."""
        if not setting.trains:
            raise Unsupported("there is no optimizer here that would update the parameters")
        return {"update_ratio": Variable(("parameter",), "1", "update ratio |Δθ|/|θ|")}

    def __call__(self, seen: Seen) -> dict[str, jax.Array]:
        """See the class."""
        ratios = []
        for name, update in seen.updates.items():
            size = norm(seen.params[name])
            ratios.append(jnp.where(size > 0, norm(update) / jnp.where(size > 0, size, 1), jnp.nan))
        return {"update_ratio": jnp.stack(ratios)}
