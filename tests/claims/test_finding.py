"""Figures in words."""

import math

import numpy as np
import pytest

from gradlab.claims.finding import Finding, number, power, spread
from gradlab.compare.statistics import Estimate, bounds_of, estimate


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (0.123456, "0.123"),
        (-2.0, "-2"),
        (12345.0, "12,345"),
        (2.656e-5, "2.66e-05"),
        (math.inf, "infinite"),
        (-math.inf, "-infinite"),
        (math.nan, "not a number"),
    ],
)
def test_number(value, words):
    assert number(value) == words


@pytest.mark.parametrize(
    ("log10", "words"),
    [
        (-1505.04, "10^-1505.0"),
        (0.0, "1"),
        (1.0, "10"),
        (-math.inf, "0"),
        (math.inf, "infinite"),
        (math.nan, "not a number"),
    ],
)
def test_a_power_needs_no_float_that_holds_it(log10, words):
    assert power(log10) == words


def test_an_interval_goes_with_the_mean():
    found = Estimate(-0.31234, -0.31234 - 0.0212, -0.31234 + 0.0212, 3)
    assert spread(found, "nats per step") == "-0.312 ± 0.0212 nats per step"
    assert spread(Estimate(2.0, math.nan, math.nan, 1), "steps") == "2 steps (one seed)"
    assert spread(Estimate(math.nan, math.nan, math.nan, 0)) == "not measured"


def test_where_there_is_no_interval_what_there_is_is_said():
    same = estimate([2.0, 2.0 + 8.6e-14])
    assert spread(same, "steps") == "2 steps (identical in 2 seeds)"
    shares = estimate([0.9, 1.0], bounds_of("test/accuracy"))
    assert spread(shares) == "0.95 (range 0.9 to 1)"


def test_the_verdict_says_whether_it_held():
    assert [Finding("s", held, "m").verdict for held in (True, False)] == ["held", "did not hold"]


def test_a_comparison_of_numpy_becomes_plain():
    assert Finding("s", np.float64(1) < 2, "m").held is True
