"""The probes of the gradient against plain networks in float64, and against known numbers."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.flatten_util import ravel_pytree

from gradlab.bptt.closeup import Closeup
from gradlab.cells import GRU, LSTM, SimpleRNN
from gradlab.errors import BadInput
from gradlab.probes.base import Setting, Unsupported
from gradlab.probes.clipping import ClipRemoved
from gradlab.probes.curvature import Curvature, _projected
from gradlab.probes.direct_adjoint import DirectAdjoint
from gradlab.probes.gradient_noise import GradientNoise
from gradlab.probes.temporal_contribution import TemporalContribution
from gradlab.probes.truncation import Truncation, windows
from tests.closeups import (
    Case,
    Copies,
    E,
    Plain,
    Scalar,
    Separate,
    T,
    lags,
    make_case,
    named,
    scalar_closeup,
)
from tests.models import every_model_in_stacks_gru_slowly

SPLIT = 2
BY_STEP = (
    DirectAdjoint(),
    TemporalContribution(split=SPLIT),
    GradientNoise(),
    Truncation(),
    ClipRemoved(),
)
PROBES = (*BY_STEP, Curvature(iterations=4))
SETTING = Setting("SimpleRNN", ("h",), (), None, length=T, hidden=3, clips=True)
SIZES = {"layer": 1, "t": T, "back": T, "window": 3, "parameter": 4}


def removed_from(params):
    """Some direction in the space of parameters."""
    rng = np.random.default_rng(9)
    return {name: jnp.asarray(rng.normal(size=value.shape)) for name, value in params.items()}


def closeup_of(case: Case) -> Closeup:
    return case.closeup(removed=lambda: removed_from(case.closeup().params))


def measurement(case: Case, probes=PROBES):
    """What the probes give, as a function of the inputs."""

    def measure(inputs):
        closeup = closeup_of(case._replace(inputs=inputs))
        found = {}
        for probe in probes:
            found |= probe(closeup)
        return found

    return measure


def measured(case: Case, probes):
    return jax.tree.map(np.asarray, jax.jit(measurement(case, probes))(case.inputs))


def expected_parts(case: Case, plain: Plain):
    """What the plain network gives: gradients by all copies, and summed for each window."""
    # The last size is longer than the sequences: nothing is cut.
    sizes = np.array([*windows(T), 2 * T])[:, None, None]
    lags = [case.lag_of(index) for index in range(len(case.places))]
    cuts = [jnp.asarray((lag > 0) & (lag % sizes == 0)) for lag in lags]

    def by(params, cuts):
        return jax.grad(lambda copies: jnp.sum(plain.losses(copies, cuts)))(plain.copies(params))

    found = jax.jit(jax.vmap(by, (None, 0)))(plain.params, cuts)
    found = jax.tree.map(np.asarray, found)
    windowed = jax.tree.map(lambda leaf: leaf[:-1].sum((1, 2)) / E, found.cells)
    return jax.tree.map(lambda leaf: leaf[-1], found), windowed


def log10_norm(array):
    with np.errstate(divide="ignore"):
        return np.log10(np.linalg.norm(array))


def cosine(a, b):
    with np.errstate(invalid="ignore"):
        return np.sum(a * b) / (np.linalg.norm(a) * np.linalg.norm(b))


def check_direct(case, got, by: Copies):
    for index in range(len(case.places)):
        real = case.real_of(index)
        for t in range(T):
            sizes = np.linalg.norm(by.lifts[index][t], axis=-1)
            nonzero = sizes[real[t] & (sizes > 0)]
            want = np.mean(np.log10(nonzero)) if nonzero.size else -math.inf
            want = want if real[t].any() else math.nan
            np.testing.assert_allclose(got["adj_h_direct_log10"][index, t], want, rtol=1e-10)


def entering(case, by: Copies):
    """Name -> (contributions of each example ``(T, E, ...)``, lags ``(T, E)``)."""
    found = {}
    for index, (depth, direction) in enumerate(case.places):
        for name, array in named(f"layers/{depth}/{direction}/", by.cells[index]).items():
            found[name] = (array, case.lag_of(index))
    for name, array in named("readout/", by.readout).items():
        found[name] = (array, lags(case.real))
    return found


def check_contributions(case, got, by: Copies, gradient):
    curves, cosines = got["temporal_contribution_log10"], got["long_short_cosine"]
    for row, (array, lag) in enumerate(entering(case, by).values()):
        long = (lag >= SPLIT).reshape(T, E, *[1] * (array.ndim - 2))
        parts, by_time = array * long, array.sum(1) / E
        parts = (parts.sum((0, 1)), (array * ~long).sum((0, 1)))
        for t in range(T):
            np.testing.assert_allclose(curves[row, t], log10_norm(by_time[t]), atol=1e-10)
        np.testing.assert_allclose(cosines[row], cosine(*parts), atol=1e-10)


def check_noise(case, got, by: Copies, batch=16):
    """Every partial sum made one by one, with numpy's own covariance."""
    for index in range(len(case.places)):
        leaves = [np.asarray(leaf).reshape(T, E, -1) for leaf in jax.tree.leaves(by.cells[index])]
        parts, lag = np.concatenate(leaves, -1), case.lag_of(index)
        signals, noises = [], []
        for k in range(T):
            sums = np.stack([parts[lag[:, e] >= k, e].sum(0) for e in range(E)])
            variance = np.trace(np.cov(sums.T, ddof=1))
            signals.append(np.sum(sums.mean(0) ** 2) - variance / E)
            noises.append(variance / batch)
        signals, noises = np.array(signals), np.array(noises)
        with np.errstate(divide="ignore", invalid="ignore"):
            snr = 0.5 * np.log10(np.where(signals <= 0, 0, signals) / noises)
            snr = np.where(signals <= 0, -math.inf, snr)
        # A sum that cancels to nothing is nothing but rounding.
        sure = np.abs(signals) > 1e-9 * noises
        got_snr = got["long_range_snr_log10"][index, ::-1]
        np.testing.assert_allclose(got_snr[sure], snr[sure], atol=1e-8)
        below = np.flatnonzero(np.maximum(signals, 0) < noises[0])
        assert got["noise_horizon"][index] == (below[0] if below.size else T)


