"""Differences of means and their intervals, against scipy and by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats

from gradlab.compare.statistics import difference, estimate, mean, paired, rank_correlation


def samples(seed, *sizes):
    rng = np.random.default_rng(seed)
    return [list(rng.normal(k, 1 + k, size)) for k, size in enumerate(sizes)]


@pytest.mark.parametrize("sizes", [(2, 2), (3, 3), (3, 8), (40, 5)])
def test_one_stratum_is_welchs_interval(sizes):
    a, b = samples(sum(sizes), *sizes)
    oracle = scipy.stats.ttest_ind(a, b, equal_var=False).confidence_interval(0.95)
    found = difference([(a, b)])
    assert found.value == pytest.approx(np.mean(a) - np.mean(b), rel=1e-12)
    assert (found.low, found.high) == pytest.approx((oracle.low, oracle.high), rel=1e-9)


def test_strata_are_averaged_and_what_differs_between_them_is_not_noise():
    a, b, c, d = samples(0, 3, 4, 5, 3)
    found = difference([(a, b), (c, d)])
    parts = [np.var(x, ddof=1) / len(x) / 4 for x in (a, b, c, d)]
    freedom = sum(parts) ** 2 / sum(
        p**2 / (len(x) - 1) for p, x in zip(parts, (a, b, c, d), strict=True)
    )
    value = (np.mean(a) - np.mean(b) + np.mean(c) - np.mean(d)) / 2
    half = scipy.stats.t.ppf(0.975, freedom) * math.sqrt(sum(parts))
    assert tuple(found) == pytest.approx((value, value - half, value + half), rel=1e-9)
    moved = difference([(a, b), ([x + 100 for x in c], [x + 100 for x in d])])
    assert tuple(moved) == pytest.approx(tuple(found), rel=1e-6)


def test_a_single_value_gives_no_interval_and_equal_values_a_point():
    found = difference([([1.0], [2.0, 3.0])])
    assert found.value == -1.5
    assert not found.has_interval
    assert not found.is_certain
    assert tuple(difference([([1.0, 1.0], [3.0, 3.0])])) == (-2, -2, -2)
    assert difference([([1.0, 1.0], [3.0, 3.0])]).is_certain
    assert not difference([([1.0, 1.0], [1.0, 1.0])]).is_certain


def test_single_pairs_have_the_interval_of_their_differences():
    a, b = samples(6, 5, 5)
    oracle = scipy.stats.ttest_rel(a, b).confidence_interval(0.95)
    found = paired([([x], [y]) for x, y in zip(a, b, strict=True)])
    assert (found.low, found.high) == pytest.approx((oracle.low, oracle.high))


def test_the_mean_over_one_stratum_is_that_of_the_table():
    (a,) = samples(3, 5)
    assert mean([a]) == estimate(a)
    assert mean([]).n == 0


def test_the_mean_over_strata_has_the_spread_within_them():
    a, b = samples(4, 3, 3)
    found = mean([a, b])
    parts = [np.var(x, ddof=1) / 3 / 4 for x in (a, b)]
    freedom = sum(parts) ** 2 / sum(p**2 / 2 for p in parts)
    assert found.n == 6
    assert found.mean == pytest.approx((np.mean(a) + np.mean(b)) / 2)
    assert found.half == pytest.approx(scipy.stats.t.ppf(0.975, freedom) * math.sqrt(sum(parts)))
    assert math.isnan(mean([[1.0], [2.0]]).half)


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
