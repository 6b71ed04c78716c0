"""Derivatives where units are saturated, against float64 from the arguments."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from gradlab.bptt.closeup import Closeup
from gradlab.bptt.products import log10_singular_values, qr_growth, random_orthonormal
from gradlab.bptt.saturation import well_differentiated
from gradlab.cells import LSTM

A = np.float32([-43, -20, -9.5, -3, -0.1, 0, 0.1, 3, 9.5, 20, 43])


def sech2(a):
    e = np.exp(-2 * np.abs(a))
    return 4 * e / (1 + e) ** 2


def logistic_slope(a):
    e = np.exp(-np.abs(a))
    return e / (1 + e) ** 2


def nested(a):
    """The three primitives within whatever a cell may be written with; of slope > 0 everywhere."""
    grown, _ = jax.lax.scan(lambda c, _: (jnp.tanh(c), None), a, None, length=1)
    chosen = jax.lax.cond(True, jax.nn.sigmoid, jnp.tanh, a)
    again = jax.lax.fori_loop(0, 1, lambda _, c: jnp.tanh(c), a)
    return grown + jax.jit(jnp.tanh)(a) + jax.checkpoint(jnp.tanh)(a) + again + chosen


@jax.custom_jvp
def clipped(a):
    return jnp.tanh(a)


clipped.defjvp(lambda primals, tangents: (jnp.tanh(primals[0]), 7 * tangents[0]))


@pytest.mark.parametrize(
    ("function", "slope"),
    [
        (jnp.tanh, sech2),
        (jax.nn.sigmoid, logistic_slope),
        (jax.nn.elu, lambda a: np.exp(np.minimum(a, 0))),
        (nested, lambda a: 4 * sech2(a) + logistic_slope(a)),
        (jax.nn.relu, lambda a: a > 0),
        (clipped, lambda a: 7 + 0 * a),
    ],
)
def test_slopes_keep_their_digits_and_values_their_bits(function, slope):
    """At 0, too, where a ReLU has the slope that its own rule gives it."""
    better = jax.jit(jax.vmap(jax.value_and_grad(well_differentiated(function))))
    values, slopes = better(A)
    np.testing.assert_array_equal(values, jax.jit(jax.vmap(function))(A))
    np.testing.assert_allclose(slopes, slope(np.float64(A)), rtol=2e-6)


def test_a_slope_can_be_differentiated_again():
    found = jax.vmap(jax.grad(jax.grad(well_differentiated(jnp.tanh))))(A)
    want = -2 * np.tanh(np.float64(A)) * sech2(np.float64(A))
    np.testing.assert_allclose(found, want, rtol=1e-5)


# Cells with strong weights.


def graded_qr(matrix):
    """``Q`` and ``|diag R|`` in long doubles, by Householder reflections of sorted rows."""
    order = np.argsort(-np.abs(matrix).max(1))
    rest, size = np.array(matrix[order], np.longdouble), len(matrix)
    reflections = []
    for k in range(size):
        v = rest[k:, k].copy()
        v[0] += np.copysign(np.sqrt(v @ v), v[0])
        reflections.append(v)
        rest[k:] -= np.outer(v, v @ rest[k:]) * (2 / (v @ v))
    q = np.eye(size, dtype=np.longdouble)
    for k, v in reversed(list(enumerate(reflections))):
        q[k:] -= np.outer(v, v @ q[k:]) * (2 / (v @ v))
    return q[np.argsort(order)], np.abs(np.diag(rest))


def exponents(jacobians):
    """All of them in nats per step, and the sum of the logs of the singular values of the rest."""
    q, logs = random_orthonormal(*jacobians.shape[1:]), []
    for jacobian in jacobians:
        q, diagonal = graded_qr(jacobian @ q)
        logs.append(np.log(diagonal))
    return np.float64(np.mean(logs, axis=0)), np.float64(np.sum(logs[1:]))


def rnn_jacobians(cell, state, x):
    kernel, own = np.float64(cell.dense_h.kernel), np.float64(cell.dense_i.kernel)
    slope = sech2(state @ kernel + x @ own + np.float64(cell.dense_i.bias))
    return slope[..., None] * kernel.T


def lstm_jacobians(cell, state, x):
    kernel = np.float64(cell.dense_h.kernel)
    c, h = np.split(state, 2, -1)
    width = c.shape[-1]
    fed = x @ np.float64(cell.dense_i.kernel) + h @ kernel + np.float64(cell.dense_h.bias)
    a = dict(zip("ifgo", np.split(fed, 4, -1), strict=True))
    w = dict(zip("ifgo", (part.T for part in np.split(kernel, 4, -1)), strict=True))
    i, f, o = (1 / (1 + np.exp(-a[gate])) for gate in "ifo")
    g = np.tanh(a["g"])
    new = f * c + i * g
    into_c = (logistic_slope(a["f"]) * c)[..., None] * w["f"]
    into_c = into_c + (logistic_slope(a["i"]) * g)[..., None] * w["i"]
    into_c = into_c + (sech2(a["g"]) * i)[..., None] * w["g"]
    kept = f[..., None] * np.eye(width)
    through = (o * sech2(new))[..., None]
    into_h = through * into_c + (logistic_slope(a["o"]) * np.tanh(new))[..., None] * w["o"]
    return np.block([[kept, into_c], [through * kept, into_h]])


@pytest.mark.parametrize(
    ("make", "size", "gain", "oracle"),
    [
        (nnx.SimpleCell, 50, 5, rnn_jacobians),
        (LSTM, 20, 5, lstm_jacobians),
    ],
)
def test_every_exponent_of_a_saturated_network(make, size, gain, oracle):
    """With JAX's own derivatives 11 of the 50 directions of the first read as lost."""
    steps, rng = 100, np.random.default_rng(0)
    cell = make(1, size, rngs=nnx.Rngs(0))
    kernel = cell.dense_h.kernel
    kernel[...] = jnp.asarray(gain * rng.normal(size=kernel.shape) / np.sqrt(size), jnp.float32)
    inputs = rng.normal(size=(steps, 1, 1)).astype(np.float32)

    @jax.jit
    def measure(inputs):
        (view,) = Closeup([[cell]], inputs, lambda last: last[:, 0]).layers
        growth = qr_growth(view.jacobian, view.before.shape[-1])
        return view.before, view.jacobian, growth, log10_singular_values(view.jacobian)

    before, jacobian, growth, singular = jax.device_get(measure(inputs))
    exact = oracle(cell, np.float64(before[:, 0]), np.float64(inputs[:, 0]))
    largest = np.abs(exact).max(-1, keepdims=True)  # of each row
    np.testing.assert_allclose(jacobian[:, 0] / largest, exact / largest, atol=1e-4)
    want, total = exponents(exact)
    np.testing.assert_allclose(growth[:, 0].mean(0), want, atol=1e-3)
    assert want[-1] < -6
    assert singular[0].sum() * np.log(10) == pytest.approx(total, rel=1e-4)