def check_windows(case, got, cut, gradient):
    whole = np.concatenate([v.ravel() for k, v in gradient.items() if k.startswith("layers")])
    for row in range(len(windows(T))):
        flat = []
        for index, (depth, direction) in enumerate(case.places):
            own = named(f"layers/{depth}/{direction}/", cut[index])
            flat += [leaf[row].ravel() for leaf in own.values()]
        flat = np.concatenate(flat)
        bias = np.linalg.norm(flat - whole) / np.linalg.norm(whole)
        np.testing.assert_allclose(got["truncation_bias"][row], bias, atol=1e-12)
        np.testing.assert_allclose(got["truncation_cosine"][row], cosine(flat, whole), atol=1e-12)


def check_clipping(case, got, by: Copies, gradient):
    removed = {name: np.asarray(value) for name, value in removed_from(gradient).items()}
    by_time = np.zeros(T)
    for name, (array, _) in entering(case, by).items():
        dots = np.sum(array.mean(1) * removed[name], axis=tuple(range(1, array.ndim - 1)))
        by_time += dots[::-1] if name.split("/")[2:3] == ["1"] else dots
    size = math.sqrt(sum(np.sum(value**2) for value in removed.values()))
    want = size * by_time / sum(np.sum(removed[name] * gradient[name]) for name in gradient)
    np.testing.assert_allclose(got["clip_removed"], want, rtol=1e-9, atol=1e-11)
    assert got["clip_removed"].sum() == pytest.approx(size, rel=1e-12)


def check(case: Case):
    plain = Plain(case)
    got = measured(case, BY_STEP)
    by, cut = expected_parts(case, plain)
    gradient = {name: array.sum((0, 1)) / E for name, (array, _) in entering(case, by).items()}
    check_direct(case, got, by)
    check_contributions(case, got, by, gradient)
    check_noise(case, got, by)
    check_windows(case, got, cut, gradient)
    check_clipping(case, got, by, gradient)


@every_model_in_stacks_gru_slowly()
def test_every_cell_masked_with_a_loss_at_every_step(makes):
    with jax.enable_x64(True):
        check(make_case(makes, masked=True))


def test_two_ways_with_a_loss_at_the_end():
    """The readout's part of a shorter example enters at its own last step."""
    with jax.enable_x64(True):
        check(make_case(SimpleRNN, bidirectional=True, masked=True, every=False))


def test_a_cell_whose_output_is_not_its_state():
    with jax.enable_x64(True):
        check(make_case(Separate, layers=2, masked=True))


# What the probes announce, and what they refuse.


