"""Which runs are found in a folder, and by which settings they differ."""

import dataclasses
import math
import shutil
from pathlib import Path

import pytest

from gradlab.compare.runs import Entry, runs_in, settings_that_differ
from gradlab.errors import BadInput
from gradlab.record.base import Outcome
from gradlab.record.directory import RunDirectory
from tests.compare.sweeps import BASE, make_run
from tests.record.synthetic import describe


def begun(folder, *overrides, number=None):
    """What Hydra leaves of a job before its run begins."""
    (folder / ".hydra").mkdir(parents=True)
    (folder / ".hydra" / "overrides.yaml").write_text("".join(f"- {one}\n" for one in overrides))
    if number is not None:
        (folder / ".hydra" / "hydra.yaml").write_text(f"hydra:\n  job:\n    num: {number}\n")


def test_runs_come_in_order_of_their_job_number(tmp_path):
    for number in (10, 9, 0):
        begun(tmp_path / str(number))
    assert [run.name for run in runs_in(tmp_path)] == ["0", "9", "10"]


def test_names_that_are_no_numbers_are_ordered_by_what_hydra_recorded(tmp_path):
    for number, name in enumerate(("b", "c", "a")):
        begun(tmp_path / "deep" / name, number=number)
    begun(tmp_path / "deep" / "x2")
    begun(tmp_path / "deep" / "x10")
    names = [run.name for run in runs_in(tmp_path)]
    assert names == ["deep/b", "deep/c", "deep/a", "deep/x2", "deep/x10"]


def test_the_number_that_hydra_wrote_comes_before_the_folders_name(tmp_path):
    for number, name in enumerate(("08", "3", "a/7", "1_5")):
        begun(tmp_path / name, number=number)
    found = runs_in(tmp_path)
    assert [run.name for run in found] == ["08", "3", "a/7", "1_5"]
    assert [run.number for run in found] == [0, 1, 2, 3]
    other = tmp_path / "3" / ".hydra" / "hydra.yaml"
    other.write_text("hydra:\n  launcher:\n    num: 9\n  job:\n    env_set: {}\n")
    assert {run.name: run.number for run in runs_in(tmp_path)}["3"] == 3


def test_a_run_is_read_with_what_it_recorded(tmp_path):
    make_run(tmp_path / "0", ["seed=3"], {"val/loss": 0.5, "test/loss": float("nan")})
    (run,) = runs_in(tmp_path)
    assert (run.name, run.status, run.overrides) == ("0", "finished", ("seed=3",))
    assert run.config["seed"] == 3
    assert run.summary["val/loss"] == 0.5
    assert run.summary["test/loss"] != run.summary["test/loss"]
    assert run.summary["steps_per_second"] == 100
    assert [one.path for one in runs_in(tmp_path / "0")] == [tmp_path / "0"]


def test_the_figure_of_the_first_layer_is_found_by_its_name(tmp_path):
    make_run(tmp_path, summary={"adjoint_slope/layer_0": -0.5, "adjoint_slope/layer_1": -0.1})
    (run,) = runs_in(tmp_path)
    assert run.figure("adjoint_slope") == -0.5
    assert run.figure("lyapunov_exponent") != run.figure("lyapunov_exponent")


