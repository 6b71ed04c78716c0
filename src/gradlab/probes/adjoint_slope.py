"""How fast the gradient vanishes or explodes, as one number."""

from __future__ import annotations

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from gradlab.probes.base import Seen, Setting, StepProbe, mean_log10, state_log10
from gradlab.variable import Variable


@dataclass(frozen=True)
class AdjointSlope(StepProbe):
    """The rate of the adjoint norm, in nats per step back in time.

    Definition: with s the whole state ([c; h] in an LSTM, h elsewhere), the least-squares slope of
    ``ln ‖∂ℓ/∂s_t‖`` (mean over examples) over the steps at which it is finite, taken in the
    direction of the lag: negative where the gradient vanishes, positive where it explodes, so that
    it compares with a Lyapunov exponent. For a scalar linear RNN it is ln w. nan with fewer than
    two such steps.

    Source: none; a summary of the curves of Pascanu, Mikolov & Bengio (2013), section 2.

    Cost: O(T B) beside the adjoints that are seen anyway.

    How to read it: -0.1 means a factor e lost every 10 steps. It is a fair summary only where the
    curve is a straight line, and says nothing about transport where every step has a loss.
    """

    def variables(self, setting: Setting) -> dict[str, Variable]:
        """One variable over layers."""
        name = "slope of ln|∂ℓ/∂s_t| over lag"
        return {"adjoint_slope": Variable(("layer",), "nats/step", name)}

    def __call__(self, seen: Seen) -> dict[str, jax.Array]:
        """See the class."""
        curve = mean_log10(state_log10(seen.adjoints), seen.mask) * math.log(10)
        lag = jnp.arange(curve.shape[-1] - 1, -1, -1, dtype=curve.dtype)
        return {"adjoint_slope": least_squares_slope(lag, curve)}


def least_squares_slope(x: jax.Array, curves: jax.Array) -> jax.Array:
    """Slopes of ``curves`` ``(L, T)`` over ``x`` ``(T,)`` through the finite points; else nan."""
    used = jnp.isfinite(curves)
    n = jnp.sum(used, axis=-1, keepdims=True).astype(curves.dtype)
    y = jnp.where(used, curves, 0)
    x = jnp.broadcast_to(x, curves.shape)
    x_centred = jnp.where(used, x - jnp.sum(jnp.where(used, x, 0), -1, keepdims=True) / n, 0)
    y_centred = jnp.where(used, y - jnp.sum(y, -1, keepdims=True) / n, 0)
    spread = jnp.sum(jnp.square(x_centred), axis=-1)
    return jnp.sum(x_centred * y_centred, axis=-1) / jnp.where(spread > 0, spread, jnp.nan)
