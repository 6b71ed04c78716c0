"""Every probe against a slow float64 computation of the same thing."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from gradlab.probes import (
    Adjoint,
    AdjointSlope,
    ForgetProduct,
    GateSaturation,
    GradNorm,
    MemoryHorizon,
    UpdateRatio,
)
from gradlab.probes.adjoint_slope import fall, least_squares_line
from gradlab.probes.base import (
    Seen,
    by_lag,
    mean_change,
    mean_log10,
    nearest_quantiles,
    norm,
    state_log10,
)
from gradlab.probes.forget_product import Sum
from gradlab.probes.memory_horizon import horizon
from tests.probes.seen import B, L, T, make_seen

MASKED = pytest.mark.parametrize("masked", [False, True])


def real(seen, array, layer, t):
    mask = np.asarray(seen.mask)[layer, t]
    return np.asarray(array, np.float64)[layer, t][mask]


@MASKED
@pytest.mark.parametrize("zeros", [False, True])
def test_adjoint_means_quantiles_and_zeros(masked, zeros):
    seen = make_seen(masked=masked, zeros=zeros)
    levels = (0.0, 0.5, 1.0)
    got = Adjoint(quantiles=levels)(seen)
    for layer in range(L):
        for t in range(T):
            values = real(seen, seen.adjoints["h"], layer, t)
            nonzero = values[np.isfinite(values)]
            mean = nonzero.mean() if nonzero.size else -math.inf
            assert got["adj_h_log10"][layer, t] == pytest.approx(mean, rel=1e-5)
            assert got["adj_h_zero"][layer, t] == pytest.approx(np.mean(np.isneginf(values)))
            ends = got["adj_h_log10_q"][layer, :, t]
            assert float(ends[0]) == np.float32(values.min())
            assert float(ends[2]) == np.float32(values.max())
            assert float(ends[1]) in values.astype(np.float32)
        h = np.asarray(seen.adjoints["h"], np.float64)
        want = over_own_lag(h, np.asarray(seen.mask))[layer]
        want[np.isnan(want)] = -np.inf  # every step here is that of an example
        np.testing.assert_allclose(got["adj_h_over_lag_log10"][layer], want, rtol=1e-5)
        backs, last = got["adj_h_over_lag_log10_q"][layer], np.asarray(seen.mask)[layer].sum(0) - 1
        ends = [h[layer, last[b], b] for b in range(B)]
        assert backs[:, 0].tolist()[::2] == np.float32([min(ends), max(ends)]).tolist()


def state_over_lag(seen, layer):
    """ln ‖[c; h]‖ by own lag against each example's own end, with Python's own wide arithmetic."""
    curve = []
    for back in range(T):
        changes = []
        for b in range(B):
            steps = np.flatnonzero(np.asarray(seen.mask)[layer, :, b])[::-1]
            if back < len(steps):
                changes.append(
                    joined(seen, layer, steps[back], b) - joined(seen, layer, steps[0], b)
                )
        curve.append(math.log(10) * sum(changes) / len(changes))
    return np.array(curve)


def joined(seen, layer, t, b):
    """log10 ‖[c; h]‖ of one example at one step."""
    c, h = (float(seen.adjoints[name][layer, t, b]) for name in ("c", "h"))
    top = max(c, h)
    return top + 0.5 * math.log10(10 ** (2 * (c - top)) + 10 ** (2 * (h - top)))


def test_examples_of_other_lengths_lend_no_fall_to_what_does_not_fall():
    """Transport without any loss; the long example's gradient is a hundredth from the start."""
    rng = np.random.default_rng(0)
    lengths = np.array([*rng.integers(3, 8, 19), 10])
    size = np.array([*rng.normal(size=19), -2.0])
    mask = (np.arange(10)[:, None] < lengths)[None]
    h = jnp.asarray(np.broadcast_to(size, mask.shape), jnp.float32)
    seen = Seen({"h": h}, jnp.asarray(mask), {}, None, {}, {}, {}, {})
    got = jax.jit(lambda one: AdjointSlope()(one) | MemoryHorizon()(one))(seen)
    assert float(got["decades_lost"][0]) == 0
    assert float(got["adjoint_slope"][0]) == 0
    assert float(got["memory_horizon"][0]) == 10
    np.testing.assert_allclose(mean_change(h, jnp.asarray(mask))[0], 0)


