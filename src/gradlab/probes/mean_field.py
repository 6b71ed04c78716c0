"""What the theory of large random networks predicts for this one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from gradlab.bptt.closeup import Closeup, LayerView
from gradlab.probes.base import CloseProbe, Setting, Unsupported
from gradlab.variable import Variable

STEPS = 60
"""Of Newton's method: enough even at g = 1, where each step only halves the distance."""


@dataclass(frozen=True)
class MeanField(CloseProbe):
    """The mean-field prediction of the largest Lyapunov exponent of a tanh network.

    Definition: with ``g² = H · var(W_ij)`` and ``σ²`` the mean square of the input's share of the
    pre-activation, ``drive(x_t)`` with the bias, over units, real steps and examples, the variance
    of the pre-activations is the largest solution of ``q = g² E[φ(√q z)²] + σ²``, z standard
    normal. Then ``χ₁ = g² E[φ'(√q z)²]`` and the exponent is ``½ ln χ₁``. The mean square of the
    drive and not its variance, since a constant drive pushes units into saturation like a
    fluctuating one.

    Source: Sompolinsky, Crisanti & Sommers (1988) for the random network, Poole et al. (2016) for
    q, χ₁ and the bias.

    Cost: O(T E I H) for the drive; O(1) for the solution.

    Mask: the mean of the drive's squares is over real steps alone, each of them with the same
    weight, so that longer examples count for more.

    Limits: exact for H → ∞, at initialisation and far from the start; for g = 1.5 without input it
    is 0.065 where simulations of H = 200 over 800 steps give 0.056, and one such network in ten
    falls into a cycle. Of the drive it knows the mean square alone, not how it changes in time.
    After training, when the entries of W are no longer independent, it is a reference and not a
    forecast. It does not depend on T, and in float32 it is right to 10⁻⁶, the edge included.

    How to read it: χ₁ is by how much the mean square of a perturbation grows in a step, were W
    random with independent entries: above 1 perturbations and gradients grow (which is chaos in
    this network, since tanh keeps its states bounded and a large one with χ₁ > 1 does not rest),
    below 1 they die out and gradients vanish, at 1 is the edge. Compare with the measured exponent:
    where training drives them apart, W has grown structure that its variance does not show.
    """

    def variables(self, setting: Setting) -> dict[str, Variable]:
        """Two variables over layers."""
        if setting.activation != "tanh":
            kind = "no plain recurrent network"
            if setting.activation is not None:
                kind = f"a plain network with φ = {setting.activation or 'one that is not known'}"
            raise Unsupported(
                f"mean-field theory is for plain tanh networks; {setting.cell} is {kind}"
            )
        return {
            "mean_field_chi": Variable(
                ("layer",), "1", "mean-field growth χ₁ of a squared perturbation in a step"
            ),
            "mean_field_exponent": Variable(
                ("layer",), "nats/step", "mean-field Lyapunov exponent ½ ln χ₁"
            ),
        }

    def __call__(self, closeup: Closeup) -> dict[str, jax.Array]:
        """See the class."""
        chi = jnp.stack([growth(*strengths(layer)) for layer in closeup.layers])
        return {"mean_field_chi": chi, "mean_field_exponent": 0.5 * jnp.log(chi)}


def strengths(layer: LayerView) -> tuple[jax.Array, jax.Array]:
    """g² and σ² of one layer, () each."""
    plain = layer.plain_rnn
    assert plain is not None
    (matrix,) = layer.recurrent_matrices.values()
    real = layer.mask[..., None]
    drive = jnp.where(real, plain.drive(layer.trace.inputs), 0)
    count = (jnp.sum(real) * drive.shape[-1]).astype(drive.dtype)
    return len(matrix) * jnp.var(matrix), jnp.sum(jnp.square(drive)) / count


def growth(g2: jax.Array, sigma2: jax.Array) -> jax.Array:
    """χ₁ of a tanh network, () from () each."""
    q = variance(g2, sigma2)
    return g2 * gaussian_mean(lambda a: jnp.square(1 - jnp.square(jnp.tanh(a))), q)


def variance(g2: jax.Array, sigma2: jax.Array) -> jax.Array:
    """The largest q with ``q = g² E[tanh²(√q z)] + σ²``.

    The right-hand side is concave in q and below the left at ``q = g² + σ²``, so that Newton's
    method comes down from there to the largest solution without passing it.
    """
    eps = jnp.finfo(jnp.result_type(g2)).eps

    def slope(a: jax.Array) -> jax.Array:
        # d/dq of tanh²(√q z) is tanh'(a) tanh(a) z / √q with a = √q z; z / √q = a / q.
        return jnp.tanh(a) * (1 - jnp.square(jnp.tanh(a))) * a

    def newton(_: int, q: jax.Array) -> jax.Array:
        excess = g2 * gaussian_mean(lambda a: jnp.square(jnp.tanh(a)), q) + sigma2 - q
        steepness = 1 - g2 * gaussian_mean(slope, q) / jnp.maximum(q, jnp.finfo(q.dtype).tiny)
        # Rounding must not turn it around where the curves only touch (g = 1).
        return jnp.clip(q + excess / jnp.maximum(steepness, eps), 0, q)

    return lax.fori_loop(0, STEPS, newton, g2 + sigma2)


class _Quadrature(NamedTuple):
    nodes: np.ndarray
    weights: np.ndarray


def _quadrature() -> _Quadrature:
    """For ``E[f(z)]`` of even f, z standard normal: the trapezoidal rule in ln z.

    tanh(√q z) has its poles at distance π/2 from the real axis of ln z for every q, so one fixed
    rule is exact to rounding from a linear network to a saturated one, where Gauss-Hermite's nodes
    would step over the slope of tanh.
    """
    step = 0.125
    nodes = np.exp(np.arange(-37, 2.4, step))
    return _Quadrature(nodes, 2 * step * nodes * np.exp(-0.5 * nodes**2) / np.sqrt(2 * np.pi))


QUADRATURE = _quadrature()


def gaussian_mean(f: Callable[[jax.Array], jax.Array], q: jax.Array) -> jax.Array:
    """``E[f(√q z)]`` of an even f, z standard normal, ()."""
    nodes, weights = (jnp.asarray(part, q.dtype) for part in QUADRATURE)
    return jnp.sum(weights * f(jnp.sqrt(q) * nodes))
