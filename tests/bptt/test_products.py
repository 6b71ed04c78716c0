"""Long products against float64, against exact arithmetic, and against what is known."""

import decimal
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gradlab.bptt.products import (
    growth_steps,
    log10_largest,
    log10_singular_values,
    paths,
    qr_growth,
    random_orthonormal,
    suffix_norms,
)

S, T = 40, 20
norms_of = jax.jit(suffix_norms)
largest_of = jax.jit(log10_largest)
spectrum_of = jax.jit(log10_singular_values)
growth_of = jax.jit(qr_growth, static_argnums=(1, 2))


def log10(x):
    with np.errstate(divide="ignore"):
        return np.log10(x)


def suffix_oracle(jacobians):
    """log10 of (largest singular value, Frobenius norm), ``(T, 2)``, of one example in float64."""
    product, logs, found = np.eye(jacobians.shape[-1]), 0.0, []
    for jacobian in np.asarray(jacobians, np.float64)[::-1]:
        norms = np.linalg.svd(product, compute_uv=False)[0], np.linalg.norm(product)
        found.append(logs + log10(np.array(norms)))
        product = product @ jacobian
        largest = np.abs(product).max()
        if largest > 0:
            product, logs = product / largest, logs + math.log10(largest)
    return np.array(found)[::-1]


def orthogonal(rng, size=S):
    return np.linalg.qr(rng.normal(size=(size, size)))[0]


def with_values(rng, values):
    return orthogonal(rng) @ np.diag(values) @ orthogonal(rng)


