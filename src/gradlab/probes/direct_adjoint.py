"""Where the gradient enters: the part of an adjoint that no later step of the layer brings."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from gradlab.bptt import scaling
from gradlab.bptt.closeup import Closeup
from gradlab.probes.base import CloseProbe, Setting, both_means
from gradlab.variable import Variable, over_lag


@dataclass(frozen=True)
class DirectAdjoint(CloseProbe):
    """log10 of the norm of ∂⁺ℓ/∂h_t, the gradient that reaches h_t without passing through h_{t+1}.

    Definition: the total adjoint obeys ``∂ℓ/∂s_t = ∂⁺ℓ/∂s_t + J_{t+1}ᵀ ∂ℓ/∂s_{t+1}``.
    ``adj_h_direct_log10`` is the log10 of the 2-norm of the first term, in which time has not
    passed in this layer: it comes from the readout, or from the layer above, in which time may
    have passed. Per example, then the mean over the examples in which it is not exactly zero; -inf
    where it is in all of them. Where the output is made of h, it comes through that:
    ``(∂y_t/∂h_t)ᵀ ∂ℓ/∂y_t``.

    Source: the immediate derivative ∂⁺ in Pascanu, Mikolov & Bengio (2013), equations 3 and 4.

    Cost: O(T E H), on top of the adjoints that all close probes share.

    Mask: padding is left out, and receives nothing. Over the lag the readout of each example stands
    at 0, over t at its own last real step.

    Limits: of the first ``probe.examples`` examples only; right to float32 for each.

    How to read it: beside ``adj_h_log10``. With a loss at the end only, the top layer shows one
    point, at the last step, and -inf elsewhere: all that arrives earlier was carried there by the
    recurrence. With a loss at every step the curve is roughly flat, and an adjoint that lies on it
    says that nothing comes from later: the step is taught by its own loss alone. An adjoint far
    above it is carried from later steps; one below it is cancelled by them. In a lower layer the
    curve shows what the layer above has carried back.
    """

    def variables(self, setting: Setting) -> dict[str, Variable]:
        """One variable over layers and time, and by lag."""
        name = "mean immediate adjoint norm |∂⁺ℓ/∂h_t|"
        found = {"adj_h_direct_log10": Variable(("layer", "t"), "log10", name)}
        return found | over_lag(found)

    def __call__(self, closeup: Closeup) -> dict[str, jax.Array]:
        """See the class."""
        log10 = jnp.stack([scaling.log10_norm(*view.direct) for view in closeup.layers])
        mask = jnp.stack([view.mask for view in closeup.layers])
        return both_means("adj_h_direct_log10", log10, mask)
