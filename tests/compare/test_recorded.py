"""What a comparison reads is what was recorded."""

from __future__ import annotations

import math

import numpy as np
import pytest

from gradlab import open_run
from gradlab.compare.recorded import fall, recorded
from gradlab.compare.runs import runs_in
from tests.compare.recordings import record_run, record_sweep


def one(path):
    (found,) = recorded(runs_in(path))
    return found


def test_a_curve_by_lag_is_what_open_run_gives(tmp_path):
    path = record_run(tmp_path / "run", layers=(0, 1))
    curve = one(path).curve("adj_h_log10")
    curves = open_run(path).curves
    for index, step in enumerate(curve.steps):
        for layer in (0, 1):
            row = curves["adj_h_log10"].sel(step=step).isel(layer=layer)
            by_lag = row.swap_dims({"t": "lag"}).sel(lag=curve.lags)
            np.testing.assert_array_equal(curve.values[index, layer], by_lag.values)


def test_a_curve_over_lag_that_was_recorded_is_taken_before_the_one_over_t(tmp_path):
    """Where examples differ in length, the lag is each example's own."""
    path = record_run(tmp_path / "run", T=16, layers=(0, 1), own_lags=True)
    found = one(path)
    twin = open_run(path).curves["adj_h_over_lag_log10"]
    np.testing.assert_array_equal(found.curve("adj_h_log10").values, twin.values)
    assert found.measured("adj_h_log10") == (5, 2, 16)
    assert not np.isnan(found.curve("adj_h_log10").values[:, :, :12]).any()
    assert np.isnan(found.curve("adj_h_log10").values[:, :, 12:]).all()


@pytest.mark.parametrize("own_lags", [True, False])
def test_decades_of_a_run_that_recorded_none_are_those_of_its_curves(tmp_path, own_lags):
    path = record_run(tmp_path / "run", "rnn", T=16, decades=False, own_lags=own_lags)
    found, curves = one(path), open_run(path).curves
    slope = curves["adjoint_slope"].values
    np.testing.assert_allclose(
        found.series("decades_per_100").values, -100 * slope / math.log(10), rtol=1e-6
    )
    last = 11 if own_lags else 15
    lost = curves["adjoint_slope"].values * -last / math.log(10)  # along a line
    np.testing.assert_allclose(found.series("decades_lost").values, lost, rtol=1e-5)
    np.testing.assert_allclose(found.series("adjoint_line_r2").values, 1, rtol=1e-6)
    assert found.last("decades_lost") == pytest.approx(lost[-1, 0], rel=1e-5)


def test_a_far_end_of_exactly_zero_is_infinitely_many_decades():
    assert fall(np.array([0.0, -1.0, -np.inf])) == np.inf
    assert fall(np.array([0.5, -1.0, np.nan])) == 1.5
    assert np.isnan(fall(np.array([-np.inf, -1.0])))


def test_only_steps_at_which_a_curve_was_measured_are_there(tmp_path):
    found = one(record_run(tmp_path / "run", rows=5, every=10))
    assert found.curve("adj_h_log10").steps.tolist() == [0, 10, 20, 30, 40]
    assert found.curve("long_jacobian_log10").steps.tolist() == [0, 20, 40]
    assert found.curve("forget_path_log10") is None


def test_thinning_keeps_recorded_values_and_both_ends(tmp_path):
    found = one(record_run(tmp_path / "run", T=32, rows=9))
    whole, thin = found.curve("adj_h_log10"), found.curve("adj_h_log10", 4, 5)
    assert thin.values.shape == (4, 1, 5)
    assert thin.steps[[0, -1]].tolist() == whole.steps[[0, -1]].tolist()
    assert thin.lags[[0, -1]].tolist() == [0, 31]
    rows = np.isin(whole.steps, thin.steps)
    np.testing.assert_array_equal(thin.values, whole.values[rows][:, :, thin.lags])


def test_series_over_layers_of_the_largest_exponent_and_of_scalars(tmp_path):
    path = record_run(tmp_path / "run", layers=(0, 1))
    found, run = one(path), open_run(path)
    exponents = run.curves["lyapunov_exponent"].isel(step=[0, 2, 4], index=0).values
    assert found.series("lyapunov_exponent").steps.tolist() == [0, 20, 40]
    np.testing.assert_array_equal(found.series("lyapunov_exponent").values, exponents)
    losses = run.scalars["train/loss"].values
    np.testing.assert_array_equal(found.series("train/loss").values[:, 0], losses)
    assert found.last("train/loss") == losses[-1]
    assert found.series("val/nonsense") is None
    assert np.isnan(found.last("val/nonsense"))


def test_a_run_without_arrays_says_why_and_leaves_the_others_alone(tmp_path):
    folder = record_sweep(tmp_path / "sweep", models=("rnn",), seeds=(0, 1))
    (folder / "1" / "arrays.zarr" / "zarr.json").write_text("{")
    whole, broken = recorded(runs_in(folder))
    assert whole.run is not None
    assert whole.damage == ""
    assert broken.run is None
    assert "arrays.zarr" in broken.damage
    assert broken.curve("adj_h_log10") is None
    assert broken.layers == ()


@pytest.mark.parametrize("keep", [0, 10])
def test_a_cut_file_is_told_and_what_is_whole_is_read(tmp_path, keep):
    path = record_run(tmp_path / "run")
    folder = path / "arrays.zarr" / "adj_h_log10" / "c"
    (shard,) = [file for file in folder.rglob("*") if file.is_file()]
    shard.write_bytes(shard.read_bytes()[:keep])
    found = one(path)
    assert "adj_h_log10" in found.damage
