"""Runs picked by their settings, on made-up run directories."""

import math

import numpy as np
import pytest
import scipy.stats

from gradlab import open_run
from gradlab.claims.sweep import (
    ENDED,
    baseline,
    curve,
    lost,
    over_seeds,
    parameters,
    read,
    setting,
    value,
)
from gradlab.errors import BadInput
from tests.compare.recordings import PARAMETERS, record_run, record_sweep


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = record_sweep(tmp_path_factory.mktemp("sweep"), models=("rnn", "lstm"), T=16, rows=3)
    record_run(folder / "6", "rnn", 3, T=16, rows=3, status="diverged", reason="NaN at step 20")
    return folder


@pytest.fixture(scope="module")
def sweep(folder):
    return read("adding", folder)


def test_runs_are_those_with_the_settings_that_finished(sweep):
    found = sweep.where({"model": "rnn", "model.hidden": 8, "task": "adding"}, least=3)
    assert [setting(run, "seed") for run in found] == [0, 1, 2]
    assert len(sweep.where({"model": "rnn"}, ended=ENDED)) == 4


def test_values_of_a_setting_are_in_order(sweep):
    assert sweep.values("seed") == [0, 1, 2, 3]
    assert sweep.values("model") == ["rnn", "lstm"]
    assert sweep.values("model.cell.activation_fn") == ["tanh"]
    assert sweep.values("no.such.key") == []


def test_too_few_runs_are_refused_with_what_is_needed(sweep):
    with pytest.raises(BadInput) as refused:
        sweep.where({"model": "rnn"}, least=4)
    words = str(refused.value)
    assert "at least 4 runs with model=rnn that have finished, to check adding" in words
    assert "there: 3 such and 1 diverged" in words
    assert "python -m gradlab -m experiment=adding" in words


def test_runs_without_a_variable_are_refused(sweep):
    with pytest.raises(BadInput, match="that recorded adj_c_log10"):
        sweep.where({"model": "rnn"}, needs=["adj_h_log10", "adj_c_log10"])


def test_runs_of_another_experiment_are_refused(folder, tmp_path):
    with pytest.raises(BadInput, match="experiment=rnn_vs_lstm alone; there: only runs of adding"):
        read("rnn_vs_lstm", folder)
    record_run(tmp_path / "0", name="copying")
    with pytest.raises(BadInput, match="there: runs of adding, copying"):
        read("adding", folder, tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadInput, match="there: no run"):
        read("adding", tmp_path / "empty")


def test_a_curve_is_the_recorded_one_by_lag(sweep):
    run = sweep.where({"model": "lstm", "seed": 1})[0]
    recorded = open_run(run.entry.path).curves["adj_h_log10"]
    for row in (0, 2, -1):
        lags, log10 = curve(run, "adj_h_log10", row)
        np.testing.assert_array_equal(lags, np.arange(16))
        np.testing.assert_allclose(log10, recorded.isel(step=row, layer=0).values[::-1], rtol=1e-6)


def test_a_value_is_the_recorded_one(sweep):
    run = sweep.where({"model": "lstm", "seed": 1})[0]
    curves = open_run(run.entry.path).curves
    exponent = curves["lyapunov_exponent"]  # at every other row
    assert value(run, "lyapunov_exponent", 0) == pytest.approx(float(exponent[0, 0, 0]))
    assert value(run, "lyapunov_exponent") == pytest.approx(float(exponent[2, 0, 0]))
    second = value(run, "lyapunov_exponent", index=1)
    assert second == pytest.approx(float(exponent[2, 0, 1]))
    assert value(run, "memory_horizon", 1) == pytest.approx(float(curves["memory_horizon"][1, 0]))


def test_decades_are_those_of_the_row(sweep):
    run = sweep.where({"model": "rnn", "seed": 0})[0]
    recorded = open_run(run.entry.path).curves["decades_lost"].values[:, 0]
    assert [lost(run, row) for row in (0, 1, -1)] == recorded[[0, 1, -1]].tolist()


def test_one_seed_given_twice_is_one_sample(folder, sweep, tmp_path):
    again = record_run(tmp_path / "again", "rnn", 1, T=16, rows=3)
    found = read("adding", folder, again)
    assert [run.entry.path for run in found.runs] == [run.entry.path for run in sweep.runs]


def test_runs_of_one_seed_under_several_models_are_one_sample(sweep):
    runs = [run for model in ("rnn", "lstm") for run in sweep.where({"model": model})]
    found = over_seeds(runs, lambda run: run.entry.figure("test/loss"))
    losses = np.reshape([run.entry.summary["test/loss"] for run in runs], (2, 3)).mean(0)
    low, high = scipy.stats.t.interval(0.95, 2, losses.mean(), scipy.stats.sem(losses))
    assert (found.low, found.high, found.n) == pytest.approx((low, high, 3))


def test_figures_over_seeds(sweep):
    runs = sweep.where({"model": "rnn"})
    losses = [run.entry.summary["test/loss"] for run in runs]
    found = over_seeds(runs, lambda run: run.entry.figure("test/loss"))
    assert found.mean == pytest.approx(np.mean(losses))
    assert found.n == 3
    assert over_seeds(runs, lambda run: 1.0).is_same
    zero = over_seeds(runs, lambda run: -math.inf if setting(run, "seed") == 1 else -3.0)
    assert (zero.mean, zero.n) == (-math.inf, 3)  # an exact zero is not left out of a mean
    assert math.isnan(zero.half)
    shares = over_seeds(runs, lambda run: 1 - 0.1 * setting(run, "seed"), (0.0, 1.0))
    assert (shares.low, shares.high, shares.is_range) == (0.8, 1.0, True)
    assert parameters(runs[0]) == PARAMETERS["rnn"]
    assert baseline(runs[0], split="val") == runs[0].entry.info["baseline"]["val"]["loss"]
    assert math.isnan(baseline(runs[0], "loss", "no such split"))
