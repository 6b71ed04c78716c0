"""Gates, matrices and theory against slow float64 computations, and known numbers."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from gradlab import cells
from gradlab.bptt.closeup import Closeup
from gradlab.cells import stock
from gradlab.errors import BadInput
from gradlab.probes.base import Setting, Unsupported
from gradlab.probes.gate_statistics import GateStatistics
from gradlab.probes.gradient_mass import GradientMass
from gradlab.probes.mean_field import MeanField, gaussian_mean, growth, variance
from gradlab.probes.pascanu_bound import PascanuBound
from gradlab.probes.recurrent_matrix import RecurrentMatrix, figures
from gradlab.probes.setting import setting_of
from gradlab.probes.trajectory_end import TrajectoryEnd
from tests.models import every_model
from tests.oracles import as_float64, walked
from tests.probes.seen import B, L, make_seen

STEPS, EXAMPLES, WIDTH, HIDDEN = 7, 3, 2, 3
ENDS = np.array([7, 4, 5])
MASK = np.arange(STEPS)[:, None] < ENDS
CLOSE = {
    "gate_statistics": GateStatistics(lowest=-1.5, bins=5),
    "recurrent_matrix": RecurrentMatrix(),
    "pascanu_bound": PascanuBound(),
    "mean_field": MeanField(),
    "trajectory_end": TrajectoryEnd(),
}


def wide(make, width=WIDTH, seed=0):
    """A cell that computes in float64."""
    return as_float64(make(width, HIDDEN, param_dtype=jnp.float64, rngs=nnx.Rngs(seed)))


def stretched(cell, by):
    """The cell with larger weights, so that gates and growth vary."""
    graph, state = nnx.split(cell)
    return nnx.merge(graph, jax.tree.map(lambda leaf: by * leaf, state))


def last_sum(outputs):
    return jnp.sum(jnp.sin(outputs), -1)


def supported(setting):
    found = {}
    for name, probe in CLOSE.items():
        try:
            found[name] = (probe, probe.variables(setting))
        except Unsupported:
            continue
    return found


def looked_at(cell, inputs, mask=None, probes=None, length=STEPS):
    """What the probes that support a cell measure of it, and its setting."""
    setting = setting_of([[cell]], inputs.shape[-1], length=length)
    chosen = supported(setting) if probes is None else {p: (p, {}) for p in probes}
    graph, state = nnx.split(cell)

    @jax.jit
    def run(state, inputs):
        closeup = Closeup([[nnx.merge(graph, state, copy=True)]], inputs, last_sum, mask=mask)
        found = {}
        for probe, _ in chosen.values():
            found |= probe(closeup)
        return found

    return jax.device_get(run(state, inputs)), setting


@every_model()
def test_every_cell_against_numpy(make):
    with jax.enable_x64(True):
        cell = stretched(wide(make), 2.0)
        inputs = jax.random.normal(jax.random.key(1), (STEPS, EXAMPLES, WIDTH))
        got, setting = looked_at(cell, inputs, jnp.asarray(MASK))
        for probe, variables in supported(setting).values():
            sizes = {"layer": 1, "t": STEPS}
            sizes |= {name: len(values) for name, values in probe.coords(setting).items()}
            for name, variable in variables.items():
                assert got[name].shape == tuple(sizes[dim] for dim in variable.dims), name
                assert got[name].dtype == np.float64
        walk = walked(cell, inputs)
        check_gates(cell, walk, inputs, got, setting)
        check_matrices(cell, got, setting)
        check_bound(cell, walk, got)
        check_mean_field(cell, inputs, got)
        assert got["trajectory_end"] == STEPS


def check_gates(cell, walk, inputs, got, setting):
    if setting.retention is None:
        assert "timescale" not in got
        return
    tree = jax.tree.structure(cell.initialize_carry((1, WIDTH), nnx.Rngs(0)))
    before = jax.tree.unflatten(tree, [jnp.asarray(walk.before[..., part]) for part in walk.parts])
    gates = np.asarray(getattr(stock.gates(cell, before, inputs), setting.retention))[MASK]
    edges = np.linspace(-1.5, 0, 6)
    inside = np.clip(np.log10(gates), -1.5, -1e-12)
    counts, _ = np.histogram(inside, edges)
    assert counts.max() < counts.sum()  # not all in one bin
    np.testing.assert_allclose(got["retention_histogram"][0], counts / counts.sum())
    np.testing.assert_allclose(got["timescale"][0], 1 / (1 - np.mean(gates, 0)))
    centres = CLOSE["gate_statistics"].coords(setting)["log10_gate"]
    np.testing.assert_allclose(centres, (edges[1:] + edges[:-1]) / 2)


def largest_power(matrix, length):
    powers = [np.linalg.matrix_power(matrix, k) for k in range(length + 1)]
    return max(np.linalg.norm(power, 2) for power in powers)


def check_matrices(cell, got, setting):
    matrices = {k: np.asarray(v) for k, v in stock.recurrent_matrices(cell).items()}
    if not matrices:
        assert "spectral_radius" not in got
        return
    assert CLOSE["recurrent_matrix"].coords(setting) == {"matrix": list(matrices)}
    for index, matrix in enumerate(matrices.values()):
        moduli = np.abs(np.linalg.eigvals(matrix))
        want = {
            "spectral_radius": moduli.max(),
            "spectral_norm": np.linalg.svd(matrix)[1][0],
            "transient_growth_log10": np.log10(largest_power(matrix, STEPS)),
        }
        for name, value in want.items():
            np.testing.assert_allclose(got[name][0, index], value, rtol=1e-9, err_msg=name)
        excess = np.linalg.norm(matrix) ** 2 - np.sum(moduli**2)
        assert got["departure_from_normality"][0, index] ** 2 == pytest.approx(excess, abs=1e-9)


def check_bound(cell, walk, got):
    plain = stock.plain_rnn(cell)
    if plain is None:
        assert "pascanu_bound_log10" not in got
        return
    (matrix,) = stock.recurrent_matrices(cell).values()
    slope = np.log10(plain.steepest * np.linalg.svd(np.asarray(matrix))[1][0])
    bound = got["pascanu_bound_log10"][0]
    for t in range(STEPS):
        lags = ENDS[t < ENDS] - 1 - t
        assert bound[t] == pytest.approx(slope * np.mean(lags), abs=1e-12)
    for e, end in enumerate(ENDS):
        product = np.eye(HIDDEN)
        for lag, jacobian in enumerate(walk.jacobians[:end, e][::-1]):
            assert np.log10(np.linalg.norm(product, 2)) <= lag * slope + 1e-12
            product = product @ jacobian


def slow_mean_field(g2, sigma2):
    """By a fine Riemann sum and plain iteration."""
    z, dz = np.linspace(-12, 12, 12001, retstep=True)
    weight = np.exp(-z * z / 2) / np.sqrt(2 * np.pi) * dz
    q = g2 + sigma2
    for _ in range(400):
        q = g2 * np.sum(weight * np.tanh(np.sqrt(q) * z) ** 2) + sigma2
    return g2 * np.sum(weight * (1 - np.tanh(np.sqrt(q) * z) ** 2) ** 2)


def check_mean_field(cell, inputs, got):
    plain = stock.plain_rnn(cell)
    if plain is None or plain.activation != "tanh":
        assert "mean_field_chi" not in got
        return
    (matrix,) = stock.recurrent_matrices(cell).values()
    drives = np.asarray(plain.drive(inputs))[MASK]
    chi = slow_mean_field(HIDDEN * np.var(np.asarray(matrix)), np.mean(drives**2))
    assert got["mean_field_chi"][0] == pytest.approx(chi, rel=1e-6)
    assert got["mean_field_exponent"][0] == pytest.approx(0.5 * np.log(chi), rel=1e-6)


def test_a_bidirectional_stack_reads_each_direction_in_its_own_order():
    with jax.enable_x64(True):
        rnn = cells.SimpleRNN
        layers = [[wide(rnn, width, seed) for seed in (0, 1)] for width in (WIDTH, 2 * HIDDEN)]
        inputs = jax.random.normal(jax.random.key(1), (STEPS, EXAMPLES, WIDTH))

        @jax.jit
        def run(inputs):
            closeup = Closeup(layers, inputs, last_sum, mask=jnp.asarray(MASK))
            return PascanuBound()(closeup) | MeanField()(closeup) | TrajectoryEnd()(closeup)

        got = jax.device_get(run(inputs))
    bound, chi = got["pascanu_bound_log10"], got["mean_field_chi"]
    ends = got["trajectory_end"]
    assert bound.shape == (4, STEPS)
    slopes = [
        np.log10(np.linalg.norm(np.asarray(one.dense_h.kernel[...]), 2))
        for layer in layers
        for one in layer
    ]
    # A backward direction reads the padding first: at its t all examples end at T - 1.
    np.testing.assert_allclose(bound[1], slopes[1] * np.arange(STEPS)[::-1], atol=1e-12)
    lags = [np.mean([end - 1 - t for end in ENDS if end > t]) for t in range(STEPS)]
    np.testing.assert_allclose(bound[2], slopes[2] * np.array(lags), atol=1e-12)
    assert chi.shape == ends.shape == (4,)
    assert np.all(chi < 1)
    assert np.all(ends == STEPS)


# Gates.


def test_chrono_initialisation_has_time_scales_up_to_the_length():
    length, hidden = 100, 400
    lstm = cells.LSTM(WIDTH, hidden, kernel_init=nnx.initializers.zeros, forget_bias=0.0,
                      recurrent_kernel_init=nnx.initializers.zeros, rngs=nnx.Rngs(0))  # fmt: skip
    times = 1 + (length - 2) * (np.arange(hidden) + 0.5) / hidden
    lstm.dense_h.bias[...] = lstm.dense_h.bias[...].at[hidden : 2 * hidden].set(np.log(times))
    inputs = jnp.zeros((3, 2, WIDTH))
    got, _ = looked_at(lstm, inputs, probes=[GateStatistics()])
    scales = got["timescale"][0]
    np.testing.assert_allclose(scales, 1 + times, rtol=1e-4)
    assert scales.min() >= 2
    assert scales.max() <= length
    assert scales.mean() == pytest.approx(length / 2 + 1, rel=1e-3)
    assert got["retention_histogram"].sum() == pytest.approx(1)


def test_gates_that_are_exactly_zero_or_one():
    lstm = cells.LSTM(WIDTH, 2, kernel_init=nnx.initializers.zeros, forget_bias=0.0,
                      recurrent_kernel_init=nnx.initializers.zeros, rngs=nnx.Rngs(0))  # fmt: skip
    lstm.dense_h.bias[...] = lstm.dense_h.bias[...].at[2:4].set(jnp.array([-200.0, 200.0]))
    got, _ = looked_at(lstm, jnp.zeros((3, 2, WIDTH)), probes=[GateStatistics(bins=4)])
    assert got["timescale"][0].tolist() == [1, math.inf]
    assert got["retention_histogram"][0].tolist() == [0.5, 0, 0, 0.5]


@pytest.mark.parametrize(
    ("options", "key"),
    [({"lowest": 0.0}, "lowest"), ({"lowest": -math.inf}, "lowest"), ({"bins": 0}, "bins")],
)
def test_bad_histograms(options, key):
    with pytest.raises(BadInput, match=rf"probe\.measure\.gate_statistics\.{key}"):
        GateStatistics(**options)


# The mass of the gradient.


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("share", [0.3, 0.95])
def test_gradient_mass_by_hand(masked, share):
    seen = make_seen(masked=masked)
    got = np.asarray(jax.jit(GradientMass(share))(seen)["gradient_mass_horizon"])
    for layer in range(L):
        found = []
        for b in range(B):
            steps = np.flatnonzero(np.asarray(seen.mask)[layer, :, b])[::-1]
            logs = [[float(seen.adjoints[s][layer, t, b]) for s in "ch"] for t in steps]
            top = np.max(logs)
            mass = [math.hypot(*(10 ** (one - top) for one in pair)) for pair in logs]
            upto = np.concatenate([[0], np.cumsum(mass)])
            found.append(np.interp(share * upto[-1], upto, np.arange(len(upto))))
        assert got[layer] == pytest.approx(np.mean(found), rel=1e-5)


@jax.jit
def compiled_mass(log10, mask):
    seen = make_seen()._replace(adjoints={"h": log10}, mask=mask)
    return GradientMass()(seen)["gradient_mass_horizon"]


def mass_of(curve):
    """The figure of one curve of log10 norms over t, padded so that one program does them all."""
    padding = (0, 5000 - len(curve))
    log10 = np.pad(np.asarray(curve, np.float32), padding)[None, :, None]
    mask = np.pad(np.ones(len(curve), bool), padding)[None, :, None]
    return float(compiled_mass(log10, mask)[0])


def test_gradient_mass_of_flat_falling_and_lone_curves():
    assert mass_of(np.full(200, -300.0)) == pytest.approx(190)
    rate = 0.01
    falling = -rate * np.arange(5000)[::-1] / math.log(10)
    assert mass_of(falling) == pytest.approx(-math.log(0.05) / rate, rel=1e-3)
    assert mass_of([-math.inf] * 9 + [-40.0]) == pytest.approx(0.95)
    assert mass_of([-40.0] + [-math.inf] * 9) == pytest.approx(9.95)


def test_gradient_mass_of_nothing_and_of_nan():
    assert math.isnan(mass_of([-math.inf] * 5))
    assert math.isnan(mass_of([0, math.nan, 0]))
    assert math.isnan(mass_of([0, math.inf, 0]))


def test_examples_without_an_adjoint_are_left_out():
    seen = make_seen(zeros=True)
    lone = seen._replace(adjoints={"h": seen.adjoints["h"]})  # example 0 of layer 1 has none
    others = lone._replace(adjoints={"h": lone.adjoints["h"][..., 1:]}, mask=lone.mask[..., 1:])
    with_it, without = (
        jax.jit(GradientMass())(one)["gradient_mass_horizon"] for one in (lone, others)
    )
    assert float(with_it[1]) == pytest.approx(float(without[1]))
    assert float(with_it[0]) != pytest.approx(float(without[0]))


@pytest.mark.parametrize("share", [0.0, 1.0, math.nan])
def test_bad_share(share):
    with pytest.raises(BadInput, match=r"probe\.measure\.gradient_mass\.share"):
        GradientMass(share)


# Matrices.


@pytest.fixture(scope="module")
def matrix_figures():
    """Compiled once for a size: ``(matrix, length) -> figures``."""
    compiled = jax.jit(figures, static_argnums=1)
    return lambda matrix, length: jax.device_get(compiled(jnp.asarray(matrix), length))


def test_an_orthogonal_matrix_is_at_the_edge(matrix_figures):
    with jax.enable_x64(True):
        matrix = np.linalg.qr(np.random.default_rng(0).normal(size=(64, 64)))[0]
        got = matrix_figures(matrix, 1000)
    assert got["spectral_radius"] == pytest.approx(1, abs=1e-12)
    assert got["spectral_norm"] == pytest.approx(1, abs=1e-12)
    assert got["departure_from_normality"] == pytest.approx(0, abs=1e-6)
    assert got["transient_growth_log10"] == pytest.approx(0, abs=1e-10)


def test_a_shear_grows_like_the_number_of_steps(matrix_figures):
    got = matrix_figures(np.array([[1.0, 3.0], [0.0, 1.0]], np.float32), 50)
    assert got["spectral_radius"] == pytest.approx(1, abs=1e-3)
    assert got["departure_from_normality"] == pytest.approx(3, rel=1e-5)
    want = np.log10(np.linalg.norm(np.array([[1.0, 150.0], [0.0, 1.0]]), 2))
    assert got["transient_growth_log10"] == pytest.approx(want, rel=1e-5)


def test_growth_beyond_the_float_range_and_none_at_all(matrix_figures):
    got = matrix_figures(np.diag(np.float32([10, 0.1])), 5000)
    assert got["transient_growth_log10"] == pytest.approx(5000, rel=1e-5)
    got = matrix_figures(np.float32([[0, 1e30], [0, 0]]), 5000)
    assert got["transient_growth_log10"] == pytest.approx(30, rel=1e-5)
    assert got["departure_from_normality"] == pytest.approx(1e30, rel=1e-5)
    got = matrix_figures(np.float32([[1e-30, 0], [0, 0]]), 5000)
    assert got["transient_growth_log10"] == 0
    assert got["spectral_norm"] == pytest.approx(1e-30, rel=1e-5)
    got = matrix_figures(np.zeros((2, 2), np.float32), 5000)
    assert all(value == 0 for value in got.values())


def test_a_matrix_that_is_not_finite_has_no_figures(matrix_figures):
    got = matrix_figures(np.float32([[np.inf, 0], [0, np.nan]]), 50)
    assert all(np.isnan(value) for value in got.values())


def test_transient_growth_of_many_kinds_of_matrices(matrix_figures):
    size, length = 8, 40
    for seed in range(60):
        rng = np.random.default_rng(seed)
        normal, orthogonal = (rng.normal(size=(size, size)) for _ in range(2))
        orthogonal = np.linalg.qr(orthogonal)[0]
        matrix = [
            normal * rng.uniform(0.5, 1.2) / np.sqrt(size),
            np.diag(rng.uniform(-1, 1, size)) + np.triu(normal, 1) * rng.uniform(0, 2),
            orthogonal * rng.uniform(0.95, 1.02),
            orthogonal + 0.05 * normal,
        ][seed % 4].astype(np.float32)
        got = matrix_figures(matrix, length)["transient_growth_log10"]
        want = np.log10(largest_power(matrix.astype(np.float64), length))
        assert got == pytest.approx(want, abs=2e-3), seed
        assert got <= want + 1e-5, seed


# Pascanu's bound.


def test_the_bound_of_a_sigmoid_network_has_slope_one_quarter():
    rnn = cells.SimpleRNN(WIDTH, HIDDEN, activation_fn="sigmoid", rngs=nnx.Rngs(0))
    got, _ = looked_at(rnn, jnp.ones((5000, 1, WIDTH)), probes=[PascanuBound()], length=5000)
    want = np.log10(0.25) * np.arange(5000)[::-1]  # the recurrent matrix begins orthogonal
    np.testing.assert_allclose(got["pascanu_bound_log10"][0], want, rtol=1e-5)


def test_the_bound_of_a_matrix_that_is_zero():
    rnn = cells.SimpleRNN(WIDTH, HIDDEN, recurrent_kernel_init=nnx.initializers.zeros,
                          rngs=nnx.Rngs(0))  # fmt: skip
    got, _ = looked_at(rnn, jnp.ones((3, 2, WIDTH)), probes=[PascanuBound()])
    assert got["pascanu_bound_log10"][0].tolist() == [-math.inf, -math.inf, 0]


# Mean-field theory.


@pytest.mark.parametrize("gain", [0.5, 0.9, 0.99])
def test_below_one_the_exponent_is_the_log_of_the_gain(gain):
    with jax.enable_x64(True):
        chi = growth(jnp.float64(gain**2), jnp.float64(0))
    assert 0.5 * math.log(chi) == pytest.approx(math.log(gain), rel=1e-12)


@pytest.mark.parametrize(("gain", "exponent"), [(1.5, 0.0652), (2.0, 0.1547)])
@pytest.mark.parametrize("wide", [False, True])
def test_exponents_of_chaotic_networks(gain, exponent, wide):
    with jax.enable_x64(wide):
        dtype = jnp.float64 if wide else jnp.float32
        chi = growth(dtype(gain**2), dtype(0))
    assert 0.5 * math.log(chi) == pytest.approx(exponent, abs=5e-5)


def test_the_edge_is_at_gain_one():
    assert float(growth(jnp.float32(1), jnp.float32(0))) == pytest.approx(1, abs=1e-3)
    with jax.enable_x64(True):
        assert float(growth(jnp.float64(1), jnp.float64(0))) == pytest.approx(1, abs=1e-6)


def test_the_variance_is_a_fixed_point_at_any_strength():
    strengths = list(itertools.product([0.0, 0.3, 1.1, 9.0, 1e4], [0.0, 1e-3, 1.0, 50.0]))

    @jax.jit
    @jax.vmap
    def run(strength):
        g2, sigma2 = strength
        q = variance(g2, sigma2)
        again = g2 * gaussian_mean(lambda a: jnp.tanh(a) ** 2, q) + sigma2
        return q, again, growth(g2, sigma2)

    with jax.enable_x64(True):
        found = map(np.asarray, run(jnp.asarray(strengths, jnp.float64)))
    for (g2, sigma2), q, again, chi in zip(strengths, *found, strict=True):
        assert again == pytest.approx(q, rel=1e-10, abs=1e-15), (g2, sigma2)
        assert q > 0 or (g2 <= 1 and sigma2 == 0), (g2, sigma2)
        if g2 > 0 and g2 != 1.1:  # near the edge plain iteration takes too long
            assert chi == pytest.approx(slow_mean_field(g2, sigma2), rel=1e-4), (g2, sigma2)


def test_gaussian_moments():
    with jax.enable_x64(True):
        q = jnp.float64(2.5)
        moments = [float(gaussian_mean(lambda a, n=n: a**n, q)) for n in (0, 2, 4)]
    np.testing.assert_allclose(moments, [1, 2.5, 3 * 2.5**2], rtol=1e-13)


@pytest.mark.parametrize(("gain", "simulated"), [(1.5, 0.056), (2.0, 0.145)])
def test_the_prediction_meets_a_simulated_network(gain, simulated):
    size, steps = 200, 800
    rng = np.random.default_rng(0)
    matrix = rng.normal(size=(size, size)) * gain / np.sqrt(size)
    h, tangent, total = rng.normal(size=size), rng.normal(size=size), 0.0
    for t in range(steps + 100):
        h = np.tanh(matrix @ h)
        tangent = (1 - h**2) * (matrix @ tangent)
        length = np.linalg.norm(tangent)
        tangent /= length
        total += math.log(length) * (t >= 100)
    predicted = 0.5 * math.log(growth(jnp.float32(gain**2), jnp.float32(0)))
    assert total / steps == pytest.approx(predicted, abs=0.025)
    assert total / steps == pytest.approx(simulated, abs=0.015)


# The end of the trajectory.


def test_a_linear_network_overflows_where_it_must():
    def scaled(factor):
        return lambda key, shape, dtype: factor * jnp.eye(shape[0], dtype=dtype)

    rnn = cells.SimpleRNN(1, 2, activation_fn="identity", recurrent_kernel_init=scaled(1e10),
                          kernel_init=nnx.initializers.ones, rngs=nnx.Rngs(0))  # fmt: skip
    inputs = jnp.zeros((8, 3, 1)).at[2, 1].set(1.0)  # 1 at t=2, 1e30 at t=5, inf at t=6
    probes = [TrajectoryEnd(), PascanuBound(), RecurrentMatrix()]
    got, _ = looked_at(rnn, inputs, probes=probes)
    assert got["trajectory_end"].tolist() == [6]
    # Example 1 ends before t=6: the mean of two lags of 7 and one of 5 at t=0.
    assert got["pascanu_bound_log10"][0, 0] == pytest.approx(10 * 19 / 3, rel=1e-5)
    assert got["pascanu_bound_log10"][0, 7] == 0


# What a probe cannot measure.


PLAIN = Setting("SimpleRNN", ("h",), (), None, ("h",), "relu", 7, 3)
GATED = Setting("LSTM", ("c", "h"), ("i", "f", "o"), "f", ("i", "f"), None, 7, 3)
BARE = Setting("Odd", ("h",), ("r", "u"), None, (), None, 7, 3)


@pytest.mark.parametrize(
    ("name", "setting", "words"),
    [
        ("gate_statistics", PLAIN, "SimpleRNN .* no gates that can be seen"),
        ("gate_statistics", BARE, "Odd .* its gates are r, u"),
        ("recurrent_matrix", BARE, "Odd has no recurrent matrices"),
        ("pascanu_bound", GATED, "LSTM is not"),
        ("pascanu_bound", PLAIN._replace(activation=""), "SimpleRNN is not"),
        ("mean_field", PLAIN, "SimpleRNN .* φ = relu"),
        ("mean_field", PLAIN._replace(activation=""), "not known"),
        ("mean_field", GATED, "LSTM is no plain recurrent network"),
    ],
)
def test_what_is_lacking_is_named(name, setting, words):
    with pytest.raises(Unsupported, match=words):
        CLOSE[name].variables(setting)
