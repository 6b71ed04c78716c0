"""The answer in words says what the numbers say, and no more."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import scipy.stats
import zarr

from gradlab.compare.headline import headline
from gradlab.compare.recorded import recorded
from gradlab.compare.runs import runs_in
from tests.compare.recordings import CELLS, DECADES, rate_of, record_run, record_sweep
from tests.compare.sweeps import make_run

LSTM, GRU, RNN = [1.0, 1.2, 1.1], [5.0, 6.0, 5.5], [40.0, 46.0, 43.0]
"""Decades lost by three seeds each."""


def make(folder, name, lost=None, seed=0, status="finished", said=(), facts=None, **figures):
    """A run of T = 100 by its summary alone; it loses ``lost`` decades, along a line."""
    summary = dict(figures)
    if lost is not None:
        line = {"decades_lost": lost, "decades_per_100": lost * 100 / 99, "adjoint_line_r2": 1.0}
        summary = {f"{key}/layer_0": value for key, value in line.items()} | summary
    path = folder / f"{len(list(folder.iterdir())) if folder.is_dir() else 0}"
    keys = [one for one in said if not one.startswith("model=")]
    make_run(path, [f"seed={seed}", *keys], summary, status, steps=400)
    info = json.loads((path / "run.json").read_text())
    info["overrides"] = [f"seed={seed}", *said]
    if name != "lstm":
        info["config"]["model"]["cell"] = dict(CELLS[name])
    info["facts"] |= {"T": 100, "model": name, "readout": "last", "task": "Adding"} | (facts or {})
    info["config"]["task"]["length"] = info["facts"]["T"]
    info["baseline"] = {"test": {"name": "a guess", "loss": 0.5, "accuracy": 0.1}}
    (path / "run.json").write_text(json.dumps(info))


def make_all(folder, options=None, **losses):
    """A run for each number of decades of each model; ``options(model, seed)`` gives more."""
    for name, values in losses.items():
        for seed, lost in enumerate(values):
            more = options(name, seed) if options else {}
            make(folder, name, lost, seed, **more)
    return said(folder)


def said(*folders):
    return headline(recorded(runs_in(*folders)))


def text(found):
    return "\n".join([found.title, *found.lines])


def numbers(words):
    """The numbers in a text, in their order."""
    cleaned = "".join(c if c.isdigit() or c in ".-+" else " " for c in words.replace(",", ""))
    return [float(one.rstrip(".")) for one in cleaned.split() if any(c.isdigit() for c in one)]


def welch(first, second):
    """The interval of the difference of means, by scipy."""
    return scipy.stats.ttest_ind(first, second, equal_var=False).confidence_interval(0.95)


# --- who is ahead, and by how much ----------------------------------------------------------------


def test_who_loses_least_is_named_with_the_difference_and_welchs_interval(tmp_path):
    found = make_all(tmp_path, lstm=LSTM, rnn=RNN, gru=GRU)
    low, high = welch(GRU, LSTM)
    assert found.title == (
        f"The LSTM's gradient loses least: 1.1 decades over 99 steps back, 4.4 [{low:.1f} to "
        f"{high:.1f}] fewer than the GRU's 5.5 (3 seeds each, 95 % interval)."
    )
    low, high = welch(RNN, LSTM)
    assert (
        f"The RNN's gradient loses 43 decades over 99 steps back, 42 [{low:.0f} to {high:.0f}] "
        "more than the LSTM's."
    ) in found.lines
    assert (
        "Decades are powers of ten of |∂ℓ/∂s_t|, the gradient by the whole state, from lag 0 to "
        "the longest, at the last recorded row of 400 training steps."
    ) in found.lines


def test_an_interval_that_includes_0_names_no_winner(tmp_path):
    lstm, gru = [3.0, 8.0, 4.0], [2.5, 9.0, 5.0]
    found = make_all(tmp_path, lstm=lstm, gru=gru)
    low, high = welch(gru, lstm)
    assert found.title == (
        "The LSTM's gradient and the GRU's cannot be told apart: 5.0 and 5.5 decades lost over "
        f"99 steps back, a difference of 0.50 [{low:.1f} to {high:.1f}] (3 seeds each, 95 % "
        "interval)."
    )


def test_without_seeds_there_is_no_interval_and_that_is_said(tmp_path):
    found = make_all(tmp_path, lstm=[1.0], gru=[5.0])
    assert found.title == (
        "The LSTM's gradient loses least: 1.0 decades over 99 steps back, 4.0 fewer than the GRU's "
        "5.0 (one seed each, so no interval)."
    )


def test_one_seed_on_one_side_is_too_few_for_an_interval(tmp_path):
    found = make_all(tmp_path, lstm=[1.0, 1.2], gru=[5.0])
    assert "(2 and 1 seeds, too few for an interval)" in found.title
    assert "[" not in found.title


def test_a_model_alone_has_its_own_interval(tmp_path):
    found = make_all(tmp_path, lstm=LSTM)
    low, high = scipy.stats.t.interval(0.95, 2, np.mean(LSTM), scipy.stats.sem(LSTM))
    assert found.title == (
        f"The LSTM's gradient loses 1.1 decades [{low:#.2g} to {high:.1f}] over 99 steps back (3 "
        "seeds, 95 % interval)."
    )


def test_seeds_that_all_give_the_same_have_no_interval(tmp_path):
    found = make_all(tmp_path, lstm=[1.0, 1.0 + 1e-9, 1.0], gru=[5.0] * 3)
    assert found.title == (
        "The LSTM's gradient loses least: 1.0 decades over 99 steps back, 4.0 fewer than the GRU's "
        "5.0 (3 seeds each, all alike)."
    )
    same = make_all(tmp_path / "b", lstm=[1.0, 1.0], gru=[1.0 + 1e-9, 1.0])
    assert same.title == (
        "The LSTM's gradient and the GRU's are the same: each loses 1.0 decades over 99 steps back "
        "(2 seeds each, all alike)."
    )


def test_a_short_horizon_does_not_rank(tmp_path):
    """As the first step back moves an LSTM's gradient from h to c, its horizon may be one step."""
    horizons = {"lstm": 1.0, "rnn": 4.0}
    found = make_all(
        tmp_path,
        lambda model, _: {"memory_horizon/layer_0": horizons[model]},
        lstm=LSTM,
        rnn=RNN,
    )
    assert found.title.startswith("The LSTM's gradient loses least: 1.1 decades over 99 steps back")
    assert (
        "The memory horizon, the lag at which the gradient has first fallen by e: the LSTM's 1.0 "
        "steps and the RNN's 4.0 steps (medians); the LSTM's rests on the first steps back alone."
    ) in found.lines


