"""Differences of means and their intervals, against scipy and by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats

from gradlab.compare.statistics import (
    bounds_of,
    difference,
    estimate,
    estimates,
    rank_correlation,
)


def samples(seed, *sizes):
    rng = np.random.default_rng(seed)
    return [list(rng.normal(k, 1 + k, size)) for k, size in enumerate(sizes)]


@pytest.mark.parametrize("sizes", [(2, 2), (3, 3), (3, 8), (40, 5)])
def test_a_difference_has_welchs_interval(sizes):
    a, b = samples(sum(sizes), *sizes)
    oracle = scipy.stats.ttest_ind(a, b, equal_var=False).confidence_interval(0.95)
    found = difference(a, b)
    assert found.value == pytest.approx(np.mean(a) - np.mean(b), rel=1e-12)
    assert (found.low, found.high) == pytest.approx((oracle.low, oracle.high), rel=1e-9)


def test_a_single_value_gives_no_interval_and_equal_values_a_point():
    found = difference([1.0], [2.0, 3.0])
    assert found.value == -1.5
    assert not found.has_interval
    assert not found.is_certain
    for noise in (0.0, 1e-13):  # equal, and equal but for rounding
        found = difference([1.0, 1.0 + noise], [3.0, 3.0])
        assert tuple(found) == pytest.approx((-2, -2, -2), abs=1e-12)
        assert found.is_certain
        assert not found.has_interval
        found = difference([1.0, 1.0 + noise], [1.0, 1.0])
        assert tuple(found) == (0, 0, 0)
        assert not found.is_certain


# --- intervals that are right, or absent ----------------------------------------------------------


@pytest.mark.parametrize("noise", [0.0, 8.6e-14, 1e-7])
def test_values_that_are_equal_but_for_rounding_have_no_interval(noise):
    found = estimate([0.31, 0.31 + noise, 0.31 - noise])
    assert found.is_same
    assert found.low == found.high == pytest.approx(0.31)
    assert math.isnan(found.half)
    assert not estimate([0.31, 0.3101]).is_same


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("test/accuracy", [0.99, 0.93, 1.0]),
        ("val/accuracy", [0.02, 0.1]),
        ("train/clip_rate", [0.0, 0.5, 0.9]),
        ("adjoint_line_r2", [0.97, 0.999]),
        ("test/loss/length_40", [0.002, 0.001, 0.03]),
        ("memory_horizon/layer_0", [90.0, 100.0, 99.0]),
        ("steps_per_second", [100.0, 900.0]),
    ],
)
def test_an_interval_that_would_leave_the_bounds_is_the_range_over_runs(name, values):
    low, high = scipy.stats.t.interval(
        0.95, len(values) - 1, np.mean(values), scipy.stats.sem(values)
    )
    least, most = bounds_of(name, 100)
    assert low < least or high > most
    found = estimate(values, bounds_of(name, 100))
    assert (found.low, found.high, found.is_range) == (min(values), max(values), True)
    assert math.isnan(found.half)
    free = estimate(values)
    assert (free.low, free.high) == pytest.approx((low, high))
    assert not free.is_range


def test_an_interval_within_the_bounds_is_students_t():
    values = [0.5, 0.52, 0.54]
    found = estimate(values, bounds_of("test/accuracy"))
    half = scipy.stats.t.ppf(0.975, 2) * scipy.stats.sem(values)
    assert found.half == pytest.approx(half)
    assert bounds_of("decades_lost/layer_0", 100) == (-math.inf, math.inf)
    assert bounds_of("memory_horizon", math.nan) == (0, math.inf)


def test_bounds_that_a_value_leaves_are_none():
    found = estimate([-2.0, -1.0], bounds_of("val/loss"))  # a log-likelihood of a density
    assert not found.is_range
    assert found.low < -2


def test_along_a_line_all_points_have_intervals_or_all_have_ranges():
    table = np.array([[0.5, 0.9, 0.7, np.nan], [0.52, 1.0, 0.7, 0.8]])
    found = estimates(table, (0, 1))
    assert found.is_range
    np.testing.assert_array_equal(found.low, [0.5, 0.9, 0.7, np.nan])
    np.testing.assert_array_equal(found.high, [0.52, 1.0, 0.7, np.nan])
    within = estimates(table[:, :1], (0, 1))
    assert not within.is_range
    assert within.low[0] == pytest.approx(0.51 - scipy.stats.t.ppf(0.975, 1) * 0.01)
    assert found.n.tolist() == [2, 2, 2, 1]


def test_infinities_are_the_mean_and_have_no_interval():
    found = estimates(np.array([[-np.inf, np.inf, 1.0], [2.0, 3.0, 2.0]]))
    assert found.mean.tolist() == [-np.inf, np.inf, 1.5]
    assert np.isnan(found.low[:2]).all()


def test_rank_correlation_is_spearmans():
    x, y = np.random.default_rng(5).normal(size=(2, 20))
    y = y + x
    rho, low, high = rank_correlation(x, y)
    assert rho == pytest.approx(scipy.stats.spearmanr(x, y).statistic)
    half = 1.959964 * math.sqrt((1 + rho**2 / 2) / 17)
    assert math.atanh(low) == pytest.approx(math.atanh(rho) - half, rel=1e-6)
    assert math.atanh(high) == pytest.approx(math.atanh(rho) + half, rel=1e-6)
    assert rank_correlation([1, 2, 3, 4], [1, 2, 3, 4])[0] == pytest.approx(1)
    assert math.isnan(rank_correlation([1, 2, 3], [1, 2, 3])[0])
    assert math.isnan(rank_correlation([1, 2, 3, 4], [1, 1, 1, 1])[0])
