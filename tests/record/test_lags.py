"""What a record says over the lag."""

import numpy as np
import pytest

from gradlab.record.lags import Share, share_of_rest, values_by_lag

ZERO, NOTHING = -np.inf, np.nan


def test_by_lag_as_recorded_or_else_from_the_end():
    over_t, by_lag = np.arange(6.0).reshape(2, 3), 10 * np.ones((2, 3))
    np.testing.assert_array_equal(values_by_lag({"x_log10": over_t}, "x_log10"), over_t[:, ::-1])
    both = {"x_log10": over_t, "x_over_lag_log10": by_lag}
    np.testing.assert_array_equal(values_by_lag(both, "x_log10"), by_lag)


def test_rows_of_before_it_was_recorded_by_lag_are_taken_from_the_end():
    """A record that was begun by an older version and resumed; what no example reaches is nan."""
    over_t = np.arange(6.0).reshape(2, 1, 3)
    by_lag = np.array([[[NOTHING] * 3], [[7.0, 8.0, NOTHING]]])
    found = values_by_lag({"x_log10": over_t, "x_over_lag_log10": by_lag}, "x_log10")
    np.testing.assert_array_equal(found, [[[2.0, 1.0, 0.0]], [[7.0, 8.0, NOTHING]]])


@pytest.mark.parametrize(
    ("forget", "residual", "share"),
    [
        ([0, -1, -2], [ZERO, -1, -2], Share(2, 0.5)),
        ([0, -1, -2], [ZERO, ZERO, ZERO], Share(2, 0.0)),  # nothing can go through h
        ([0, ZERO, ZERO], [ZERO, -1, -300], Share(2, 1.0)),
        ([0, -1, -2], [ZERO, -1, -2.5], Share(2, 1 / 11)),  # 0.1 to 1 of the squared norms
        ([0, -1, ZERO], [ZERO, -1, ZERO], Share(1, 0.5)),  # nothing arrives from lag 2
        ([0, -1, -9], [ZERO, -0.5, NOTHING], Share(1, 10 / 11)),
        ([0, -1, -2000], [ZERO, -1, -3000], Share(2, 0.0)),  # far outside the float range
        ([0, -1, -3000], [ZERO, -1, -2000], Share(2, 1.0)),
    ],
)
def test_the_share_at_the_longest_lag_that_tells_it(forget, residual, share):
    found = share_of_rest(np.array(forget, np.float32), np.array(residual, np.float32))
    assert found is not None
    assert found.lag == share.lag
    assert found.rest == pytest.approx(share.rest, rel=1e-5)


@pytest.mark.parametrize("forget", [[0.0], [0.0, ZERO], [0.0, NOTHING]])
def test_no_share_where_no_lag_tells_it(forget):
    residual = np.where(np.isnan(forget), NOTHING, ZERO)
    assert share_of_rest(np.array(forget), residual) is None