def test_a_long_horizon_does_not_rest_on_the_first_steps(tmp_path):
    horizons = {"lstm": 100.0, "rnn": 8.0}

    def options(model, _):
        return {"memory_horizon/layer_0": horizons[model]}

    assert (
        "The memory horizon, the lag at which the gradient has first fallen by e: the LSTM's "
        "beyond the sequence and the RNN's 8.0 steps."
    ) in make_all(tmp_path / "a", options, lstm=LSTM[:1], rnn=RNN[:1]).lines
    horizons |= {"lstm": 1.0, "rnn": 1.0}  # 90 decades over 99 steps: e in 0.48 steps by the line
    found = make_all(tmp_path / "b", options, lstm=LSTM[:1], rnn=[90.0])
    assert "the LSTM's rests on the first steps back alone" in text(found)
    assert "the RNN's rest" not in text(found)


def test_how_straight_the_lines_are_is_said(tmp_path):
    found = make_all(
        tmp_path,
        lambda model, _: {"adjoint_line_r2/layer_0": 0.62 if model == "lstm" else 0.98},
        lstm=LSTM,
        rnn=RNN,
    )
    assert (
        "By straight lines over the lag, per 100 steps: the LSTM's 1.1 (R² 0.62, no straight line) "
        "and the RNN's 43 (R² 0.98)."
    ) in found.lines


