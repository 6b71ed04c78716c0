"""Whether neighbouring trajectories part, and how fast: the Lyapunov exponents."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gradlab.bptt.closeup import Closeup, LayerView
from gradlab.bptt.products import growth_steps, qr_growth
from gradlab.errors import BadInput, whole_number
from gradlab.probes.base import CloseProbe, Setting
from gradlab.variable import Variable

KEY = "probe.measure.lyapunov"


@dataclass(frozen=True)
class Lyapunov(CloseProbe):
    """The Lyapunov exponents along the trajectory that the inputs drive.

    Definition: ``Q_t R_t = J_t Q_{t-1}`` forward in time from a fixed random orthonormal start;
    ``λ_i`` is the sum of ``ln|R_ii|`` over the steps after the transient, divided by the number of
    those that are real. Of all examples together, growth over steps, so that a short one counts by
    its steps, and without those with no growth at all; then in descending order. An example's own
    estimates are not sorted first: sorting noise would drive the ends of the spectrum apart.
    ``lyapunov_exponent_spread`` is the standard deviation over the same examples of their own (of n
    with n - 1), nan for fewer than two; where lengths differ it holds their difference as well.
    The real and the imaginary part of a complex state count as two directions, so that a diagonal
    linear cell has each ``ln|λ|`` twice.

    ``lyapunov_dimension`` is Kaplan and Yorke's ``k + (λ_1 + … + λ_k)/|λ_{k+1}|`` with the largest
    k whose sum is not negative, S if all of them sum to 0 or more, and nan where the recorded
    exponents do not reach k+1. ``entropy_rate`` is the sum of the positive exponents, nan where
    the recorded ones do not reach one that is not positive. ``lyapunov_horizon`` is ``-1/λ_1``
    steps, and inf (never) where ``λ_1 ≥ 0``. ``lyapunov_running`` is the first direction's average
    from the transient up to t, held between two orthonormalisations and after an example's end;
    nan before the first.

    Source: Benettin et al. (1980), Geist, Parlitz & Lauterborn (1990) for the method; Kaplan &
    Yorke (1979); Pesin (1977) for the entropy; Vogt et al. (2022) and Engelken (2023) for recurrent
    networks.

    Cost: the Jacobians; O(T E S² K) time for K exponents, one QR of S×K every ``interval`` steps,
    and O(E S K) memory.

    Mask: a padded step enters neither the sum nor the count, and the transient is of an example's
    own real steps. One that is no longer than the transient counts for nothing. The mean is over
    examples, however long each of them is.

    Limits: at finite T these are estimates. The directions begin at random, so that the first
    exponent is too low and the last too high until they have turned: of a linear network with
    factors 1.1 to 0.7 the first was 0.040 too low at T = 20, 0.015 at 37 and 0.0002 at 100. A start
    that is not yet on the attractor can make it too high. Measured λ_1 minus that of the next
    10,000 steps, mean ± standard deviation over 24 tanh networks (H = 100, g = 1.5, no bias, no
    input after a random first push, the transient T // 10; λ_1 of 0 to 0.053): 0.018 ± 0.022 at
    T = 50, 0.014 ± 0.016 at 100, 0.010 ± 0.016 at 200, 0.006 ± 0.013 at 500, 0.004 ± 0.013 at 1000,
    0.004 ± 0.009 at 2000.

    Exponents are of the trajectory that was looked at. One that has not come to its attractor when
    the transient ends, or that rests on a fixed point, has the exponents of where it is: with zero
    input and no bias the state stays at the origin, and they are those of the recurrent matrix at
    φ'(0). One example is one trajectory: the spread over several says how much another would
    differ. In float32 a direction that a step shrinks by more than 10⁷ beside the strongest one is
    lost to rounding, and what is recorded for it is too high.

    How to read it: λ_1 > 0 says that neighbouring trajectories part, and that gradients grow like
    ``exp(λ_1 lag)`` whatever the loss. Chaos is that on a trajectory that stays bounded and does
    not rest: a linear network beyond its edge has λ_1 > 0 as well, and so has a state that sits on
    an unstable fixed point. Look at ``trajectory_end`` and at the fixed points before you call it
    chaos. λ_1 < 0 is forgetting: they vanish so, with the horizon as the time constant. Several
    exponents near 0 are as many directions that carry information through. The dimension is that
    of the attractor; the entropy rate is what the dynamics make up per step, an upper bound of the
    Kolmogorov-Sinai entropy and equal to it for most chaotic attractors. The horizon is a property
    of the dynamics alone, where the memory horizon depends on the loss too. See whether
    ``lyapunov_running`` has settled.

    Args:
      exponents: how many; at most the size of the state is taken. None: all.
      transient: steps left out at the start of the sequence, in the order in which the layer reads
        it; rounded up to a whole interval. None: T // 10.
      interval: steps between orthonormalisations. Above 1 is faster, and rougher for all
        exponents but the first.
      examples: how many of the examples looked at are used; all if there are fewer. 8 in the
        preset research.
    """

    research: ClassVar[Mapping[str, Any]] = {"examples": 8}

    exponents: int | None = 32
    transient: int | None = None
    interval: int = 1
    examples: int = 1

    def __post_init__(self):
        """Refuse what cannot be for any model."""
        if self.exponents is not None:
            whole_number(f"{KEY}.exponents", self.exponents, 1, otherwise=", or null for all")
        if self.transient is not None:
            tenth = ", or null for a tenth of the sequence"
            whole_number(f"{KEY}.transient", self.transient, 0, otherwise=tenth)
        whole_number(f"{KEY}.interval", self.interval, 1)
        whole_number(f"{KEY}.examples", self.examples, 1)

    def variables(self, setting: Setting) -> dict[str, Variable]:
        """Six variables."""
        length = setting.length
        if self._begin(length) >= length or self.interval > length:
            allowed = f"a transient that leaves an interval of the {length} steps to average over"
            given, key = self.transient, f"{KEY}.transient"
            if given is None or given < length:
                given, key = self.interval, f"{KEY}.interval"
            raise BadInput(key, given, allowed, "a shorter transient or a longer sequence")
        return {
            "lyapunov_exponent": Variable(("layer", "index"), "nats/step", "Lyapunov exponent"),
            "lyapunov_exponent_spread": Variable(
                ("layer", "index"), "nats/step", "standard deviation of it over examples"
            ),
            "lyapunov_dimension": Variable(("layer",), "1", "Kaplan-Yorke dimension"),
            "entropy_rate": Variable(
                ("layer",), "nats/step", "entropy rate: sum of the positive Lyapunov exponents"
            ),
            "lyapunov_horizon": Variable(("layer",), "steps", "horizon -1/λ_1 (inf: never)"),
            "lyapunov_running": Variable(
                ("layer", "t"), "nats/step", "largest Lyapunov exponent, averaged up to t"
            ),
        }

    def coords(self, setting: Setting) -> dict[str, list[Any]]:
        """Ranks of the exponents, the largest first."""
        return {"index": list(range(self._count(setting.state_size)))}

    def _count(self, size: int) -> int:
        return size if self.exponents is None else min(self.exponents, size)

    def _begin(self, length: int) -> int:
        """The first step that counts: the transient in whole intervals."""
        transient = length // 10 if self.transient is None else self.transient
        return -(-transient // self.interval) * self.interval

    def __call__(self, closeup: Closeup) -> dict[str, jax.Array]:
        """See the class."""
        layers = closeup.first(self.examples)
        found = [self._layer(layer, closeup.length) for layer in layers]
        exponents = jnp.stack([one.exponents for one in found])
        size = layers[0].jacobian.shape[-1]
        return {
            "lyapunov_exponent": exponents,
            "lyapunov_exponent_spread": jnp.stack([one.spread for one in found]),
            "lyapunov_dimension": jnp.stack([kaplan_yorke(one, size) for one in exponents]),
            "entropy_rate": entropy_rate(exponents, size),
            "lyapunov_horizon": _horizon(exponents[:, 0]),
            "lyapunov_running": jnp.stack([one.running for one in found]),
        }

    def _layer(self, layer: LayerView, length: int) -> _Growth:
        size = layer.jacobian.shape[-1]
        growth = qr_growth(layer.jacobian, self._count(size), self.interval)
        spans = growth_steps(length, self.interval)
        passed = jnp.pad(jnp.cumsum(layer.mask, axis=0), [(1, 0), (0, 0)])
        before, after = passed[spans[:, 0]], passed[spans[:, 1]]
        counts = before >= self._begin(length)
        steps = jnp.cumsum(jnp.where(counts, after - before, 0), axis=0)
        total = jnp.cumsum(jnp.where(counts[..., None], growth, 0), axis=0)
        own = jnp.broadcast_to(steps[-1], total[-1].T.shape)
        each = total[-1].T / jnp.maximum(own, 1).astype(total.dtype)
        means = _per_step(total[-1].T, own)
        order = jnp.argsort(-means)
        first = _per_step(total[..., 0], steps)
        # The last interval that has ended at each step; none before the first.
        latest = np.searchsorted(spans[:, 1], np.arange(1, length + 1), side="right") - 1
        running = jnp.where(latest >= 0, first[np.maximum(latest, 0)], jnp.nan)
        return _Growth(means[order], _spread(each, own > 0)[order], running)


def _per_step(total: jax.Array, steps: jax.Array) -> jax.Array:
    """What ``(N, E)`` examples have grown per step together, ``(N,)``; nan if none has a step.

    Of those that have not lost the direction entirely; -inf if all have.
    """
    counted = (steps > 0) & (total != -jnp.inf)
    passed = jnp.sum(jnp.where(counted, steps, 0), axis=-1)
    found = jnp.sum(jnp.where(counted, total, 0), axis=-1)
    found = found / jnp.maximum(passed, 1).astype(total.dtype)
    nothing = jnp.where(jnp.any(steps > 0, axis=-1), -jnp.inf, jnp.nan)
    return jnp.where(passed > 0, found, nothing)


class _Growth(NamedTuple):
    exponents: jax.Array
    spread: jax.Array
    running: jax.Array


def kaplan_yorke(exponents: jax.Array, size: int) -> jax.Array:
    """The dimension ``()`` from ``(K,)`` descending exponents of a state of ``size``.

    A sum within rounding of 0 is 0. nan if K < size and all sums are 0 or more.
    """
    count = len(exponents)
    sums = jnp.cumsum(exponents)
    rounding = 32 * float(jnp.finfo(exponents.dtype).eps) * np.arange(1, count + 1)
    k = jnp.sum(jnp.cumprod(sums >= -rounding))
    above = jnp.maximum(jnp.where(k > 0, sums[k - 1], 0), 0)
    next_one = exponents[jnp.minimum(k, count - 1)]
    found = k.astype(above.dtype) + above / jnp.maximum(
        jnp.abs(next_one), jnp.finfo(exponents.dtype).tiny
    )
    full = size if count == size else jnp.nan
    found = jnp.where(k == count, full, found)
    return jnp.where(jnp.any(jnp.isnan(exponents)), jnp.nan, found)


def entropy_rate(exponents: jax.Array, size: int) -> jax.Array:
    """The sum of the positive ones of ``(..., K)`` descending exponents of a state of ``size``.

    nan if K < size and all of them are positive: there may be more.
    """
    rate = jnp.sum(jnp.maximum(exponents, 0), axis=-1)
    known = (exponents.shape[-1] == size) | (exponents[..., -1] <= 0)
    return jnp.where(known, rate, jnp.nan)


def _spread(each: jax.Array, some: jax.Array) -> jax.Array:
    """The standard deviation over examples, ``(K, E) -> (K,)``, of what has a nonzero growth."""
    counted = some & (each > -jnp.inf)
    spread = jnp.std(each, axis=-1, where=counted, ddof=1)
    return jnp.where(jnp.sum(counted, axis=-1) > 1, spread, jnp.nan)


def _horizon(largest: jax.Array) -> jax.Array:
    falls = largest < 0
    horizon = jnp.where(falls, -1 / jnp.where(falls, largest, -1), jnp.inf)
    return jnp.where(jnp.isnan(largest), jnp.nan, horizon)
