"""How much of an old state is left at the end, gate by gate."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import lax

from gradlab.probes.base import Seen, Setting, StepProbe, Unsupported, mean_log10
from gradlab.variable import Variable


@dataclass(frozen=True)
class ForgetProduct(StepProbe):
    """log10 of the product of the retention gate from t + 1 to the end of the sequence.

    Definition: ``∏_{k=t+1}^{T-1} f_k`` per unit and example, the mean over both of its log10. For
    the LSTM it is ∂c_T/∂c_t along the direct path, for the GRU the product of z.

    Source: Hochreiter & Schmidhuber (1997) for the path through the cell state; Gers, Schmidhuber &
    Cummins (2000) for the gate on it.

    Cost: O(T B H) beside the gates, which are computed again from the states for all probes
    together. Memory O(T B H).

    How to read it: beside ``adj_c_log10``, as the part of the gradient's fate that the gates alone
    decide. Where the adjoint falls more slowly than the product, the gradient finds its way
    through the hidden state instead.
    """

    def variables(self, setting: Setting) -> dict[str, Variable]:
        """One variable; its attribute ``gate`` names the gate."""
        if setting.retention is None:
            gates = ", ".join(setting.gates) or "none that can be seen"
            raise Unsupported(f"{setting.cell} has no retention gate (its gates: {gates})")
        name = f"mean forget product ∏_(k>t) {setting.retention}_k"
        attrs = {"gate": setting.retention}
        return {"forget_product_log10": Variable(("layer", "t"), "log10", name, attrs)}

    def __call__(self, seen: Seen) -> dict[str, jax.Array]:
        """See the class."""
        assert seen.retention is not None
        log10 = jnp.mean(jnp.log10(seen.retention), axis=-1)
        log10 = jnp.where(seen.mask, log10, 0)
        later = jnp.concatenate([log10[:, 1:], jnp.zeros_like(log10[:, :1])], axis=1)
        product = reverse_cumulative_sum(later, axis=1)
        return {"forget_product_log10": mean_log10(product, seen.mask)}


def reverse_cumulative_sum(terms: jax.Array, axis: int) -> jax.Array:
    """``out[t] = Σ_{k>=t} terms[k]``, to the last bit of float32 even over 5000 terms.

    Each partial sum is kept as a sum and its rounding error (Knuth's two-sum).
    """

    def add(a, b):
        (a_high, a_low), (b_high, b_low) = a, b
        high = a_high + b_high
        b_part = high - a_high
        error = (a_high - (high - b_part)) + (b_high - b_part)
        return high, error + (a_low + b_low)

    zeros = jnp.zeros_like(terms)
    high, low = lax.associative_scan(add, (terms, zeros), reverse=True, axis=axis)
    # An infinite sum has no rounding error; inf - inf would make it nan.
    return high + jnp.where(jnp.isfinite(high), low, 0)