def measure(closeup_from, *args):
    """All probes on the close look that a function of some arrays gives."""

    @jax.jit
    def run(*args):
        closeup = closeup_from(*args)
        found = {}
        for probe in PROBES:
            if closeup.clips or not isinstance(probe, ClipRemoved):
                found |= probe(closeup)
        return found

    return jax.tree.map(np.asarray, run(*args))


def test_they_give_what_they_announce_in_float32():
    case = make_case(SimpleRNN, masked=True, dtype=jnp.float32)
    got = jax.eval_shape(measurement(case), case.inputs)
    variables = {}
    for probe in PROBES:
        variables |= probe.variables(SETTING)
    assert got.keys() == variables.keys()
    SIZES["parameter"] = len(case.closeup().params)
    for name, variable in variables.items():
        assert got[name].shape == tuple(SIZES[dim] for dim in variable.dims), name
        assert got[name].dtype == np.float32, name
        assert (variable.units == "log10") == name.endswith("_log10")
        assert variable.long_name
    assert Truncation().coords(SETTING) == {"window": [1, 2, 4]}
    for probe in PROBES:
        for paragraph in ("Definition:", "Source:", "Cost:", "How to read it:"):
            assert f"\n\n    {paragraph}" in type(probe).__doc__


def test_options_that_cannot_be():
    with pytest.raises(BadInput, match=r"temporal_contribution\.split.*\n.*at least 1"):
        TemporalContribution(split=0)
    with pytest.raises(BadInput, match="1 to T - 1 = 6"):
        TemporalContribution(split=T).variables(SETTING)
    TemporalContribution(split=T - 1).variables(SETTING)
    with pytest.raises(BadInput, match=r"curvature\.iterations.*\n.*from 1 to 1000"):
        Curvature(iterations=0)
    with pytest.raises(Unsupported, match=r"SimpleRNN.*without clipping"):
        ClipRemoved().variables(SETTING._replace(clips=False))


def test_with_a_loss_at_the_end_all_enters_at_the_last_step():
    case = make_case(LSTM, every=False, dtype=jnp.float32)
    got = measured(case, (DirectAdjoint(), TemporalContribution(split=SPLIT)))
    direct = got["adj_h_direct_log10"][0]
    assert np.isfinite(direct[-1])
    assert np.all(direct[:-1] == -math.inf)
    readout = got["temporal_contribution_log10"][-2:]
    assert np.all(np.isfinite(readout[:, -1]))
    assert np.all(readout[:, :-1] == -math.inf)
    assert np.all(np.isnan(got["long_short_cosine"][-2:]))


def test_one_example_has_no_noise_to_speak_of():
    got = measure(lambda x: scalar_closeup(Scalar(0.5, 1.0), x), jnp.ones((T, 1)))
    assert np.all(np.isnan(got["long_range_snr_log10"]))
    assert np.isnan(got["noise_horizon"][0])
    assert np.isfinite(got["truncation_bias"][-1])


def test_a_gradient_of_zero():
    got = measure(lambda x: scalar_closeup(Scalar(0.5, 1.0), x), jnp.zeros((T, 2)))
    assert np.all(got["temporal_contribution_log10"] == -math.inf)
    assert np.all(got["long_range_snr_log10"] == -math.inf)
    for name in ("long_short_cosine", "noise_horizon", "truncation_bias", "truncation_cosine"):
        assert np.all(np.isnan(got[name])), name
    assert np.isnan(got["gradient_curvature"])
    assert got["hessian_top"] == 0


def test_a_trajectory_that_overflows_does_not_crash():
    got = measure(lambda x: scalar_closeup(Scalar(1e30, 1.0), x), jnp.ones((T, 2)))
    assert not np.any(np.isfinite(got["hessian_top"]))
    assert got["temporal_contribution_log10"].shape == (1, T)


# Known numbers.


def test_every_step_of_a_linear_scalar_gives_the_same():
    """x_t = x_0 w^t: dx_t/dw = t x_0 w^(t-1), in t equal parts (the first state before is 0)."""
    steps, w = 600, 0.9
    inputs = jnp.zeros((steps, 2)).at[0].set(1.0)
    probe = jax.jit(lambda x: TemporalContribution()(scalar_closeup(Scalar(w, 1.0), x)))
    got = probe(inputs)
    curve = np.asarray(got["temporal_contribution_log10"])[0]
    assert curve[0] == -math.inf
    np.testing.assert_allclose(curve[1:], (steps - 2) * math.log10(w), atol=1e-3)
    assert float(got["long_short_cosine"][0]) == 1