def test_the_few_examples_that_a_dead_unit_leaves_do_not_speak_for_the_rest():
    h = np.tile(np.linspace(3, 0, 4), (5, 1)).T[None]  # grows tenfold a step back
    h[0, 1, :2], h[0, 0, :3] = -np.inf, -np.inf
    seen = Seen({"h": jnp.asarray(h, jnp.float32)}, jnp.ones((1, 4, 5), bool), {}, None, *[{}] * 4)
    got = jax.jit(lambda one: AdjointSlope()(one) | MemoryHorizon()(one))(seen)
    assert float(got["decades_per_100"][0]) == pytest.approx(-100)
    assert float(got["decades_lost"][0]) == math.inf
    assert float(got["memory_horizon"][0]) == 3


@MASKED
def test_the_line_over_lag_is_numpys_polyfit(masked):
    seen = make_seen(masked=masked)
    got = jax.jit(AdjointSlope())(seen)
    for layer in range(L):
        curve = state_over_lag(seen, layer)
        back = np.arange(len(curve))
        slope, start = np.polyfit(back, curve, 1)
        missed = np.sum((curve - start - slope * back) ** 2)
        want = {
            "adjoint_slope": slope,
            "adjoint_line_r2": 1 - missed / np.sum((curve - curve.mean()) ** 2),
            "decades_per_100": -100 * slope / math.log(10),
            "decades_lost": (curve[0] - curve[-1]) / math.log(10),
        }
        for name, value in want.items():
            assert float(got[name][layer]) == pytest.approx(value, rel=1e-4), name


def test_the_line_skips_what_is_not_finite_and_needs_two_points():
    curves = jnp.array([[-jnp.inf, 2.0, 3.0, 4.0], [-jnp.inf, -jnp.inf, jnp.nan, 1.0], [2.0] * 4])
    slopes, r2 = least_squares_line(jnp.arange(4.0), curves)
    assert slopes.tolist() == pytest.approx([1.0, math.nan, 0.0], nan_ok=True)
    assert r2.tolist() == pytest.approx([1.0, math.nan, math.nan], nan_ok=True)
    assert math.isnan(float(least_squares_line(jnp.arange(2.0), jnp.array([[0.0, 1.0]]))[1][0]))


def test_slope_of_a_long_steep_line_is_exact():
    lag = jnp.arange(5000.0)[::-1]
    slope, r2 = least_squares_line(lag, (lag * math.log(0.5))[None])
    assert float(slope[0]) == pytest.approx(math.log(0.5), rel=1e-5)
    assert float(r2[0]) == pytest.approx(1)


def test_the_fall_ends_where_the_longest_example_does():
    nothing = -jnp.inf
    for curve, want in [
        ([-1.0, -2.0, -5.5], 4.5),
        ([-1.0, -2.0, jnp.nan], 1.0),
        ([-1.0, -2.0, nothing], math.inf),
        ([nothing, -2.0, -3.0], math.nan),
    ]:
        assert float(fall(jnp.array(curve))) == pytest.approx(want, nan_ok=True)


@pytest.mark.parametrize("rate", [0.01, 0.3, 1.0, 2.5])
def test_horizon_of_an_exponential_is_one_over_its_rate(rate):
    by_lag = -rate * jnp.arange(400.0) + 7
    assert float(horizon(by_lag)) == pytest.approx(1 / rate, rel=1e-4)


def test_horizon_never_reached_and_reached_at_a_cut():
    assert float(horizon(jnp.linspace(0, -0.9, 50))) == 50
    assert float(horizon(jnp.array([0.0, -0.5, -jnp.inf, -jnp.inf]))) == 2
    assert math.isnan(float(horizon(jnp.array([-jnp.inf, -jnp.inf]))))


