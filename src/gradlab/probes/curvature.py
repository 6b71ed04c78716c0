"""How sharply the loss bends: along the gradient, and at most."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.flatten_util import ravel_pytree

from gradlab.bptt.closeup import Closeup
from gradlab.errors import whole_number
from gradlab.probes.base import CloseProbe, Setting, norm
from gradlab.variable import Variable

SHARE = 0.1
"""The length of the random component beside the first step away from the gradient."""


@dataclass(frozen=True)
class Curvature(CloseProbe):
    """The curvature of the loss along its gradient, and the largest eigenvalue of its Hessian.

    Definition: H is the Hessian of the mean loss of the examples by all parameters (cells and
    readout), ĝ the gradient divided by its norm. ``gradient_curvature`` is ``ĝᵀ H ĝ``, exact up to
    rounding; nan where the gradient is exactly zero. ``hessian_top`` is the most positive
    eigenvalue of H on the space that ``iterations`` steps of the Lanczos iteration span (with full
    reorthogonalisation, started from ĝ, with a fixed random component in the second vector so that
    no eigenvector is out of reach). It is never above the true one and never below
    ``gradient_curvature``; with as many iterations as parameters it is exact. Past the float range
    of plain numbers both are not finite.

    Source: the cliffs of Pascanu, Mikolov & Bengio (2013), section 2.3, where the curvature grows
    along with the gradient; Lanczos on Hessians: Ghorbani, Krishnan & Xiao (2019), section 2.

    Cost: one product of H with a vector, each about two gradients' time, for every iteration, by
    forward-over-reverse differentiation of plain autodiff: O(T E H) memory per layer, and
    2 ``iterations`` vectors of the size of the parameters.

    Mask: none of its own. The loss is that of the real steps, and so are its derivatives.

    Limits: of the examples looked at (``probe.examples``), not of the training batch. ĝ is the
    gradient of the true loss, also where ``trainer.backward`` trains along another direction.
    ``hessian_top`` comes from below: with 4 iterations it was within 0.6 % of 64 iterations' for an
    LSTM and a plain network of 16 units before training (adding problem, T = 20 and 100), with 16
    within 0.1 %; where the gradient is nearly orthogonal to the sharpest direction it is further
    off. In float32 an eigenvalue is right to about 1e-6 of the one that is largest in modulus, and
    saturated units have the derivatives that JAX gives them.

    How to read it: gradient descent with learning rate η lowers the loss along the gradient as
    long as ``gradient_curvature`` is below 2/η, and is stable as long as ``hessian_top`` is. A
    curvature that jumps together with ``grad_norm`` is a wall: the step that the gradient asks for
    is much longer than the slope lasts, and clipping is what helps. ``gradient_curvature`` near
    ``hessian_top``: the gradient points along the sharpest direction, across a valley rather than
    down it. A small curvature and a small gradient: a plateau.

    Args:
      iterations: products with H, at least 1. More bring ``hessian_top`` closer from below.
    """

    iterations: int = 4

    def __post_init__(self):
        whole_number("probe.measure.curvature.iterations", self.iterations, 1, 1000)

    def variables(self, setting: Setting) -> dict[str, Variable]:
        """Two numbers."""
        units = "loss/parameter²"
        along = "curvature of the loss along its gradient, ĝᵀHĝ"
        top = "largest eigenvalue of the Hessian of the loss (from below)"
        return {
            "gradient_curvature": Variable((), units, along),
            "hessian_top": Variable((), units, top),
        }

    def __call__(self, closeup: Closeup) -> dict[str, jax.Array]:
        """See the class."""
        gradient, product = jax.linearize(jax.grad(closeup.loss), dict(closeup.params))
        flat, unravel = ravel_pytree(gradient)

        def times_hessian(vector: jax.Array) -> jax.Array:
            return ravel_pytree(product(unravel(vector)))[0]

        projected = _projected(times_hessian, flat, min(self.iterations, flat.size))
        # Solvers of eigenvalues differ in what they do with numbers that are not finite.
        finite = jnp.all(jnp.isfinite(projected))
        eigenvalues = jnp.linalg.eigvalsh(jnp.where(finite, projected, 0))
        return {
            "gradient_curvature": jnp.where(jnp.any(flat != 0), projected[0, 0], jnp.nan),
            "hessian_top": jnp.where(finite, jnp.max(eigenvalues), jnp.nan),
        }


def _projected(
    times_hessian: Callable[[jax.Array], jax.Array], gradient: jax.Array, count: int
) -> jax.Array:
    """``QᵀHQ`` ``(count, count)`` for orthonormal columns Q grown from the gradient by Lanczos.

    Where the gradient's own directions are used up, a fixed random one carries on.
    """
    dtype = gradient.dtype
    random = jnp.asarray(np.random.default_rng(20).normal(size=gradient.size), dtype)
    size = norm(gradient)
    start = jnp.where(size == 0, _unit(random), gradient / jnp.where(size == 0, 1, size))
    nothing = jnp.zeros((count, gradient.size), dtype)

    def grow(j: jax.Array, state: tuple[jax.Array, jax.Array, jax.Array]):
        basis, images, vector = state
        image = times_hessian(vector)
        basis, images = basis.at[j].set(vector), images.at[j].set(image)
        rest = _orthogonal(image, basis)
        used_up = norm(rest) <= 100 * jnp.finfo(dtype).eps * norm(image)
        other = _unit(_orthogonal(jnp.roll(random, j), basis))
        onward = jnp.where(used_up, other, _unit(rest) + jnp.where(j == 0, SHARE, 0) * other)
        return basis, images, _unit(_orthogonal(onward, basis))

    basis, images, _ = lax.fori_loop(0, count, grow, (nothing, nothing, start))
    projected = jnp.matmul(basis, images.T, precision=lax.Precision.HIGHEST)
    return (projected + projected.T) / 2


def _orthogonal(vector: jax.Array, basis: jax.Array) -> jax.Array:
    """What of the vector is orthogonal to the rows of the basis; twice is enough (Kahan)."""
    for _ in range(2):
        shares = jnp.matmul(basis, vector, precision=lax.Precision.HIGHEST)
        vector = vector - jnp.matmul(shares, basis, precision=lax.Precision.HIGHEST)
    return vector


def _unit(vector: jax.Array) -> jax.Array:
    """The vector divided by its norm; zero stays zero."""
    size = norm(vector)
    return vector / jnp.where(size == 0, 1, size)