def test_contributions_from_5000_steps_back_in_float32():
    """A constant input: h is 2 (1 - 2^-t), and what enters at lag k is h 2^-k."""
    steps = 5000
    probe = jax.jit(lambda x: TemporalContribution()(scalar_closeup(Scalar(0.5, 1.0), x)))
    got = probe(jnp.ones((steps, 2)))
    curve = np.asarray(got["temporal_contribution_log10"])[0]
    lag = np.arange(steps - 1, -1, -1)
    want = math.log10(2) + lag * math.log10(0.5)
    np.testing.assert_allclose(curve[30:], want[30:], atol=1e-3)
    assert curve[1] == pytest.approx(-4998 * math.log10(2), abs=1e-3)
    # Long and short range agree, though the one is 10^-752 of the other.
    assert float(got["long_short_cosine"][0]) == pytest.approx(1)


def test_a_parameter_silenced_by_zero_inputs_keeps_what_others_drown():
    """x is 0 but for the first and the last step; the bias, and an example that ends after ten
    steps, are larger by 10^900 where it speaks."""
    steps, lengths = 3000, jnp.array([3000, 10])
    cell = SimpleRNN(1, 1, activation_fn="identity", rngs=nnx.Rngs(0))
    cell.dense_h.kernel[...] = jnp.full((1, 1), 0.5)
    inputs = np.zeros((steps, 2, 1), np.float32)
    inputs[[0, steps - 1, 9], [0, 0, 1]] = 1

    def closeup(inputs):
        mask = jnp.arange(steps)[:, None] < lengths[None]
        return Closeup([[cell]], inputs, lambda last: last[:, 0], mask=mask)

    names = list(closeup(inputs).params)
    got = jax.jit(lambda x: TemporalContribution()(closeup(x)))(jnp.asarray(inputs))
    row = names.index("layers/0/0/dense_i/kernel")
    kernel = np.asarray(got["temporal_contribution_log10"])[row]
    assert kernel[0] == pytest.approx(-3000 * math.log10(2), abs=1e-3)  # half, for two examples
    assert kernel[9] == kernel[-1] == pytest.approx(-math.log10(2))
    assert np.all(kernel[1:9] == -math.inf)
    assert float(got["long_short_cosine"][row]) == pytest.approx(1)
    bias = np.asarray(got["temporal_contribution_log10"])[names.index("layers/0/0/dense_i/bias")]
    assert bias[0] == pytest.approx(-10 * math.log10(2), abs=1e-3)


def test_what_a_learned_initial_state_gets_enters_before_the_first_step():
    """λ^n of each of two examples of n steps; of both directions, and in what clipping removes."""
    lengths, decay = (3000, 10), 0.5
    steps, cell = lengths[0], Scalar(decay, 1.0)
    mask = jnp.arange(steps)[:, None] < jnp.array(lengths)[None]

    @jax.jit
    def look(start):
        closeup = Closeup(
            *([[cell, cell]], jnp.ones((steps, 2, 1)), lambda last: last[:, 0] + 3 * last[:, 1]),
            mask=mask,
            start=[[start, start]],
            learns_start=True,
            removed=lambda: {name: jnp.float32(2) * v for name, v in closeup.gradient.items()},
        )
        clipped = ClipRemoved()(closeup)["clip_removed"]
        return TemporalContribution()(closeup), clipped, dict(closeup.gradient)

    found, clipped, gradient = look(jnp.zeros(1))
    curves = np.asarray(found["temporal_contribution_log10"])
    # The mean over the two, in which the long one is nothing.
    assert float(gradient["initial_state/0/0/h"][0]) == pytest.approx(decay**10 / 2)
    for row, scale in enumerate((1, 3)):
        assert curves[row, 0] == pytest.approx(math.log10(scale * decay**10 / 2), abs=1e-5)
        assert np.all(curves[row, 1:] == -math.inf)
        assert float(found["long_short_cosine"][row]) == pytest.approx(1)
    size = 2 * np.linalg.norm([float(value.squeeze()) for value in gradient.values()])
    assert float(np.sum(clipped)) == pytest.approx(size, rel=1e-5)