# --- exploding, and exactly zero ------------------------------------------------------------------


def test_a_gradient_that_explodes_is_not_praised(tmp_path):
    rnn, lstm = [-2.4, -2.6, -2.5], [0.06, 0.07, 0.065]
    found = make_all(tmp_path, rnn=rnn, lstm=lstm)
    low, high = welch(lstm, rnn)
    assert found.title == (
        "The LSTM's gradient loses 0.065 decades over 99 steps back and the RNN's gains 2.5, a "
        f"difference of 2.6 [{low:.1f} to {high:.1f}] (3 seeds each, 95 % interval)."
    )
    third = make_all(tmp_path / "b", rnn=rnn, lstm=lstm, gru=GRU)
    assert third.title.startswith("The LSTM's gradient loses least: 0.065 decades")
    assert "The RNN's gradient gains 2.5 decades over 99 steps back." in third.lines


def test_where_all_explode_the_least_growth_comes_first(tmp_path):
    found = make_all(tmp_path, rnn=[-9.0, -9.2], lstm=[-2.0, -2.1])
    assert found.title.startswith(
        "The LSTM's gradient gains least on its way back: 2.0 decades over 99 steps back, 7.0 ["
    )
    assert "] fewer than the RNN's 9.1" in found.title


def test_growth_by_less_than_e_is_no_explosion_and_no_negative_loss(tmp_path):
    found = make_all(tmp_path, lstm=[-0.2], gru=[1.0])
    assert found.title == (
        "The LSTM's gradient gains 0.20 decades over 99 steps back and the GRU's loses 1.0, a "
        "difference of 1.2 (one seed each, so no interval)."
    )
    assert "the LSTM's gain of 0.20 (R² 1.00) and the GRU's 1.0" in text(found)
    one = said(tmp_path / "0")
    assert one.title == ("The LSTM's gradient gains 0.20 decades over 99 steps back, at its end.")
    seeds = make_all(tmp_path / "b", lstm=[-0.2, -0.4])
    assert seeds.title.startswith("The LSTM's gradient gains 0.30 decades [-0.97 to 1.6] over 99")
    unclear = make_all(tmp_path / "c", lstm=[-0.2, 0.1], gru=[0.4, -0.1])
    assert "apart: 0.050 decades gained and 0.15 lost over 99 steps back" in unclear.title


def dead(folder, model, seed):
    """A run of whose gradient exactly nothing arrives at the first step."""
    path = record_run(folder, model, seed, rows=1, only=[*DECADES, "adj_h_log10", "train/loss"])
    arrays = zarr.open(str(path / "arrays.zarr"), mode="r+")
    arrays["decades_lost"][:] = np.inf
    info = json.loads((path / "run.json").read_text())
    info["summary"]["decades_lost/layer_0"] = None  # no JSON holds an infinity
    (path / "run.json").write_text(json.dumps(info))


def test_a_gradient_that_is_exactly_zero_is_last_and_in_no_mean(tmp_path):
    for seed in (0, 1):
        record_run(tmp_path / f"gru{seed}", "gru", seed, rows=1)
    dead(tmp_path / "rnn0", "rnn", 0)
    record_run(tmp_path / "rnn1", "rnn", 1, rows=1)
    found = said(tmp_path)
    assert found.title == (
        "The GRU's gradient loses 1.9 decades over 31 steps back, and nothing at all of the RNN's "
        "gradient arrives at the far end in 1 of 2 runs (2 seeds each)."
    )
    for seed in (0, 1):
        growing = record_run(tmp_path / f"lstm{seed}", "lstm", seed, rows=1)
        info = json.loads((growing / "run.json").read_text())
        info["summary"] |= {"decades_lost/layer_0": -3.0, "decades_per_100/layer_0": -10.0}
        (growing / "run.json").write_text(json.dumps(info))
    (tmp_path / "gru0" / "run.json").unlink()
    (tmp_path / "gru1" / "run.json").unlink()
    assert said(tmp_path).title == (
        "The LSTM's gradient gains 3.0 decades over 31 steps back, and nothing at all of the RNN's "
        "gradient arrives at the far end in 1 of 2 runs (2 seeds each)."
    )
    one = said(tmp_path / "rnn0")
    assert one.title == (
        "Nothing at all of the RNN's gradient arrives at the far end, at training step 0."
    )


