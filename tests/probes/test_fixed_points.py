"""Fixed points against bisection, linear algebra and plain float64 steps of the cell."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from gradlab.bptt.closeup import Closeup
from gradlab.cells import LSTM, SimpleRNN
from gradlab.errors import BadInput
from gradlab.probes.base import Setting
from gradlab.probes.fixed_points import FixedPoints, merge, visited
from tests.closeups import make_case

SETTING = Setting("LSTM", ("c", "h"), ("i", "f", "o"), "f", length=50, hidden=20)


def plain(matrix, activation, bias):
    """``h' = φ(W h + U x + b)`` with W acting on columns and random U."""
    size = len(matrix)
    cell = SimpleRNN(1, size, activation_fn=activation, rngs=nnx.Rngs(0))
    cell.dense_h.kernel[...] = jnp.asarray(np.transpose(matrix), jnp.float32)
    cell.dense_i.bias[...] = jnp.asarray(bias, jnp.float32)
    return cell


def looked_at(cell, inputs, probe, biases):
    """What the probe measures of the same cell with each of these biases."""
    graph, state = nnx.split(cell)

    @jax.jit
    @jax.vmap
    def measure(bias):
        own = nnx.merge(graph, state, copy=True)
        own.dense_i.bias[...] = bias
        return probe(Closeup([[own]], jnp.asarray(inputs, jnp.float32), lambda h: jnp.sum(h, -1)))

    found = measure(jnp.asarray(biases, jnp.float32))
    return {name: np.asarray(value, np.float64)[:, 0] for name, value in found.items()}


def roots(bias):
    """Where ``5 σ(x) + bias = x``, by bisection."""
    excess = lambda x: 5 / (1 + np.exp(-x)) + bias - x  # noqa: E731
    edges = np.linspace(-10, 10, 100_000)
    (between,) = np.nonzero(np.diff(np.sign(excess(edges))))
    low, high = edges[between], edges[between + 1]
    for _ in range(60):
        middle = (low + high) / 2
        below = excess(low) * excess(middle) > 0
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    return low


def test_two_stable_points_between_the_folds_and_one_outside():
    """``x -> 5 σ(x) + b``; in ``h = σ(x)`` it is a plain network."""
    folds = np.array([-2.6556, -2.3444])
    biases = np.sort([*(folds - 1e-3), *(folds + 1e-3), -2.5])
    inputs = np.random.default_rng(0).normal(size=(200, 2, 1)) * 3
    inputs = np.concatenate([inputs, -inputs], axis=1)  # with a mean of 0
    got = looked_at(plain([[5.0]], "sigmoid", [0.0]), inputs, FixedPoints(), biases[:, None])
    for k, bias in enumerate(biases):
        want = roots(bias)
        inside = -2.6556 < bias < -2.3444
        assert len(want) == got["fixed_point_count"][k] == (3 if inside else 1)
        h = got["fixed_point_state"][k, : len(want), 0]
        order = np.argsort(h)
        np.testing.assert_allclose(5 * h[order] + bias, want, atol=2e-3)  # flat at the folds
        slopes = 5 * h * (1 - h)
        np.testing.assert_allclose(got["fixed_point_radius"][k, : len(want)], slopes, rtol=1e-5)
        unstable = got["fixed_point_unstable"][k, : len(want)][order]
        assert list(unstable) == ([0, 1, 0] if inside else [0])
        assert np.isnan(got["fixed_point_radius"][k, len(want) :]).all()
        assert np.nansum(got["fixed_point_starts"][k]) == got["fixed_point_converged"][k]
        if inside:
            assert got["fixed_point_converged"][k] == 32
            assert got["fixed_point_rest_log10"][k] == -math.inf
        else:  # what is left of the pair that has just met: it is slow, and no fixed point
            assert got["fixed_point_slow"][k] == 32 - got["fixed_point_converged"][k] > 0
            assert -4.5 < got["fixed_point_rest_log10"][k] < -3


def test_a_linear_network_has_one_or_none():
    """At the solution of ``(I - W) s = b``; ``s + b`` has none, and 2 s leaves the floats."""
    size = 40
    rng = np.random.default_rng(1)
    matrix = rng.normal(size=(size, size)) / math.sqrt(size)
    drives = np.stack([rng.normal(size=size), 1e-30 * rng.normal(size=size)])
    inputs = np.zeros((20, 2, 1))
    got = looked_at(plain(matrix, "identity", drives[0]), inputs, FixedPoints(), drives)
    moduli = np.sort(np.abs(np.linalg.eigvals(matrix)))[::-1]
    for k, drive in enumerate(drives):
        assert got["fixed_point_count"][k] == 1
        assert got["fixed_point_starts"][k, 0] == got["fixed_point_converged"][k] == 32
        want = np.linalg.solve(np.eye(size) - matrix, np.float32(drive))
        error = np.linalg.norm(got["fixed_point_state"][k, 0] - want) / np.linalg.norm(want)
        assert error < 1e-4
        assert got["fixed_point_unstable"][k, 0] == np.sum(moduli > 1)
        parts = (got[f"fixed_point_eigenvalue_{part}"][k, 0] for part in ("real", "imaginary"))
        np.testing.assert_allclose(np.hypot(*parts), moduli, rtol=1e-3)
        assert got["fixed_point_radius"][k, 0] == pytest.approx(moduli[0], rel=1e-5)