def test_truncation_of_a_geometric_sum():
    """λ = 0.99: the last K steps hold 1 - λ^K of the gradient; see also ``test_closeup``."""
    steps, decay = 2048, 0.99
    probe = jax.jit(lambda x: Truncation()(scalar_closeup(Scalar(decay, 1.0, learn=("u",)), x)))
    got = probe(jnp.ones((steps, 1)))
    size = np.array(windows(steps))
    assert list(size) == [2**k for k in range(12)]
    np.testing.assert_allclose(got["truncation_bias"], decay**size, rtol=1e-3, atol=2e-5)
    np.testing.assert_allclose(got["truncation_cosine"], 1, rtol=1e-6)


def test_windows_count_back_from_each_examples_own_end():
    """With padding; the loss of every example is its last state."""
    lengths, decay = (9, 6), 0.5
    cell = Scalar(decay, 1.0, learn=("u",))

    def bias(inputs):
        mask = jnp.arange(9)[:, None] < jnp.array(lengths)[None]
        closeup = Closeup([[cell]], inputs, lambda last: last[:, 0], mask=mask)
        return Truncation()(closeup)["truncation_bias"]

    got = np.asarray(jax.jit(bias)(jnp.ones((9, 2, 1))))
    whole = np.array([sum(decay**k for k in range(n)) for n in lengths])
    kept = np.array(
        [[sum(decay**k for k in range(min(n, K))) for n in lengths] for K in windows(9)]
    )
    np.testing.assert_allclose(got, 1 - kept.sum(1) / whole.sum(), atol=1e-6)


def test_signal_and_noise_of_a_sum_of_independent_inputs():
    """u of ``h = Σ λ^lag u x``, x of mean μ and variance σ²: both are geometric sums."""
    steps, examples, decay, mean, spread, batch = 40, 4000, 0.8, 0.5, 2.0, 64
    x = mean + spread * np.random.default_rng(1).normal(size=(steps, examples))
    cell = Scalar(decay, 1.0, learn=("u",))
    probe = jax.jit(lambda x: GradientNoise()(scalar_closeup(cell, x, batch=batch)))
    got = probe(jnp.asarray(x, jnp.float32))
    k = np.arange(steps)
    signal = mean * (decay**k - decay**steps) / (1 - decay)
    noise = spread * np.sqrt((decay ** (2 * k) - decay ** (2 * steps)) / (1 - decay**2) / batch)
    curve = np.asarray(got["long_range_snr_log10"])[0, ::-1]
    np.testing.assert_allclose(curve[:30], np.log10(signal / noise)[:30], atol=0.1)
    assert float(got["noise_horizon"][0]) == pytest.approx(np.argmax(signal < noise[0]), abs=1)


def test_signal_to_noise_is_the_same_from_3000_steps_back_in_float32():
    """Inputs constant in time: every partial sum is the same mixture, at any scale."""
    steps, batch = 3000, 8
    x = np.array([1.0, 2.0, 5.0])
    cell = Scalar(0.5, 1.0, learn=("u",))
    probe = jax.jit(lambda x: GradientNoise()(scalar_closeup(cell, x, batch=batch)))
    got = probe(jnp.asarray(np.tile(x, (steps, 1)), jnp.float32))
    signal, noise = math.sqrt(x.mean() ** 2 - x.var(ddof=1) / 3), x.std(ddof=1) / math.sqrt(batch)
    want = math.log10(signal / noise)
    np.testing.assert_allclose(got["long_range_snr_log10"], want, atol=1e-3)
    assert float(got["noise_horizon"][0]) == np.argmax(signal * 0.5 ** np.arange(steps) < noise)


def test_examples_that_agree_have_no_noise():
    cell = Scalar(0.5, 1.0)
    got = jax.jit(lambda x: GradientNoise()(scalar_closeup(cell, x)))(jnp.ones((T, 4)))
    assert np.all(got["long_range_snr_log10"][0, 1:] == math.inf)
    assert got["noise_horizon"][0] == T


def test_curvature_of_a_linear_scalar():
    """x_t = x_0 w^t: the second derivative is t (t-1) x_0 w^(t-2)."""
    steps, w = 20, 0.9
    with jax.enable_x64(True):
        cell = Scalar(w, 1.0, dtype=jnp.float64)
        inputs = jnp.zeros((steps, 1)).at[0].set(3.0)
        got = jax.jit(lambda x: Curvature()(scalar_closeup(cell, x)))(inputs)
    t = steps - 1
    want = t * (t - 1) * 3.0 * w ** (t - 2)
    assert float(got["gradient_curvature"]) == pytest.approx(want, rel=1e-10)
    assert float(got["hessian_top"]) == pytest.approx(want, rel=1e-10)


