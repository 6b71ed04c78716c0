import math
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradlab.bptt import scaling
from gradlab.bptt.scaling import ZERO, Scaled


def test_pow2_is_exact_over_the_whole_normal_range():
    exponents = np.arange(-126, 128)
    got = np.asarray(scaling.pow2(jnp.asarray(exponents), jnp.float32))
    assert [float(x) for x in got] == [2.0 ** int(e) for e in exponents]


@given(st.floats(2.0**-126, float(np.float32(3e38)), width=32))
@settings(max_examples=200, deadline=None)
def test_exponent_of_is_floor_log2(value):
    got = int(scaling.exponent_of(jnp.float32(value)))
    assert got == min(math.frexp(value)[1] - 1, 126)


def test_exponent_of_leaves_zero_and_what_is_not_finite_alone():
    odd = jnp.array([0.0, jnp.inf, jnp.nan])
    assert scaling.exponent_of(odd).tolist() == [0, 0, 0]


@pytest.mark.parametrize("exponent", [-250, -140, -127, -3, 0, 3, 127, 128, 250])
def test_shift_multiplies_exactly_and_ends_in_zero_and_infinity(exponent):
    with np.errstate(over="ignore", under="ignore"):
        mantissa = np.array([[1.0, -1.75, 2.0**-20]], np.float32)
        got = np.asarray(scaling.shift(jnp.asarray(mantissa), jnp.array([exponent])))
        want = (mantissa.astype(np.float64) * 2.0**exponent).astype(np.float32)
    # XLA flushes subnormal numbers to zero on a CPU, and keeps them on a GPU.
    want = np.where((np.abs(want) < 2.0**-126) & (got == 0), 0, want)
    np.testing.assert_array_equal(got, want)


def as_fractions(value: Scaled) -> list[Fraction]:
    rows = np.asarray(value.mantissa)
    exponents = np.asarray(value.exponent)
    return [
        Fraction(float(x)) * Fraction(2) ** int(e) if x else Fraction(0)
        for row, e in zip(rows, exponents, strict=True)
        for x in row
    ]


def random_scaled(seed: int, spread: int) -> Scaled:
    rng = np.random.default_rng(seed)
    mantissa = rng.normal(size=(6, 5)).astype(np.float32)
    mantissa[1] = 0
    exponent = rng.integers(-spread, spread, size=6).astype(np.int32)
    return scaling.normalise(Scaled(jnp.asarray(mantissa), jnp.asarray(exponent)))


@pytest.mark.parametrize("seed", range(5))
def test_normalise_keeps_every_number_exactly(seed):
    value = random_scaled(seed, 5000)
    moved = Scaled(value.mantissa * 2.0**30, value.exponent - 30)
    again = scaling.normalise(moved)
    assert as_fractions(again) == as_fractions(value)
    largest = np.abs(np.asarray(again.mantissa)).max(axis=1)
    assert np.all((largest == 0) | (largest >= 1) & (largest < 2))
    assert int(again.exponent[1]) < -(2**29)


@pytest.mark.parametrize("spread", [3, 60, 4000])
def test_add_equals_exact_addition_to_float32(spread):
    a, b = random_scaled(1, spread), random_scaled(2, spread)
    total = scaling.add(a, b)
    for got, x, y in zip(as_fractions(total), as_fractions(a), as_fractions(b), strict=True):
        largest = max(abs(x), abs(y))
        assert abs(got - (x + y)) <= largest * Fraction(1, 2**22)


def test_a_zero_beside_a_tiny_number_does_not_drown_it():
    tiny = Scaled(jnp.ones((1, 2)), jnp.array([-4000], jnp.int32))
    zero = scaling.scale(jnp.zeros((1, 2)), 1)
    for total in (scaling.add(tiny, zero), scaling.add(zero, tiny)):
        assert as_fractions(total) == as_fractions(tiny)
    assert int(zero.exponent[0]) == ZERO


def test_log2_norm_where_the_square_underflows():
    leaf = jnp.full((1, 4), 1e-30, jnp.float32)
    assert float(jnp.linalg.norm(leaf)) == 0.0  # why the norm is not taken plainly
    got = float(scaling.log2_norm(leaf, jnp.array([-900]))[0])
    assert got == pytest.approx(math.log2(2e-30) - 900, abs=1e-3)
    assert float(scaling.log2_norm(jnp.zeros((1, 4)), jnp.array([ZERO]))[0]) == -math.inf


def test_float64_is_scaled_as_well():
    with jax.enable_x64(True):
        value = scaling.scale(jnp.asarray([[1e-300, 3e-301]]), 1)
        assert np.asarray(scaling.plain(value)).tolist() == [[1e-300, 3e-301]]
        assert 1 <= float(value.mantissa.max()) < 2
