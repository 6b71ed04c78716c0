"""How much of a change of the state is left at the end of the sequence."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from gradlab.bptt.closeup import Closeup
from gradlab.bptt.products import suffix_norms
from gradlab.errors import whole_number
from gradlab.probes.base import CloseProbe, Setting, both_means, over_layers
from gradlab.variable import Variable, over_lag


@dataclass(frozen=True)
class LongJacobian(CloseProbe):
    """Norms of the long-term Jacobian from every timestep to the end.

    Definition: ``J_{T:t} = ∂s_{T-1}/∂s_t = J_{T-1} ⋯ J_{t+1}``, the product of the step Jacobians
    with the later factor on the left; T is the example's own length. ``long_jacobian_log10`` is
    log10 of its largest singular value, ``long_jacobian_log10_frobenius`` of its Frobenius norm.
    Mean over examples of the logs, over those with a nonzero value.

    Source: Pascanu, Mikolov & Bengio (2013), equation 5; Bengio, Simard & Frasconi (1994).

    Cost: the Jacobians; O(T E S³) time, a product at each step and then, of all products at once,
    the largest singular value: by a decomposition up to S = 32, by sixteen Lanczos steps above.
    All products are kept for that: O(T E S²) memory beside the Jacobians.

    Mask: a step of padding is the identity; the product ends at each example's own last real step.

    Limits: the largest singular value is never above the true one but by rounding, and within 1e-3
    of its log10. One example by default (``examples``).

    How to read it: the largest factor by which any gradient at the end can be scaled on its way to
    t, whatever the loss. The adjoint lies below it: it is one vector, which need not lie along the
    strongest direction. Where both fall together the network cannot transport; where this one
    stays up and the adjoint falls, the loss does not ask for it. The Frobenius norm counts all
    directions and lies at most ½ log10 S above; a gap near that says that all survive alike.

    Args:
      examples: how many of the examples looked at are used; all if there are fewer.
    """

    examples: int = 1

    def __post_init__(self):
        """Refuse what cannot be for any model."""
        whole_number("probe.measure.long_jacobian.examples", self.examples, 1)

    def variables(self, setting: Setting) -> dict[str, Variable]:
        """Two variables, and by lag."""
        what = "of the long-term Jacobian ∂s_T/∂s_t"
        found = {
            "long_jacobian_log10": Variable(
                ("layer", "t"), "log10", f"largest singular value {what}"
            ),
            "long_jacobian_log10_frobenius": Variable(
                ("layer", "t"), "log10", f"Frobenius norm {what}"
            ),
        }
        return found | over_lag(found)

    def __call__(self, closeup: Closeup) -> dict[str, jax.Array]:
        """See the class."""
        layers = closeup.first(self.examples)
        largest, frobenius = over_layers(lambda layer: suffix_norms(layer.transport), layers)
        mask = jnp.stack([layer.mask for layer in layers])
        return {
            **both_means("long_jacobian_log10", largest, mask),
            **both_means("long_jacobian_log10_frobenius", frobenius, mask),
        }
