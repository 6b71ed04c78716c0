"""The adjoint's directions against numpy in float64, and in a network with one slow direction."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from gradlab.bptt.closeup import Closeup
from gradlab.bptt.products import random_orthonormal
from gradlab.cells import LSTM
from gradlab.probes.adjoint_alignment import AdjointAlignment
from tests.closeups import E, Plain, T, make_case, packed
from tests.probes.test_trajectories import look, recurrent, step_jacobians


def cosine(a, b):
    return abs(a @ b) / (np.linalg.norm(a) * np.linalg.norm(b))


def curves(adjoints, jacobians, real):
    """The four curves from ``(T, E, S)`` adjoints, as lists over the lag of what is averaged."""
    size = adjoints.shape[-1]
    found = {name: [[] for _ in range(T)] for name in ("end", "next", "examples", "lyapunov")}
    steps = [np.flatnonzero(real[:, e])[::-1] for e in range(E)]
    for e in range(E):
        pulled, own = random_orthonormal(size, 1)[:, 0], adjoints[steps[e], e]
        other = (e + 1) % E
        for k, t in enumerate(steps[e]):
            found["end"][k].append(cosine(own[k], own[0]))
            found["lyapunov"][k].append(cosine(own[k], pulled))
            if k:
                found["next"][k].append(cosine(own[k], own[k - 1]))
            if k < len(steps[other]):
                there = adjoints[steps[other][k], other]
                found["examples"][k].append(cosine(own[k], there))
            pulled = jacobians[t, e].T @ pulled
    return {
        name: [np.mean(values) if values else math.nan for values in one]
        for name, one in found.items()
    }


def test_an_lstm_against_numpy():
    """Both directions, with a loss at every step and padding."""
    with jax.enable_x64(True):
        case = make_case(LSTM, bidirectional=True, masked=True)
        got = jax.jit(lambda x: AdjointAlignment()(case._replace(inputs=x).closeup()))(case.inputs)
        plain = Plain(case)
        total = jax.jit(jax.grad(lambda copies: jnp.sum(plain.losses(copies))))
        nudges = total(plain.copies()).nudges
        for index, jacobians in enumerate(step_jacobians(case)):
            want = curves(packed(nudges[index]), jacobians, case.real_of(index))
            for name, values in want.items():
                curve = got[f"adjoint_cosine_{name}_over_lag"][index]
                np.testing.assert_allclose(curve, values, rtol=1e-8, err_msg=name)


def test_one_slow_direction_is_all_that_is_left():
    """Eigenvalues 0.99 and 0.5: what is beside the left eigenvector falls as (0.5 / 0.99)^lag."""
    size, steps = 6, 20
    rng = np.random.default_rng(0)
    right = rng.normal(size=(size, size))  # not orthogonal
    matrix = right @ np.diag([0.99, *[0.5] * (size - 1)]) @ np.linalg.inv(right)
    slow = np.linalg.inv(right)[0] / np.linalg.norm(np.linalg.inv(right)[0])
    weights = rng.normal(size=(2, size))
    with jax.enable_x64(True):
        types = {"dtype": jnp.float64, "param_dtype": jnp.float64}
        cell = recurrent(matrix, "identity", **types)
        inputs = jnp.zeros((steps, 2, 1))

        def measure(inputs):
            def loss(last):
                return jnp.sum(last * weights, -1)

            return AdjointAlignment()(Closeup([[cell]], inputs, loss))

        found = {name: np.asarray(one)[0] for name, one in jax.jit(measure)(inputs).items()}
    powers = [np.linalg.matrix_power(matrix.T, k) for k in range(steps)]
    adjoints = np.array([[power @ one for one in weights] for power in powers])
    for e in range(2):  # of the oracle itself: what is beside the slow direction, at the known rate
        along = adjoints[:, e] @ slow
        beside = np.linalg.norm(adjoints[:, e] - along[:, None] * slow, axis=-1) / np.abs(along)
        np.testing.assert_allclose(beside[15:] / beside[14:-1], 0.5 / 0.99, rtol=1e-3)
    pulled = [power @ random_orthonormal(size, 1)[:, 0] for power in powers]
    want = {
        "end": [
            np.mean([cosine(a, b) for a, b in zip(now, adjoints[0], strict=True)])
            for now in adjoints
        ],
        "examples": [cosine(*now) for now in adjoints],
        "lyapunov": [
            np.mean([cosine(a, v) for a in now]) for now, v in zip(adjoints, pulled, strict=True)
        ],
    }
    for name, values in want.items():
        curve = found[f"adjoint_cosine_{name}_over_lag"]
        np.testing.assert_allclose(curve, values, rtol=1e-10, err_msg=name)
    for name in ("next", "examples", "lyapunov"):
        assert found[f"adjoint_cosine_{name}_over_lag"][-1] > 1 - 1e-9
    short = np.sqrt(1 - np.array(want["lyapunov"]) ** 2)
    assert short[0] > 0.3 > 1e-4 > short[-1]


def test_no_lag_is_too_long_and_a_lone_example_has_no_other():
    """The adjoint falls far below the floats; then it is exactly zero, and has no direction."""
    matrix = np.diag([0.01, 0.005, 0.0])
    cell = recurrent(matrix, "identity")
    got = look(cell, np.zeros((300, 1, 1)), AdjointAlignment())
    far = cosine(np.array([1.0, 0.5**299, 0.0]), np.ones(3))
    assert got["adjoint_cosine_end_over_lag"][-1] == np.float32(far)
    assert got["adjoint_cosine_lyapunov_over_lag"][-1] > 1 - 1e-6
    np.testing.assert_allclose(got["adjoint_cosine_next_over_lag"][40:], 1, atol=1e-6)
    assert np.isnan(got["adjoint_cosine_next_over_lag"][0])
    assert np.isnan(got["adjoint_cosine_examples_over_lag"]).all()
    zero = look(recurrent(np.zeros((3, 3)), "identity"), np.zeros((4, 2, 1)), AdjointAlignment())
    for curve in zero.values():
        assert np.isnan(curve[1:]).all()
    assert zero["adjoint_cosine_end_over_lag"][0] > 1 - 1e-6
