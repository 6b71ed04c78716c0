"""The bound of theory on how far a gradient can travel."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from gradlab.bptt.closeup import Closeup, LayerView
from gradlab.probes.base import CloseProbe, Setting, Unsupported, mean_log10, over_layers
from gradlab.variable import Variable


@dataclass(frozen=True)
class PascanuBound(CloseProbe):
    """An upper bound on the norm of the long-term Jacobian of a plain recurrent network.

    Definition: ``‖∂s_{T-1}/∂s_t‖₂ ≤ (γ σ_max(W))^lag``, recorded as ``lag · log10(γ σ_max(W))``,
    with W the recurrent matrix, σ_max its largest singular value and γ the largest slope of φ: 1
    for tanh, ReLU and the identity, 1/4 for the sigmoid. ``lag`` counts the real steps from t to
    the end of each example; the mean is over examples.

    Source: Pascanu, Mikolov & Bengio (2013), section 2: the bound on each factor of the long-term
    Jacobian, from which their sufficient condition for vanishing, ``γ σ_max(W) < 1``, follows.

    Cost: one singular value decomposition of W (H, H) for each layer, no memory over time.

    Mask: at each t the mean is over the examples that are real there, each with its own lag; a
    backward direction reads the padding first, where there is nothing to measure (nan).

    Limits: an upper bound at every T, exact for a linear network with a multiple of an orthogonal
    W and far above the norm for most others. The loss's own adjoint at the end is no part of it.
    σ_max is right to 10⁻⁶ in float32; times the lag, the log10 to 10⁻⁶ lag.

    How to read it: a straight line through 0 at the last step. Falling towards the far past, it
    proves that gradients vanish, whatever the input. Rising, it proves nothing: it only permits
    explosion. The distance down to the measured norm is what saturated units and directions that W
    does not favour take away.
    """

    def variables(self, setting: Setting) -> dict[str, Variable]:
        """One variable over layers and time."""
        if not setting.activation:
            raise Unsupported(
                f"{setting.cell} is not h' = φ(W h + drive) with a φ whose steepest slope is known"
                " (tanh, relu, sigmoid, identity)"
            )
        name = "bound (γ σ_max)^lag on the long-term Jacobian's norm"
        return {"pascanu_bound_log10": Variable(("layer", "t"), "log10", name)}

    def __call__(self, closeup: Closeup) -> dict[str, jax.Array]:
        """See the class."""
        return {"pascanu_bound_log10": over_layers(bound, closeup.layers)}


def bound(layer: LayerView) -> jax.Array:
    """The bound of one layer, ``(T,)``."""
    plain = layer.plain_rnn
    assert plain is not None
    (matrix,) = layer.recurrent_matrices.values()
    rate = jnp.log10(plain.steepest * jnp.linalg.norm(matrix, 2))
    lag = layer.lag.astype(rate.dtype)
    # At lag 0 the bound is that of the identity, even where W is 0 and its rate -inf.
    log10 = jnp.where(lag > 0, lag * jnp.where(lag > 0, rate, 0), 0)
    return mean_log10(log10, layer.mask)
