"""How far the long-term Jacobian is from keeping all lengths: its squared singular values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp

from gradlab.bptt.closeup import Closeup
from gradlab.bptt.products import suffix_moments
from gradlab.errors import whole_number
from gradlab.probes.base import CloseProbe, Setting, by_lag, mean_log10, over_layers
from gradlab.variable import Variable


@dataclass(frozen=True)
class Isometry(CloseProbe):
    """Dynamical isometry: mean and variance of the squared singular values, and how many count.

    Definition: ``J_{T:t} = J_{T-1} ⋯ J_{t+1}``, with ``back = T-1-t`` factors up to the example's
    own last real step, has S squared singular values σ². ``squared_singular_mean_log10`` is log10
    of their mean ``m``; ``squared_singular_variance`` is their variance over m², from 0 to S - 1;
    ``effective_rank = (Σσ²)²/Σσ⁴ = S/(1 + variance)``, their participation ratio, from 1 to S. Mean
    over examples, of logs those of the products that are not zero. Where a product is exactly zero
    it has no variance, and an effective rank of 0.

    Source: Pennington, Schoenholz & Ganguli (2017), "Resurrecting the sigmoid in deep learning
    through dynamical isometry": the mean is their χ^L, the variance σ²_{JJᵀ} over its square; Saxe,
    McClelland & Ganguli (2014) for the idea. Gao et al. (2017) for the participation ratio as a
    number of dimensions.

    Cost: the Jacobians; O(T E S³) time, two products at each step, and O(E S²) memory beside them.

    Mask: a step of padding is the identity, and the lag counts from each example's own last real
    step: padding changes nothing. Far back the curves rest on the longest examples alone.

    Limits: in float32, of an LSTM of 32 units over 200 steps, the mean is right to 5e-6 of its
    log10 and the variance to 1e-6 of itself; of orthogonal matrices the variance is 1e-11 and not
    0. No more than S - 1 can be seen, one direction being all; the theory of infinite width holds
    for a lag well below S: of products of L independent Gaussian matrices it has the variance L,
    and S = 100 gives 1.00 ± 0.02, 10.0 ± 0.9 and 29 ± 7 for L = 1, 10 and 30 (eight seeds), S = 64
    gives 26 ± 7 for the last. One example by default (``examples``).

    How to read it: isometry is a mean of 1 with no variance: the gradient comes back as it is,
    whatever its direction, as through an orthogonal matrix. A mean that falls is vanishing on the
    average. A mean near 1 with a large variance is not health: a few directions explode and the
    others are lost. The effective rank says how many directions carry what comes back; where it
    falls to 1 all that the far past can learn is one number.

    Args:
      examples: how many of the examples looked at are used; all if there are fewer.
    """

    preset: ClassVar[str] = "research"

    examples: int = 1

    def __post_init__(self):
        """Refuse what cannot be for any model."""
        whole_number("probe.measure.isometry.examples", self.examples, 1)

    def variables(self, setting: Setting) -> dict[str, Variable]:
        """Three variables over the lag."""
        dims, what = ("layer", "back"), "squared singular values of ∂s_T/∂s_t"
        return {
            "squared_singular_mean_log10": Variable(dims, "log10", f"mean of the {what}"),
            "squared_singular_variance": Variable(
                dims, "1", f"variance of the {what}, over their squared mean"
            ),
            "effective_rank": Variable(dims, "1", "effective rank of ∂s_T/∂s_t"),
        }

    def __call__(self, closeup: Closeup) -> dict[str, jax.Array]:
        """See the class."""
        layers = closeup.first(self.examples)
        log10, variance = over_layers(lambda layer: suffix_moments(layer.transport), layers)
        mask = jnp.stack([layer.mask for layer in layers])
        size = layers[0].transport.shape[-1]
        alive = log10 > -jnp.inf
        rank = jnp.where(alive, size / (1 + variance), 0)
        return {
            "squared_singular_mean_log10": mean_log10(*by_lag(log10, mask)),
            "squared_singular_variance": mean_log10(*by_lag(variance, mask & alive)),
            "effective_rank": mean_log10(*by_lag(rank, mask)),
        }
