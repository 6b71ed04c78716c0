"""Models at equal size: what is matched, and what would have to be run."""

from __future__ import annotations

import json

import jax
import pytest
from flax import nnx

from gradlab.compare.matched import TOLERANCE, matched, parameters_of
from gradlab.compare.runs import runs_in
from gradlab.compare.statistics import estimate
from tests.compare.recordings import CELLS
from tests.compare.sweeps import make_run


def make(folder, model, hidden, parameters=None, seed=0, loss=0.1, said=(), **changes):
    """A finished run by its summary alone; ``parameters`` as gradlab's models have, I=2, O=1."""
    path = folder / str(len(list(folder.iterdir())) if folder.is_dir() else 0)
    status = changes.pop("status", "finished")
    make_run(path, [f"model.hidden={hidden}", f"seed={seed}", *said], {"val/loss": loss}, status)
    info = json.loads((path / "run.json").read_text())
    info["overrides"].append(f"model={model}")
    if model != "lstm":
        info["config"]["model"]["cell"] = dict(CELLS.get(model, {"_target_": model}))
    count = parameters or parameters_of(model, hidden, 2, 1)
    info["facts"] |= {"model": model, "parameters": count, "task": "Adding"} | changes
    (path / "run.json").write_text(json.dumps(info))


def levels(folder):
    by_hidden, by_parameters = matched(runs_in(folder))
    return by_hidden, by_parameters


def shape(found):
    """Labels and what stands at each level."""
    return [(one.label, [(row.model, row.hidden) for row in one.rows]) for one in found.levels]


@pytest.mark.parametrize("model", ["rnn", "lstm", "gru"])
@pytest.mark.parametrize("layers", [1, 3])
def test_the_formula_counts_the_parameters_of_the_model_itself(model, layers):
    from gradlab.cells import GRU, LSTM, SimpleRNN
    from gradlab.model import SequenceModel

    cell = {"rnn": SimpleRNN, "lstm": LSTM, "gru": GRU}[model]
    sizes = {"features": 5, "hidden": 7, "layers": layers, "outputs": 3}
    built = SequenceModel(cell, readout="last", rngs=nnx.Rngs(0), **sizes)
    count = sum(array.size for array in jax.tree.leaves(nnx.state(built, nnx.Param)))
    assert parameters_of(model, 7, 5, 3, layers) == count


def test_levels_of_equal_hidden_size_have_estimates_over_seeds(tmp_path):
    losses = {"rnn": [0.3, 0.4, 0.5], "lstm": [0.1, 0.2, 0.15]}
    for model, values in losses.items():
        for seed, loss in enumerate(values):
            for hidden in (16, 8):
                make(tmp_path, model, hidden, seed=seed, loss=loss * hidden)
    by_hidden, _ = levels(tmp_path)
    assert by_hidden.by == "hidden size"
    assert by_hidden.note == ""
    expected = [("H = 8", [("rnn", 8), ("lstm", 8)]), ("H = 16", [("rnn", 16), ("lstm", 16)])]
    assert shape(by_hidden) == expected
    row = by_hidden.levels[1].rows[0]
    assert row.runs == 3
    assert row.parameters == 16 * (2 + 16 + 1) + 17
    assert row.figures["val/loss"] == pytest.approx(estimate([0.3 * 16, 0.4 * 16, 0.5 * 16]))


def test_counts_within_the_tolerance_are_matched_and_beyond_it_are_not(tmp_path):
    make(tmp_path, "rnn", 40, parameters=1000)
    make(tmp_path, "lstm", 20, parameters=round(1000 * (1 + TOLERANCE)))
    by_hidden, by_parameters = levels(tmp_path)
    assert shape(by_parameters) == [("about 1,100 parameters", [("rnn", 40), ("lstm", 20)])]
    assert by_hidden.levels == ()
    assert "(RNN: H = 40; LSTM: H = 20)" in by_hidden.note
    make(tmp_path / "b", "rnn", 40, parameters=1000)
    make(tmp_path / "b", "lstm", 20, parameters=round(1000 * (1 + TOLERANCE)) + 1)
    assert levels(tmp_path / "b")[1].levels == ()