# --- runs that were recorded before there were decades --------------------------------------------


def test_decades_of_earlier_runs_are_computed_from_slopes_and_curves(tmp_path):
    for model, seed in (("lstm", 0), ("rnn", 0)):
        record_run(tmp_path / model, model, seed, T=32, decades=False)
    found = said(tmp_path)
    rate = {model: rate_of(model, 0, 4 / 5) for model in ("lstm", "rnn")}
    squares = [10 ** (2 * (start - rate["lstm"] * lag)) for start in (-1, -0.5) for lag in (0, 31)]
    lstm = np.log10((squares[0] + squares[2]) / (squares[1] + squares[3])) / 2
    assert found.title == (
        f"The LSTM's gradient loses least: {lstm:.2f} decades over 31 steps back, "
        f"{31 * rate['rnn'] - lstm:.1f} fewer than the RNN's {31 * rate['rnn']:.1f} (one seed "
        "each, so no interval)."
    )
    assert (
        "Of runs that recorded no decades they are computed from slopes and curves." in found.lines
    )


def test_without_curves_the_recorded_slope_is_what_there_is(tmp_path):
    for name, slope in (("lstm", -0.02), ("gru", -0.1)):
        make(tmp_path, name, **{"adjoint_slope/layer_0": slope})
    found = said(tmp_path)
    rates = [100 * slope / math.log(10) for slope in (0.02, 0.1)]
    assert found.title == (
        f"The LSTM's gradient loses least: {rates[0]:.2f} decades per 100 steps, "
        f"{rates[1] - rates[0]:.1f} fewer than the GRU's {rates[1]:.1f} (one seed each, so no "
        "interval)."
    )


# --- results --------------------------------------------------------------------------------------


def results(name, **values):
    return lambda model, seed: {name: values[model][seed]}


@pytest.mark.parametrize(
    ("lstm", "gru", "words"),
    [
        ([0.002, 0.0021, 0.0022], [0.17, 0.18, 0.16], "That went with better results: test loss"),
        ([0.17, 0.18, 0.16], [0.002, 0.0021, 0.0022], "It did not go with better results: test"),
        ([0.1, 0.2, 0.3], [0.11, 0.19, 0.32], "Whether that went with better results cannot be"),
    ],
)
def test_what_the_reach_went_with(tmp_path, lstm, gru, words):
    options = results("test/loss", lstm=lstm, gru=gru)
    found = make_all(tmp_path, options, lstm=LSTM, gru=GRU)
    (line,) = [line for line in found.lines if line.startswith(words)]
    for values in (lstm, gru):
        half = scipy.stats.t.ppf(0.975, 2) * scipy.stats.sem(values)
        told = [half] if half < np.mean(values) else [min(values), max(values)]
        for expected in (np.mean(values), *told):
            assert any(n == pytest.approx(expected, rel=0.05) for n in numbers(line))
    assert line.endswith("(baseline 0.5).")


def test_what_those_behind_the_first_two_came_to_is_said_too(tmp_path):
    losses = {"lstm": [0.1, 0.2, 0.3], "gru": [0.2, 0.3, 0.4], "rnn": [0.6, 0.5, 0.7]}
    found = make_all(
        tmp_path,
        lambda name, seed: {"test/loss": losses[name][seed]},
        lstm=LSTM,
        gru=GRU,
        rnn=RNN,
    )
    half = scipy.stats.t.ppf(0.975, 2) * np.std(losses["rnn"], ddof=1) / math.sqrt(3)
    assert f"Test loss of the others: the RNN's 0.600 ± {half:.2g}." in found.lines