def test_what_does_not_rest_or_leaves_the_floats_is_counted():
    drives = np.array([[3.0, 4.0]])
    none = looked_at(
        plain(np.eye(2), "identity", drives[0]), np.zeros((9, 1, 1)), FixedPoints(), drives
    )
    assert (
        none["fixed_point_count"] == none["fixed_point_converged"] == none["fixed_point_slow"] == 0
    )
    assert none["fixed_point_rest_log10"] == pytest.approx(math.log10(5))
    assert np.isnan(none["fixed_point_state"]).all()
    probe = FixedPoints(starts=16)
    grown = looked_at(
        plain(2.0 * np.eye(2), "identity", drives[0]), np.zeros((160, 1, 1)), probe, drives
    )
    # Of 16 starts, at steps 5, 15, ... 155, that of step 125 is at 4 * (2**126 - 1), which is inf.
    assert grown["fixed_point_lost"] == 4
    assert grown["fixed_point_converged"] == 12
    np.testing.assert_allclose(grown["fixed_point_state"][0, 0], -drives[0], rtol=1e-5)


@pytest.mark.parametrize("held", ["mean", "zero"])
def test_every_point_rests_by_the_cell_alone(held):
    """Padding is in the input of one direction's end and of the other's beginning."""
    with jax.enable_x64(True):
        case = make_case(LSTM, bidirectional=True, masked=True)
        probe = FixedPoints(starts=9, points=12, input=held)
        inputs = jnp.where(case.mask[..., None], case.inputs, 99.0)
        got = jax.device_get(jax.jit(lambda x: probe(case._replace(inputs=x).closeup()))(inputs))
        read = np.asarray(case.inputs)[np.asarray(case.mask)]
        x = jnp.asarray(np.mean(read, axis=0) * (held == "mean"))
        for index, cell in enumerate(case.layers[0]):

            def step(state, cell=cell):
                carry = type(cell.initialize_carry((1, 2), nnx.Rngs(0)))(*jnp.split(state, 2))
                return jnp.concatenate(jax.tree.leaves(cell(carry, x)[0]))

            count = int(got["fixed_point_count"][index])
            assert count > 0
            for k in range(count):
                state = got["fixed_point_state"][index, k]
                np.testing.assert_allclose(step(jnp.asarray(state)), state, atol=1e-9)
                moduli = np.abs(np.linalg.eigvals(jax.jacrev(step)(jnp.asarray(state))))
                parts = (
                    got[f"fixed_point_eigenvalue_{part}"][index, k]
                    for part in ("real", "imaginary")
                )
                np.testing.assert_allclose(np.hypot(*parts), np.sort(moduli)[::-1], atol=1e-7)
                assert got["fixed_point_unstable"][index, k] == np.sum(moduli > 1)
            assert np.isnan(got["fixed_point_state"][index, count:]).all()


def test_starts_are_real_and_evenly_spread():
    states = jnp.arange(12.0).reshape(4, 3, 1)
    real = jnp.array([[1, 1, 0], [1, 0, 0], [1, 1, 1], [0, 0, 0]], bool)
    np.testing.assert_array_equal(visited(states, real, 3)[:, 0], [1, 6, 8])
    np.testing.assert_array_equal(visited(states, real, 6)[:, 0], [0, 1, 3, 6, 7, 8])
    assert jnp.isnan(visited(states, jnp.zeros_like(real), 2)).all()


def test_points_that_are_near_are_one():
    states = jnp.array([[0.0], [1.0], [0.05], [9.0], [1.05], [1.0]])
    fixed = jnp.array([True, True, True, False, True, True])
    counts = merge(states, fixed, jnp.full(6, 0.1))
    np.testing.assert_array_equal(counts, [2, 3, 0, 0, 0, 0])


@pytest.mark.parametrize(
    "option",
    [
        {"starts": 0},
        {"points": 0},
        {"iterations": 0},
        {"input": "last"},
        {"fixed": 0.0},
        {"fixed": 0.1},
        {"slow": 2.0},
    ],
)
def test_refuses(option):
    with pytest.raises(BadInput) as error:
        FixedPoints(**option)
    assert error.value.key == f"probe.measure.fixed_points.{next(iter(option))}"


def test_coordinates():
    coords = FixedPoints(points=3).coords(SETTING)
    assert coords["point"] == [0, 1, 2]
    assert coords["component"] == coords["eigenvalue"] == list(range(40))