def test_of_several_sizes_of_one_model_the_nearest_is_taken_and_none_twice(tmp_path):
    counts = {"rnn": [950, 1000, 1060, 5000], "lstm": [1010, 5100], "gru": [1005]}
    for model, those in counts.items():
        for index, count in enumerate(those):
            make(tmp_path, model, 10 + index, parameters=count)
    _, by_parameters = levels(tmp_path)
    found = [[(row.model, row.parameters) for row in one.rows] for one in by_parameters.levels]
    assert found[0] == [("rnn", 1000), ("lstm", 1010), ("gru", 1005)]
    assert found[1] == [("rnn", 5000), ("lstm", 5100)]
    assert len(found) == 2


def test_only_runs_with_equal_other_settings_stand_in_one_level(tmp_path):
    for rate in (0.1, 0.01):
        for model in ("rnn", "lstm"):
            make(tmp_path, model, 8, said=[f"optimizer.learning_rate={rate}"])
    make(tmp_path, "gru", 8, said=["optimizer.learning_rate=0.5"])
    by_hidden, _ = levels(tmp_path)
    pair = [("rnn", 8), ("lstm", 8)]
    assert shape(by_hidden) == [
        ("H = 8, learning_rate = 0.1", pair),
        ("H = 8, learning_rate = 0.01", pair),
    ]


def test_runs_of_other_tasks_or_lengths_are_not_pooled(tmp_path):
    for T in (50, 100):
        make(tmp_path, "rnn", 8, T=T)
        make(tmp_path, "lstm", 8, T=T)
    make(tmp_path, "gru", 8, T=100, task="Copying")
    by_hidden, _ = levels(tmp_path)
    pair = [("rnn", 8), ("lstm", 8)]
    assert shape(by_hidden) == [("H = 8, Adding, T = 50", pair), ("H = 8, Adding, T = 100", pair)]


def test_a_setting_of_one_model_tells_its_rows_apart(tmp_path):
    make(tmp_path, "rnn", 8)
    for bias in (0, 2):
        make(tmp_path, "lstm", 8, said=[f"model.cell.forget_bias={bias}"])
    by_hidden, _ = levels(tmp_path)
    rows = [("rnn", 8), ("lstm, forget_bias = 0", 8), ("lstm, forget_bias = 2", 8)]
    assert shape(by_hidden) == [("H = 8", rows)]


def test_one_model_in_two_variants_is_no_level(tmp_path):
    for bias in (0, 2):
        make(tmp_path, "lstm", 8, said=[f"model.cell.forget_bias={bias}"])
    by_hidden, by_parameters = levels(tmp_path)
    assert (by_hidden.levels, by_parameters.levels) == ((), ())
    assert by_hidden.note == "There is one model only, LSTM; a sweep over model= gives more."


def test_runs_that_did_not_finish_do_not_count(tmp_path):
    make(tmp_path, "rnn", 8)
    make(tmp_path, "lstm", 8, status="diverged")
    assert levels(tmp_path)[0].levels == ()
    assert matched([])[0].note == "No run has finished."


def test_the_sizes_that_would_match_are_foretold_where_the_counts_prove_the_formula(tmp_path):
    for model in ("rnn", "lstm", "gru"):
        make(tmp_path, model, 32)
    _, by_parameters = levels(tmp_path)
    goal = parameters_of("lstm", 32, 2, 1)
    best = {
        model: min(range(1, 300), key=lambda H: abs(parameters_of(model, H, 2, 1) - goal))
        for model in ("rnn", "gru")
    }
    assert "(RNN 1,153 at H = 32; LSTM 4,513 at H = 32; GRU 3,393 at H = 32)" in by_parameters.note
    assert f"To match the LSTM's {goal:,}, run model=rnn model.hidden={best['rnn']} (" in (
        by_parameters.note
    )
    assert f"model=gru model.hidden={best['gru']} (" in by_parameters.note
    for model, hidden in best.items():
        make(tmp_path, model, hidden)
    assert len(levels(tmp_path)[1].levels[0].rows) == 3


def test_nothing_is_foretold_where_the_counts_are_of_another_formula(tmp_path):
    make(tmp_path, "rnn", 32)
    make(tmp_path, "lstm", 32, parameters=4600)
    _, by_parameters = levels(tmp_path)
    assert "Sweep model.hidden" in by_parameters.note
    assert "model=rnn" not in by_parameters.note
    make(tmp_path / "b", "rnn", 32)
    make(tmp_path / "b", "mine", 32, parameters=9000)
    assert "Sweep model.hidden" in levels(tmp_path / "b")[1].note
