"""How large the gradient of each parameter is, before and after clipping."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from gradlab.probes.base import Seen, Setting, StepProbe, norm
from gradlab.variable import Variable


@dataclass(frozen=True)
class GradNorm(StepProbe):
    """The 2-norm of ∂L/∂θ for each parameter array, before and after clipping.

    Definition: ``‖∂L/∂θ‖₂`` over the entries of one array θ, with L the mean loss of the batch, and
    the same of what clipping leaves of it; with no clipping both are equal.

    Source: none; clipping by the norm: Pascanu, Mikolov & Bengio (2013), section 3.2.

    Cost: O(|θ|), no memory.

    Mask: the loss leaves padded steps out, so that they have no part in the gradient.

    Limits: of the mean loss of one batch, sampling noise included: the norm of a mean of B
    gradients that disagree is about 1/√B of theirs. The gradient itself is in plain float32, and
    parts of it below 10⁻³⁸ are 0; its norm is right at any size.

    How to read it: spikes before clipping that are level after it are exploding gradients being
    cut. A recurrent kernel whose norm is decades below the readout's is learning from the last few
    steps only.
    """

    def variables(self, setting: Setting) -> dict[str, Variable]:
        """Two variables over parameters."""
        return {
            "grad_norm": Variable(("parameter",), "loss/parameter", "gradient norm |∂L/∂θ|"),
            "grad_norm_postclip": Variable(
                ("parameter",), "loss/parameter", "gradient norm after clipping"
            ),
        }

    def __call__(self, seen: Seen) -> dict[str, jax.Array]:
        """See the class."""
        return {
            "grad_norm": jnp.stack([norm(grad) for grad in seen.grads.values()]),
            "grad_norm_postclip": jnp.stack([norm(grad) for grad in seen.clipped.values()]),
        }
