"""The answer in words says what the numbers say, and no more."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import scipy.stats

from gradlab.compare.headline import headline
from gradlab.compare.recorded import recorded
from gradlab.compare.runs import runs_in
from tests.compare.recordings import CELLS, record_run, record_sweep
from tests.compare.sweeps import make_run

LSTM, GRU, RNN = [80.0, 90.0, 87.0], [20.0, 24.0, 19.0], [5.0, 5.5, 4.5]


def make(folder, name, horizon=None, seed=0, status="finished", said=(), facts=None, **figures):
    """A run of T = 100 by its summary alone."""
    summary = dict(figures)
    if horizon is not None:
        summary["memory_horizon/layer_0"] = horizon
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


def make_all(folder, options=None, **horizons):
    """A run for each horizon of each model; ``options(model, seed)`` gives more of each."""
    for name, values in horizons.items():
        for seed, horizon in enumerate(values):
            more = options(name, seed) if options else {}
            make(folder, name, horizon, seed, **more)
    return said(folder)


def said(*folders):
    return headline(recorded(runs_in(*folders)))


def text(found):
    return "\n".join([found.title, *found.lines])


def numbers(words):
    """The numbers in a text, in their order."""
    cleaned = "".join(c if c.isdigit() or c in ".-+" else " " for c in words.replace(",", ""))
    return [float(one.rstrip(".")) for one in cleaned.split() if any(c.isdigit() for c in one)]


# --- who is ahead, and by how much ----------------------------------------------------------------


def test_the_furthest_is_named_with_ratio_and_welch_interval_of_the_logs(tmp_path):
    found = make_all(tmp_path, lstm=LSTM, rnn=RNN, gru=GRU)
    logs = [np.log(values) for values in (LSTM, GRU)]
    interval = scipy.stats.ttest_ind(*logs, equal_var=False).confidence_interval(0.95)
    low, high = np.exp([interval.low, interval.high])
    mine, theirs = (np.exp(one.mean()) for one in logs)
    assert found.title == (
        f"The LSTM's gradient reaches furthest: {mine:.0f} steps, {mine / theirs:.1f} times "
        f"[{low:.1f} to {high:.1f}] as far as the GRU's {theirs:.0f} (3 seeds each, 95 % interval)."
    )
    third = np.exp(np.log(RNN).mean())
    (line,) = [line for line in found.lines if line.startswith("The RNN's gradient")]
    assert numbers(line)[:2] == pytest.approx([third, third / mine], rel=0.05)


def test_an_interval_that_includes_1_names_no_winner(tmp_path):
    found = make_all(tmp_path, lstm=[30.0, 80.0, 40.0], gru=[25.0, 60.0, 50.0])
    logs = [np.log([30, 80, 40]), np.log([25, 60, 50])]
    mine, theirs = (np.exp(one.mean()) for one in logs)
    interval = scipy.stats.ttest_ind(*logs, equal_var=False).confidence_interval(0.95)
    low, high = np.exp([interval.low, interval.high])
    assert found.title == (
        f"The LSTM's gradient and the GRU's cannot be told apart: {mine:.0f} steps and "
        f"{theirs:.0f} steps, a ratio of {mine / theirs:.2f} [{low:.2f} to {high:.1f}] "
        "(3 seeds each, 95 % interval)."
    )


def test_without_seeds_there_is_no_interval_and_that_is_said(tmp_path):
    found = make_all(tmp_path, lstm=[80.0], gru=[20.0])
    assert found.title == (
        "The LSTM's gradient reaches furthest: 80 steps, 4.0 times as far as the GRU's 20 "
        "(one seed each, so no interval)."
    )


def test_one_seed_on_one_side_is_too_few_for_an_interval(tmp_path):
    found = make_all(tmp_path, lstm=[80.0, 90.0], gru=[20.0])
    assert "(2 and 1 seeds, too few for an interval)" in found.title
    assert "[" not in found.title


def test_a_model_alone_has_its_own_interval(tmp_path):
    found = make_all(tmp_path, lstm=LSTM)
    low, high = np.exp(scipy.stats.t.interval(0.95, 2, *mean_and_error(np.log(LSTM))))
    assert found.title == (
        f"The LSTM's gradient reaches 86 steps [{low:.0f} to {high:.0f}] back "
        "(3 seeds, 95 % interval)."
    )


def mean_and_error(values):
    return np.mean(values), scipy.stats.sem(values)


# --- the whole sequence ---------------------------------------------------------------------------


def test_the_whole_sequence_is_a_lower_bound(tmp_path):
    found = make_all(tmp_path, lstm=[100.0] * 3, gru=GRU)
    mean, error = mean_and_error(np.log(GRU))
    low = 100 / np.exp(scipy.stats.t.interval(0.95, 2, mean, error)[1])
    assert found.title == (
        "The LSTM's gradient reaches furthest: at least 100 steps, the whole sequence, at least "
        f"{100 / np.exp(mean):.1f} times [{low:.1f} or more] as far as the GRU's 21 "
        "(3 seeds each, 95 % interval)."
    )


def test_in_some_runs_the_whole_sequence_is_a_lower_bound_too(tmp_path):
    found = make_all(tmp_path, lstm=[100.0, 100.0, 90.0], gru=GRU)
    assert "at least 97 steps, in 2 of 3 runs the whole sequence" in found.title


SLOPES = {"lstm": [-0.001, -0.002, -0.0015], "gru": [-0.008, -0.007, -0.0075]}


def with_slopes(slopes):
    return lambda model, seed: {"adjoint_slope/layer_0": slopes[model][seed]}


def test_two_that_reach_the_whole_sequence_are_told_apart_by_their_slopes(tmp_path):
    found = make_all(tmp_path, with_slopes(SLOPES), gru=[100.0] * 3, lstm=[100.0] * 3)
    interval = scipy.stats.ttest_ind(SLOPES["lstm"], SLOPES["gru"], equal_var=False)
    low, high = interval.confidence_interval(0.95)
    assert found.title == (
        "The LSTM's gradient and the GRU's reach the whole sequence of 100 steps, and the LSTM's "
        "keeps more on its way back: slopes -0.0015 and -0.0075 nats per step, a difference of "
        f"+0.006 [{low:+.2g} to {high:+.2g}] (3 seeds each, 95 % interval)."
    )


def test_slopes_with_an_interval_around_0_name_no_winner(tmp_path):
    slopes = {"lstm": [-0.001, -0.004, -0.002], "gru": [-0.003, -0.002, -0.001]}
    found = make_all(tmp_path, with_slopes(slopes), gru=[100.0] * 3, lstm=[100.0] * 3)
    assert "cannot be told apart by their slopes" in found.title


def test_a_tie_in_some_runs_says_in_how_many(tmp_path):
    found = make_all(tmp_path, with_slopes(SLOPES), gru=[100.0, 90.0, 80.0], lstm=[100.0] * 3)
    assert found.title.startswith(
        "The LSTM's gradient reaches the whole sequence of 100 steps in 3 of 3 runs, the GRU's in "
        "1 of 3 runs, and the LSTM's keeps more on its way back: slopes"
    )


def test_a_tie_without_slopes_is_said_to_be_one(tmp_path):
    found = make_all(tmp_path, gru=[100.0] * 3, lstm=[100.0] * 3, rnn=RNN)
    assert found.title == (
        "Several gradients do not fall by e within the sequence: the GRU's and the LSTM's."
    )


def test_a_gradient_that_explodes_is_not_praised(tmp_path):
    slopes = {"rnn": [0.05, 0.06, 0.055], "lstm": SLOPES["lstm"]}
    found = make_all(tmp_path, with_slopes(slopes), rnn=[100.0] * 3, lstm=[100.0] * 3)
    assert "the RNN's grows on its way back: slopes +0.055 and -0.0015" in found.title
    assert "The RNN's gradient explodes on its way back" in text(found)
    alone = make_all(tmp_path / "b", with_slopes(slopes), rnn=[100.0] * 3, lstm=[50.0, 60.0, 55.0])
    assert "so that a long reach is no merit of it" in text(alone)


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
        assert any(n == pytest.approx(np.mean(values), rel=0.01) for n in numbers(line))
        assert any(n == pytest.approx(half, rel=0.05) for n in numbers(line))
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
    found = make_all(tmp_path, options, lstm=[80.0], gru=[20.0])
    assert "as far as single seeds tell: validation loss 0.1 against 0.2" in text(found)


# --- settings -------------------------------------------------------------------------------------


def test_settings_of_one_model_are_compared_by_their_names(tmp_path):
    for bias, horizons in ((1, [80.0, 84.0]), (2, [40.0, 42.0])):
        for seed, horizon in enumerate(horizons):
            make(tmp_path, "lstm", horizon, seed, said=[f"model.cell.forget_bias={bias}"])
    found = said(tmp_path)
    assert found.title.startswith(
        "The gradient with forget_bias = 1 reaches furthest: 82 steps, 2."
    )
    assert "as far as that with forget_bias = 2 (41 steps) (2 seeds each" in found.title


def rates(tmp_path, horizons):
    """Models at learning rates: ``horizons[model][rate]`` over seeds."""
    for name, by_rate in horizons.items():
        for rate, values in by_rate.items():
            for seed, horizon in enumerate(values):
                said = [f"model={name}", f"optimizer.learning_rate={rate}"]
                make(tmp_path, name, horizon, seed, said=said)


def test_models_are_compared_at_settings_that_all_of_them_have(tmp_path):
    lstm = {0.1: [80.0, 90.0], 0.01: [30.0, 33.0]}
    gru = {0.1: [20.0, 22.0], 0.01: [10.0, 12.0], 0.001: [500.0, 500.0]}
    rates(tmp_path, {"lstm": lstm, "gru": gru})
    found = said(tmp_path)
    ratio = math.exp(
        np.mean([np.log(lstm[rate]).mean() - np.log(gru[rate]).mean() for rate in (0.1, 0.01)])
    )
    assert f"{ratio:.1f} times [" in found.title
    assert "(4 runs each, 95 % interval)" in found.title
    assert "Averaged over learning_rate = 0.1 and 0.01, the same for each." in found.lines
    assert "The LSTM's gradient reaches furthest in 2 of these 2 settings." in found.lines
    assert "2 runs at settings that not every model has are left out." in found.lines


def test_with_one_seed_at_each_of_several_settings_the_interval_is_over_settings(tmp_path):
    lstm, gru = [80.0, 30.0, 50.0, 60.0, 70.0, 90.0], [20.0, 10.0, 15.0, 14.0, 19.0, 25.0]
    learning = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]
    rates(tmp_path, {"lstm": {r: [h] for r, h in zip(learning, lstm, strict=True)}})
    rates(tmp_path, {"gru": {r: [h] for r, h in zip(learning, gru, strict=True)}})
    found = said(tmp_path)
    oracle = scipy.stats.ttest_rel(np.log(lstm), np.log(gru)).confidence_interval(0.95)
    low, high = np.exp([oracle.low, oracle.high])
    assert f"[{low:.1f} to {high:.1f}]" in found.title
    assert "(6 runs each, 95 % interval over settings)" in found.title
    assert "Averaged over learning_rate = 0.1 to 0.6 (6 values), the same for each." in found.lines


def test_where_no_setting_is_common_each_is_a_contender(tmp_path):
    rates(tmp_path, {"lstm": {0.1: [80.0, 90.0]}, "gru": {0.01: [20.0, 22.0]}})
    found = said(tmp_path)
    assert found.title.startswith("The LSTM's gradient with learning_rate = 0.1 reaches furthest")
    assert "the GRU's with learning_rate = 0.01" in found.title


def test_of_many_settings_the_best_and_how_many_others(tmp_path):
    for index in range(12):
        for seed in range(2):
            horizon = 10 + 3 * index + seed
            said_ = [f"model.cell.forget_bias={index}"]
            loss = 1 / (index + 1) + seed / 1000
            make(tmp_path, "lstm", horizon, seed, said=said_, **{"test/loss": loss})
    found = said(tmp_path)
    assert found.title.startswith("Of 12 settings, ")
    assert sum(map(len, found.lines)) < 1200
    assert "of the other 11 cannot be told apart from it; the shortest reach is" in text(found)
    assert "picked after the fact" in text(found)
    assert "a longer reach went with a lower test loss: rank correlation -1.00" in text(found)


def test_what_was_measured_is_no_setting(tmp_path):
    for name, values in (("lstm", LSTM), ("gru", GRU)):
        for seed, horizon in enumerate(values):
            make(tmp_path, name, horizon, seed, said=[f"model={name}"])
    for number, path in enumerate(sorted(tmp_path.iterdir())):
        info = json.loads((path / "run.json").read_text())
        info["config"]["probe"] = {"every": 10 * (number % 2 + 1)}
        info["overrides"].append(f"probe.every={10 * (number % 2 + 1)}")
        (path / "run.json").write_text(json.dumps(info))
    assert said(tmp_path).title.startswith("The LSTM's gradient reaches furthest: 86 steps")


# --- which runs count -----------------------------------------------------------------------------


def test_diverged_runs_are_counted_and_have_no_reach(tmp_path):
    make_all(tmp_path, lstm=LSTM, gru=GRU)
    make(tmp_path, "gru", 1.0, 3, status="diverged")
    make(tmp_path, "rnn", 1.0, 0, status="diverged")
    found = said(tmp_path)
    assert "21 (3 seeds each" in found.title
    line = "Diverged runs have no reach: 1 of 4 of the GRU's and 1 of 1 of the RNN's diverged."
    assert line in found.lines


def test_all_diverged(tmp_path):
    for seed in range(3):
        make(tmp_path, "rnn", 1.0, seed, status="diverged")
    found = said(tmp_path)
    assert found.title == "All 3 runs diverged: there is no reach to compare."


def test_runs_that_have_not_finished_stand_in_where_none_has(tmp_path):
    folder = record_sweep(tmp_path / "a", models=("lstm",))
    record_sweep(tmp_path / "b", models=("gru",), seeds=(0, 1), status="interrupted")
    found = said(folder, tmp_path / "b")
    assert "as far as the GRU's" in found.title
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
    assert said(tmp_path).title == expected


# --- tasks ----------------------------------------------------------------------------------------


def test_of_several_tasks_the_one_with_most_runs_counts(tmp_path):
    make_all(tmp_path, lstm=LSTM, gru=GRU)
    for name, horizon in (("lstm", 1.0), ("gru", 99.0)):
        make(tmp_path, name, horizon, facts={"task": "Copying"})
    found = said(tmp_path)
    assert found.title.startswith("The LSTM's gradient reaches furthest: 86 steps")
    line = "Compared within Adding, T = 100; the 2 runs of other tasks or lengths do not compare."
    assert line in found.lines


def test_lengths_alone_are_compared_by_lag_and_not_by_results(tmp_path):
    for length, horizons in ((100, [40.0, 44.0]), (200, [80.0, 85.0])):
        for seed, horizon in enumerate(horizons):
            said_ = [f"task.length={length}"]
            make(tmp_path, "lstm", horizon, seed, said=said_, facts={"T": length}, **LOSS)
    found = said(tmp_path)
    assert found.title.startswith("The gradient with length = 200 reaches furthest: 82 steps, 2.0")
    assert "Results of different tasks or lengths are not compared" in text(found)
    assert "test loss" not in text(found)


LOSS = {"test/loss": 0.1}


def test_a_loss_at_every_step_says_little_about_transport(tmp_path):
    every = {"facts": {"readout": "every"}}
    found = make_all(tmp_path, lambda model, seed: every, lstm=LSTM, gru=GRU)
    assert sum("loss at every step" in line for line in found.lines) == 1
    assert "loss at every step" not in text(make_all(tmp_path / "b", lstm=LSTM, gru=GRU))


# --- little or nothing ----------------------------------------------------------------------------


def test_one_run_says_how_far_at_which_step_and_its_verdict(tmp_path):
    path = record_run(tmp_path / "run", T=32, rows=5, every=10)
    found = said(path)
    horizon = json.loads((path / "run.json").read_text())["summary"]["memory_horizon/layer_0"]
    assert (
        found.title == f"The LSTM's gradient reaches {horizon:.0f} steps back at training step 40."
    )
    assert found.lines == ("Layer 0: a verdict.",)


def test_one_run_that_reaches_the_whole_sequence(tmp_path):
    found = said(record_run(tmp_path / "run", T=8))
    assert found.title.startswith("The LSTM's gradient reaches all of the 8 steps of the sequence")


def test_no_horizon_names_the_probe(tmp_path):
    folder = record_sweep(tmp_path / "a", seeds=(0,), status="interrupted", only=["train/loss"])
    for path in folder.iterdir():
        info = json.loads((path / "run.json").read_text())
        info["summary"] = {}
        (path / "run.json").write_text(json.dumps(info))
    found = said(folder)
    assert found.title == "How far the gradient reaches was not measured."
    assert "probe=standard" in text(found)
    one = said(folder / "0")
    assert one.title == "How far the RNN's gradient reaches was not measured."
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
