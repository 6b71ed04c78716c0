"""Through which timesteps the gradient of each parameter enters."""

from __future__ import annotations

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import lax

from gradlab.bptt import scaling
from gradlab.bptt.closeup import Closeup, LayerView
from gradlab.bptt.scaling import LOG10_2, Scaled, Sums
from gradlab.errors import BadInput, whole_number
from gradlab.probes.base import CloseProbe, Setting, norm
from gradlab.variable import Variable


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
    and lags count from the first. Contributions to the readout enter where it reads, in the order
    of the input: at an example's own last step if it reads the last state only. All of what a
    learned initial state gets enters at t = 0, at the lag of each example's first real step.

    Source: Pascanu, Mikolov & Bengio (2013), equations 3 to 5: the summands ∂ε/∂θ over k, here
    summed over the losses that each step has a part in.

    Cost: one transposed step for each of T steps and E examples, as in a gradient, but each with a
    product of its own: O(T E |θ|) work and O(E |θ|) memory.

    Mask: a padded step has no part in the gradient. ``c_t`` is over all examples, those that are
    not real at t included with 0, since that is what the gradient sums; so a curve falls where
    examples end, or have not begun. Lags count from each example's own last real step.

    Limits: of the few examples looked at, of which the parts may cancel where those of a batch do
    not. The cosine of sums that nearly cancel is that of their rounding. A norm keeps its digits at
    any size; parts of examples that are 10⁷ below the largest one at the same t are lost in it.

    How to read it: flat curves say that all timesteps teach the parameter equally. A curve that
    falls towards the far past by many powers of ten says that the sum, the gradient that the
    optimizer sees, is that of the last steps, whatever the early ones have to say. A cosine near 1:
    long and short range agree. Near 0: what the long range asks for is elsewhere, and it is lost if
    it is the smaller part. Below 0: the short range undoes it.

    Args:
      split: the lag at which "long" begins, from 1 to T - 1; None for half of T.
    """

    split: int | None = None

    def __post_init__(self):
        if self.split is not None:
            whole_number("probe.measure.temporal_contribution.split", self.split, 1)

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
            for name, each in view.start_contributions.items():
                if name not in found:  # what a cell's own start adds is in its contributions
                    found[name] = _of_start(view, each, split)
        by_lag = closeup.readout_by_lag(split)
        for name, parts in closeup.readout_contributions.items():
            found[name] = (scaling.log10_norm(*Scaled.of(parts, 1)), _cosine(*by_lag[name]))
        curves, cosines = zip(
            *(_whole(found.get(name), closeup.length) for name in closeup.params), strict=True
        )
        return {
            "temporal_contribution_log10": jnp.stack(curves),
            "long_short_cosine": jnp.stack(cosines),
        }


def _whole(found: tuple[jax.Array, jax.Array] | None, steps: int) -> tuple[jax.Array, jax.Array]:
    """A curve over all steps: nan beyond those of its layer, or where no step is known."""
    if found is None:
        return jnp.full(steps, jnp.nan), jnp.asarray(jnp.nan)
    curve, cosine = found
    return jnp.full(steps, jnp.nan, curve.dtype).at[: len(curve)].set(curve), cosine


def _of_layer(view: LayerView, split: int, examples: int) -> dict[str, tuple[jax.Array, jax.Array]]:
    """The curve and the cosine of each of a cell's parameters, by full name."""
    steps = len(view.mask)
    enters, params = view.contribution, view.params
    # What enters through a first state is as far back as the first real step.
    long = (view.lag >= split).at[0].set(_starts_long(view, split))
    start = Sums(
        [jnp.zeros((2, *value.shape), value.dtype) for value in params.values()],
        jnp.full((len(params), 2), scaling.ZERO, jnp.int32),
    )

    def step(sums: Sums, read: tuple[jax.Array, jax.Array]):
        t, long = read
        entering = enters(t)
        parts = Sums.of([entering[name] for name in params], jnp.stack([long, ~long]))
        return sums.add(parts), _log2_norms(parts)

    sums, log2 = lax.scan(step, start, (jnp.arange(steps), long))
    curves = log2 * LOG10_2 - math.log10(examples)
    return {
        view.prefix + name: (curves[:, n], _cosine(*sums.mantissa[n]))
        for n, name in enumerate(params)
    }


def _of_start(view: LayerView, each: Scaled, split: int) -> tuple[jax.Array, jax.Array]:
    """The curve and the cosine of a learned initial state, from what enters of each example."""
    steps, examples = view.mask.shape
    long = _starts_long(view, split)
    parts = Sums.of([each], jnp.stack([long, ~long]))
    curve = _log2_norms(parts)[0] * LOG10_2 - math.log10(examples)
    return jnp.full(steps, -jnp.inf).at[0].set(curve), _cosine(*parts.mantissa[0])


def _starts_long(view: LayerView, split: int) -> jax.Array:
    """Whether an example's first real step is at a lag of ``split`` or more, ``(E,)``."""
    return jnp.sum(view.mask, axis=0) > split


def _log2_norms(parts: Sums) -> jax.Array:
    """Of each parameter, log2 of the norm of both parts together, ``(N,)``."""
    totals, exponent = parts.total()
    return jnp.log2(jnp.stack(list(map(norm, totals)))) + exponent.astype(totals[0].dtype)


def _cosine(a: jax.Array, b: jax.Array) -> jax.Array:
    a, b = (Scaled.of(v, 0).mantissa for v in (a, b))
    sizes = jnp.linalg.norm(a.ravel()) * jnp.linalg.norm(b.ravel())
    return jnp.clip(jnp.sum(a * b) / sizes, -1, 1)
