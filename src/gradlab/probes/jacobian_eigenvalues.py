"""Where the eigenvalues of the step Jacobian lie in the complex plane."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from gradlab.bptt import scaling
from gradlab.bptt.closeup import Closeup, LayerView
from gradlab.bptt.products import eigenvalues
from gradlab.bptt.scaling import LOG10_2
from gradlab.errors import BadInput, number, whole_number
from gradlab.probes.base import CloseProbe, Setting, mean_log10, over_layers
from gradlab.variable import Variable

KEY = "probe.measure.jacobian_eigenvalues"


@dataclass(frozen=True)
class JacobianEigenvalues(CloseProbe):
    """The eigenvalues of the step Jacobian: their moduli at every timestep, and some spectra.

    Definition: ``J_t = ∂s_t/∂s_{t-1}`` has S eigenvalues μ, with s = [c; h] in an LSTM and h
    elsewhere. ``eigenvalue_largest_log10`` is log10 of the largest ``|μ|`` (the spectral radius),
    ``eigenvalue_median_log10`` of the median ``|μ|``, of an even number the mean of the two in the
    middle; mean over examples of the logs, over those that are not zero; nan at the timesteps that
    are not looked at. With ``typical`` in the name it is the median over those of them that are an
    example's own real steps, then the mean over examples. ``eigenvalue_real`` and
    ``eigenvalue_imaginary`` are the eigenvalues of the first example at a few ``shares`` of its own
    way, the largest modulus first.

    Source: Can, Krishnamurthy & Schwab (2020), "Gating creates slow modes and controls phase-space
    complexity in GRUs and LSTMs": the median of the moduli for where the bulk lies, the radius for
    stability.

    Cost: the Jacobians, and an eigendecomposition without vectors of each that is looked at: O(S³)
    with a large constant, some 10 ms for S = 128, which is why ``timesteps`` are few. On a GPU JAX
    takes cuSOLVER where it is recent enough (CUDA 12.6 update 2), else it sends the matrices to the
    host's LAPACK and back; there is no way to it on a TPU.

    Mask: a step of padding is left out, of every mean and median, and the shares count the first
    example's own real steps. Over t an example counts at its own steps, so that the last of them
    stand beside the middle of a longer one.

    Limits: found are the eigenvalues of a matrix within rounding of J_t; of one that is not normal
    they may lie far from those of J_t. In float32, against float64: of Gaussian matrices of 64
    every modulus is right to 5e-6 of the radius, of an LSTM of 32 units every median and radius to
    3e-5; but of a Jordan block of 64 zeros, turned, the moduli come out as 0.79 (0.57 in float64).
    Moduli below about 1e-6 of the norm of J_t may be zero. J_T ⋯ J_1 does not have the products of
    the eigenvalues of its factors. Of a Gaussian matrix the median is 1/√2 of the radius of the
    disc: a single one of 64 has 0.716 ± 0.023, and its largest 1.055 ± 0.07, where the radius is 1.

    How to read it: points inside the unit circle are directions that this step shrinks, and near 1
    is what is kept as it is. Closed forget gates draw the cloud to 0, and open ones to 1: that is
    how gates make slow modes. In an LSTM half of the points lie near 0: h is made anew at each
    step. Points that leave the circle on the right grow steadily, elsewhere they turn as they grow.
    The gap between median and largest says whether a few directions or all are slow. The
    eigenvalues of one step tell of the long run only where J_t hardly changes with t: for that see
    the Lyapunov exponents.

    Args:
      shares: of the way through the first example's real steps, where its spectrum is kept; each
        from 0, the first step, to 1, the last one.
      timesteps: at how many of them the moduli are taken, spread evenly over the sequence, first
        and last included; all if there are fewer. None: all.
      examples: how many of the examples looked at are used; all if there are fewer.
    """

    preset: ClassVar[str] = "research"

    shares: tuple[float, ...] = (0.0, 0.5, 1.0)
    timesteps: int | None = 16
    examples: int = 1

    def __post_init__(self):
        """Refuse what cannot be for any model."""
        for share in self.shares:
            number(f"{KEY}.shares", share, 0, 1)
        if not 0 < len(set(self.shares)) == len(self.shares):
            allowed = "a list of numbers from 0 to 1, each once, at least one"
            raise BadInput(f"{KEY}.shares", self.shares, allowed)
        if self.timesteps is not None:
            whole_number(f"{KEY}.timesteps", self.timesteps, 1, otherwise=", or null for all")
        whole_number(f"{KEY}.examples", self.examples, 1)

    def variables(self, setting: Setting) -> dict[str, Variable]:
        """Six variables."""
        what, spectrum = "|eigenvalue| of the step Jacobian J_t", ("layer", "share", "eigenvalue")
        found = {}
        for name in ("largest", "median"):
            typical = f"{name} {what}, median over t"
            found |= {
                f"eigenvalue_{name}_log10": Variable(("layer", "t"), "log10", f"{name} {what}"),
                f"eigenvalue_{name}_typical_log10": Variable(("layer",), "log10", typical),
            }
        for part in ("real", "imaginary"):
            label = f"{part} part of an eigenvalue of the step Jacobian J_t"
            found[f"eigenvalue_{part}"] = Variable(spectrum, "1", label)
        return found

    def coords(self, setting: Setting) -> dict[str, list[Any]]:
        """The shares of the way, and the ranks of the eigenvalues, the largest modulus first."""
        return {"share": list(self.shares), "eigenvalue": list(range(setting.state_size))}

    def __call__(self, closeup: Closeup) -> dict[str, jax.Array]:
        """See the class."""
        return over_layers(self._layer, closeup.first(self.examples))

    def _layer(self, layer: LayerView) -> dict[str, jax.Array]:
        length = len(layer.mask)
        count = min(self.timesteps or length, length)
        looks = np.linspace(0, length - 1, count).round().astype(int)
        values, exponent = eigenvalues(layer.jacobian[looks])
        moduli, real = jnp.abs(values), layer.mask[looks]
        shift = exponent.astype(moduli.dtype) * LOG10_2
        found = self._spectra(layer)
        for name, one in (("largest", moduli[..., 0]), ("median", jnp.median(moduli, axis=-1))):
            log10 = jnp.log10(one) + shift
            nowhere = jnp.full(length, jnp.nan, log10.dtype)
            typical, some = median_over_time(log10, real)
            found |= {
                f"eigenvalue_{name}_log10": nowhere.at[looks].set(mean_log10(log10, real)),
                f"eigenvalue_{name}_typical_log10": mean_log10(typical, some),
            }
        return found

    def _spectra(self, layer: LayerView) -> dict[str, jax.Array]:
        """The first example's eigenvalues at the shares of its way."""
        steps = jnp.cumsum(layer.mask[:, 0])
        shares = jnp.asarray(self.shares)
        nth = 1 + jnp.round(shares * (steps[-1] - 1).astype(shares.dtype)).astype(steps.dtype)
        values, exponent = eigenvalues(layer.jacobian[jnp.searchsorted(steps, nth), :1])
        found = {}
        for name, part in (("real", jnp.real(values)), ("imaginary", jnp.imag(values))):
            plain = scaling.shift(part, exponent)[:, 0]
            found[f"eigenvalue_{name}"] = jnp.where(steps[-1] > 0, plain, jnp.nan)
        return found


def median_over_time(values: jax.Array, mask: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Of the real steps of ``(T, E)``, ``(E,)``, and whether there are any; -inf is a value."""
    count = jnp.sum(mask, axis=0)
    ascending = jnp.sort(jnp.where(mask, values, jnp.inf), axis=0)
    middle = jnp.stack([(count - 1) // 2, count // 2])
    low, high = jnp.take_along_axis(ascending, jnp.maximum(middle, 0), axis=0)
    return jnp.where(low == high, low, (low + high) / 2), count > 0
