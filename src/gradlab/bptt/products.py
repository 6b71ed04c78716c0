"""Long products of step Jacobians, free of the float range.

A product of hundreds of matrices leaves the range of any float, and its singular values lie
further apart than its digits reach. Here numbers keep exponents beside them
(:mod:`gradlab.bptt.scaling`), and the small singular values come from factors that are graded, not
from the product itself.

Shapes: ``T`` steps, ``E`` examples, ``S`` the size of the state. ``J (T, E, S, S)`` has rows =
output, so that ``J_t`` multiplies from the left: ``∂s_{T-1}/∂s_t = J_{T-1} ⋯ J_{t+1}``.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from gradlab.bptt import scaling
from gradlab.bptt.scaling import LOG10_2, Scaled

HIGHEST = lax.Precision.HIGHEST
"""Matrix products in full float32 on accelerators, too, where the default keeps fewer digits."""


def qr_growth(jacobians: jax.Array, count: int, interval: int = 1) -> jax.Array:
    """``ln|R_ii|`` of directions carried forward and made orthonormal again at intervals.

    ``Q_t R_t = J_t Q_{t-1}`` in forward order, from a fixed random orthonormal ``Q`` of ``count``
    columns. Summed over time and divided by the number of steps, column ``i`` tends to the
    ``i``-th largest Lyapunov exponent. At finite time these are not the singular values of the
    product (:func:`log10_singular_values`).

    Differentiable where no ``R_ii`` is 0. The identity (a masked step) gives 0.

    Args:
      jacobians: ``(T, E, S, S)``.
      count: how many directions, at most ``S``.
      interval: steps between orthonormalisations; the last interval may be shorter. The longer it
        is, the less is left of the digits of all columns but the first.

    Returns:
      ``(T', E, count)`` in nats per interval, ``T'`` as in :func:`growth_steps`; -inf where a
      direction is lost entirely.
    """
    length, examples, size, _ = jacobians.shape
    missing = -length % interval
    eye = jnp.broadcast_to(jnp.eye(size, dtype=jacobians.dtype), (missing, *jacobians.shape[1:]))
    grouped = jnp.concatenate([jacobians, eye]) if missing else jacobians
    grouped = grouped.reshape(-1, interval, examples, size, size)
    start = jnp.asarray(random_orthonormal(size, count), jacobians.dtype)

    def grow(value: Scaled, jacobian: jax.Array) -> tuple[Scaled, None]:
        product = _multiply(jacobian, value.mantissa)
        return Scaled(product, value.exponent).normalise(), None

    def over(q: jax.Array, group: jax.Array) -> tuple[jax.Array, jax.Array]:
        grown, _ = lax.scan(grow, Scaled(q, jnp.zeros(examples, jnp.int32)), group)
        q, r, _ = _graded_qr(grown.mantissa)
        diagonal = jnp.abs(jnp.diagonal(r, axis1=-2, axis2=-1))
        shift = grown.exponent[:, None].astype(r.dtype) * math.log(2)
        return q, jnp.log(diagonal) + shift

    _, growth = lax.scan(over, jnp.broadcast_to(start, (examples, size, count)), grouped)
    return growth


def growth_steps(length: int, interval: int = 1) -> np.ndarray:
    """``(T', 2)``: the first step of each interval of :func:`qr_growth`, and one past its last."""
    first = np.arange(0, length, interval)
    return np.stack([first, np.minimum(first + interval, length)], axis=-1)


def random_orthonormal(size: int, count: int) -> np.ndarray:
    """``(size, count)``: fixed directions that no structure of the Jacobians prefers."""
    normal = np.random.default_rng(20).normal(size=(size, size))
    return np.linalg.qr(normal)[0][:, :count]


def _graded_qr(matrix: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """``Q R`` of matrices ``(..., S, K)`` whose rows lie far apart, as where units are saturated.

    Taken in order of their size, rows keep their own digits (Cox & Higham 1998); as they come, the
    small ones drown in the rounding of the large.

    Returns:
      ``Q``, ``R``, and the largest entry of each row in descending order, ``(..., S)``.
    """
    sizes = jnp.max(jnp.abs(matrix), axis=-1)  # squares would underflow
    order = jnp.argsort(-lax.stop_gradient(sizes), axis=-1)
    q, r = jnp.linalg.qr(jnp.take_along_axis(matrix, order[..., None], axis=-2))
    q = jnp.take_along_axis(q, jnp.argsort(order, axis=-1)[..., None], axis=-2)
    return q, r, jnp.take_along_axis(sizes, order, axis=-1)


class Graded(NamedTuple):
    """Matrices whose columns lie far apart: ``mantissa * 2**exponent``, one exponent a column.

    A column is right to rounding relative to its own norm, however small it is beside the others.
    What is small now may outlast the rest once a gate closes there.

    Attributes:
      mantissa: ``(E, M, N)``.
      exponent: ``(E, N)`` int32; :data:`gradlab.bptt.scaling.ZERO` where a column is exactly zero.
    """

    mantissa: jax.Array
    exponent: jax.Array


def graded_identity(examples: int, size: int, dtype: Any) -> Graded:
    """The identity, ``(E, S, S)``."""
    eye = jnp.broadcast_to(jnp.eye(size, dtype=dtype), (examples, size, size))
    return Graded(eye, jnp.zeros((examples, size), jnp.int32))


def times(left: Graded, right: jax.Array) -> Graded:
    """``left @ right`` for plain ``right (E, N, K)``, each column of the result kept in range."""
    scaled, exponent = _rows_into_columns(right, left.exponent)
    return _normalised(_multiply(left.mantissa, scaled), exponent)


def log2_frobenius(value: Graded) -> jax.Array:
    """log2 of the Frobenius norm, ``(E,)``; -inf where exactly zero."""
    plain, exponent = _to_common_exponent(value)
    return scaling.log2_norm(plain, exponent)


def _rows_into_columns(matrix: jax.Array, rows: jax.Array) -> tuple[jax.Array, jax.Array]:
    """``diag(2**rows) @ matrix`` as mantissas with the largest of each column in [1, 2).

    The exponents are put together before anything is multiplied, so that nothing underflows that
    is not small in its own column.
    """
    entry = jnp.where(matrix == 0, scaling.ZERO, scaling.exponent_of(jnp.abs(matrix)))
    entry = jnp.maximum(rows[:, :, None] + entry, scaling.ZERO)
    columns = jnp.max(entry, axis=1)
    kept = entry - columns[:, None, :] > -_digits(matrix)
    factor = scaling.pow2(rows[:, :, None] - columns[:, None, :], matrix.dtype)
    return jnp.where(kept, matrix * factor, 0), columns


def _digits(array: jax.Array) -> int:
    """How many powers of two below the largest a number has nothing to add to it, and is 0.

    Few enough for the product of two to be a normal number: subnormal ones are slow on a CPU.
    """
    return jnp.finfo(array.dtype).nmant * 5 // 2


def _normalised(mantissa: jax.Array, exponent: jax.Array) -> Graded:
    """The same with the largest mantissa of every column in [1, 2), or exactly 0."""
    largest = jnp.max(jnp.abs(mantissa), axis=1)
    by = scaling.exponent_of(largest)
    exponent = jnp.where(largest == 0, scaling.ZERO, jnp.maximum(exponent + by, scaling.ZERO))
    unit = mantissa * scaling.pow2(-by, mantissa.dtype)[:, None, :]
    return Graded(jnp.where(jnp.abs(unit) > 2.0 ** -_digits(unit), unit, 0), exponent)


def _to_common_exponent(value: Graded) -> tuple[jax.Array, jax.Array]:
    """Plain matrices and one exponent for each: what is far below the largest entry goes to 0."""
    exponent = jnp.max(value.exponent, axis=1)
    below = value.exponent - exponent[:, None]
    factor = scaling.pow2(below, value.mantissa.dtype)
    factor = jnp.where(below > -_digits(value.mantissa), factor, 0)
    return value.mantissa * factor[:, None, :], exponent


# The two ways through a memory.

UNITS_OF_ROUNDING = 8
"""By how many units of rounding the same gate may differ when it is computed twice."""


class Paths(NamedTuple):
    """log10 of Frobenius norms, ``(T, E)`` each; -inf where exactly zero.

    Attributes:
      forget: of ``P_t``, the product of the retention gates on the diagonal.
      residual: of ``R_t = M_t - P_t``.
      whole: of ``M_t``, the memory's own block of ``J_{T-1} ⋯ J_{t+1}``.
    """

    forget: jax.Array
    residual: jax.Array
    whole: jax.Array


def paths(jacobians: jax.Array, gates: jax.Array, memory: slice) -> Paths:
    """How ``∂m_{T-1}/∂m_t`` divides into what the retention gate lets through and the rest.

    With ``J = D + N``, D the gate on the diagonal of the memory's block, the rows of the product
    that belong to the memory are ``[P, 0] + R`` and, a step further back,
    ``R_{t-1} = [P_t, 0] N_t + R_t J_t``. No two large numbers are subtracted but in ``N = J - D``
    itself, whose diagonal counts as zero within a few units of rounding of the gate.

    Args:
      jacobians: ``(T, E, S, S)``.
      gates: ``(T, E, H)``; 1 at masked steps, whose Jacobian is the identity.
      memory: where the memory lies in the state, ``H`` wide.
    """
    _, examples, size, _ = jacobians.shape
    width, dtype = gates.shape[-1], jacobians.dtype
    eye = jnp.eye(width, dtype=dtype)
    zero = jnp.zeros((examples, width), jnp.int32)

    def back(state: tuple[Graded, Graded, Graded], read: tuple[jax.Array, jax.Array]):
        forget, rest, product = state
        jacobian, gate = read
        own, block = jax.tree.map(lambda leaf: leaf[..., memory], (rest, product))
        norms = log2_frobenius(forget), log2_frobenius(own), log2_frobenius(block)
        joined = Graded(
            jnp.concatenate([forget.mantissa * eye[None], rest.mantissa], axis=-1),
            jnp.concatenate([forget.exponent, rest.exponent], axis=-1),
        )
        rest = times(joined, jnp.concatenate([beside_gate(jacobian, gate), jacobian], axis=1))
        forget = _normalised(forget.mantissa * gate[:, None, :], forget.exponent)
        return (forget, rest, times(product, jacobian)), norms

    def beside_gate(jacobian: jax.Array, gate: jax.Array) -> jax.Array:
        rows = jacobian[:, memory]
        kept = gate[:, :, None] * eye[None]
        left = rows[..., memory] - kept
        noise = UNITS_OF_ROUNDING * float(jnp.finfo(dtype).eps) * kept
        return rows.at[..., memory].set(jnp.where(jnp.abs(left) <= noise, 0, left))

    every = graded_identity(examples, size, dtype)
    start = (
        Graded(jnp.ones((examples, 1, width), dtype), zero),
        Graded(
            jnp.zeros((examples, width, size), dtype),
            jnp.full((examples, size), scaling.ZERO, jnp.int32),
        ),
        every._replace(mantissa=every.mantissa[:, memory]),
    )
    _, norms = lax.scan(back, start, (jacobians, gates), reverse=True)
    return Paths(*(norm * LOG10_2 for norm in norms))


# The largest singular value.

SMALL = 32
"""The largest size for which a singular value decomposition is the cheaper way."""

WIDE = 64
"""The largest size for which a product of two matrices costs less than eight Lanczos steps."""


def _effort(size: int) -> tuple[int, int]:
    """How often ``A Aᵀ`` is squared, and Lanczos steps made with the result.

    The power serves a spectrum that is spread out, the Krylov space a narrow one, which powers
    alone cannot tell apart. Squaring costs S³ and a step S².
    """
    return (2, 16) if size <= WIDE else (0, 16)


def suffix_norms(jacobians: jax.Array) -> tuple[jax.Array, jax.Array]:
    """log10 of two norms of ``J_{T-1} ⋯ J_{t+1}`` for every t.

    One scan from the end, with one exponent a column; O(T E S²) memory.

    Args:
      jacobians: ``(T, E, S, S)``.

    Returns:
      The largest singular value, right to 1e-3 in the log10, and the Frobenius norm, ``(T, E)``
      each. At ``t = T-1`` the product is the identity. -inf where the product is exactly zero.
    """
    _, examples, size, _ = jacobians.shape

    def back(product: Graded, jacobian: jax.Array):
        return times(product, jacobian), _to_common_exponent(product)

    start = graded_identity(examples, size, jacobians.dtype)
    _, (products, exponents) = lax.scan(back, start, jacobians, reverse=True)
    largest = log10_largest(products) + exponents.astype(products.dtype) * LOG10_2
    return largest, scaling.log10_norm(products, exponents)


def suffix_moments(jacobians: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean and variance of the squared singular values of ``J_{T-1} ⋯ J_{t+1}`` for every t.

    Of the S numbers σ² the mean is ``tr PᵀP / S``, and the variance over the squared mean
    ``‖PᵀP/mean - I‖_F² / S``, in which no two large numbers are subtracted.

    Args:
      jacobians: ``(T, E, S, S)``.

    Returns:
      log10 of the mean, -inf where the product is exactly zero, and the relative variance, from 0
      to S - 1, nan there, ``(T, E)`` each. At ``t = T-1`` the product is the identity.
    """
    _, examples, size, _ = jacobians.shape
    eye = jnp.eye(size, dtype=jacobians.dtype)

    def back(product: Graded, jacobian: jax.Array):
        plain, exponent = _to_common_exponent(product)
        mean = jnp.sum(jnp.square(plain), axis=(-2, -1)) / size
        unit = (
            _multiply(_transposed(plain), plain) / jnp.where(mean > 0, mean, jnp.nan)[:, None, None]
        )
        variance = jnp.sum(jnp.square(unit - eye[None]), axis=(-2, -1)) / size
        log10 = jnp.log10(mean) + 2 * LOG10_2 * exponent.astype(mean.dtype)
        return times(product, jacobian), (log10, variance)

    start = graded_identity(examples, size, jacobians.dtype)
    return lax.scan(back, start, jacobians, reverse=True)[1]


def log10_largest(matrices: jax.Array) -> jax.Array:
    """log10 of the largest singular value of each of ``(T, E, S, S)``, ``(T, E)``; within 1e-3.

    By Lanczos steps, all matrices at once. The result is never above the true value but by
    rounding.
    """
    shape, size = matrices.shape[:-2], matrices.shape[-1]
    flat = Scaled.of(matrices.reshape(-1, size, size), 1)
    if size <= SMALL:
        log2 = jnp.log2(jnp.linalg.svd(flat.mantissa, compute_uv=False)[..., 0])
    else:
        log2 = _log2_largest(flat.mantissa)
    return ((log2 + flat.exponent.astype(log2.dtype)) * LOG10_2).reshape(shape)


def _log2_largest(matrices: jax.Array) -> jax.Array:
    """``(N,)`` of ``(N, S, S)`` whose largest entry is near 1, or that are 0."""
    squarings, steps = _effort(matrices.shape[-1])
    power = Scaled.of(_multiply(matrices, _transposed(matrices)), 1)
    for _ in range(squarings):
        squared = Scaled(_multiply(power.mantissa, power.mantissa), 2 * power.exponent)
        power = squared.normalise()
    log2 = jnp.log2(jnp.maximum(_largest_eigenvalue(power.mantissa, steps), 0))
    # What is exactly zero has an exponent of its own, far from 0, that squaring may carry anywhere.
    zero = jnp.all(power.mantissa == 0, axis=(-2, -1))
    found = (log2 + power.exponent.astype(log2.dtype)) / 2 ** (squarings + 1)
    return jnp.where(zero, -jnp.inf, found)


def _largest_eigenvalue(matrices: jax.Array, steps: int) -> jax.Array:
    """``(N,)`` of symmetric ``(N, S, S)``: the largest Ritz value of a Krylov space."""
    count, size, _ = matrices.shape
    dtype = matrices.dtype
    start = jnp.asarray(random_orthonormal(size, 1)[:, 0], dtype)
    basis = jnp.zeros((count, steps + 1, size), dtype).at[:, 0].set(start)

    def step(index: jax.Array, state: tuple[jax.Array, jax.Array]):
        basis, tridiagonal = state
        new = jnp.einsum("nij,nj->ni", matrices, basis[:, index], precision=HIGHEST)
        noise = size * jnp.finfo(dtype).eps * _lengths(new)
        for _ in range(2):  # once leaves what rounding brought in; the first also finds the entries
            inner = jnp.einsum("nki,ni->nk", basis, new, precision=HIGHEST)
            tridiagonal = tridiagonal.at[:, :, index].add(inner)
            new = new - jnp.einsum("nki,nk->ni", basis, inner, precision=HIGHEST)
        # A space that is complete leaves rounding, which is no direction to go on with.
        length = jnp.where(_lengths(new) > noise, _lengths(new), 0)
        unit = new / jnp.where(length > 0, length, jnp.inf)[:, None]
        tridiagonal = tridiagonal.at[:, index + 1, index].set(length)
        return basis.at[:, index + 1].set(unit), tridiagonal

    projected = jnp.zeros((count, steps + 1, steps + 1), dtype)
    _, projected = lax.fori_loop(0, steps, step, (basis, projected))
    projected = projected[:, :steps, :steps]
    return jnp.linalg.eigvalsh((projected + _transposed(projected)) / 2)[:, -1]


def _lengths(vectors: jax.Array) -> jax.Array:
    """``(N,)`` of ``(N, S)``."""
    return jnp.sqrt(jnp.sum(jnp.square(vectors), axis=-1))


def _multiply(left: jax.Array, right: jax.Array) -> jax.Array:
    return jnp.matmul(left, right, precision=HIGHEST)


def _transposed(matrix: jax.Array) -> jax.Array:
    return jnp.swapaxes(matrix, -1, -2)


# Eigenvalues.


def eigenvalues(matrices: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Of ``(*N, S, S)``: ``(*N, S)``, times two to the ``(*N,)``; nan if it is not finite.

    The largest modulus first.
    """
    finite = jnp.all(jnp.isfinite(matrices), axis=(-2, -1))
    scaled = Scaled.of(jnp.where(finite[..., None, None], matrices, 0), matrices.ndim - 2)
    values = jnp.linalg.eigvals(scaled.mantissa)
    order = jnp.argsort(-jnp.abs(values), axis=-1)
    values = jnp.take_along_axis(values, order, axis=-1)
    return jnp.where(finite[..., None], values, complex(math.nan, math.nan)), scaled.exponent


# All singular values.

SWEEPS = 30
"""More sweeps of Jacobi rotations than any matrix needs."""

COSINE = 1e-2
"""A sweep that met no pair of columns with a larger cosine was the last: what it leaves is of the
order of the square."""

GRADED = 16
"""How many times its own rounding error a row may gain in a triangular factorisation; seen with
matrices of lower rank."""

PREPARED = 6
"""Triangular factorisations before the first sweep; each costs a tenth of a sweep."""


def log10_singular_values(jacobians: jax.Array) -> jax.Array:
    """log10 of every singular value of ``J_{T-1} ⋯ J_1``, however far apart they lie.

    ``J_t Q_{t-1} = Q_t R_t`` along the trajectory, so that the product is an orthonormal matrix
    times ``R_{T-1} ⋯ R_1``, whose rows are graded and kept with one exponent each. Its singular
    values follow by one-sided Jacobi rotations of the rows, which find small ones to high relative
    accuracy in a graded matrix where any method that begins with the plain product cannot
    (Demmel & Veselić 1992).

    What a single step shrinks by more than its own digits resolve (two units of rounding) counts
    as zero. A product of matrices of lower rank so has singular values of exactly zero; a rank that
    falls in one step alone may show as a drop by all the digits instead.

    Args:
      jacobians: ``(T, E, S, S)``; the first is not read. Masked steps are the identity.

    Returns:
      ``(E, S)``, descending; -inf where exactly zero. 0 for the empty product (``T = 1``).
    """
    return graded_singular_values(triangular_product(jacobians[1:]))


def triangular_product(jacobians: jax.Array) -> Graded:
    """``(R_{T-1} ⋯ R_0)ᵀ`` of ``J_{T-1} ⋯ J_0 Q = Q' R_{T-1} ⋯ R_0``, ``(E, S, S)``."""
    _, examples, size, _ = jacobians.shape
    dtype = jacobians.dtype
    start = jnp.broadcast_to(
        jnp.asarray(random_orthonormal(size, size), dtype), (examples, size, size)
    )

    def forward(state: tuple[jax.Array, Graded], jacobian: jax.Array):
        q, rows = state
        scaled = Scaled.of(jacobian, 1)
        q, r, sizes = _graded_qr(_multiply(scaled.mantissa, q))
        r = _resolved(r, sizes)
        rows = times(rows, _transposed(r))
        exponent = jnp.maximum(rows.exponent + scaled.exponent[:, None], scaling.ZERO)
        return (q, rows._replace(exponent=exponent)), None

    (_, rows), _ = lax.scan(forward, (start, graded_identity(examples, size, dtype)), jacobians)
    return rows


def _resolved(r: jax.Array, rows: jax.Array) -> jax.Array:
    """The triangular factor with what lies within its own rounding error set to zero.

    An entry is rounding where it is small beside both its column and the row that ended up there,
    of which ``rows (..., S)`` are the sizes.
    """
    columns = jnp.sqrt(jnp.sum(jnp.square(r), axis=-2, keepdims=True))
    within = _rounding(r) * jnp.minimum(columns, GRADED * rows[..., None])
    return jnp.where(jnp.abs(r) > within, r, 0)


def _rounding(array: jax.Array) -> float:
    return 2 * float(jnp.finfo(array.dtype).eps)


def graded_singular_values(matrix: Graded) -> jax.Array:
    """log10 of the singular values of graded matrices ``(E, S, S)``, descending, ``(E, S)``.

    One-sided Jacobi rotations (Hestenes) of the columns, half of all pairs at a time in the order
    of a round-robin tournament. Rotations are computed from mantissas and the difference of two
    exponents, so that nothing underflows. A few triangular factorisations before them leave the
    rotations little to do where the singular values lie apart (Drmač & Veselić 2008).
    """
    size = matrix.mantissa.shape[-1]
    matrix = lax.fori_loop(0, PREPARED, lambda _, matrix: _prepared(matrix), matrix)
    columns, exponent = _transposed(matrix.mantissa), matrix.exponent
    if size % 2:
        columns = jnp.pad(columns, [(0, 0), (0, 1), (0, 0)])
        exponent = jnp.pad(exponent, [(0, 0), (0, 1)], constant_values=scaling.ZERO)
    half = columns.shape[1] // 2
    pairs = _Pairs(
        columns[:, :half],
        columns[:, half:],
        exponent[:, :half],
        exponent[:, half:],
        jnp.zeros((), columns.dtype),
    )

    def sweep(state: tuple[_Pairs, jax.Array]) -> tuple[_Pairs, jax.Array]:
        pairs, age = state
        pairs = pairs._replace(worst=jnp.zeros_like(pairs.worst))
        rounds = max(2 * half - 1, 1)
        return lax.fori_loop(
            0, rounds, lambda _, pairs: _next_pairs(_rotated(pairs)), pairs
        ), age + 1

    def going(state: tuple[_Pairs, jax.Array]) -> jax.Array:
        pairs, age = state
        return (age < SWEEPS) & (pairs.worst > COSINE)

    pairs, _ = lax.while_loop(going, sweep, sweep((pairs, jnp.zeros((), jnp.int32))))
    norms = [
        scaling.log2_norm(one, own)
        for one, own in ((pairs.top, pairs.top_exponent), (pairs.low, pairs.low_exponent))
    ]
    found = jnp.concatenate(norms, axis=-1) * LOG10_2
    return -jnp.sort(-found, axis=-1)[:, :size]


def _prepared(matrix: Graded) -> Graded:
    """The transposed triangular factor of the columns sorted by norm: the same singular values."""
    norms = scaling.log2_norm(_transposed(matrix.mantissa), matrix.exponent)
    order = jnp.argsort(-norms, axis=-1)
    mantissa = jnp.take_along_axis(matrix.mantissa, order[:, None, :], axis=-1)
    exponent = jnp.take_along_axis(matrix.exponent, order, axis=-1)
    r = jnp.linalg.qr(mantissa, mode="r")
    return Graded(*_rows_into_columns(_transposed(r), exponent))


class _Pairs(NamedTuple):
    """Vectors ``(E, S/2, S)`` that meet, with an exponent each, and the largest cosine met."""

    top: jax.Array
    low: jax.Array
    top_exponent: jax.Array
    low_exponent: jax.Array
    worst: jax.Array


def _rotated(pairs: _Pairs) -> _Pairs:
    """Each pair turned in its own plane until it is orthogonal."""
    top, low, top_exponent, low_exponent, worst = pairs
    by_top, top_exponent, a = _unit(top, top_exponent)
    by_low, low_exponent, b = _unit(low, low_exponent)
    product = jnp.sum(top * low, axis=-1) * by_top * by_low
    cosine = jnp.abs(product) / jnp.sqrt(jnp.where(a * b > 0, a * b, 1))
    # In units of the larger vector the smaller is r times its mantissa, r <= 1, and the tangent of
    # the angle is r times ``turn``, which stays finite when r underflows.
    apart = low_exponent - top_exponent
    r = scaling.pow2(-jnp.abs(apart), top.dtype)
    r = jnp.where(jnp.abs(apart) < _digits(top), r, 0)
    large, small = jnp.where(apart <= 0, a, b), jnp.where(apart <= 0, b, a)
    safe = jnp.where(product == 0, 1, product)
    z = (r * r * small - large) / (2 * safe)
    turn = jnp.where(z >= 0, 1, -1) / (jnp.abs(z) + jnp.sqrt(r * r + z * z))
    turn = jnp.where(product == 0, 0, turn)
    c = 1 / jnp.sqrt(1 + jnp.square(r * turn))
    into_small, into_large = c * turn, -c * turn * r * r
    into_low = jnp.where(apart <= 0, into_small, into_large)
    into_top = jnp.where(apart <= 0, into_large, into_small)
    new_top = (c * by_top)[..., None] * top + (into_top * by_low)[..., None] * low
    new_low = (c * by_low)[..., None] * low + (into_low * by_top)[..., None] * top
    worst = jnp.maximum(worst, jnp.max(cosine))
    return _Pairs(new_top, new_low, top_exponent, low_exponent, worst)


def _unit(vectors: jax.Array, exponent: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Factors that bring the norm into [1, 2), the exponents that make up for it, squared norms.

    A vector that a rotation has brought down to its rounding error is zero from here on.
    """
    squared = jnp.sum(jnp.square(vectors), axis=-1)
    norm = jnp.sqrt(squared)
    lost = norm <= _rounding(vectors)
    by = scaling.exponent_of(norm)
    factor = jnp.where(lost, 0, scaling.pow2(-by, vectors.dtype))
    return factor, jnp.where(lost, scaling.ZERO, exponent + by), squared * factor * factor


def _next_pairs(pairs: _Pairs) -> _Pairs:
    """The next round of the tournament: the first vector stays, the others move on by one."""

    def move(top: jax.Array, low: jax.Array) -> tuple[jax.Array, jax.Array]:
        if top.shape[1] == 1:
            return top, low
        return (
            jnp.concatenate([top[:, :1], low[:, :1], top[:, 1:-1]], axis=1),
            jnp.concatenate([low[:, 1:], top[:, -1:]], axis=1),
        )

    top, low = move(pairs.top, pairs.low)
    top_exponent, low_exponent = move(pairs.top_exponent, pairs.low_exponent)
    return _Pairs(top, low, top_exponent, low_exponent, pairs.worst)
