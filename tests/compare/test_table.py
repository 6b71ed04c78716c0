"""The table of a sweep, and its file."""

import csv
import math

import numpy as np
import pytest
import scipy.stats
from rich.console import Console

from gradlab.compare.runs import runs_in
from gradlab.compare.table import (
    Estimate,
    estimate,
    figures_of,
    notes,
    printed,
    settings_of,
    short,
    with_interval,
    write_csv,
)
from tests.compare.sweeps import make_run, make_sweep

LOSSES = {"rnn": [0.3, 0.5, 0.4], "lstm": [0.1, 0.1, 0.4]}


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    def summary(model, seed):
        if (model, seed) == ("rnn", 2):
            return {"val/loss": 99.0, "status": "diverged"}
        slope = math.nan if (model, seed) == ("lstm", 0) else -0.1 * (seed + 1)
        figures = {"adjoint_slope/layer_0": slope, "memory_horizon/layer_0": 12.0}
        return {"val/loss": LOSSES[model][seed], "test/loss": 1.0, **figures}

    folder = tmp_path_factory.mktemp("sweep")
    return runs_in(make_sweep(folder, summary, model=["rnn", "lstm"], seed=[0, 1, 2]))


def shown(settings, width=200):
    page, left_out = printed(settings, width)
    console = Console(width=width, no_color=True)
    with console.capture() as capture:
        console.print(page)
    return capture.get(), left_out


@pytest.mark.parametrize("n", [2, 3, 30])
def test_interval_is_students_t(n):
    values = np.random.default_rng(n).normal(size=n)
    low, high = scipy.stats.t.interval(0.95, n - 1, values.mean(), scipy.stats.sem(values))
    found = estimate([*values, math.nan, math.inf])
    assert found.n == n
    assert found.mean - found.half == pytest.approx(low, rel=1e-9)
    assert found.mean + found.half == pytest.approx(high, rel=1e-9)


def test_one_value_has_no_interval_and_none_no_mean():
    none = pytest.approx(math.nan, nan_ok=True)
    assert estimate([2.0]) == (2.0, none, none, 1, False)
    assert estimate([math.nan]) == (none, none, none, 0, False)


def test_a_setting_is_what_differs_by_the_seed_alone(sweep):
    rnn, lstm = settings_of(sweep)
    assert (rnn.values, lstm.values) == ({"model": "rnn"}, {"model": "lstm"})
    assert lstm.figures["val/loss"].mean == pytest.approx(0.2)
    assert lstm.figures["adjoint_slope"].mean == pytest.approx(-0.25)  # one of three is NaN
    assert lstm.figures["adjoint_slope"].n == 2
    assert lstm.figures["memory_horizon"] == (12.0, 12.0, 12.0, 3, False)


def test_one_seed_given_twice_is_one_sample(tmp_path):
    folder = make_sweep(tmp_path / "a", lambda seed: {"val/loss": LOSSES["rnn"][seed]}, seed=[0, 1])
    (expected,) = settings_of(runs_in(folder))
    again = runs_in(folder, make_sweep(tmp_path / "b", lambda seed: {"val/loss": 9.0}, seed=[1]))
    (found,) = settings_of(again)
    assert found.figures == expected.figures
    assert found.figures["val/loss"].n == 2
    assert notes([found], again)[-1] == (
        "1 run repeats the configuration and seed of another and is left out"
    )


def test_what_stands_beside_the_means_is_explained(sweep):
    words = notes(settings_of(sweep), sweep)
    assert words == [
        "mean ± 95 % interval (Student's t) over the finished runs of a setting; (a to b), the "
        "range over runs, where that would leave what a figure can be; (identical) where all runs "
        "agree but for rounding",
        "losses and accuracies are of the parameters best in validation, the gradient's figures of "
        "the last row",
    ]


def test_runs_that_did_not_finish_are_counted_and_not_averaged(sweep):
    rnn, _ = settings_of(sweep)
    assert rnn.figures["val/loss"].mean == pytest.approx(0.4)
    assert (rnn.finished, rnn.others) == (2, {"diverged": 1})
    text, _ = shown(settings_of(sweep))
    assert "2, 1 diverged" in text
    assert "-0.250 ± 0.64 (n=2)" in text


def test_accuracy_takes_the_place_of_the_test_loss_and_decades_of_the_slope(sweep, tmp_path):
    assert figures_of(sweep) == [
        *("val/loss", "test/loss", "adjoint_slope", "memory_horizon", "steps_per_second")
    ]
    gradient = {"adjoint_slope/layer_0": -0.1, "decades_per_100/layer_0": 4.3}
    make_run(tmp_path, summary={"test/loss": 1.0, "test/accuracy": 0.5, **gradient})
    found = figures_of(runs_in(tmp_path))
    assert found == ["test/accuracy", "decades_per_100", "steps_per_second"]


def test_columns_without_room_are_named(sweep):
    wide, nothing = shown(settings_of(sweep), 200)
    assert "steps/s" in wide
    assert nothing == []
    narrow, left_out = shown(settings_of(sweep), 80)
    assert max(map(len, narrow.splitlines())) <= 80
    assert "val/loss" in narrow
    assert left_out[-1] == "steps/s"
    assert left_out[-1] not in narrow


def test_file_holds_what_was_recorded(sweep, tmp_path):
    write_csv(sweep, tmp_path / "sweep.csv")
    rows = list(csv.DictReader((tmp_path / "sweep.csv").read_text().splitlines()))
    assert list(rows[0])[:5] == ["run", "status", "reason", "model", "seed"]
    assert len(rows) == len(sweep) == 6
    for row, run in zip(rows, sweep, strict=True):
        assert (row["run"], row["status"]) == (run.name, run.status)
        assert (row["model"], int(row["seed"])) == (run.info["facts"]["model"], run.config["seed"])
        for key in list(row)[5:]:
            value = run.summary.get(key, math.nan)
            assert row[key] == ("" if math.isnan(value) else repr(value))
            assert not row[key] or float(row[key]) == value
    assert rows[3]["adjoint_slope/layer_0"] == ""


def within(mean, half):
    return Estimate(mean, mean - half, mean + half, 3)


@pytest.mark.parametrize(
    ("found", "text"),
    [
        (within(0.16666, 0.00123), "0.1667 ± 0.0012"),
        (within(1234.5, 250.0), "1230 ± 250"),
        (within(0.123456, math.nan), "0.1235"),
        (within(0.599, 5.8), "0.599 ± 5.8"),
        (within(1e-9, 1e-10), "1e-09 ± 1e-10"),
        (Estimate(2.0, 2.0, 2.0, 2), "2 (identical) (n=2)"),
        (Estimate(0.95, 0.9, 1.0, 3, is_range=True), "0.95 (range 0.9 to 1)"),
        (Estimate(0.99982, 0.99964, 0.99999, 2, is_range=True), "0.9998 (range 0.9996 to 1) (n=2)"),
        (Estimate(0.99932, 0.9992, 0.99941, 3, is_range=True), "0.9993 (range 0.9992 to 0.9994)"),
        (Estimate(math.nan, math.nan, math.nan, 0), "–"),
    ],
)
def test_numbers_are_shown_to_two_digits_of_their_interval(found, text):
    assert with_interval(found, 3) == text


def test_keys_are_as_short_as_they_can_be_told_apart():
    keys = ["model", "model.cell.bias", "task.bias", "task.length"]
    assert short(keys) == dict(
        zip(keys, ["model", "cell.bias", "task.bias", "length"], strict=True)
    )