def test_horizon_takes_the_first_fall():
    by_lag = jnp.array([0.0, -0.5, -1.5, 0.0, -9.0])
    assert float(horizon(by_lag)) == pytest.approx(1.5)


@MASKED
def test_memory_horizon_reads_the_state_curve(masked):
    seen = make_seen(masked=masked)
    got = MemoryHorizon()(seen)["memory_horizon"]
    for layer in range(L):
        curve = state_over_lag(seen, layer)
        first = next((k for k in range(T) if curve[k] <= -1), None)
        if first is None:
            want = T
        else:
            want = first - 1 + (curve[first - 1] + 1) / (curve[first - 1] - curve[first])
        assert float(got[layer]) == pytest.approx(want, rel=1e-3)


def test_state_norm_of_parts_of_any_size():
    parts = {
        "c": jnp.array([-1000.0, -jnp.inf, -jnp.inf, 500.0]),
        "h": jnp.array([-1000.0, -1000.0, -jnp.inf, jnp.nan]),
    }
    got = np.asarray(state_log10(parts))
    np.testing.assert_allclose(got[:2], [-1000 + 0.5 * math.log10(2), -1000], atol=1e-4)
    assert got[2] == -math.inf
    assert math.isnan(got[3])


@MASKED
def test_forget_products_are_products(masked):
    seen = make_seen(masked=masked)
    levels = (0.0, 0.5, 1.0)
    found = jax.jit(ForgetProduct(quantiles=levels))(seen)
    got = {name: np.asarray(one) for name, one in found.items()}
    real = np.asarray(seen.mask)
    gate = np.where(real[..., None], np.asarray(seen.retention, np.float64), 1)
    product = np.ones_like(gate)
    for t in range(T - 2, -1, -1):
        product[:, t] = product[:, t + 1] * gate[:, t + 1]
    rms = np.log10(np.sqrt(np.mean(product**2, -1)))
    typical = np.mean(np.log10(product), -1)
    units = np.nanmean(np.where(real[..., None], np.log10(product), np.nan), 2)
    want = {
        "forget_product_log10": np.nanmean(np.where(real, typical, np.nan), -1),
        "forget_product_rms_log10": np.nanmean(np.where(real, rms, np.nan), -1),
        "forget_product_over_lag_log10": over_own_lag(typical, real),
        "forget_product_rms_over_lag_log10": over_own_lag(rms, real),
        "forget_product_log10_q": np.moveaxis(
            np.quantile(units, levels, axis=-1, method="nearest"), 0, 1
        ),
    }
    assert got.keys() == want.keys()
    for name, value in want.items():
        np.testing.assert_allclose(got[name], value, rtol=1e-5, atol=1e-6, err_msg=name)


def over_own_lag(values, real):
    """The mean ``(L, T)`` of ``(L, T, B)`` by steps back from each example's own end."""
    found = np.full(values.shape, np.nan)
    for layer, b in np.ndindex(values.shape[0], values.shape[2]):
        own = values[layer, real[layer, :, b], b][::-1]
        found[layer, : len(own), b] = own
    counted = np.isfinite(found)
    total = np.where(counted, found, 0).sum(-1)
    with np.errstate(invalid="ignore"):
        return total / counted.sum(-1)


def test_by_lag_counts_real_steps_from_each_examples_own_end():
    real = np.zeros((2, 6, 4), bool)
    for b, length in enumerate([6, 2, 4, 1]):
        real[0, :length, b] = True
        real[1, 6 - length :, b] = True  # as a backward direction reads padding: first
    real[0, :, 2] = [1, 0, 1, 0, 0, 1]  # the state waits in between
    values = np.random.default_rng(0).normal(size=real.shape).astype(np.float32)
    for mask in (real, np.ones_like(real)):
        got = jax.jit(lambda *given: mean_log10(*by_lag(*given)))(values, mask)
        np.testing.assert_allclose(got, over_own_lag(values, mask), rtol=1e-5)