def resets(rng, depth):
    """Units that forget slowly, half of which are cleared together at every fifth step."""
    steps = []
    for t in range(T):
        kept = 1 - depth * rng.uniform(size=S)
        if t % 5 == 4:
            kept[rng.permutation(S)[: S // 2]] *= 1 - 50 * depth
        steps.append(np.diag(kept))
    return np.stack(steps)


def handed_over():
    """Six units keep everything, until all at once they lose it to the others."""
    kept = np.where(np.arange(S) < 6, 1.0, 0.5) * np.ones((T, 1))
    kept[9] = np.where(np.arange(S) < 6, 1e-8, 1.0)
    return kept[:, :, None] * np.eye(S)


def lstm_like(rng):
    """Step Jacobians of an LSTM with a spread of forget gates: [c; h], rows = output."""
    width, steps = S // 2, []
    weights = rng.normal(size=(3, width, width)) / math.sqrt(width)
    for _ in range(T):
        f = 1 / (1 + np.exp(-rng.normal(2, 2, width)))
        o = 0.5 * rng.uniform(size=(width, 1))
        through = np.einsum("aij,ai->ij", weights, 0.5 * rng.normal(size=(3, width)))
        steps.append(np.block([[np.diag(f), through], [o * np.diag(f), o * through]]))
    return np.stack(steps)


CASES = {
    "gaussian": lambda rng: rng.normal(size=(T, S, S)),
    "orthogonal": lambda rng: np.stack([orthogonal(rng) for _ in range(T)]),
    "near the identity": lambda rng: np.eye(S) + 0.02 * rng.normal(size=(T, S, S)) / math.sqrt(S),
    "two close": lambda rng: np.stack(
        [with_values(rng, [1, 0.9999, *[0.5] * (S - 2)]) for _ in range(T)]
    ),
    "one ahead of all": lambda rng: np.stack(
        [with_values(rng, [1.01, *[1] * (S - 1)]) for _ in range(T)]
    ),
    "evenly spread": lambda rng: np.stack(
        [with_values(rng, np.linspace(1, 0, S)) for _ in range(T)]
    ),
    "one direction": lambda rng: np.stack(
        [with_values(rng, [1, *[1e-6] * (S - 1)]) for _ in range(T)]
    ),
    "lstm": lstm_like,
    "resets": lambda rng: resets(rng, 0.02),
    "faint resets": lambda rng: resets(rng, 0.001),
    "rotated resets": lambda rng: (lambda q: q @ resets(rng, 0.02) @ q.T)(orthogonal(rng)),
    "handed over": lambda rng: handed_over(),
    "decaying": lambda rng: 1e-3 * rng.normal(size=(T, S, S)),
    "cut": lambda rng: np.where((np.arange(T) == 9)[:, None, None], 0, rng.normal(size=(T, S, S))),
}


@pytest.mark.parametrize("name", list(CASES))
def test_norms_of_products_are_those_of_float64(name):
    jacobians = np.float32(CASES[name](np.random.default_rng(0)))
    got = np.stack(norms_of(jacobians[:, None]), -1)[:, 0]
    want = suffix_oracle(jacobians)
    np.testing.assert_allclose(got, want, atol=1e-3)
    np.testing.assert_allclose(got[:, 1], want[:, 1], atol=1e-4)


@pytest.mark.parametrize("name", list(CASES))
def test_largest_of_each_matrix_is_that_of_float64(name):
    jacobians = np.float32(CASES[name](np.random.default_rng(1)))
    want = log10(np.linalg.svd(np.float64(jacobians), compute_uv=False)[:, 0])
    np.testing.assert_allclose(largest_of(jacobians[:, None])[:, 0], want, atol=1e-3)


def test_norms_in_float64():
    jacobians = CASES["gaussian"](np.random.default_rng(0))
    with jax.enable_x64(True):
        got = np.stack(norms_of(jnp.asarray(jacobians)[:, None]), -1)[:, 0]
    assert got.dtype == np.float64
    np.testing.assert_allclose(got[:, 1], suffix_oracle(jacobians)[:, 1], atol=1e-12)
    np.testing.assert_allclose(got[:, 0], suffix_oracle(jacobians)[:, 0], atol=1e-3)


def test_examples_do_not_mix():
    rng = np.random.default_rng(2)
    jacobians = np.stack([CASES[name](rng) for name in ("gaussian", "resets", "cut")], axis=1)
    together = np.stack(norms_of(jnp.asarray(jacobians, jnp.float32)))
    for index in range(3):
        want = suffix_oracle(np.float32(jacobians[:, index])).T
        np.testing.assert_allclose(together[:, :, index], want, atol=1e-3)


def test_every_function_multiplies_in_the_right_order():
    a, b, c = np.random.default_rng(0).normal(size=(3, 4, 4))
    jacobians = jnp.asarray(np.stack([np.eye(4), a, b, c])[:, None], jnp.float32)
    right, wrong = (np.linalg.svd(one, compute_uv=False) for one in (c @ b @ a, a @ b @ c))
    assert np.abs(np.log10(right / wrong)).min() > 0.01
    np.testing.assert_allclose(spectrum_of(jacobians)[0], np.log10(right), atol=1e-5)
    largest, frobenius = norms_of(jacobians)
    for t, product in enumerate((c @ b @ a, c @ b, c, np.eye(4))):
        want = np.linalg.norm(product, 2), np.linalg.norm(product)
        assert 10 ** largest[t, 0] == pytest.approx(want[0], rel=1e-5)
        assert 10 ** frobenius[t, 0] == pytest.approx(want[1], rel=1e-5)
    start = random_orthonormal(4, 2)
    want = np.abs(np.diag(np.linalg.qr(c @ b @ a @ start)[1]))
    np.testing.assert_allclose(growth_of(jacobians, 2, 1).sum((0, 1)), np.log(want), atol=1e-5)


def test_a_curve_that_falls_by_one_half_5000_times():
    jacobians = jnp.broadcast_to(0.5 * jnp.eye(2), (5000, 1, 2, 2))
    largest, frobenius = norms_of(jacobians)
    assert float(largest[0, 0]) == pytest.approx(4999 * math.log10(0.5), rel=1e-6)
    assert float(frobenius[0, 0] - largest[0, 0]) == pytest.approx(0.5 * math.log10(2), abs=1e-3)
    np.testing.assert_allclose(spectrum_of(jacobians), 4999 * math.log10(0.5), rtol=1e-6)


def test_what_is_small_now_may_be_the_largest_earlier():
    """One unit forgets late and the other early, each by 10^-120: no one exponent holds both."""
    steps = 800
    late = np.arange(steps)[:, None] >= steps // 2
    kept = np.where(late, [1.0, 0.5], [0.4, 1.0])
    jacobians = jnp.asarray((kept[:, :, None] * np.eye(2))[:, None], jnp.float32)
    want = np.cumsum(np.log10(np.float32(kept))[::-1], axis=0, dtype=np.float64)[::-1]
    want = np.concatenate([want[1:], np.zeros((1, 2))])
    largest, _ = norms_of(jacobians)
    np.testing.assert_allclose(largest[:, 0], want.max(-1), rtol=1e-5, atol=1e-5)
    got = spectrum_of(jacobians)[0]
    np.testing.assert_allclose(got, np.sort(want[0])[::-1], rtol=1e-5)


# All singular values.


def exact_singular_values(matrices):
    """log10 of all of the product ``A_n ⋯ A_1``: whole numbers, then Jacobi with 400 digits."""
    shift, product = 0, np.eye(matrices.shape[-1], dtype=int).astype(object)
    for matrix in matrices:
        whole = [[int(math.ldexp(x, 60)) for x in row] for row in np.float64(matrix)]
        product, shift = np.array(whole, object).dot(product), shift + 60
    with decimal.localcontext(prec=400):
        unit = decimal.Decimal(2) ** -shift
        columns = [[decimal.Decimal(x) * unit for x in column] for column in product.T]
        dot = lambda x, y: sum(map(decimal.Decimal.__mul__, x, y))  # noqa: E731
        for _ in range(60):
            worst = 0
            for j in range(len(columns)):
                for i in range(j):
                    x, y = columns[i], columns[j]
                    a, b, c = dot(x, x), dot(y, y), dot(x, y)
                    worst = max(worst, float(abs(c) / (a * b).sqrt()))
                    if c == 0:
                        continue
                    z = (b - a) / (2 * c)
                    t = (1 if z >= 0 else -1) / (abs(z) + (1 + z * z).sqrt())
                    cs = 1 / (1 + t * t).sqrt()
                    columns[i] = [cs * (p - t * q) for p, q in zip(x, y, strict=True)]
                    columns[j] = [cs * (t * p + q) for p, q in zip(x, y, strict=True)]
            if worst < 1e-20:
                break
        return np.sort([float(dot(x, x).sqrt().log10()) for x in columns])[::-1]


@functools.cache
def exact_case(kind):
    rng = np.random.default_rng(5)
    steps, size = 60, 7
    matrices = rng.normal(size=(steps, size, size))
    if kind == "graded":
        matrices = matrices * 4.0 ** -np.arange(size)[:, None]
    if kind == "near the identity":
        matrices = np.eye(size) + 0.1 * matrices
    matrices = np.round(np.float32(matrices) * 2.0**40) / 2.0**40
    return matrices, exact_singular_values(matrices)


@pytest.mark.parametrize("kind", ["gaussian", "graded", "near the identity"])
@pytest.mark.parametrize("wide", [False, True])
def test_singular_values_are_those_of_exact_arithmetic(kind, wide):
    matrices, want = exact_case(kind)
    if kind == "graded":
        assert want[0] - want[-1] > 190
    read = np.concatenate([np.eye(7)[None], matrices])[:, None]
    with jax.enable_x64(wide):
        got = spectrum_of(jnp.asarray(read, jnp.float64 if wide else jnp.float32))[0]
    np.testing.assert_allclose(got, want, rtol=1e-9 if wide else 1e-4, atol=1e-9 if wide else 1e-3)


def test_a_gaussian_product_with_a_condition_number_of_10_to_the_115():
    steps, size = 100, 64
    matrices = np.float32(np.random.default_rng(0).normal(size=(steps, size, size)))
    read = jnp.asarray(np.concatenate([np.eye(size, dtype="f")[None], matrices])[:, None])
    got = np.float64(spectrum_of(read)[0])
    wide = np.float64(matrices)
    # Three numbers that float64 gives by other ways: the determinant, and both ends.
    assert got.sum() == pytest.approx(np.linalg.slogdet(wide)[1].sum() / math.log(10), abs=0.01)
    last, first = (
        suffix_oracle(np.concatenate([np.eye(size)[None], one]))[0, 0]
        for one in (wide, np.linalg.inv(wide)[::-1])
    )
    assert got[0] == pytest.approx(last, abs=1e-3)
    assert got[-1] == pytest.approx(-first, abs=3e-3)
    assert 112 < got[0] - got[-1] < 119
    assert np.all(np.diff(got) < 0)
    with jax.enable_x64(True):
        np.testing.assert_allclose(got, spectrum_of(jnp.asarray(read, jnp.float64))[0], atol=3e-3)
    product = np.eye(size, dtype=np.float32)
    for matrix in matrices:
        product = matrix @ product
        product /= np.abs(product).max()
    naive = np.log10(np.linalg.svd(product, compute_uv=False))
    assert naive[0] - naive[-1] < 20  # what a plain decomposition makes of it
    # And what QR gives along the way is another thing again, but for the sum.
    growth = np.float64(growth_of(read[1:], size, 1)[:, 0].sum(0)) / math.log(10)
    assert np.abs(growth - got).max() > 0.1
    assert growth.sum() == pytest.approx(got.sum(), abs=0.01)


def test_orthogonal_factors_leave_every_singular_value_at_one():
    with jax.enable_x64(True):
        factor = orthogonal(np.random.default_rng(0), 64)
        got = spectrum_of(jnp.broadcast_to(jnp.asarray(factor), (1001, 1, 64, 64)))
        np.testing.assert_allclose(10 ** np.asarray(got), 1, atol=1e-13)


def test_singular_values_of_one_matrix_and_of_none():
    matrix = np.float32(np.random.default_rng(0).normal(size=(9, 9)))
    read = jnp.asarray(np.stack([matrix, matrix])[:, None])
    want = np.log10(np.linalg.svd(np.float64(matrix), compute_uv=False))
    np.testing.assert_allclose(spectrum_of(read)[0], want, atol=1e-4)
    np.testing.assert_allclose(spectrum_of(read[:1])[0], 0, atol=1e-6)
    np.testing.assert_allclose(spectrum_of(read[:, :, :1, :1])[0], np.log10(abs(matrix[:1, 0])))


@pytest.mark.parametrize("wide", [False, True])
def test_lost_directions_are_exactly_lost(wide):
    """Dead units: the rank of the product, and not rounding errors in the place of zeros."""
    rng = np.random.default_rng(3)
    weights = rng.normal(size=(31, 20, 20)) / math.sqrt(20)
    once = weights.copy()
    once[7, rng.permutation(20)[:6]] = 0
    for one in weights:
        one[rng.permutation(20)[:6]] = 0
    with jax.enable_x64(wide):
        read = jnp.asarray(np.stack([weights, once], axis=1), jnp.float64 if wide else jnp.float32)
        always, single = np.asarray(spectrum_of(read))
    assert np.isneginf(always).sum() == 6
    assert always[13] > -40
    # Of a single step some may come out at the rounding error of that step instead.
    assert np.isneginf(single).sum() >= 3
    digits = 14 if wide else 5
    assert np.all(single[14:] < single[13] - digits)


def test_a_network_that_does_not_look_back_has_no_singular_values():
    zeros = np.zeros((4, 1, 4, 4), np.float32)
    assert np.isneginf(spectrum_of(zeros)).all()
    assert np.isneginf(growth_of(zeros, 2, 1)).all()
    assert np.isneginf(norms_of(zeros)[0][:3]).all()


# Growth by QR.


def test_growth_of_a_fixed_linear_network_is_the_spectrum_of_its_matrix():
    with jax.enable_x64(True):
        matrix = np.random.default_rng(1).normal(size=(20, 20)) / math.sqrt(20)
        growth = growth_of(jnp.broadcast_to(jnp.asarray(matrix), (3000, 1, 20, 20)), 20, 1)
        got = np.sort(np.asarray(growth[300:, 0]).mean(0))[::-1]
    want = np.sort(np.log(np.abs(np.linalg.eigvals(matrix))))[::-1]
    np.testing.assert_allclose(got, want, atol=2e-4)


def test_growth_finds_the_order_in_a_decoupled_network():
    kept = np.array([0.1, 0.5, 0.9, 1.2])
    growth = growth_of(jnp.broadcast_to(jnp.diag(jnp.asarray(kept)), (200, 1, 4, 4)), 4, 1)
    np.testing.assert_allclose(np.exp(growth[100:, 0].mean(0)), kept[::-1], rtol=1e-5)


def test_growth_in_intervals():
    jacobians = jnp.asarray(np.random.default_rng(0).normal(size=(7, 2, 5, 5)) * 1e-9, jnp.float32)
    every, third = growth_of(jacobians, 3, 1), growth_of(jacobians, 3, 3)
    assert growth_steps(7, 3).tolist() == [[0, 3], [3, 6], [6, 7]]
    for index, (first, end) in enumerate(growth_steps(7, 3)):
        np.testing.assert_allclose(third[index], every[first:end].sum(0), rtol=1e-3)
    assert growth_steps(6, 3).tolist() == [[0, 3], [3, 6]]
    masked = jnp.broadcast_to(jnp.eye(5), (4, 2, 5, 5))
    np.testing.assert_allclose(growth_of(masked, 5, 2), 0, atol=1e-6)


def test_growth_is_differentiable():
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        jacobians = jnp.asarray(rng.normal(size=(5, 2, 4, 4)))
        along = jnp.asarray(rng.normal(size=jacobians.shape))

        @jax.jit
        @jax.value_and_grad
        def total(eps):
            return qr_growth(jacobians + eps * along, 3, 2)[1:, :, 1].sum()

        slope = (total(1e-6)[0] - total(-1e-6)[0]) / 2e-6
        assert float(total(0.0)[1]) == pytest.approx(float(slope), rel=1e-6)


# Paths.


def test_paths_add_up_over_orders_of_magnitude():
    """Against float64 products, with a memory that is not at the beginning of the state."""
    rng = np.random.default_rng(0)
    steps, width = 30, 4
    gates = rng.uniform(0.01, 1, size=(steps, 1, width))
    jacobians = 0.3 * rng.normal(size=(steps, 1, 2 * width, 2 * width))
    memory = slice(width, 2 * width)
    jacobians[:, :, memory, memory] += gates[..., None] * np.eye(width)
    read = jnp.asarray(jacobians, jnp.float32), jnp.asarray(gates, jnp.float32)
    got = jax.jit(lambda *read: paths(*read, memory))(*read)
    product = np.eye(2 * width)
    for t in reversed(range(steps)):
        whole = product[memory, memory]
        kept = np.diag(np.prod(gates[t + 1 :, 0], axis=0))
        for name, want in (("forget", kept), ("residual", whole - kept), ("whole", whole)):
            norm = log10(np.linalg.norm(want))
            assert float(getattr(got, name)[t, 0]) == pytest.approx(norm, abs=2e-4)
        product = product @ jacobians[t, 0]


def test_a_path_that_is_not_there_is_zero_and_not_rounding():
    gates = np.float32(np.random.default_rng(0).uniform(size=(300, 1, 3)))
    off = np.float32(1 + 2e-7)  # the gate, computed twice in two ways
    jacobians = jnp.asarray(gates[..., None] * np.eye(3, dtype="f") * off)
    got = jax.jit(lambda *read: paths(*read, slice(0, 3)))(jacobians, gates)
    assert np.isneginf(got.residual).all()
    np.testing.assert_allclose(got.forget, got.whole, atol=1e-4)
    want = np.log10(np.float64(gates[1:, 0])).sum(0).max()
    assert float(got.forget[0, 0]) == pytest.approx(want, abs=0.3)