def test_at_initialisation_there_are_no_results(tmp_path):
    def options(model, seed):
        return {"test/loss": 1.0 + seed, "steps": 1.0}

    found = make_all(tmp_path, options, lstm=LSTM, gru=GRU)
    assert "results" not in text(found)
    assert "test loss" not in text(found)
    assert "at initialisation" in text(found)


def test_of_which_steps_results_and_decades_are_is_said(tmp_path):
    def options(model, seed):
        return {"test/loss": 0.1, "best/step": 300.0 + seed}

    found = make_all(tmp_path, options, lstm=LSTM, gru=GRU)
    assert (
        "Results are of the parameters best in validation (training step 300 to 302), decades of "
        "the last recorded row."
    ) in found.lines
    assert "test loss 0.1 (identical) against 0.1 (identical)" in text(found)


def test_accuracy_is_better_when_higher_and_comes_before_the_loss(tmp_path):
    def options(model, seed):
        accuracy = {"lstm": 0.9, "gru": 0.5}[model] + seed / 100
        return {"test/accuracy": accuracy, "test/loss": 9.0 if model == "lstm" else 0.1}

    found = make_all(tmp_path, options, lstm=LSTM, gru=GRU)
    line = next(line for line in found.lines if "results" in line)
    assert line.startswith("That went with better results: test accuracy 0.910 ± 0.025 against")
    assert "(baseline 0.1)" in line


def test_nobody_better_than_the_baseline_is_said(tmp_path):
    options = results("test/loss", lstm=[0.49, 0.5, 0.51], gru=[0.6, 0.61, 0.62])
    found = make_all(tmp_path, options, lstm=LSTM, gru=GRU)
    assert "(baseline 0.5; neither is clearly better)" in text(found)


def test_without_results_that_is_said(tmp_path):
    assert "No results were recorded for both" in text(make_all(tmp_path, lstm=LSTM, gru=GRU))


def test_single_seeds_are_told_as_such(tmp_path):
    options = results("val/loss", lstm=[0.1], gru=[0.2])
    found = make_all(tmp_path, options, lstm=[1.0], gru=[5.0])
    assert "as far as single seeds tell: validation loss 0.1 against 0.2" in text(found)


# --- settings -------------------------------------------------------------------------------------


def test_settings_of_one_model_are_compared_by_their_names(tmp_path):
    for bias, losses in ((1, [4.0, 4.2]), (2, [8.0, 8.4])):
        for seed, horizon in enumerate(losses):
            make(tmp_path, "lstm", horizon, seed, said=[f"model.cell.forget_bias={bias}"])
    found = said(tmp_path)
    assert found.title.startswith(
        "The gradient with forget_bias = 1 loses least: 4.1 decades over 99 steps back, 4.1 ["
    )
    assert "fewer than that with forget_bias = 2 (8.2 decades) (2 seeds each" in found.title
    assert "100: that with" not in text(found)
    assert "that with forget_bias = 1: 4.1 (R² 1.00)" in text(found)


def rates(tmp_path, horizons):
    """Models at learning rates: ``horizons[model][rate]`` over seeds."""
    for name, by_rate in horizons.items():
        for rate, values in by_rate.items():
            for seed, horizon in enumerate(values):
                said = [f"model={name}", f"optimizer.learning_rate={rate}"]
                make(tmp_path, name, horizon, seed, said=said)