def test_sum_of_5000_logs_loses_nothing_in_float32():
    term = np.float32(-0.136)

    def add(total, _):
        return total.plus(term), total.plus(term).high

    zero = Sum(jnp.float32(0), jnp.float32(0))
    got = np.asarray(jax.jit(lambda: lax.scan(add, zero, length=5000)[1])(), np.float64)
    exact = float(term) * np.arange(1, 5001)
    np.testing.assert_allclose(got, exact, rtol=2**-23)
    naive = np.cumsum(np.full(5000, term), dtype=np.float32)
    assert np.abs(naive - exact).max() > 10 * np.abs(got - exact).max()


def test_a_gate_that_is_exactly_zero_cuts_the_product():
    seen = make_seen()
    retention = seen.retention.at[:, 2, :, 0].set(0)
    got = jax.jit(ForgetProduct())(seen._replace(retention=retention))
    assert np.all(np.asarray(got["forget_product_log10"])[:, :2] == -np.inf)
    assert np.all(np.isfinite(np.asarray(got["forget_product_rms_log10"])))
    assert np.all(np.isfinite(np.asarray(got["forget_product_log10"])[:, 2:]))


@MASKED
def test_gate_saturation_counts(masked):
    seen = make_seen(masked=masked)
    got = GateSaturation(low=0.2, high=0.7)(seen)["gate_saturation"]
    mask = np.asarray(seen.mask)
    for layer in range(L):
        for index, name in enumerate(("i", "f", "o")):
            values = np.asarray(seen.gates[name])[layer][mask[layer]]
            want = np.mean((values < 0.2) | (values > 0.7))
            assert float(got[layer, index]) == pytest.approx(want, rel=1e-5)


def test_grad_norms_below_the_square_root_of_float32():
    seen = make_seen()
    got = GradNorm()(seen)
    for index, name in enumerate(("w", "b")):
        for key, arrays in (("grad_norm", seen.grads), ("grad_norm_postclip", seen.clipped)):
            want = np.linalg.norm(np.asarray(arrays[name], np.float64))
            assert float(got[key][index]) == pytest.approx(want, rel=1e-5)
    assert float(jnp.linalg.norm(seen.grads["w"])) == 0.0  # what a plain norm would have read


def test_update_ratio_and_its_nan():
    seen = make_seen()
    ratio = UpdateRatio()(seen)["update_ratio"]
    w, dw = (np.linalg.norm(np.asarray(a["w"], np.float64)) for a in (seen.params, seen.updates))
    assert float(ratio[0]) == pytest.approx(dw / w, rel=1e-5)
    assert math.isnan(float(ratio[1]))


@pytest.mark.parametrize("value", [0.0, 1e-30, 1.0, 1e30])
def test_norm_over_the_whole_range(value):
    assert float(norm(jnp.full((4,), value))) == pytest.approx(2 * value, rel=1e-6)


def test_norm_of_what_is_not_finite():
    assert float(norm(jnp.array([1.0, jnp.inf]))) == math.inf
    assert math.isnan(float(norm(jnp.array([1.0, jnp.nan]))))


def test_quantiles_are_those_of_a_sort_of_floats():
    """Of counts of every rounding, with nan, infinities, signs and examples that have nothing."""
    values = np.random.default_rng(0).normal(size=(40, 11)).astype(np.float32)
    values[:, 0] = -np.inf
    for row, own in enumerate(values):
        own[: row % 12] = np.nan
    values[20:, -1] = np.inf
    quantiles = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
    due = jnp.nanquantile(jnp.asarray(values), jnp.asarray(quantiles), axis=-1, method="nearest")
    found = jax.jit(lambda values: nearest_quantiles(values, quantiles))(values)
    np.testing.assert_array_equal(found, due.T)
    half = nearest_quantiles(jnp.asarray(values, jnp.bfloat16), quantiles)
    rounded = due.T.astype(jnp.bfloat16)  # which keeps the order
    np.testing.assert_array_equal(half.astype(jnp.float32), rounded.astype(jnp.float32))
