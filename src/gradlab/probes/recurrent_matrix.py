"""What the recurrent matrices alone say about growth and decay."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from gradlab.bptt import scaling
from gradlab.bptt.closeup import Closeup
from gradlab.bptt.scaling import Scaled
from gradlab.probes.base import CloseProbe, Setting, Unsupported
from gradlab.variable import Variable

HIGHEST = lax.Precision.HIGHEST


@dataclass(frozen=True)
class RecurrentMatrix(CloseProbe):
    """Spectral radius, spectral norm, non-normality and transient growth of each matrix on h.

    Definition: for each matrix W (H, H) that multiplies h, with eigenvalues λ:
    ``spectral_radius = max|λ|``; ``spectral_norm = σ_max(W)``;
    ``departure_from_normality = √(‖W‖_F² - Σ|λ|²)``, 0 exactly for a normal matrix, and below about
    ``√H · 10⁻³`` in float32 indistinguishable from that;
    ``transient_growth_log10 = log10 max_k ‖W^k‖₂`` over k = 0 … T, at least 0.

    Source: Henrici (1962) for the departure from normality, Trefethen & Embree (2005) for transient
    growth; Pascanu, Mikolov & Bengio (2013), section 2, for what radius and norm imply.

    Cost: one eigendecomposition, and T products of (H, H) matrices, less where the powers die out.
    Memory O(H²). The eigenvalues are LAPACK's on a CPU. On a GPU JAX takes cuSOLVER where it is
    recent enough (CUDA 12.6 update 2), else it sends the matrix to the host's LAPACK and back.

    Mask: none of these sees the data. Transient growth looks at powers up to T, the length of the
    padded batch.

    Limits: what one matrix does if nothing else acts: no slope of φ, no gate, no other matrix. In
    float32 an eigenvalue of a matrix that is far from normal moves by more than rounding, a
    defective one of multiplicity m by the m-th root of it. Which power is the largest is chosen by
    estimates, so that among near ties another one may be taken; its norm is exact.

    How to read it: in a linear network the gradient vanishes if the radius is below 1 and explodes
    above it, in the long run. The norm bounds a single step. A norm far above the radius, with a
    departure from normality of the size of the radius, means that the gradient first grows and only
    then decays: transient growth says by how many decades. Orthogonal matrices sit at 1, 1, 0, 0
    and leave them as they train. In a gated cell the gates multiply all of this.
    """

    def variables(self, setting: Setting) -> dict[str, Variable]:
        """Four variables over layers and matrices."""
        if not setting.matrices:
            raise Unsupported(f"{setting.cell} has no recurrent matrices that can be seen")
        dims = ("layer", "matrix")
        return {
            "spectral_radius": Variable(dims, "1", "largest |eigenvalue| of a recurrent matrix"),
            "spectral_norm": Variable(dims, "1", "largest singular value of a recurrent matrix"),
            "departure_from_normality": Variable(
                dims, "1", "Henrici's departure from normality of a recurrent matrix"
            ),
            "transient_growth_log10": Variable(
                dims, "log10", "largest norm of a recurrent matrix's powers up to T"
            ),
        }

    def coords(self, setting: Setting) -> dict[str, list[str]]:
        """The names of the matrices."""
        return {"matrix": list(setting.matrices)}

    def __call__(self, closeup: Closeup) -> dict[str, jax.Array]:
        """See the class."""
        layers = [list(layer.recurrent_matrices.values()) for layer in closeup.layers]
        stacked = jnp.stack([jnp.stack(matrices) for matrices in layers])

        def one(matrix: jax.Array) -> dict[str, jax.Array]:
            return figures(matrix, closeup.length)

        found = lax.map(one, stacked.reshape(-1, *stacked.shape[2:]))
        return {name: value.reshape(stacked.shape[:2]) for name, value in found.items()}


def figures(matrix: jax.Array, length: int) -> dict[str, jax.Array]:
    """The four numbers of one matrix ``(H, H)``; nan if it is not finite."""
    finite = jnp.all(jnp.isfinite(matrix))
    scaled = Scaled.of(jnp.where(finite, matrix, 0), 0)
    mantissa, exponent = scaled
    moduli = jnp.abs(jnp.linalg.eigvals(mantissa))
    excess = jnp.sum(jnp.square(mantissa)) - jnp.sum(jnp.square(moduli))
    found = {
        "spectral_radius": scaling.shift(jnp.max(moduli), exponent),
        "spectral_norm": scaling.shift(jnp.linalg.norm(mantissa, 2), exponent),
        "departure_from_normality": scaling.shift(jnp.sqrt(jnp.maximum(excess, 0)), exponent),
        "transient_growth_log10": transient_growth(scaled, length) * scaling.LOG10_2,
    }
    return {name: jnp.where(finite, value, jnp.nan) for name, value in found.items()}


class _Powers(NamedTuple):
    """How far the search for the largest power has come: ``W^k``, and the largest so far."""

    k: jax.Array
    power: Scaled
    largest: Scaled
    log2: jax.Array


def transient_growth(matrix: Scaled, length: int) -> jax.Array:
    """log2 of the largest ``‖W^k‖₂`` over ``k = 0 … length``, ().

    The norms are compared by estimates from below that cost three matrix products
    (:func:`norm_estimate`); the largest is then taken exactly, so that only near ties can be
    confused. Once ``‖W^m‖ < 1`` no later power can be a new largest one, since
    ``‖W^(m+j)‖ ≤ ‖W^m‖ ‖W^j‖``.
    """
    eye = Scaled.of(jnp.eye(len(matrix.mantissa), dtype=matrix.mantissa.dtype), 0)

    def goes_on(state: _Powers) -> jax.Array:
        frobenius = scaling.log2_norm(*state.power)
        return (state.k < length) & (frobenius >= 0)

    def step(state: _Powers) -> _Powers:
        product = jnp.matmul(matrix.mantissa, state.power.mantissa, precision=HIGHEST)
        power = Scaled(product, state.power.exponent + matrix.exponent).normalise()
        log2 = jnp.log2(norm_estimate(power.mantissa)) + power.exponent.astype(product.dtype)
        larger = log2 > state.log2
        largest = jax.tree.map(lambda new, old: jnp.where(larger, new, old), power, state.largest)
        return _Powers(state.k + 1, power, largest, jnp.where(larger, log2, state.log2))

    # The identity's own norm comes in at the end, so that the best of the others is exact, too.
    start = _Powers(jnp.int32(0), eye, eye, jnp.asarray(-jnp.inf, matrix.mantissa.dtype))
    largest = lax.while_loop(goes_on, step, start).largest
    exact = jnp.log2(jnp.linalg.norm(largest.mantissa, 2))
    return jnp.maximum(exact + largest.exponent.astype(exact.dtype), 0)


def norm_estimate(matrix: jax.Array) -> jax.Array:
    """σ_max from below, exact where one singular value stands out: ``(H, H) -> ()``.

    Power iteration with ``G = AᵀA`` from every unit vector at once, as powers of G: the largest
    ``‖G⁴ e_i‖ / ‖G² e_i‖`` is at most σ_max⁴. Unit vectors that G all but removes are left out.
    """
    gram = jnp.matmul(matrix.T, matrix, precision=HIGHEST)
    size = jnp.maximum(jnp.max(jnp.abs(gram)), jnp.finfo(matrix.dtype).tiny)
    twice = _squared(gram / size)
    begun, ended = (jnp.linalg.norm(power, axis=0) for power in (twice, _squared(twice)))
    kept = begun >= 1e-3 * jnp.max(begun)
    ratio = jnp.max(jnp.where(kept, ended / jnp.where(kept, begun, 1), 0))
    return jnp.sqrt(jnp.sqrt(ratio) * size)


def _squared(matrix: jax.Array) -> jax.Array:
    return jnp.matmul(matrix, matrix, precision=HIGHEST)
