"""When: evenly spaced, log-spaced, both."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradlab.errors import BadInput
from gradlab.training.schedule import Schedule


def test_evenly_spaced_and_the_last():
    assert Schedule(10).steps(1) == {0}
    assert Schedule(10).steps(21) == {0, 10, 20}
    assert Schedule(10).steps(25) == {0, 10, 20, 24}


def test_log_spaced_and_the_last():
    assert Schedule(None, 1).steps(101) == {0, 1, 10, 100}
    assert Schedule(None, 1).steps(100) == {0, 1, 10, 99}
    assert Schedule(None, 3).steps(200) == {0, 1, 2, 5, 10, 22, 46, 100, 199}
    assert Schedule(50, 1).steps(120) == {0, 1, 10, 50, 100, 119}


@given(st.integers(1, 10**6), st.integers(1, 20))
def test_log_spaced_steps_leave_no_wider_gap_than_asked(total, per_decade):
    steps = sorted(Schedule(None, per_decade).steps(total))
    assert steps[0] == 0
    assert steps[-1] == total - 1
    for low, high in itertools.pairwise(steps[1:]):
        assert high <= (low + 1) * 10 ** (1 / per_decade) + 1


@pytest.mark.parametrize(
    ("arguments", "key"),
    [
        ((None, None), "probe.every"),
        ((0, None), "probe.every"),
        ((None, 0), "probe.per_decade"),
        ((5, -1), "probe.per_decade"),
    ],
)
def test_what_is_no_schedule_is_refused(arguments, key):
    with pytest.raises(BadInput) as refusal:
        Schedule(*arguments, key="probe.every")
    assert refusal.value.key == key
