"""How far back the gradient reaches, as one number."""

from __future__ import annotations

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from gradlab.probes.base import Seen, Setting, StepProbe, mean_change, state_log10
from gradlab.variable import Variable


@dataclass(frozen=True)
class MemoryHorizon(StepProbe):
    """The lag at which the adjoint norm has first fallen by a factor e.

    Definition: with s the whole state ([c; h] in an LSTM, h elsewhere), the smallest lag, linearly
    interpolated in the logarithm, at which ``ln ‖∂ℓ/∂s_t‖`` is 1 below its value at lag 0: the mean
    over examples, each compared with itself, the lag counted from its own last real step; also the
    lag from which on more than half of them get exactly nothing. If that
    never happens within the sequence the value is ``T``, which reads "at least the whole sequence".

    Source: none; the fall by e is the time constant of an exponential decay.

    Cost: O(T B) beside the adjoints that are seen anyway.

    Mask: padding is left out; the lag counts from each example's own end.

    Limits: one crossing of one curve. In an LSTM the first step back moves the gradient from h to
    c, often by more than a factor e, so that a horizon of 1 stands beside a slope that takes ten
    times as long: see ``decades_lost`` and ``decades_per_100`` beside it. Above T it is not known.

    How to read it: where it agrees with the slope (-1/slope), events further back than a few
    horizons cannot teach the network. Compare with the distance that the task needs.
    """

    def variables(self, setting: Setting) -> dict[str, Variable]:
        """One variable over layers."""
        name = "lag at which |∂ℓ/∂s_t| has fallen by e (T: never)"
        return {"memory_horizon": Variable(("layer",), "steps", name)}

    def __call__(self, seen: Seen) -> dict[str, jax.Array]:
        """See the class."""
        curve = mean_change(state_log10(seen.adjoints), seen.mask) * math.log(10)
        return {"memory_horizon": jax.vmap(horizon)(curve)}


def horizon(by_lag: jax.Array) -> jax.Array:
    """The horizon of one curve of natural logs over lag, ``(T,) -> ()``; nan if lag 0 is."""
    steps = by_lag.shape[0]
    fallen = by_lag - by_lag[0] <= -1
    first = jnp.argmax(fallen)
    above, below = by_lag[first - 1], by_lag[first]
    drop = above - below
    # From -inf there is nothing to interpolate to: the fall is complete at that lag.
    share = jnp.where(jnp.isfinite(drop), (above - by_lag[0] + 1) / jnp.maximum(drop, 1e-30), 1)
    found = (first - 1).astype(share.dtype) + share
    return jnp.where(jnp.isfinite(by_lag[0]), jnp.where(jnp.any(fallen), found, steps), jnp.nan)
