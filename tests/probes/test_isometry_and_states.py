"""Eigenvalues of J_t, isometry and the covariance of states: against numpy, and known numbers."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from gradlab import analyze
from gradlab.bptt.products import suffix_moments
from gradlab.cells import GRU, LSTM
from gradlab.errors import BadInput
from gradlab.probes.base import Setting
from gradlab.probes.isometry import Isometry
from gradlab.probes.jacobian_eigenvalues import JacobianEigenvalues, median_over_time
from gradlab.probes.state_covariance import StateCovariance, crossing, moments
from tests.closeups import Case, E, H, T, make_case
from tests.oracles import flat
from tests.probes.test_trajectories import log10, look, mean, recurrent

SHARES, LOOKS, TRANSIENT = (0.0, 0.4, 1.0), (0, 2, 4, 6), 1
PROBES = (
    JacobianEigenvalues(shares=SHARES, timesteps=len(LOOKS), examples=E),
    Isometry(examples=E),
    StateCovariance(transient=TRANSIENT),
)


# Against numpy, of a padded batch, each example being walked alone and without its padding.


def walks(case: Case, direction: int):
    """Of each example states ``(n, S)`` and step Jacobians ``(n, S, S)`` in reading order."""
    cell = case.layers[0][direction]
    leaves, tree = jax.tree.flatten(cell.initialize_carry((1, case.inputs.shape[-1]), nnx.Rngs(0)))

    @jax.jit
    def step(state, x):
        def one(state):
            return flat(cell(jax.tree.unflatten(tree, jnp.split(state, len(leaves))), x)[0])

        return one(state), jax.jacrev(one)(state)

    found = []
    for e in range(E):
        own = case.inputs[: case.real[:, e].sum(), e]
        state, states, jacobians = jnp.zeros(len(leaves) * H), [], []
        for x in own[::-1] if direction else own:
            state, jacobian = step(state, x)
            states.append(state)
            jacobians.append(jacobian)
        found.append((np.array(states), np.array(jacobians)))
    return found


def check_eigenvalues(case, direction, walked, got):
    moduli = [np.sort(np.abs(np.linalg.eigvals(jacobians)), axis=-1) for _, jacobians in walked]
    numbers = {
        "largest": [log10(one[:, -1]) for one in moduli],
        "median": [log10(np.median(one, axis=-1)) for one in moduli],
    }
    real = case.real_of(direction)
    for name, logs in numbers.items():
        # By timestep and example, nan where it is not real.
        table = np.full((T, E), np.nan)
        table.T[real.T] = np.concatenate(logs)
        looked = [one[~np.isnan(one)] for one in table[list(LOOKS)]]
        want = np.full(T, np.nan)
        want[list(LOOKS)] = [mean(one) for one in looked]
        np.testing.assert_allclose(got[f"eigenvalue_{name}_log10"][direction], want, atol=1e-9)
        want = mean(np.nanmedian(table[list(LOOKS)], axis=0))
        typical = got[f"eigenvalue_{name}_typical_log10"][direction]
        np.testing.assert_allclose(typical, want, atol=1e-9)
    first = walked[0][1]
    for k, share in enumerate(SHARES):
        want = np.linalg.eigvals(first[round(share * (len(first) - 1))])
        here = got["eigenvalue_real"][direction, k] + 1j * got["eigenvalue_imaginary"][direction, k]
        np.testing.assert_allclose(np.sort_complex(here), np.sort_complex(want), atol=1e-9)
        assert np.all(np.diff(np.abs(here)) <= 1e-12)


def check_isometry(direction, walked, got):
    size = walked[0][1].shape[-1]
    for back in range(T):
        squares = []
        for _, jacobians in walked:
            if back < len(jacobians):
                product = np.eye(size)
                for jacobian in jacobians[len(jacobians) - back :]:
                    product = jacobian @ product
                squares.append(np.linalg.svd(product, compute_uv=False) ** 2)
        want = {
            "squared_singular_mean_log10": [log10(one.mean()) for one in squares],
            "squared_singular_variance": [one.var() / one.mean() ** 2 for one in squares],
            "effective_rank": [one.sum() ** 2 / (one**2).sum() for one in squares],
        }
        for name, values in want.items():
            here = got[name][direction, back]
            np.testing.assert_allclose(here, mean(values), rtol=1e-9, atol=1e-9, err_msg=name)


def check_states(direction, walked, got):
    parts = np.split(np.arange(walked[0][0].shape[-1]), walked[0][0].shape[-1] // H)
    for k, part in enumerate(parts):
        own = [states[TRANSIENT:, part] for states, _ in walked]
        pool = np.concatenate(own)
        second = log10(np.mean(pool**2))
        here = {name: got[name][direction, k] for name in StateCovariance().variables(SETTING)}
        np.testing.assert_allclose(here["state_second_moment_log10"], second, rtol=1e-9)
        values = np.linalg.eigvalsh(np.cov(pool.T, bias=True))
        ratio = values.sum() ** 2 / (values**2).sum()
        np.testing.assert_allclose(here["participation_ratio"], ratio, rtol=1e-9)
        moved = [one - pool.mean(0) for one in own]
        pairs = [
            [one[t] @ one[t + delay] for one in moved for t in range(len(one) - delay)]
            for delay in range(T)
        ]
        curve = np.array([np.mean(one) if one else np.nan for one in pairs])
        np.testing.assert_allclose(here["state_autocorrelation"], curve / curve[0], atol=1e-12)
        assert here["autocorrelation_time"] > 0


def test_a_padded_batch_is_measured_as_its_examples_without_padding():
    with jax.enable_x64(True):
        case = make_case(LSTM, bidirectional=True, masked=True)

        @jax.jit
        def measure(inputs):
            closeup = case._replace(inputs=inputs).closeup()
            return {name: one for probe in PROBES for name, one in probe(closeup).items()}

        got = jax.device_get(measure(case.inputs))
        for direction in range(2):
            walked = walks(case, direction)
            check_eigenvalues(case, direction, walked, got)
            check_isometry(direction, walked, got)
            check_states(direction, walked, got)


# Eigenvalues that are known.


def test_circular_law():
    """Half of the eigenvalues lie within 1/√2 of the radius; nothing underflows on the way."""
    size, gain = 128, 1e-30
    matrix = gain * np.random.default_rng(0).normal(size=(size, size)) / math.sqrt(size)
    got = look(recurrent(matrix, "identity"), np.zeros((2, 1, 1)), JacobianEigenvalues())
    moduli = np.abs(np.linalg.eigvals(matrix))
    np.testing.assert_allclose(got["eigenvalue_largest_log10"], log10(moduli.max()), atol=1e-5)
    np.testing.assert_allclose(got["eigenvalue_median_log10"], log10(np.median(moduli)), atol=1e-5)
    median = 10 ** (got["eigenvalue_median_typical_log10"] - math.log10(gain))
    assert median == pytest.approx(1 / math.sqrt(2), abs=0.03)
    assert np.hypot(got["eigenvalue_real"], got["eigenvalue_imaginary"]).max() < 1.2 * gain


def test_a_gru_at_rest_is_half_the_identity_and_a_quarter_of_its_matrix():
    cell = GRU(2, 6, recurrent_kernel_init=nnx.initializers.normal(1.0), rngs=nnx.Rngs(0))
    got = look(cell, np.zeros((5, 1, 2)), JacobianEigenvalues())
    matrix = 0.5 * np.eye(6) + 0.25 * np.asarray(cell.dense_h.kernel[...])[:, -6:]
    want = np.sort_complex(np.linalg.eigvals(matrix))
    for here in got["eigenvalue_real"] + 1j * got["eigenvalue_imaginary"]:
        np.testing.assert_allclose(np.sort_complex(here), want, atol=1e-5)


def test_eigenvalues_of_zero_and_of_what_is_not_finite():
    got = look(recurrent(np.zeros((4, 4))), np.zeros((3, 1, 1)), *PROBES)
    assert np.isneginf(got["eigenvalue_largest_log10"]).all()
    assert got["eigenvalue_median_typical_log10"] == -np.inf
    assert (got["eigenvalue_real"] == 0).all()
    np.testing.assert_array_equal(got["squared_singular_mean_log10"], [0, -np.inf, -np.inf])
    np.testing.assert_array_equal(got["squared_singular_variance"], [0, np.nan, np.nan])
    np.testing.assert_array_equal(got["effective_rank"], [4, 0, 0])
    # The state rests at 0.
    assert got["state_second_moment_log10"] == -np.inf
    for name in ("participation_ratio", "autocorrelation_time", "state_autocorrelation"):
        assert np.isnan(got[name]).all(), name


def test_the_median_over_time_of_some_steps():
    values = jnp.array([[1.0, -jnp.inf, 5], [3, -jnp.inf, 6], [7, 2, 7], [4, jnp.nan, 8]])
    mask = jnp.array([[1, 1, 0], [1, 1, 0], [1, 1, 0], [1, 0, 0]], bool)
    median, some = median_over_time(values, mask)
    assert median[:2].tolist() == [3.5, -math.inf]
    assert some.tolist() == [True, True, False]


# Isometry.


def test_what_keeps_all_lengths_and_what_halves_two_in_four():
    """Mean 1 and no variance of the one; σ² = 4^-k twice and 0 twice, to 10^-361, of the other."""
    orthogonal = np.linalg.qr(np.random.default_rng(0).normal(size=(4, 4)))[0]
    both = np.stack([orthogonal, np.diag([0.5, 0.5, 0, 0])])
    factors = jnp.asarray(np.broadcast_to(both, (601, 2, 4, 4)), jnp.float32)
    log, variance = (one[-2::-1].T for one in jax.device_get(jax.jit(suffix_moments)(factors)))
    np.testing.assert_allclose(log[0], 0, atol=1e-4)
    np.testing.assert_allclose(variance[0], 0, atol=1e-8)
    want = np.arange(1, 601) * math.log10(0.25) + math.log10(0.5)
    np.testing.assert_allclose(log[1], want, rtol=1e-6)
    np.testing.assert_allclose(variance[1], 1, rtol=1e-6)


def test_products_of_gaussian_matrices():
    """Their variance is the number of factors (Pennington et al. 2017); all in float32."""
    size, depth, seeds, gain = 64, 10, 12, 1e-6
    rng = np.random.default_rng(0)
    factors = gain * rng.normal(size=(depth + 1, seeds, size, size)) / math.sqrt(size)
    log, variance = jax.device_get(jax.jit(suffix_moments)(jnp.asarray(factors, jnp.float32)))
    product = np.broadcast_to(np.eye(size), (seeds, size, size))
    for lag in range(depth + 1):
        squares = np.linalg.svd(product, compute_uv=False) ** 2
        np.testing.assert_allclose(log[depth - lag], log10(squares.mean(-1)), rtol=1e-5)
        want = squares.var(-1) / squares.mean(-1) ** 2
        np.testing.assert_allclose(variance[depth - lag], want, rtol=1e-5, atol=1e-9)
        product = product @ factors[depth - lag]
    np.testing.assert_allclose(log[::-1].mean(1), 2 * math.log10(gain) * np.arange(11), atol=0.1)
    for lag in (1, 2, 5, 10):
        assert variance[depth - lag].mean() == pytest.approx(lag, rel=0.12)


@pytest.mark.slow
def test_a_cut_route_carries_nothing():
    """The lengths are of what carries the gradient: S times their mean is ‖J_{T:t}‖_F²."""
    inputs = np.random.default_rng(0).normal(size=(1, 12, 2))
    cell = LSTM(2, 4, rngs=nnx.Rngs(0))
    names = ["isometry", "long_jacobian"]
    found = analyze(cell, inputs, lambda y: y[:, -1, 0], probes=names, backward="no_h_path")
    length = 2 * found["long_jacobian_over_lag_log10_frobenius"] - math.log10(8)
    np.testing.assert_allclose(found["squared_singular_mean_log10"], length, atol=1e-4)
    assert found["effective_rank"].max("layer").values[1:].max() <= 4 + 1e-5  # nothing is in h


# States.

measure = jax.jit(moments)


def test_a_linear_network_driven_by_white_noise():
    """h = λh + x: second moment 1/(1-λ²), autocorrelation λ^k, of 32 units alike."""
    decay, burn = 0.9, 100
    states, h = [], np.zeros((4, 32))
    rng = np.random.default_rng(0)
    for _ in range(burn + 3000):
        h = decay * h + rng.normal(size=h.shape)
        states.append(h)
    states = jnp.asarray(np.array(states[burn:]), jnp.float32)
    got = measure(states, jnp.ones(states.shape[:2], bool))
    second = 1 / (1 - decay**2)
    assert 10.0 ** got["state_second_moment_log10"] == pytest.approx(second, rel=0.02)
    curve = got["state_autocorrelation"][:40]
    np.testing.assert_allclose(curve, decay ** np.arange(40), atol=0.02)
    assert got["autocorrelation_time"] == pytest.approx(-1 / math.log(decay), rel=0.03)
    assert 30 < got["participation_ratio"] < 32


@pytest.mark.parametrize("scale", [1.0, 1e-25, 1e25])
def test_participation_ratio_of_a_known_covariance(scale):
    variances = np.array([9.0, 4.0, 1.0, 1.0])
    rng = np.random.default_rng(0)
    white = rng.normal(size=(60, 4))
    white -= white.mean(0)
    white @= np.linalg.inv(np.linalg.cholesky(np.cov(white.T, bias=True))).T
    turned = (white * np.sqrt(variances)) @ np.linalg.qr(rng.normal(size=(4, 4)))[0] + 3
    # Two examples of 20 and 40 steps; what is padding holds anything.
    states = np.full((40, 2, 4), np.nan)
    states[:20, 0], states[:, 1] = turned[:20], turned[20:]
    counted = np.arange(40)[:, None] < np.array([20, 40])
    got = measure(jnp.asarray(scale * states, jnp.float32), jnp.asarray(counted))
    want = variances.sum() ** 2 / (variances**2).sum()
    assert got["participation_ratio"] == pytest.approx(want, rel=1e-5)
    want = math.log10((variances.sum() + 4 * 9) / 4) + 2 * math.log10(scale)
    assert got["state_second_moment_log10"] == pytest.approx(want, abs=1e-5)


def test_a_state_that_does_not_move_has_no_directions():
    """Its rounding is no movement, and a unit that does move is seen beside it."""
    states = np.full((50, 3, 5), 1 / 3, np.float32)
    states *= 1 + 1e-7 * np.random.default_rng(0).choice([-1, 0, 1], size=states.shape)
    every = jnp.ones((50, 3), bool)
    still = measure(jnp.asarray(states), every)
    assert np.isnan(still["participation_ratio"])
    assert still["state_second_moment_log10"] == pytest.approx(math.log10(1 / 9), abs=1e-5)
    states[:, :, 2] = 1e-30 * (np.arange(50) % 2)[:, None]
    moving = measure(jnp.asarray(states), every)
    assert moving["participation_ratio"] == pytest.approx(1)
    np.testing.assert_allclose(moving["state_autocorrelation"][:3], [1, -1, 1], atol=1e-5)


@pytest.mark.parametrize(
    ("curve", "time"),
    [
        (0.5 ** np.arange(9), 1 / math.log(2)),
        (0.1 ** np.arange(9), 1 / math.log(10)),
        ([1, 0.8, -0.2, 0.9], 1 + (0.8 - math.exp(-1))),
        ([1, 0.9, 0.8, math.nan], math.inf),
        ([math.nan] * 3, math.nan),
    ],
)
def test_where_an_autocorrelation_falls_below_1_over_e(curve, time):
    assert float(crossing(jnp.asarray(curve, jnp.float32))) == pytest.approx(time, nan_ok=True)


# Options.

SETTING = Setting("LSTM", ("c", "h"), ("i", "f", "o"), "f", length=50, hidden=20)


def test_coordinates():
    coords = JacobianEigenvalues().coords(SETTING)
    assert coords == {"share": [0.0, 0.5, 1.0], "eigenvalue": list(range(40))}
    coords = StateCovariance().coords(SETTING)
    assert coords == {"state": ["c", "h"], "delay": list(range(50))}


@pytest.mark.parametrize(
    ("make", "key"),
    [
        (lambda: JacobianEigenvalues(examples=0), "jacobian_eigenvalues.examples"),
        (lambda: JacobianEigenvalues(timesteps=0), "jacobian_eigenvalues.timesteps"),
        (lambda: JacobianEigenvalues(shares=()), "jacobian_eigenvalues.shares"),
        (lambda: JacobianEigenvalues(shares=(0.5, 0.5)), "jacobian_eigenvalues.shares"),
        (lambda: JacobianEigenvalues(shares=(1.5,)), "jacobian_eigenvalues.shares"),
        (lambda: Isometry(examples=0), "isometry.examples"),
        (lambda: StateCovariance(transient=-1), "state_covariance.transient"),
        (lambda: StateCovariance(transient=50).variables(SETTING), "state_covariance.transient"),
    ],
)
def test_refuses(make, key):
    with pytest.raises(BadInput) as error:
        make()
    assert error.value.key == f"probe.measure.{key}"