def test_curvature_against_the_hessian_of_the_plain_network():
    """Of one network; ``test_closeup`` has the loss that is differentiated for every cell."""
    with jax.enable_x64(True):
        case = make_case([[GRU, SimpleRNN], [SimpleRNN]], masked=True)
        plain = Plain(case)
        flat, unravel = ravel_pytree(plain.params)
        probes = Curvature(iterations=4), Curvature(iterations=flat.size)

        @jax.jit
        def measure(inputs):
            closeup = case._replace(inputs=inputs).closeup()
            return [probe(closeup) for probe in probes]

        @jax.jit
        def expected(flat):
            gradient = jax.grad(lambda flat: plain.mean_loss(unravel(flat)))
            return gradient(flat), jax.jacfwd(gradient)(flat)

        few, all_of_them = jax.tree.map(float, measure(case.inputs))
        gradient, hessian = map(np.asarray, expected(flat))
    unit = gradient / np.linalg.norm(gradient)
    top = np.linalg.eigvalsh(hessian)[-1]
    assert few["gradient_curvature"] == pytest.approx(unit @ hessian @ unit, rel=1e-9)
    assert few["gradient_curvature"] - 1e-9 <= few["hessian_top"] <= top + 1e-9
    assert few["hessian_top"] >= 0.9 * top
    assert all_of_them["hessian_top"] == pytest.approx(top, rel=1e-10)


@pytest.mark.parametrize("sign", [1, -1])
def test_lanczos_finds_what_the_gradient_does_not_point_at(sign):
    """From an eigenvector that is not the top one, and of a negative definite matrix too."""
    diagonal = jnp.linspace(1.0, 2.0, 10).at[7].set(5.0) * sign
    start = jnp.zeros(10).at[0].set(1e-25)
    tops = []
    for count in (1, 2, 6, 10):
        projected = jax.jit(lambda g, n=count: _projected(lambda v: diagonal * v, g, n))(start)
        assert projected.shape == (count, count)
        assert float(projected[0, 0]) == pytest.approx(sign)
        tops.append(float(jnp.linalg.eigvalsh(projected)[-1]))
    assert tops == sorted(tops)
    assert tops[0] == pytest.approx(sign)
    assert tops[-1] == pytest.approx(float(jnp.max(diagonal)), rel=1e-5)


def test_lanczos_leaves_a_subspace_that_holds_the_gradient():
    """Neither the gradient nor a product with it has any part along the top eigenvector."""
    diagonal = jnp.linspace(1.0, 2.0, 30).at[20].set(5.0)
    start = jnp.where(jnp.arange(30) < 15, 1.0, 0.0)
    projected = jax.jit(lambda g: _projected(lambda v: diagonal * v, g, 6))(start)
    assert float(jnp.linalg.eigvalsh(projected)[-1]) == pytest.approx(5, rel=1e-3)


def test_lanczos_on_a_space_that_is_used_up():
    """One product tells all of minus the identity; no direction may be lost to a zero."""
    projected = jax.jit(lambda g: _projected(lambda v: -v, g, 5))(jnp.eye(5)[0])
    np.testing.assert_allclose(projected, -np.eye(5), atol=1e-6)


def test_nothing_is_removed_where_nothing_is_clipped():
    case = make_case(SimpleRNN, dtype=jnp.float32)
    zero = jax.tree.map(jnp.zeros_like, dict(case.closeup().params))
    got = jax.jit(lambda x: ClipRemoved()(case._replace(inputs=x).closeup(removed=lambda: zero)))
    np.testing.assert_array_equal(got(case.inputs)["clip_removed"], np.zeros(T))


def test_where_an_exploding_gradient_is_cut():
    """What enters at lag k is 2^k x: in float32, from a sum that is as large as its range."""
    steps = 100
    cell = Scalar(2.0, 1.0, learn=("u",))

    def closeup(x):
        return Closeup(
            [[cell]],
            x[..., None],
            lambda last: last[:, 0],
            removed=lambda: {"layers/0/0/u": jnp.float32(3e30)},
        )

    got = jax.jit(lambda x: ClipRemoved()(closeup(x)))(jnp.ones((steps, 1)))
    np.testing.assert_allclose(
        got["clip_removed"], 3e30 * 0.5 ** np.arange(1, steps + 1), rtol=1e-5
    )
