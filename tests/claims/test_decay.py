"""The rate of a decay, against scipy's regression and exact exponentials."""

import math

import numpy as np
import pytest
from scipy import stats

from gradlab.compare.statistics import decay


def test_an_exponential_is_found_exactly():
    lags = np.arange(200)
    found = decay(lags, lags * math.log10(0.9))
    assert found.rate == pytest.approx(math.log(0.9), rel=1e-12)
    assert found.half < 1e-12
    assert found.r2 == pytest.approx(1)
    assert found.n == 200


def test_rate_interval_and_quality_are_those_of_a_regression():
    rng = np.random.default_rng(0)
    lags = np.arange(40)
    log10 = -0.1 * lags + rng.normal(0, 0.5, 40)
    found = decay(lags, log10)
    want = stats.linregress(lags, log10 * math.log(10))
    assert found.rate == pytest.approx(want.slope)
    assert found.half == pytest.approx(want.stderr * stats.t.ppf(0.975, 38))
    assert found.r2 == pytest.approx(want.rvalue**2)


def test_a_power_law_is_a_worse_exponential_than_an_exponential():
    lags = np.arange(1, 100)
    assert decay(lags, -2 * np.log10(lags)).r2 < 0.9


def test_exact_zeros_and_gaps_are_left_out():
    lags = np.arange(6)
    found = decay(lags, np.array([0, -1, np.nan, -3, -np.inf, -5.0]))
    assert (found.n, found.rate) == (4, pytest.approx(-math.log(10)))


@pytest.mark.parametrize("log10", [[], [1.0, 2.0], [-np.inf] * 5])
def test_too_few_points_have_no_rate(log10):
    assert math.isnan(decay(np.arange(len(log10)), np.array(log10)).rate)
