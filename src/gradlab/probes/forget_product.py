"""How much of an old state is left at the end, gate by gate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp

from gradlab.bptt.folding import Folded, Gates
from gradlab.bptt.scaling import LOG10_2
from gradlab.probes.base import (
    GateProbe,
    Setting,
    Unsupported,
    both_means,
    check_quantiles,
    greatest,
    nearest_quantiles,
)
from gradlab.variable import Variable, over_lag


@dataclass(frozen=True)
class ForgetProduct(GateProbe):
    """log10 of the product of the retention gate from t + 1 to the end of the sequence.

    Definition: ``p_t = ∏_{k=t+1}^{T-1} f_k`` per unit and example, T being the example's own
    length. For the LSTM it is ∂c_T/∂c_t along the direct path, for the GRU the product of z.
    ``forget_product_rms_log10`` is the log10 of its root mean square over units, ``‖P_t‖_F/√H`` of
    the diagonal matrix P_t, and then the mean over examples: what that path makes of the norm of a
    gradient that all units share alike. ``forget_product_log10`` is the mean over examples and
    units of ``log10 p_t``: a *typical* unit. ``forget_product_log10_q`` are quantiles over units of
    the mean over examples of ``log10 p_t``.

    Source: Hochreiter & Schmidhuber (1997) for the path through the cell state; Gers, Schmidhuber &
    Cummins (2000) for the gate on it.

    Cost: O(T B H), of gates that the backward pass has at hand: two transcendental functions a unit
    and step. O(T (B + H)) memory, since the products are not kept.

    Mask: a step of padding multiplies by 1, and the products end at each example's own last real
    step. Over the lag all begin there with 1.

    Limits: the log10 is right to 2e-7 of itself: 1e-4 over 5000 steps, at 10^-685 (against
    float64, as for ``adjoint``). But a gate is right to 6e-8, so that the log of one near 1 is
    right to 6e-8/(1 - f) of itself: 1 % where f = 1 - 6e-6. A gate that is exactly 0 (its argument
    below -104) gives -inf. A gradient lies mostly in few units, and may be larger or smaller than
    the root mean square says: it lies between the smallest and the largest product.

    How to read it: the root mean square beside ``adj_c_log10``, as the part of the gradient's fate
    that the gates alone decide. The typical unit may lie tens of decades lower: a norm is carried
    by the unit that forgets least, and only the quantiles show how far units differ. Where the
    adjoint falls more slowly than the root mean square, either its own units forget less than
    most, or something comes through the hidden state: only ``forget_path`` tells these apart.

    Args:
      quantiles: over units, in [0, 1], each once; the nearest unit is taken.
    """

    quantiles: tuple[float, ...] = (0.05, 0.25, 0.5, 0.75, 0.95)

    def __post_init__(self):
        check_quantiles("probe.measure.forget_product.quantiles", self.quantiles)

    def variables(self, setting: Setting) -> dict[str, Variable]:
        """Five variables; their attribute ``gate`` names the gate."""
        if setting.retention is None:
            gates = ", ".join(setting.gates) or "none that can be seen"
            raise Unsupported(f"{setting.cell} has no retention gate (its gates: {gates})")
        product, attrs = (
            f"forget product ∏_(k>t) {setting.retention}_k",
            {"gate": setting.retention},
        )
        means = {
            "forget_product_log10": Variable(
                ("layer", "t"), "log10", f"{product} of a typical unit", attrs
            ),
            "forget_product_rms_log10": Variable(
                ("layer", "t"), "log10", f"{product}, root mean square over units", attrs
            ),
        }
        quantiles = Variable(
            ("layer", "quantile", "t"), "log10", f"quantiles over units of the {product}", attrs
        )
        return means | over_lag(means) | {"forget_product_log10_q": quantiles}

    def coords(self, setting: Setting) -> dict[str, list[float]]:
        """The quantiles."""
        return {"quantile": list(self.quantiles)}

    def begin(self, gates: Gates) -> Sum:
        """log2 of the product of each unit and example so far, ``(B, H)``."""
        assert gates.retention is not None
        nothing = jnp.zeros(gates.retention.shape, gates.retention.dtype)
        return Sum(nothing, nothing)

    def step(self, carry: Sum, gates: Gates, real: jax.Array | None) -> tuple[Sum, _Kept]:
        """The product from the step after this one on, and one factor more."""
        assert gates.retention is not None
        log2, product = jnp.log2(gates.retention), carry.high
        largest = greatest(product)
        apart = product - jnp.where(jnp.isfinite(largest), largest, 0)[:, None]
        counted = product > -jnp.inf
        if real is not None:
            log2 = jnp.where(real[:, None], log2, 0)
            counted &= real[:, None]
        units = jnp.ones(product.shape[1:], product.dtype)
        kept = _Kept(
            typical=product @ units,
            largest=largest,
            squares=jnp.exp2(2 * apart) @ units,
            total=jnp.sum(jnp.where(counted, product, 0), axis=0),
            count=jnp.sum(counted, axis=0, dtype=product.dtype),
        )
        return carry.plus(log2), kept

    def finish(self, carry: Sum, kept: _Kept) -> Folded:
        """By example the mean over units and the root mean square, log10; by unit the sums."""
        units = carry.high.shape[-1]
        rms = kept.largest + 0.5 * jnp.log2(kept.squares / units)
        return Folded((kept.typical / units * LOG10_2, rms * LOG10_2), (kept.total, kept.count))

    def measure(self, folded: Folded, mask: jax.Array) -> dict[str, jax.Array]:
        """See :meth:`gradlab.probes.base.GateProbe.measure`."""
        (typical, rms), (total, count) = folded.rows, folded.sums
        mean = total / jnp.maximum(count, 1)
        nothing = jnp.where(jnp.any(mask, -1), -jnp.inf, jnp.nan)[..., None]
        units = jnp.where(count > 0, mean, nothing) * LOG10_2
        return {
            **both_means("forget_product_log10", typical, mask),
            **both_means("forget_product_rms_log10", rms, mask),
            "forget_product_log10_q": jnp.moveaxis(nearest_quantiles(units, self.quantiles), -1, 1),
        }


class _Kept(NamedTuple):
    """What is kept of a step; log2 of the products from the step after it on.

    Attributes:
      typical: the sum over units, ``(B,)``.
      largest: that of the unit that keeps most, ``(B,)``.
      squares: the sum over units of the squares of their products over the largest, ``(B,)``.
      total: the sum over the real examples where it is no product of 0, ``(H,)``.
      count: how many these are.
    """

    typical: jax.Array
    largest: jax.Array
    squares: jax.Array
    total: jax.Array
    count: jax.Array


class Sum(NamedTuple):
    """A sum and its rounding error, so that thousands of terms are right to the last bit."""

    high: jax.Array
    low: jax.Array

    def plus(self, term: jax.Array) -> Sum:
        """One term more (Kahan's compensated sum)."""
        corrected = term + self.low
        high = self.high + corrected
        # An infinite sum has no rounding error; inf - inf would make it nan.
        low = jnp.where(jnp.isfinite(high), corrected - (high - self.high), 0)
        return Sum(high, low)
