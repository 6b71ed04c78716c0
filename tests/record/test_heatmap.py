"""The curves kept for the end of a run, and their picture."""

import numpy as np
import pytest

from gradlab.record.base import Row, Variable
from gradlab.record.heatmap import Curves, Histories, History, heatmap, spread
from tests.record.synthetic import describe, make_row


@pytest.mark.parametrize("length", [1, 10, 11, 500])
def test_history_is_thinned_evenly(length):
    history = History(10)
    for step in range(length):
        history.add(step, np.full(2, step))
    steps, arrays = history.all()
    assert steps[0] == 0
    assert steps[-1] == length - 1
    assert min(length, 5) <= len(steps) <= 11
    assert len(set(np.diff(steps)[:-1])) <= 1
    np.testing.assert_array_equal(arrays[:, 0], steps)


@pytest.mark.parametrize("by_lag", [False, True])
def test_histories_hold_each_curve_and_layer_that_was_measured_once(by_lag):
    description = describe(T=8, layers=[0, "0 backward"], steps=9, by_lag=by_lag)
    older = describe(T=8, layers=[0, "0 backward"], steps=9)
    histories = Histories(description)
    assert list(histories) == []
    expected = []
    for step in (0, 3, 6):
        row = make_row(description if step else older, step)  # of a run that was begun before
        names = {"adj_c_log10", "adj_c_over_lag_log10", "grad_norm"} & row.arrays.keys()
        histories.add(Row(step, row.scalars, {name: row.arrays[name] for name in names}))
        twin = row.arrays.get("adj_c_over_lag_log10")
        expected.append(row.arrays["adj_c_log10"][1, ::-1] if twin is None else twin[1])
    found = {curves.key: curves for curves in histories}
    assert list(found) == ["adj_c/layer_0", "adj_c/layer_0_backward"]
    second = found["adj_c/layer_0_backward"]
    assert (second.name, second.variable.units) == ("adj_c_log10", "log10")
    assert second.steps.tolist() == [0, 3, 6]
    np.testing.assert_allclose(second.values, expected, rtol=1e-6)


def test_spread_has_both_ends():
    assert spread(5, 10) == [0, 1, 2, 3, 4]
    assert spread(101, 5) == [0, 25, 50, 75, 100]
    assert spread(1, 5) == [0]


def test_heatmap_is_bright_above_dark_below_and_black_at_zero():
    values = np.array([[-2.0, -30.0, -np.inf], [-1.0, -20.0, -np.inf]])
    curves = Curves("x", "x_log10", Variable(("t",), "log10", "norm"), np.array([0, 7]), values)
    pixels, caption = heatmap(curves)
    assert pixels.dtype == np.uint8
    assert pixels.shape == (600, 600, 3)
    light = pixels.astype(int).sum(-1)[100::200, 150::300]  # (lag, step)
    assert (light[0] > light[1]).all()
    assert light[1, 1] > light[1, 0] > 0
    assert (light[2] == 0).all()
    assert caption.startswith("norm, log10: dark -30, bright -1, black exactly zero.")
    assert "training step 0 to 7" in caption


def test_the_caption_of_a_share_speaks_of_no_logarithm():
    share = Variable(("t",), "1", "share of zeros")
    _, caption = heatmap(Curves("x", "x", share, np.array([0]), np.array([[0.0, 0.5]])))
    assert caption.startswith("share of zeros: dark 0, bright 0.5. Across:")