def test_models_are_compared_at_settings_that_all_of_them_have(tmp_path):
    lstm = {0.1: [2.0, 2.2], 0.01: [1.0, 1.2]}
    gru = {0.1: [8.0, 9.0], 0.01: [3.0, 3.3], 0.001: [0.1, 0.1]}
    rates(tmp_path, {"lstm": lstm, "gru": gru})
    found = said(tmp_path)
    apart = np.mean([np.mean(gru[rate]) - np.mean(lstm[rate]) for rate in (0.1, 0.01)])
    assert f"{apart:.1f} [" in found.title
    assert "(2 seeds each, averaged over 2 settings, 95 % interval)" in found.title
    assert (
        "Averaged over learning_rate = 0.1 and 0.01, the same for each, within a seed first: runs "
        "of one seed are one sample."
    ) in found.lines
    assert "The LSTM's gradient loses least in 2 of these 2 settings." in found.lines
    assert "2 runs at settings that not every model has are left out." in found.lines


def test_runs_of_one_seed_at_several_settings_are_one_sample(tmp_path):
    """Three nearly equal copies of two seeds are two seeds, and do not narrow the interval."""
    lstm = {0.1: [2.48, 2.70], 0.01: [2.52, 2.74], 0.001: [2.50, 2.72]}
    gru = {0.1: [3.47, 4.1], 0.01: [3.42, 4.0], 0.001: [3.48, 4.2]}
    rates(tmp_path, {"lstm": lstm, "gru": gru})
    found = said(tmp_path)
    means = [np.mean(list(one.values()), axis=0) for one in (gru, lstm)]
    low, high = welch(*means)
    assert low < 0 < welch(*(np.concatenate(list(one.values())) for one in (gru, lstm)))[0]
    assert "cannot be told apart: 2.6 and 3.8 decades lost over 99 steps back" in found.title
    assert (
        f"a difference of 1.2 [{low:#.2g} to {high:#.2g}] (2 seeds each, averaged over 3 sett"
        in (found.title)
    )


def test_a_seed_without_every_setting_does_not_count(tmp_path):
    lstm = {0.1: [2.0, 2.2, 2.1], 0.01: [1.0, 1.2, 1.1]}
    rates(tmp_path, {"lstm": lstm, "gru": {0.1: [8.0, 9.0, 70.0], 0.01: [3.0, 3.3]}})
    found = said(tmp_path)
    means = np.mean([[8.0, 9.0], [3.0, 3.3]], axis=0)
    low, high = welch(means, np.mean(list(lstm.values()), axis=0))
    assert f"[{low:#.2g} to {high:#.2g}] fewer than the GRU's 5.8 (3 and 2 seeds, av" in found.title
    line = "1 of 3 seeds of the GRU's lacks some of these settings and does not count."
    assert line in found.lines


def test_where_no_seed_has_every_setting_there_is_no_interval(tmp_path):
    for seed, rate in enumerate((0.1, 0.01)):
        for name, lost in (("lstm", 1.0), ("gru", 5.0)):
            said_ = [f"model={name}", f"optimizer.learning_rate={rate}"]
            make(tmp_path, name, lost + seed, seed, said=said_)
    assert said(tmp_path).title == (
        "The LSTM's gradient loses least: 1.5 decades over 99 steps back, 4.0 fewer than the GRU's "
        "5.5 (no seed at every setting, so no interval)."
    )


def test_one_seed_at_several_settings_has_no_interval(tmp_path):
    lstm, gru = [2.0, 1.0, 1.5, 1.4, 1.9, 2.5], [8.0, 3.0, 5.0, 6.0, 7.0, 9.0]
    learning = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]
    rates(tmp_path, {"lstm": {r: [h] for r, h in zip(learning, lstm, strict=True)}})
    rates(tmp_path, {"gru": {r: [h] for r, h in zip(learning, gru, strict=True)}})
    found = said(tmp_path)
    assert "[" not in found.title
    assert "(one seed each, averaged over 6 settings, so no interval)" in found.title
    assert "Averaged over learning_rate = 0.1 to 0.6 (6 values), the same for each" in text(found)


