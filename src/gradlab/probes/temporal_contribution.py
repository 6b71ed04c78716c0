"""Through which timesteps the gradient of each parameter enters."""

from __future__ import annotations

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import lax

from gradlab import scaling
from gradlab.closeup import Closeup, LayerView
from gradlab.errors import BadInput, at_least
from gradlab.probes.base import CloseProbe, Setting, norm
from gradlab.scaling import Scaled
from gradlab.variable import Variable

LOG10_2 = math.log10(2)


@dataclass(frozen=True)
class TemporalContribution(CloseProbe):
    """log10 of the norm of the part of ∂L/∂θ that enters through timestep t, for each parameter.

    Definition: with L the mean loss of the examples, ``c_t = mean_e (∂⁺s_t/∂θ)ᵀ ∂ℓ_e/∂s_t``, where
    ∂⁺ holds the state before t. Over t these sum to the gradient ∂L/∂θ.
    ``temporal_contribution_log10`` is log10 ‖c_t‖, -inf where exactly zero (a step that no example
    has, a loss that does not look so far). ``long_short_cosine`` is the cosine between the sum of
    all parts that enter at a lag of ``split`` or more and the sum of all others, nan if either is
    zero. A lag is counted from each example's own last step.

    t runs in the direction's own reading order: for a backward direction t = 0 is the last input,
    and lags count from the first. Contributions to the readout enter where it reads, at lag 0 if
    it reads the last state only; there lags count from the end of the padded sequence.

    Source: Pascanu, Mikolov & Bengio (2013), equations 3 to 5: the summands ∂ε/∂θ over k, here
    summed over the losses that each step has a part in.

    Cost: one transposed step for each of T steps and E examples, as in a gradient, but each with a
    product of its own: O(T E |θ|) work and O(E |θ|) memory.

    How to read it: flat curves say that all timesteps teach the parameter equally. A curve that
    falls to the left by many powers of ten says that the sum, the gradient that the optimizer
    sees, is that of the last steps, whatever the early ones have to say. A cosine near 1: long and
    short range agree. Near 0: what the long range asks for is elsewhere, and it is lost if it is
    the smaller part. Below 0: the short range undoes it.

    Args:
      split: the lag at which "long" begins, from 1 to T - 1; None for half of T.
    """

    split: int | None = None

    def __post_init__(self):
        if self.split is not None:
            at_least("probe.measure.temporal_contribution.split", self.split, 1)

    def variables(self, setting: Setting) -> dict[str, Variable]:
        """A curve and a cosine for each parameter."""
        if self.split is not None and setting.length and self.split >= setting.length:
            raise BadInput(
                "probe.measure.temporal_contribution.split",
                self.split,
                f"a lag from 1 to T - 1 = {setting.length - 1}, or null for half of T",
            )
        curve = "norm of the part of ∂L/∂θ that enters at t"
        split = "T/2" if self.split is None else self.split
        cosine = f"cosine between the parts of ∂L/∂θ from lags below {split} and from the others"
        return {
            "temporal_contribution_log10": Variable(("parameter", "t"), "log10", curve),
            "long_short_cosine": Variable(("parameter",), "1", cosine),
        }

    def __call__(self, closeup: Closeup) -> dict[str, jax.Array]:
        """See the class."""
        split = closeup.length // 2 if self.split is None else self.split
        found: dict[str, tuple[jax.Array, jax.Array]] = {}
        for view in closeup.layers:
            found |= _of_layer(view, split, closeup.examples)
        for name, parts in closeup.readout_contributions.items():
            found[name] = _of_readout(parts, split)
        curves, cosines = zip(*(found[name] for name in closeup.params), strict=True)
        return {
            "temporal_contribution_log10": jnp.stack(curves),
            "long_short_cosine": jnp.stack(cosines),
        }


def _of_layer(view: LayerView, split: int, examples: int) -> dict[str, tuple[jax.Array, jax.Array]]:
    """The curve and the cosine of each of a cell's parameters, by full name."""
    steps = len(view.mask)
    lag = jnp.cumsum(view.mask[::-1], axis=0)[::-1] - view.mask
    enters, names = view.contribution, list(view.params)
    start = Scaled(
        {name: jnp.zeros((2, *value.shape), value.dtype) for name, value in view.params.items()},
        jnp.full(2, scaling.ZERO, jnp.int32),
    )

    def step(sums: Scaled, read: tuple[jax.Array, jax.Array]):
        t, long = read
        parts = _long_and_short(enters(t), long)
        both, exponent = _at_one_exponent(parts)
        sizes = {name: norm(jnp.sum(both[name], axis=0)) for name in names}
        return _plus(sums, parts), (sizes, exponent)

    sums, (sizes, exponents) = lax.scan(step, start, (jnp.arange(steps), lag >= split))
    found = {}
    for name in names:
        log2 = jnp.log2(sizes[name] / examples) + exponents.astype(sizes[name].dtype)
        found[view.prefix + name] = (log2 * LOG10_2, _cosine(*sums.mantissa[name]))
    return found


def _long_and_short(value: Scaled, long: jax.Array) -> Scaled:
    """Sums over the examples with a long lag and over the others: ``(2, ...)``, exponents ``(2,)``.

    Each at the largest exponent of its own examples: what the others lose to it is nothing beside
    the sum.

    Args:
      value: of each example, leaves ``(E, ...)``, normalised.
      long: ``(E,)`` bool.
    """
    exponent = jnp.where(jnp.stack([long, ~long]), value.exponent, scaling.ZERO)
    largest = jnp.max(exponent, axis=1)
    # An example that is zero, or not of the part, would be at the largest exponent of no example.
    counted = exponent > scaling.ZERO

    def leaf(array: jax.Array) -> jax.Array:
        weights = scaling.shift(counted.astype(array.dtype), exponent - largest[:, None])
        return jnp.tensordot(weights, array, axes=1, precision=lax.Precision.HIGHEST)

    return Scaled(jax.tree.map(leaf, value.mantissa), largest)


def _at_one_exponent(parts: Scaled) -> tuple[dict[str, jax.Array], jax.Array]:
    assert parts.exponent is not None
    largest = jnp.max(parts.exponent)
    return scaling.shift(parts.mantissa, parts.exponent - largest), largest


def _plus(a: Scaled, b: Scaled) -> Scaled:
    """``a + b`` at the larger exponents."""
    assert a.exponent is not None
    assert b.exponent is not None
    exponent = jnp.maximum(a.exponent, b.exponent)
    addends = (scaling.shift(one.mantissa, one.exponent - exponent) for one in (a, b))
    return Scaled(jax.tree.map(jnp.add, *addends), exponent)


def _of_readout(parts: jax.Array, split: int) -> tuple[jax.Array, jax.Array]:
    """The curve and the cosine of one parameter of the readout, from ``(T, ...)``."""
    scaled = scaling.scale(parts, 1)
    assert scaled.exponent is not None
    curve = scaling.log2_norm(scaled.mantissa, scaled.exponent) * LOG10_2
    begin = len(parts) - split
    return curve, _cosine(jnp.sum(parts[:begin], axis=0), jnp.sum(parts[begin:], axis=0))


def _cosine(a: jax.Array, b: jax.Array) -> jax.Array:
    a, b = (scaling.normalise(Scaled(v, jnp.int32(0))).mantissa for v in (a, b))
    sizes = jnp.linalg.norm(a.ravel()) * jnp.linalg.norm(b.ravel())
    return jnp.clip(jnp.sum(a * b) / sizes, -1, 1)
