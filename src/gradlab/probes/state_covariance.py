"""Where the states of the network go: in how many directions, how far, and for how long."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from gradlab.bptt.closeup import Closeup, LayerView
from gradlab.bptt.scaling import LOG10_2, Scaled
from gradlab.errors import BadInput, whole_number
from gradlab.probes.base import CloseProbe, Setting, over_layers
from gradlab.variable import Variable

KEY = "probe.measure.state_covariance"


@dataclass(frozen=True)
class StateCovariance(CloseProbe):
    """The covariance of the states: participation ratio, second moment, autocorrelation.

    Definition: of h, and of c where there is one, over the real steps after the transient of all
    the examples looked at, n in all. ``state_second_moment_log10`` is log10 of the mean of h² over
    units, steps and examples. With h̄ the mean of each unit, d = h - h̄ and C the covariance of d
    (H, H): ``participation_ratio = (tr C)²/tr C²``, from 1, all along one direction, to H, in all
    alike. ``state_autocorrelation`` is ``ρ(k) = ⟨d_t · d_{t+k}⟩/⟨d_t · d_t⟩``, the mean over all
    pairs of steps of one example that are k apart, nan where there is no pair.
    ``autocorrelation_time`` is the delay at which ρ first falls below 1/e, an exponential being
    laid through the two delays beside it (a straight line where the second is not positive); inf if
    ρ stays above it as far as it is seen. All but the second moment are nan where no unit moves by
    more than its rounding.

    Source: Gao et al. (2017), "A theory of multineuronal dimensionality, dynamics and measurement",
    for the participation ratio; Sompolinsky, Crisanti & Sommers (1988) for the autocorrelation of a
    network's states, averaged over units.

    Cost: O(T E H (H + log T)) time, O(T E H) memory; no Jacobians.

    Mask: a step of padding is in no mean, nor in a pair. The transient counts each example's own
    real steps; an example that is no longer than that is left out.

    Limits: n steps cannot show more than n - 1 directions, and fewer, the longer they stay alike:
    of independent states in 32 directions alike n = 720 gives 30.6 (D directions D/(1 + D/n)), of
    h' = 0.9 h + x 22.4 ± 0.6, and 30.8 with n = 8,000. The mean is taken from the same steps, which
    draws ρ down: the 9.49 steps of that network come out as 9.1 ± 0.3 of four examples of 180 steps
    with 32 units, as 9.5 ± 2.6 with one unit, and with 2,000 steps as 9.46 ± 0.09 and 9.5 ± 0.7. At
    delays near T ρ rests on few pairs. In float32 ρ is right to about 1e-6 n/pairs, and a unit that
    moves by less than a millionth of its mean counts as still. Inputs drive the states: where they
    have a trend, so has the covariance.

    How to read it: a low participation ratio says that the states keep to a few directions,
    whatever H: more units would change little. A second moment near 1 in a tanh network means
    saturated units, whose derivatives vanish. The autocorrelation time is for how long the state
    resembles itself, a property of the forward dynamics and the inputs; set beside the memory
    horizon it tells whether the gradient reaches back as far as the state does.

    Args:
      transient: real steps left out at the start of each example, in the order in which the layer
        reads it. None: T // 10.
    """

    preset: ClassVar[str] = "research"

    transient: int | None = None

    def __post_init__(self):
        """Refuse what cannot be for any model."""
        if self.transient is not None:
            tenth = ", or null for a tenth of the sequence"
            whole_number(f"{KEY}.transient", self.transient, 0, otherwise=tenth)

    def variables(self, setting: Setting) -> dict[str, Variable]:
        """Four variables."""
        if self._begin(setting.length) >= setting.length:
            allowed = f"a transient that leaves one of the {setting.length} steps"
            hint = "a shorter transient or a longer sequence"
            raise BadInput(f"{KEY}.transient", self.transient, allowed, hint)
        dims = ("layer", "state")
        return {
            "participation_ratio": Variable(dims, "1", "participation ratio of the states"),
            "state_second_moment_log10": Variable(dims, "log10", "mean square of the states"),
            "autocorrelation_time": Variable(
                dims, "steps", "delay at which the autocorrelation falls below 1/e"
            ),
            "state_autocorrelation": Variable((*dims, "delay"), "1", "autocorrelation of states"),
        }

    def coords(self, setting: Setting) -> dict[str, list[Any]]:
        """The parts of the state, and the delays."""
        return {"state": list(setting.states), "delay": list(range(setting.length))}

    def _begin(self, length: int) -> int:
        return length // 10 if self.transient is None else self.transient

    def __call__(self, closeup: Closeup) -> dict[str, jax.Array]:
        """See the class."""

        def parts(layer: LayerView) -> dict[str, jax.Array]:
            nth = jnp.cumsum(layer.mask, axis=0)
            counted = layer.mask & (nth > self._begin(closeup.length))
            found = [moments(layer.after[..., layer.part(name)], counted) for name in layer.states]
            return jax.tree.map(lambda *each: jnp.stack(each), *found)

        return over_layers(parts, closeup.layers)


def moments(states: jax.Array, counted: jax.Array) -> dict[str, jax.Array]:
    """The four variables of one part of the state ``(T, E, H)``; ``counted (T, E)``."""
    x, exponent = Scaled.of(jnp.where(counted[..., None], states, 0), 0)
    number = jnp.sum(counted).astype(x.dtype)  # 0 / 0 where nothing is counted
    square = jnp.sum(jnp.square(x)) / (number * x.shape[-1])
    moved = Scaled.of(_centred(x, counted), 0).mantissa
    covariance = jnp.einsum("teh,tek->hk", moved, moved, precision=lax.Precision.HIGHEST) / number
    correlation = autocorrelation(moved, counted)
    return {
        "participation_ratio": jnp.trace(covariance) ** 2 / jnp.sum(jnp.square(covariance)),
        "state_second_moment_log10": jnp.log10(square) + 2 * LOG10_2 * exponent.astype(x.dtype),
        "autocorrelation_time": crossing(correlation),
        "state_autocorrelation": correlation,
    }


def _centred(x: jax.Array, counted: jax.Array) -> jax.Array:
    """The states without the mean of each unit; exactly 0 where that is all of a unit."""
    number = jnp.maximum(jnp.sum(counted), 1).astype(x.dtype)

    def without_mean(x: jax.Array) -> jax.Array:
        mean = jnp.sum(x, axis=(0, 1), keepdims=True) / number
        return jnp.where(counted[..., None], x - mean, 0)

    def size(x: jax.Array) -> jax.Array:
        return jnp.max(jnp.abs(x), axis=(0, 1), keepdims=True)

    # The second time removes what the first mean was wrong by.
    left = without_mean(without_mean(x))
    return jnp.where(size(left) > 4 * float(jnp.finfo(x.dtype).eps) * size(x), left, 0)


def autocorrelation(moved: jax.Array, counted: jax.Array) -> jax.Array:
    """``(T,)`` of ``(T, E, H)`` without mean, 0 where not counted; 1 at delay 0.

    The counted steps of each example stand together.
    """
    length = len(moved)
    spectrum = jnp.fft.rfft(moved, 2 * length, axis=0)  # twice as long: the end meets no start
    power = jnp.sum(jnp.square(jnp.abs(spectrum)), axis=(1, 2))
    products = jnp.fft.irfft(power, 2 * length)[:length]
    beyond = jnp.sum(counted, axis=0)[None] - np.arange(length)[:, None]
    pairs = jnp.sum(jnp.maximum(beyond, 0), axis=1)
    means = jnp.where(pairs > 0, products / jnp.maximum(pairs, 1).astype(moved.dtype), jnp.nan)
    return means / jnp.where(means[0] > 0, means[0], jnp.nan)


def crossing(correlation: jax.Array) -> jax.Array:
    """The delay at which ``(T,)`` first falls below 1/e; inf if it does not, nan of nan."""
    level = math.exp(-1)
    below = correlation < level
    k = jnp.argmax(below)
    high, low = correlation[jnp.maximum(k - 1, 0)], correlation[k]
    curved = (jnp.log(high) + 1) / jnp.log(high / jnp.where(low > 0, low, 1))
    share = jnp.where(low > 0, curved, (high - level) / (high - low))
    found = jnp.where(jnp.any(below), (k - 1).astype(share.dtype) + share, jnp.inf)
    return jnp.where(jnp.isnan(correlation[0]), jnp.nan, found)