def test_where_no_setting_is_common_each_is_a_contender(tmp_path):
    rates(tmp_path, {"lstm": {0.1: [1.0, 1.1]}, "gru": {0.01: [5.0, 5.1]}})
    found = said(tmp_path)
    assert found.title.startswith("The LSTM's gradient with learning_rate = 0.1 loses least")
    assert "the GRU's with learning_rate = 0.01" in found.title


def test_of_many_settings_the_best_and_how_many_others(tmp_path):
    for index in range(12):
        for seed in range(2):
            horizon = 50 - 3 * index + seed
            said_ = [f"model.cell.forget_bias={index}"]
            loss = 1 / (index + 1) + seed / 1000
            make(tmp_path, "lstm", horizon, seed, said=said_, **{"test/loss": loss})
    found = said(tmp_path)
    assert found.title.startswith("Of 12 settings, ")
    assert sum(map(len, found.lines)) < 1200
    assert "of the other 11 cannot be told apart from it; that with forget_bias = 0 (50" in text(
        found
    )
    assert "picked after the fact" in text(found)
    assert "fewer decades lost went with a lower test loss: rank correlation 1.00" in text(found)


def test_what_was_measured_is_no_setting(tmp_path):
    for name, values in (("lstm", LSTM), ("gru", GRU)):
        for seed, horizon in enumerate(values):
            make(tmp_path, name, horizon, seed, said=[f"model={name}"])
    for number, path in enumerate(sorted(tmp_path.iterdir())):
        info = json.loads((path / "run.json").read_text())
        info["config"]["probe"] = {"every": 10 * (number % 2 + 1)}
        info["overrides"].append(f"probe.every={10 * (number % 2 + 1)}")
        (path / "run.json").write_text(json.dumps(info))
    assert said(tmp_path).title.startswith("The LSTM's gradient loses least: 1.1 decades over")


# --- which runs count -----------------------------------------------------------------------------


def test_diverged_runs_are_counted_and_in_no_mean(tmp_path):
    make_all(tmp_path, lstm=LSTM, gru=GRU)
    make(tmp_path, "gru", 1.0, 3, status="diverged")
    make(tmp_path, "rnn", 1.0, 0, status="diverged")
    found = said(tmp_path)
    assert "5.5 (3 seeds each" in found.title
    line = "Diverged runs do not count: 1 of 4 of the GRU's and 1 of 1 of the RNN's diverged."
    assert line in found.lines


def test_all_diverged(tmp_path):
    for seed in range(3):
        make(tmp_path, "rnn", 1.0, seed, status="diverged")
    found = said(tmp_path)
    assert found.title == "All 3 runs diverged: there is nothing to compare."


def test_runs_that_have_not_finished_stand_in_where_none_has(tmp_path):
    folder = record_sweep(tmp_path / "a", models=("lstm",))
    record_sweep(tmp_path / "b", models=("gru",), seeds=(0, 1), status="interrupted")
    found = said(folder, tmp_path / "b")
    assert "fewer than the GRU's" in found.title
    assert "2 of 5 runs have not finished; their last recorded rows are used." in found.lines


def test_they_are_left_out_where_others_have_finished(tmp_path):
    folder = record_sweep(tmp_path / "a", models=("lstm", "gru"))
    record_run(tmp_path / "b", "gru", 7, status="crashed")
    found = said(folder, tmp_path / "b")
    assert "(3 seeds each" in found.title
    assert "1 of 7 runs has not finished; it is left out." in found.lines


def test_a_run_given_twice_and_a_seed_that_is_there_twice_count_once(tmp_path):
    make_all(tmp_path, lstm=LSTM, gru=GRU)
    expected = said(tmp_path).title
    assert said(tmp_path, tmp_path / "0", tmp_path / "1").title == expected
    make(tmp_path, "lstm", LSTM[0], 0)
    found = said(tmp_path)
    assert found.title == expected
    assert found.lines[-1] == (
        "1 run repeats the configuration and seed of another and is left out."
    )


# --- tasks ----------------------------------------------------------------------------------------


