"""Numbers that are known from theory or from the papers, read off by way of the public surface."""

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import gradlab
from gradlab.cells import LSTM, SimpleRNN
from gradlab.cells.base import Cell, HiddenCarry
from gradlab.probes import Lyapunov
from gradlab.tasks import Adding, Copying, TemporalOrder


def last(outputs):
    return outputs[:, -1, 0]


def scalar(w):
    cell = SimpleRNN(1, 1, activation_fn="identity", rngs=nnx.Rngs(0))
    cell.dense_h.kernel[...] = jnp.full((1, 1), w)
    return cell


@pytest.mark.parametrize(("w", "after_100"), [(0.9, 2.656e-5), (1.1, 1.378e4)])
def test_the_lectures_example_of_100_steps(w, after_100):
    """Slides that print 0.000017 for 0.9^100 are wrong."""
    found = gradlab.analyze(scalar(w), jnp.zeros((1, 101, 1)), last, probes=["adjoint"])
    assert 10 ** float(found["adj_h_log10"][0, 0]) == pytest.approx(after_100, rel=1e-3)


class Gates(NamedTuple):
    k: jax.Array


class MinGRU(Cell):
    """Gates that do not see h: h' = (1 - z) h + z n(x)."""

    gate_names, retention_gate = ("k",), "k"

    def __init__(self, in_features, hidden_features, *, rngs):
        self.in_features, self.hidden_features = in_features, hidden_features
        self.dense = nnx.Linear(in_features, 2 * hidden_features, rngs=rngs)

    def step(self, carry, x):
        z, n = jnp.split(self.dense(x), 2, axis=-1)
        keep = 1 - jax.nn.sigmoid(z)
        return HiddenCarry(keep * carry.h + (1 - keep) * n), Gates(keep)


def test_where_gates_do_not_see_the_state_the_product_is_the_jacobian():
    x = jax.random.normal(jax.random.key(0), (3, 30, 2))
    found = gradlab.analyze(
        MinGRU(2, 5, rngs=nnx.Rngs(0)), x, last, probes=["forget_path", "long_jacobian"]
    )
    assert np.isneginf(found["residual_path_log10"]).all()
    forget = found["forget_path_log10"]
    np.testing.assert_allclose(forget, found["whole_path_log10"], atol=1e-5)
    np.testing.assert_allclose(forget, found["long_jacobian_log10_frobenius"], atol=1e-5)


@pytest.mark.parametrize(("gate", "ends"), [(0.5, 127), (1 / (1 + math.exp(-1)), 279)])
def test_the_product_goes_on_where_a_plain_one_reads_zero(gate, ends):
    """XLA on a CPU flushes what is below the normal range, so that a plain product ends there."""
    plain = np.asarray(jnp.cumprod(jnp.full((400,), gate, jnp.float32)))
    if jax.default_backend() == "cpu":
        assert int(np.flatnonzero(plain == 0)[0]) + 1 == pytest.approx(ends, abs=1)
    cell = LSTM(1, 2, forget_bias=math.log(gate / (1 - gate)), rngs=nnx.Rngs(0))
    cell.dense_h.kernel[...] = jnp.zeros((2, 8))
    x = jnp.zeros((1, 401, 1))
    found = gradlab.analyze(cell, x, last, probes=["forget_product"])["forget_product_log10"]
    assert float(found[0, 0]) == pytest.approx(400 * math.log10(gate), rel=1e-5)


def test_a_plain_norm_of_small_numbers_is_zero():
    assert float(jnp.linalg.norm(jnp.full((4,), 1e-25))) == 0.0


@pytest.mark.parametrize(
    ("delay", "loss"), [(50, 0.29706), (100, 0.17329), (200, 0.09452), (500, 0.03999)]
)
def test_copying_without_memory(delay, loss):
    assert Copying(length=delay + 20).baseline("train").loss == pytest.approx(loss, abs=1e-5)


def test_adding_and_temporal_order_by_chance():
    assert Adding(length=50).baseline("train").loss == pytest.approx(1 / 6)
    chance = TemporalOrder(length=50).baseline("train")
    assert chance.loss == pytest.approx(math.log(4))
    assert chance.accuracy == pytest.approx(0.25)


@pytest.mark.parametrize(("steps", "rms", "mean"), [(100, 0.1939, 0.1496), (784, 0.1938, 0.1486)])
def test_chrono_gates_keep_a_fifth_of_a_norm_over_the_sequence(steps, rms, mean):
    """f = σ(log u), u uniform on [1, T-1] (Tallec & Ollivier 2018), over T steps."""
    hidden = 501  # so that every quantile is that of a unit
    zeros = nnx.initializers.zeros_init()
    silent = {"kernel_init": zeros, "recurrent_kernel_init": zeros, "bias_init": zeros}
    cell = LSTM(1, hidden, forget_bias=0.0, **silent, rngs=nnx.Rngs(0))
    u = 1 + (steps - 2) * (np.arange(hidden) + 0.5) / hidden
    cell.dense_h.bias[...] = cell.dense_h.bias[...].at[hidden : 2 * hidden].set(np.log(u))
    inputs = jnp.zeros((1, steps + 1, 1))
    got = gradlab.analyze(cell, inputs, lambda h: h[:, -1].sum(-1), probes=["forget_product"])
    at_start = got.isel(layer=0, t=0)
    assert float(10 ** at_start["forget_product_rms_log10"]) == pytest.approx(rms, abs=1e-4)
    typical = np.mean(steps * np.log10(u / (1 + u)))
    assert float(at_start["forget_product_log10"]) == pytest.approx(typical, rel=1e-4)
    units = steps * np.log10(np.sort(u / (1 + u)))
    assert np.mean(10**units) == pytest.approx(mean, abs=1e-4)
    np.testing.assert_allclose(
        at_start["forget_product_log10_q"],
        units[np.round(np.array([0.05, 0.25, 0.5, 0.75, 0.95]) * (hidden - 1)).astype(int)],
        rtol=1e-3,
    )


def test_mixed_lengths_have_the_slope_of_full_ones():
    """A tanh network, whose transport does not depend on the length of its input."""
    length, batch = 80, 48
    rng = np.random.default_rng(0)
    cell = SimpleRNN(2, 16, rngs=nnx.Rngs(0))
    inputs = jnp.asarray(rng.normal(size=(batch, length, 2)), jnp.float32)

    def last(outputs, lengths):
        return outputs[jnp.arange(batch), lengths - 1].sum(-1)

    full, mixed = np.full(batch, length), rng.integers(16, length + 1, batch)
    slopes = []
    for lengths in (full, mixed):
        found = gradlab.analyze(
            cell,
            inputs,
            partial(last, lengths=jnp.asarray(lengths)),
            probes=["adjoint", "adjoint_slope", Lyapunov(examples=batch)],
            seq_lengths=lengths,
        ).isel(layer=0)
        slopes.append(float(found["adjoint_slope"]))
        assert float(found["lyapunov_exponent"][0]) == pytest.approx(slopes[-1], rel=0.1)
        assert found["adj_h_over_lag_log10"][0] > -1  # each from its own end
    assert slopes[1] == pytest.approx(slopes[0], rel=0.05)
