"""Whether the long-range part of the gradient stands out of the noise of a training batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from gradlab.bptt import scaling
from gradlab.bptt.closeup import Closeup, LayerView
from gradlab.bptt.scaling import Scaled
from gradlab.probes.base import CloseProbe, Setting, over_layers
from gradlab.variable import Variable


@dataclass(frozen=True)
class GradientNoise(CloseProbe):
    """Signal and sampling noise of what enters the gradient from beyond each lag.

    Definition: of each example e, ``A_e(t)`` is the part of its gradient, over all parameters of
    the layer's cell together, that enters at lags of T - 1 - t or more, counted from its own last
    step. Over E examples, ``V = Σ_e ‖A_e - mean A‖² / (E - 1)`` estimates the trace of its
    covariance, and ``S² = ‖mean A‖² - V/E`` the squared norm of its expectation, without bias.
    ``long_range_snr_log10`` is log10 of S over the standard error √(V/B) in a training batch of B
    examples; it is -inf where S² is not positive (no signal can be told from none, or nothing
    enters) and +inf where all examples agree exactly. ``noise_horizon`` is the smallest lag k at
    which the signal S of all that enters from lags k and beyond is below the noise √(V/B) of the
    whole gradient in a batch; T if there is none. Both are nan with a single example (E = 1), and
    the horizon also where the whole gradient is exactly zero.

    Source: McCandlish, Kaplan, Amodei & OpenAI Dota Team (2018), appendix A.1 (the unbiased
    estimators of the gradient noise scale), here applied to what lies beyond each lag.

    Cost: one transposed step for each of T steps and E examples, and a pass over ``(E, |θ|)`` at
    each: O(T E |θ|) work, O(E |θ|) memory. With few examples the estimate itself is noisy: its
    relative error is of the order of 1/√E.

    How to read it: above 0, a batch sees the long-range part of the gradient; below 0, the part is
    there but drowned by its own sampling noise, and only more examples would show it. The horizon
    says how far back the update can see at this batch size: what comes from further back is
    smaller than the noise of all the rest. Compare it with the distance that the task needs, and
    with ``memory_horizon``, which knows no noise. A horizon of 0: the whole gradient is noise.
    """

    fewest: ClassVar[int] = 2

    def variables(self, setting: Setting) -> dict[str, Variable]:
        """A curve and a lag for each layer."""
        curve = "signal to noise in a batch of the gradient from lags T-1-t and beyond"
        lag = "lag beyond which the gradient's signal is below its batch noise (T: never)"
        return {
            "long_range_snr_log10": Variable(("layer", "t"), "log10", curve),
            "noise_horizon": Variable(("layer",), "steps", lag),
        }

    def __call__(self, closeup: Closeup) -> dict[str, jax.Array]:
        """See the class."""

        def measure(view: LayerView) -> dict[str, jax.Array]:
            curves = _of_layer(view, closeup.batch)
            return {"long_range_snr_log10": _snr_log10(curves), "noise_horizon": _horizon(curves)}

        return over_layers(measure, closeup.layers)


class _Curves(NamedTuple):
    """log2 of signal S and of noise √(V/B), ``(T,)`` each, from the longest lag on."""

    signal: jax.Array
    noise: jax.Array


def _of_layer(view: LayerView, batch: int) -> _Curves:
    steps, examples = view.mask.shape
    dtype = view.cotangents.mantissa[0].dtype
    if examples < 2:
        return _Curves(*(jnp.full(steps, jnp.nan, dtype) for _ in range(2)))
    enters, params = view.contribution, view.params
    last = steps - 1 - jnp.argmax(view.mask[::-1], axis=0)
    start = [jnp.zeros((examples, *value.shape), value.dtype) for value in params.values()]

    def step(total: Scaled, lag: jax.Array) -> tuple[Scaled, _Curves]:
        t = last - lag
        entering = enters(jnp.maximum(t, 0))
        total = _plus(total, [entering[name] for name in params], t >= 0)
        return total, _judge(total, batch)

    _, curves = lax.scan(step, Scaled(start, jnp.int32(scaling.ZERO)), jnp.arange(steps)[::-1])
    return curves


def _plus(total: Scaled, entering: list[Scaled], wanted: jax.Array) -> Scaled:
    """The sums with what enters of the wanted examples.

    All examples and parameters share one exponent, the largest yet: what is lost where numbers are
    smaller by the float range is nothing beside the norms that are made of all.
    """
    exponents = jnp.stack([one.exponent for one in entering])
    own = jnp.where(wanted, exponents, scaling.ZERO)
    exponent = jnp.maximum(total.exponent, jnp.max(own))
    dtype = total.mantissa[0].dtype
    keep = scaling.shift(jnp.ones((), dtype), total.exponent - exponent)
    factors = scaling.shift(jnp.broadcast_to(wanted.astype(dtype), own.shape), own - exponent)
    sums = [
        old * keep + one.mantissa * factor.reshape(-1, *[1] * (old.ndim - 1))
        for old, one, factor in zip(total.mantissa, entering, factors, strict=True)
    ]
    return Scaled(sums, exponent)


def _judge(total: Scaled, batch: int) -> _Curves:
    """Signal and noise of one partial sum, from each example's own."""
    leaves = total.mantissa
    examples, dtype = len(leaves[0]), leaves[0].dtype
    means = [jnp.mean(leaf, axis=0) for leaf in leaves]
    pairs = zip(leaves, means, strict=True)
    spread = jnp.stack([jnp.sum(jnp.square(leaf - mean[None])) for leaf, mean in pairs])
    variance = jnp.sum(spread) / (examples - 1)
    squared = jnp.sum(jnp.stack([jnp.sum(jnp.square(mean)) for mean in means]))
    squared -= variance / examples
    shift = total.exponent.astype(dtype)
    # Where S² is not positive the logarithm is that of 0; what is not a number stays.
    signal = 0.5 * jnp.log2(jnp.where(squared <= 0, 0, squared)) + shift
    return _Curves(signal, 0.5 * jnp.log2(variance / batch) + shift)


def _snr_log10(curves: _Curves) -> jax.Array:
    ratio = (curves.signal - curves.noise) * scaling.LOG10_2
    return jnp.where(curves.signal == -jnp.inf, -jnp.inf, ratio)


def _horizon(curves: _Curves) -> jax.Array:
    signal, noise = curves.signal[::-1], curves.noise[-1]
    below = signal < noise
    first = jnp.where(jnp.any(below), jnp.argmax(below), len(signal)).astype(signal.dtype)
    silent = (signal[0] == -jnp.inf) & (noise == -jnp.inf)
    return jnp.where(silent | jnp.isnan(noise), jnp.nan, first)
