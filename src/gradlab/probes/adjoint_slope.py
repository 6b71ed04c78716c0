"""How far and how fast the gradient vanishes or explodes, in a few numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from gradlab.probes.base import Seen, Setting, StepProbe, mean_change, state_log10
from gradlab.variable import Variable

LEVEL = 1e-5
"""Decades by which a curve varies that is level but for rounding."""


@dataclass(frozen=True)
class AdjointSlope(StepProbe):
    """How far the gradient falls over the sequence, and the straight line through its fall.

    Definition: with s the whole state ([c; h] in an LSTM, h elsewhere), ``D(k)`` is the mean over
    examples of ``log10 ‖∂ℓ/∂s‖`` k steps back from each example's own last real step, less the same
    example's value there; over those that go so far back, and -inf where more than half of these
    get exactly nothing. ``decades_lost`` is ``-D(K)`` with K the
    longest lag of any example: positive where the gradient vanishes, inf where nothing at all
    arrives there. ``adjoint_slope`` is the least-squares slope of D in nats over k, at the points
    where it is finite: negative where the gradient vanishes, positive where it explodes, so that it
    compares with a Lyapunov exponent. For a scalar linear RNN it is ln w. ``decades_per_100`` is
    the same line in decades lost per 100 steps, and ``adjoint_line_r2`` the share of the curve's
    variance that the line explains: 1 for a straight one. The line is nan with fewer than two
    points, r² with fewer than three and where the curve is constant.

    Source: none; a summary of the curves of Pascanu, Mikolov & Bengio (2013), section 2.

    Cost: O(T B) beside the adjoints that are seen anyway.

    Mask: the lag counts from each example's own end, and each example is compared with itself, so
    that padding changes neither line nor fall where transport is alike. Without padding D is
    the recorded curve over the lag, less its first value; with it that curve has other examples at
    each lag, and moves for that reason too. Far back D rests on the longest examples alone.

    Limits: the first step back is unlike the others (in an LSTM it moves the gradient from h to c),
    and so is the start of the sequence; of a short one they are a large part. The fall over T steps
    is of this batch: seeds and batches scatter by some tenths of a decade.

    How to read it: ``decades_lost`` first: 3 means that a thousandth of the gradient at the end
    arrives at the start. Then the rate, if r² says that there is one: a slope of -0.1 means a
    factor e lost every 10 steps. Both say nothing about transport where every step has a loss.
    """

    def variables(self, setting: Setting) -> dict[str, Variable]:
        """Four variables over layers."""
        norm, layer = "|∂ℓ/∂s_t|", ("layer",)
        return {
            "decades_lost": Variable(layer, "decades", f"fall of {norm} from lag 0 to the longest"),
            "decades_per_100": Variable(
                layer, "decades/100 steps", f"decades of {norm} lost per 100 steps, fitted line"
            ),
            "adjoint_line_r2": Variable(layer, "1", f"r² of the line through ln{norm} over lag"),
            "adjoint_slope": Variable(layer, "nats/step", f"slope of ln{norm} over lag"),
        }

    def __call__(self, seen: Seen) -> dict[str, jax.Array]:
        """See the class."""
        curve = mean_change(state_log10(seen.adjoints), seen.mask)
        slope, r2 = least_squares_line(jnp.arange(curve.shape[-1], dtype=curve.dtype), curve)
        return {
            "decades_lost": jax.vmap(fall)(curve),
            "decades_per_100": -100 * slope,
            "adjoint_line_r2": r2,
            "adjoint_slope": slope * math.log(10),
        }


def fall(curve: jax.Array) -> jax.Array:
    """From the first point of ``(T,)`` to the last that is not nan; nan without a first."""
    there = ~jnp.isnan(curve)
    last = curve[jnp.max(jnp.where(there, jnp.arange(len(curve)), 0))]
    return jnp.where(jnp.isfinite(curve[0]), curve[0] - last, jnp.nan)


def least_squares_line(x: jax.Array, curves: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Slope and r² of ``curves`` ``(L, T)`` over ``x`` ``(T,)``, by their finite points."""
    used = jnp.isfinite(curves)
    n = jnp.sum(used, axis=-1, keepdims=True).astype(curves.dtype)
    y = jnp.where(used, curves, 0)
    x = jnp.broadcast_to(x, curves.shape)
    x_centred = jnp.where(used, x - jnp.sum(jnp.where(used, x, 0), -1, keepdims=True) / n, 0)
    y_centred = jnp.where(used, y - jnp.sum(y, -1, keepdims=True) / n, 0)
    spread = jnp.sum(jnp.square(x_centred), axis=-1)
    slope = jnp.sum(x_centred * y_centred, axis=-1) / jnp.where(spread > 0, spread, jnp.nan)
    missed = jnp.sum(jnp.square(y_centred - slope[:, None] * x_centred), axis=-1)
    varied = jnp.sum(jnp.square(y_centred), axis=-1)
    # Two points are always on a line, and what moves by rounding is on none.
    tells = (varied > n[:, 0] * LEVEL**2) & (n[:, 0] > 2)
    return slope, jnp.where(tells, 1 - missed / jnp.where(tells, varied, 1), jnp.nan)
