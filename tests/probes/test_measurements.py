"""Every probe against a slow float64 computation of the same thing."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gradlab.probes import (
    Adjoint,
    AdjointSlope,
    ForgetProduct,
    GateSaturation,
    GradNorm,
    MemoryHorizon,
    UpdateRatio,
)
from gradlab.probes.adjoint_slope import least_squares_slope
from gradlab.probes.base import norm, state_log10
from gradlab.probes.forget_product import reverse_cumulative_sum
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


def state_curve(seen, layer):
    """ln of the mean over examples of log10 ‖[c; h]‖, with Python's own wide arithmetic."""
    curve = []
    for t in range(T):
        logs = []
        mask = np.asarray(seen.mask)[layer, t]
        for b in range(B):
            if mask[b]:
                c, h = (float(seen.adjoints[name][layer, t, b]) for name in ("c", "h"))
                top = max(c, h)
                logs.append(top + 0.5 * math.log10(10 ** (2 * (c - top)) + 10 ** (2 * (h - top))))
        curve.append(math.log(10) * sum(logs) / len(logs))
    return np.array(curve)


@MASKED
def test_adjoint_slope_is_numpys_polyfit(masked):
    seen = make_seen(masked=masked)
    got = AdjointSlope()(seen)["adjoint_slope"]
    lag = np.arange(T)[::-1]
    for layer in range(L):
        want = np.polyfit(lag, state_curve(seen, layer), 1)[0]
        assert float(got[layer]) == pytest.approx(want, rel=1e-4)


def test_slope_skips_what_is_not_finite_and_needs_two_points():
    curves = jnp.array([[-jnp.inf, 2.0, 3.0, 4.0], [-jnp.inf, -jnp.inf, jnp.nan, 1.0]])
    slopes = least_squares_slope(jnp.arange(4.0), curves)
    assert float(slopes[0]) == pytest.approx(1.0)
    assert math.isnan(float(slopes[1]))


def test_slope_of_a_long_steep_line_is_exact():
    lag = jnp.arange(5000.0)[::-1]
    slope = least_squares_slope(lag, (lag * math.log(0.5))[None])[0]
    assert float(slope) == pytest.approx(math.log(0.5), rel=1e-5)


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


def test_memory_horizon_reads_the_state_curve():
    seen = make_seen()
    got = MemoryHorizon()(seen)["memory_horizon"]
    for layer in range(L):
        curve = state_curve(seen, layer)[::-1] - state_curve(seen, layer)[-1]
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
def test_forget_product_is_the_product(masked):
    seen = make_seen(masked=masked)
    got = ForgetProduct()(seen)["forget_product_log10"]
    gate, mask = np.asarray(seen.retention, np.float64), np.asarray(seen.mask)
    for layer in range(L):
        for t in range(T):
            logs = [
                math.log10(gate[layer, k, b, unit]) if mask[layer, k, b] else 0.0
                for b in range(B)
                if mask[layer, t, b]
                for unit in range(gate.shape[-1])
                for k in range(t + 1, T)
            ]
            count = mask[layer, t].sum() * gate.shape[-1]
            assert float(got[layer, t]) == pytest.approx(sum(logs) / count, rel=1e-5, abs=1e-6)


def test_sum_of_5000_logs_loses_nothing_in_float32():
    terms = jnp.full((5000,), -0.136, jnp.float32)
    exact = -float(np.float32(0.136)) * np.arange(5000, 0, -1)
    got = np.asarray(jax.jit(reverse_cumulative_sum, static_argnums=1)(terms, 0), np.float64)
    np.testing.assert_allclose(got, exact, rtol=2**-23)
    naive = np.cumsum(np.asarray(terms)[::-1], dtype=np.float32)[::-1]
    assert np.abs(naive - exact).max() > 10 * np.abs(got - exact).max()


def test_a_gate_that_is_exactly_zero_cuts_the_product():
    got = np.asarray(reverse_cumulative_sum(jnp.array([-1.0, -jnp.inf, -2.0]), axis=0))
    assert got.tolist() == [-math.inf, -math.inf, -2.0]


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
