"""How large the gradient is when it reaches each timestep."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from gradlab.probes.base import (
    Seen,
    Setting,
    StepProbe,
    both_means,
    both_ways,
    check_quantiles,
    nearest_quantiles,
)
from gradlab.variable import Variable, over_lag


@dataclass(frozen=True)
class Adjoint(StepProbe):
    """log10 of the norm of ∂ℓ/∂h_t (and ∂ℓ/∂c_t), at every timestep of every layer.

    Definition: ``adj_h[t] = ∂ℓ/∂h_t``, the total derivative of one example's loss; its 2-norm over
    the units; the mean over examples of the log10, with quantiles over examples beside it. Over
    ``t`` as the sequence is read, and by lag: ``back`` counts the steps from each example's own
    last real one.

    The state is s = [c; h], as the step Jacobian has it: ∂ℓ/∂c_t is taken with h_t held, so that at
    the last step all of the gradient is in h and ∂ℓ/∂c is exactly zero. Where the output is made of
    h (2h, P·h) and is not h itself, ∂ℓ/∂h_t has what comes through y_t, too. Of a complex state it
    is the norm of the derivatives by its real and imaginary parts.

    Where a cell has a name of its own for h, the curves are recorded under that name and, the same
    numbers, as ``adj_h``.

    Exactly zero adjoints (a dead ReLU, a cell that does not look back) have no logarithm: the mean
    is over the others, ``adj_h_zero`` is their share, and -inf means all of them.

    Source: Pascanu, Mikolov & Bengio (2013), equations 3 to 5, measured rather than bounded.

    Cost: O(T B H), in the backward pass that trains: a norm of each adjoint as it passes by. Memory
    O(T B), since the adjoints themselves are not kept.

    Mask: padding is left out. Over t an example counts at its own real steps, so that near the end
    of a padded batch only the long ones do, and steps that are far from the end of one example
    stand beside the last of another. Over the lag all examples begin at 0 and the short ones end
    first. In the backward direction of a bidirectional layer t counts as it reads.

    Limits: float32 gives the log10 to 2e-7 of itself: largest error 9e-7 over 50 steps, 3e-6 over
    200, 2e-5 over 1000 and 1e-4 over 5000, where the norm is 10^-638 (an LSTM of 16 units against
    the same backward pass in float64). It is the adjoint of one batch; another batch has another.
    The far end of a padded batch rests on its longest examples alone.

    How to read it: over the lag, from the end of the sequence back in time. A straight line that
    falls is exponential vanishing, and its steepness the rate; one that rises is exploding; a flat
    one carries the gradient unharmed. A wide quantile band says that examples differ. With a loss
    at every step each h_t also receives gradient of its own, and the curve stays up whatever the
    transport.

    Args:
      quantiles: over examples, in [0, 1], each once; the nearest example is taken.
    """

    quantiles: tuple[float, ...] = (0.05, 0.25, 0.5, 0.75, 0.95)

    def __post_init__(self):
        check_quantiles("probe.measure.adjoint.quantiles", self.quantiles)

    def variables(self, setting: Setting) -> dict[str, Variable]:
        """Five variables for each part of the state."""
        found = {}
        for name in (*setting.states, *(("h",) if setting.renames_h else ())):
            what = f"adjoint norm |∂ℓ/∂{name}_t|"
            norms = {
                f"adj_{name}_log10": Variable(("layer", "t"), "log10", f"mean {what}"),
                f"adj_{name}_log10_q": Variable(
                    ("layer", "quantile", "t"), "log10", f"quantiles over examples of {what}"
                ),
            }
            found |= norms | over_lag(norms)
            found[f"adj_{name}_zero"] = Variable(
                ("layer", "t"), "1", f"share of examples with exactly zero {what}"
            )
        return found

    def coords(self, setting: Setting) -> dict[str, list[float]]:
        """The quantiles."""
        return {"quantile": list(self.quantiles)}

    def __call__(self, seen: Seen) -> dict[str, jax.Array]:
        """See the class."""
        also_h = {} if seen.hidden is None else {"h": seen.hidden}
        norms = {**seen.adjoints, **also_h}
        # Of all of them at once, one state after the other as if they were layers.
        log10 = jnp.concatenate(list(norms.values()))
        mask = jnp.concatenate([seen.mask] * len(norms))
        quantiles = both_ways(self._quantiles, log10, mask)
        zero = jnp.sum(mask & (log10 == -jnp.inf), axis=-1) / jnp.sum(mask, axis=-1)
        of_all = {
            **both_means("adj_{}_log10", log10, mask),
            "adj_{}_log10_q": quantiles[0],
            "adj_{}_over_lag_log10_q": quantiles[1],
            "adj_{}_zero": zero,
        }
        return {
            key.format(name): own
            for key, values in of_all.items()
            for name, own in zip(norms, jnp.split(values, len(norms)), strict=True)
        }

    def _quantiles(self, log10: jax.Array, mask: jax.Array) -> jax.Array:
        """Over examples: ``(L, T, B) -> (L, Q, T)``."""
        real = jnp.where(mask, log10, jnp.nan)
        found = nearest_quantiles(real, self.quantiles)
        return jnp.moveaxis(found, -1, 1)
