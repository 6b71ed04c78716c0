"""Every direction of the state: what the whole sequence leaves of it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from gradlab.bptt.closeup import Closeup, LayerView
from gradlab.bptt.products import log10_singular_values
from gradlab.errors import whole_number
from gradlab.probes.base import CloseProbe, Setting, mean_log10, over_layers
from gradlab.variable import Variable


@dataclass(frozen=True)
class SingularSpectrum(CloseProbe):
    """All singular values of the long-term Jacobian over the whole sequence.

    Definition: ``σ_1 ≥ … ≥ σ_S`` of ``J_{T:0} = J_{T-1} ⋯ J_1``; ``condition_log10`` is
    ``log10 σ_1/σ_S``; the finite-time Lyapunov exponents are ``ln σ_i / n`` with n the example's
    number of real steps in the product. They tend to the Lyapunov exponents as n grows, and at
    finite n they are not what QR gives (:class:`gradlab.probes.Lyapunov`). ``directions_lost`` is
    how many of the S singular values are exactly zero. Each per example, then the mean over
    examples; of logs, over those with a nonzero value.

    Source: Oseledets (1968) for the exponents; Engelken (2023) for the condition number of the
    long-term Jacobian as the obstacle to training; Demmel & Veselić (1992) for how small singular
    values are found: of a product whose condition number is beyond the digits of a float, a plain
    decomposition gives rounding errors.

    Cost: the most of any probe: T QR decompositions of S×S for each example, O(T S³) time, and
    O(S²) memory beside the Jacobians.

    Mask: a padded step counts as the identity and not among the n steps, so the product is that of
    each example's own real steps. After a state that is not finite there is nothing to measure, and
    the steps from there on count as padded, too.

    Limits: one example by default, whose spectrum need not be that of another. In float32 a
    singular value is right to about 1e-3 in the log10 however small it is, as far as the step
    Jacobians are. Saturated units keep their digits (of ``tanh``, ``sigmoid`` and ``elu``), where
    the backward pass reads them as shut: at gain 5 (50 tanh units, 100 steps, |a| up to 17) every
    exponent is within 2e-5 nats a step of long doubles. What a step Jacobian holds only as the
    difference of rows that are almost alike is lost in float32: of an LSTM whose output gates are
    shut tight (20 units at gain 10) the exponents below -3 are wrong by up to 0.3, at gain 5 none
    by more than 1e-3; with ``jax_enable_x64`` all are within 1e-7. A factor below 1e-38 in one step
    is 0. ``condition_log10`` is inf for an example as soon as one direction is lost, and its mean
    with it: then ``directions_lost`` says how many are, and the singular values what is left.

    How to read it: the number of values near 0 (a factor 1) is the number of directions of the
    state in which gradient survives the sequence; the rest of the state is forgotten. A steep
    curve means that the gradient at the start is that of one direction alone, whatever the loss
    says: a condition number above 10^7 is all of float32. -inf is a direction that is lost
    exactly (by a ReLU at rest, a gate that is shut, a matrix of lower rank), or beyond the digits
    of a single step.

    Args:
      examples: how many of the examples looked at are used; all if there are fewer.
    """

    examples: int = 1

    def __post_init__(self):
        """Refuse what cannot be."""
        whole_number("probe.measure.singular_spectrum.examples", self.examples, 1)

    def variables(self, setting: Setting) -> dict[str, Variable]:
        """Four variables."""
        product = "of the long-term Jacobian ∂s_T/∂s_0"
        return {
            "singular_value_log10": Variable(
                ("layer", "singular"), "log10", f"singular values {product}"
            ),
            "condition_log10": Variable(("layer",), "log10", f"condition number {product}"),
            "finite_time_exponent": Variable(
                ("layer", "singular"),
                "nats/step",
                "finite-time Lyapunov exponent ln σ_i / steps",
            ),
            "directions_lost": Variable(
                ("layer",), "directions", f"singular values {product} that are exactly zero"
            ),
        }

    def coords(self, setting: Setting) -> dict[str, list[Any]]:
        """Ranks of the singular values, the largest first."""
        return {"singular": list(range(setting.state_size))}

    def __call__(self, closeup: Closeup) -> dict[str, jax.Array]:
        """See the class."""
        return over_layers(spectrum, closeup.first(self.examples))


def spectrum(layer: LayerView) -> dict[str, jax.Array]:
    """The four variables of one layer."""
    real = layer.mask
    log10 = log10_singular_values(layer.transport)
    steps = jnp.sum(real[1:], axis=0)
    # Two infinities have no difference: a product that is zero is as far from regular as any.
    zeros = jnp.sum(log10 == -jnp.inf, axis=-1)
    condition = jnp.where(zeros > 0, jnp.inf, log10[:, 0] - jnp.where(zeros > 0, 0, log10[:, -1]))
    exponents = log10 * math.log(10) / jnp.maximum(steps, 1)[:, None].astype(log10.dtype)
    some = jnp.any(real, axis=0)
    every = jnp.broadcast_to(some, log10.T.shape)
    return {
        "singular_value_log10": mean_log10(log10.T, every),
        "condition_log10": mean_log10(condition, some),
        "finite_time_exponent": mean_log10(exponents.T, every & (steps > 0)[None]),
        "directions_lost": jnp.mean(zeros.astype(log10.dtype), where=some),
    }