def test_what_is_no_whole_run_is_an_entry_with_a_reason(tmp_path):
    begun(tmp_path / "0", "model=rnn", "'task.length=[1,2]'")
    make_run(tmp_path / "1", status="killed")
    going = RunDirectory(tmp_path / "2")
    going.open(dataclasses.replace(describe(), name="adding", config=BASE))
    make_run(tmp_path / "3", status="crashed", reason="ValueError: no")
    whole = make_run(tmp_path / "4")
    shutil.copytree(tmp_path / "4", tmp_path / "5")
    text = (whole / "run.json").read_text()
    (tmp_path / "4" / "run.json").write_text(text[: len(text) // 2])
    (tmp_path / "5" / "run.json").write_bytes(b"\xff[]")
    (tmp_path / "6" / "run.json").mkdir(parents=True)
    runs = runs_in(tmp_path)
    going.close(Outcome("finished"))
    statuses = ["never began", "killed", "running", "crashed", *["unreadable"] * 3]
    assert [run.status for run in runs] == statuses
    assert all(run.reason for run in runs if run.status != "running")
    assert runs[0].overrides == ("model=rnn", "task.length=[1,2]")
    assert runs[3].reason == "ValueError: no"
    found = settings_that_differ(runs)
    assert found == {"model": ["rnn", *["lstm"] * 3, *[None] * 3]}


def test_what_the_system_does_not_let_us_read_is_an_entry_too(tmp_path, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied")

    make_run(tmp_path / "0")
    monkeypatch.setattr("gradlab.compare.runs.glance", refuse)
    (run,) = runs_in(tmp_path)
    assert (run.status, run.reason) == ("unreadable", "[Errno 13] Permission denied")


def test_a_path_that_is_no_folder_is_refused(tmp_path):
    with pytest.raises(BadInput, match="the folder of a sweep"):
        runs_in(tmp_path / "missing")
    assert runs_in(tmp_path) == []


def differing(tmp_path, *runs, settings=()):
    for number, overrides in enumerate(runs):
        more = settings[number] if settings else None
        make_run(tmp_path / str(number), overrides.split(), settings=more)
    return settings_that_differ(runs_in(tmp_path))


def test_a_group_is_one_setting_whatever_its_options_hold(tmp_path):
    runs = ["seed=0 model=rnn", "seed=1 model=rnn", "seed=0 model=lstm", "seed=1 model=lstm"]
    found = differing(tmp_path, *runs)
    assert found == {"model": ["rnn", "rnn", "lstm", "lstm"], "seed": [0, 1, 0, 1]}
    assert list(found) == ["model", "seed"]


def test_a_group_that_was_asked_for_in_some_runs_only_has_its_option_in_all(tmp_path):
    assert differing(tmp_path, "model=rnn", "") == {"model": ["rnn", "lstm"]}


def test_a_key_of_one_option_is_no_setting_but_one_that_varies_within_it_is(tmp_path):
    one = "model.cell.forget_bias"
    assert differing(tmp_path, "model=rnn", f"model=lstm {one}=2") == {"model": ["rnn", "lstm"]}
    found = differing(tmp_path / "b", "model=rnn", f"model=lstm {one}=2", f"model=lstm {one}=3")
    assert found == {"model": ["rnn", "lstm", "lstm"], one: [None, 2, 3]}


def test_what_an_experiment_brings_is_no_setting(tmp_path):
    settings = [{"task.length": 8, "trainer.steps": 4}, {"task.length": 9, "trainer.steps": 5}]
    found = differing(tmp_path, "experiment=a", "experiment=b", settings=settings)
    assert found == {"experiment": ["a", "b"]}


def test_everything_that_was_asked_for_is_kept_though_it_varies_together(tmp_path):
    runs = [f"optimizer.learning_rate={0.1 * k} model.hidden={k}" for k in (1, 2, 3)]
    found = differing(tmp_path, *runs)
    assert list(found) == ["optimizer.learning_rate", "model.hidden"]
    assert found["model.hidden"] == [1, 2, 3]


def test_keys_that_nobody_asked_for_are_one_where_they_vary_together(tmp_path):
    settings = [{"task.length": k, "model.hidden": 2 * k} for k in (1, 2)]
    settings += [{"task.length": 2, "model.hidden": 4}]
    found = differing(tmp_path, "seed=0", "seed=1", "seed=2", settings=settings)
    assert found == {"model.hidden": [2, 4, 4], "seed": [0, 1, 2]}


def test_what_an_earlier_version_had_no_choice_of_is_as_it_was_then(tmp_path):
    new = {"model.initial_state": "zero", "trainer.backward": "full", "trainer.segments": "auto"}
    for number, settings in enumerate((None, new)):
        make_run(tmp_path / f"{number}", [f"seed={number}"], settings=settings)
    runs = runs_in(tmp_path)
    assert settings_that_differ(runs) == {"seed": [0, 1]}
    make_run(tmp_path / "2", ["seed=0"], settings=new | {"model.initial_state": "learned"})
    (key, values), _ = settings_that_differ(runs_in(tmp_path)).items()
    assert (key, values) == ("model.initial_state", ["zero", "zero", "learned"])
    assert len({run.sample for run in runs}) == 2
    make_run(tmp_path / "3", ["seed=0"], settings=new)  # the first again, by this version
    *_, again = runs_in(tmp_path)
    assert again.sample == runs[0].sample


def test_where_the_measurements_go_is_no_setting(tmp_path):
    runs = ["record.figures=false seed=0", "record.figures=true seed=0 trainer.resume=auto"]
    assert differing(tmp_path, *runs) == {}


def test_a_job_that_never_began_has_the_settings_of_its_overrides(tmp_path):
    more = ["record.figures=false", "optimizer.clip_norm=1"]
    make_run(tmp_path / "0", ["model=rnn", "task.length=8", *more])
    make_run(tmp_path / "1", ["model=lstm", "task.length=8", *more])
    begun(tmp_path / "2", "model=lstm", "task.length=9", "optimizer.clip_norm=1.0")
    found = settings_that_differ(runs_in(tmp_path))
    assert found == {"model": ["rnn", "lstm", "lstm"], "task.length": [8, 8, 9]}


@pytest.mark.parametrize("seed", [3, "three", [3], {"a": 3}, None, math.nan])
def test_whatever_is_recorded_for_a_seed_tells_runs_apart(seed):
    """A list, as a record that somebody sends may hold, cannot be looked up as it is."""
    one = Entry(Path("a"), "a", "finished", config={"seed": seed})
    assert {one.seed: 1}[one.seed] == 1
    assert one.seed == Entry(Path("b"), "b", "finished", config={"seed": seed}).seed
    assert Entry(Path("a"), "a", "finished").seed != Entry(Path("b"), "b", "finished").seed