def test_of_several_tasks_the_one_with_most_runs_counts(tmp_path):
    make_all(tmp_path, lstm=LSTM, gru=GRU)
    for name, horizon in (("lstm", 1.0), ("gru", 99.0)):
        make(tmp_path, name, horizon, facts={"task": "Copying"})
    found = said(tmp_path)
    assert found.title.startswith("The LSTM's gradient loses least: 1.1 decades over")
    line = "Compared within Adding, T = 100; the 2 runs of other tasks or lengths do not compare."
    assert line in found.lines


def test_lengths_alone_are_compared_per_100_steps_and_not_by_results(tmp_path):
    for length, losses in ((100, [8.0, 8.2]), (200, [4.0, 4.2])):
        for seed, horizon in enumerate(losses):
            said_ = [f"task.length={length}"]
            make(tmp_path, "lstm", horizon, seed, said=said_, facts={"T": length}, **LOSS)
    found = said(tmp_path)
    assert found.title.startswith("The gradient with length = 200 loses least: 4.1 decades per 100")
    assert "Results of different tasks or lengths are not compared" in text(found)
    assert "test loss" not in text(found)


LOSS = {"test/loss": 0.1}


def test_a_loss_at_every_step_says_little_about_transport(tmp_path):
    every = {"facts": {"readout": "every"}}
    found = make_all(tmp_path, lambda model, seed: every, lstm=LSTM, gru=GRU)
    assert sum("loss at every step" in line for line in found.lines) == 1
    assert "loss at every step" not in text(make_all(tmp_path / "b", lstm=LSTM, gru=GRU))


def test_where_a_layer_above_feeds_it_the_layer_is_named_and_that_is_said(tmp_path):
    for seed in (0, 1):
        make(tmp_path, "gru", -0.4, seed)
    for path in tmp_path.iterdir():
        info = json.loads((path / "run.json").read_text())
        info["config"]["model"]["layers"] = 2
        (path / "run.json").write_text(json.dumps(info))
    for found in (said(tmp_path), said(tmp_path / "0")):
        assert "gains 0.40 decades over 99 steps back in layer 0" in found.title
        assert found.lines[0].startswith("Where there are several layers, layer 0 is fed by the")


# --- little or nothing ----------------------------------------------------------------------------


def test_one_run_says_how_much_at_which_step_and_its_verdict(tmp_path):
    path = record_run(tmp_path / "run", T=32, rows=5, every=10)
    found = said(path)
    lost = json.loads((path / "run.json").read_text())["summary"]["decades_lost/layer_0"]
    assert found.title == (
        f"The LSTM's gradient loses {lost:.2f} decades over 31 steps back, at training step 40."
    )
    assert found.lines == ("Layer 0: a verdict.",)


def test_no_decades_names_the_probe(tmp_path):
    folder = record_sweep(tmp_path / "a", seeds=(0,), status="interrupted", only=["train/loss"])
    for path in folder.iterdir():
        info = json.loads((path / "run.json").read_text())
        info["summary"] = {}
        (path / "run.json").write_text(json.dumps(info))
    found = said(folder)
    assert found.title == "How many decades the gradient loses was not measured."
    assert "probe=standard" in text(found)
    one = said(folder / "0")
    assert one.title == "How many decades the RNN's gradient loses was not measured."
    assert "probe=standard" in text(one)


def test_no_runs_and_no_data(tmp_path):
    assert said(tmp_path).title == "There are no runs to compare."
    for name in ("0", "1"):
        (tmp_path / name / ".hydra").mkdir(parents=True)
    found = said(tmp_path)
    assert found.title == "No run has data to compare: of 2 runs, 2 never began."
    assert "run.json" in found.lines[0]


def test_jobs_without_data_are_counted_beside_the_others(tmp_path):
    make_all(tmp_path, lstm=LSTM, gru=GRU)
    (tmp_path / "x" / ".hydra").mkdir(parents=True)
    assert "1 of 7 runs has no data that can be read." in said(tmp_path).lines
