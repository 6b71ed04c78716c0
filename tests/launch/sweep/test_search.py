"""A search by Optuna: what it proposes, what it keeps, and that it goes on after a kill."""

import contextlib
import json
import math
import os
import pickle
import re
import signal
import sqlite3
import time

import cmaes
import numpy as np
import optuna
import pytest
from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins

from gradlab.launch.job import worth
from tests.small import QUIET, TINY
from tests.torture.payloads import Touch

SPACE = [
    "optimizer.learning_rate=tag(log,interval(1e-4,1e-1))",
    "model.cell.forget_bias=interval(-1.0,3.0)",
]
SEARCH = ["-m", "hydra/sweeper=search", *TINY, *QUIET, *SPACE]
FOLDER = "outputs/search/default"


def loss(config):
    """A valley; beyond a learning rate of 0.05 the run diverges."""
    rate, bias = config["optimizer"]["learning_rate"], config["model"]["cell"]["forget_bias"]
    return math.nan if rate > 0.05 else (math.log10(rate) + 2) ** 2 + (bias - 1) ** 2


@pytest.fixture
def search(command, monkeypatch):
    """``search("hydra.sweeper.n_trials=3", ..., killed_in=5)``, with a formula in place of runs."""

    def go(*arguments, said=SEARCH, killed_in=None, figure=loss, **figures):
        def run(job):
            if job.folder.name == str(killed_in):
                raise SystemExit(137)
            found = {"status": "finished", "val/loss": figure(job.experiment.config), **figures}
            return worth(job, found)

        monkeypatch.setattr("gradlab.launch.job.perform", run)
        return command(*said, *arguments)

    return go


def study(folder=FOLDER, name="default"):
    return optuna.load_study(study_name=name, storage=f"sqlite:///{folder}/study.db")


def trials(folder=FOLDER):
    return [(t.number, t.params, t.values, t.state.name) for t in study(folder).trials]


@pytest.mark.slow
@pytest.mark.parametrize("together", [1, 2])
def test_a_search_that_was_stopped_makes_the_trials_of_one_that_was_not(search, together):
    """With random trials at first, then those of TPE; and whether one or two go together."""
    settings = [f"hydra.sweeper.n_jobs={together}", "hydra.sweeper.n_trials=5"]
    settings.append("hydra.sweeper.sampler.n_startup_trials=2")
    whole = search(*settings, "hydra.sweep.dir=whole")
    assert whole.code == 0
    for last in (1, 3):
        assert search(*settings, killed_in=last).code == 137
        assert trials()[-1][3] == "RUNNING"
    # Once by the same command, once by the folder.
    assert search(f"trainer.resume={FOLDER}", said=["-m"]).code == 0
    assert trials() == trials("whole")
    states = [state for *_, state in trials()]
    assert {"COMPLETE", "FAIL"} == set(states)  # a run that diverged has failed, no more
    assert len({str(params) for _, params, _, _ in trials()}) == 5


def test_enough_trials_are_enough_and_more_can_be_asked_for(search, tmp_path):
    search("hydra.sweeper.n_trials=2")
    before = trials()
    again = search("hydra.sweeper.n_trials=2", killed_in=0)
    assert (again.code, trials()) == (0, before)
    best = min((values[0], number) for number, _, values, state in before if state == "COMPLETE")
    assert f"best: trial {best[1]}, val/loss {best[0]:.4g}" in again.out
    written = (tmp_path / FOLDER / "optimization_results.yaml").read_text()
    assert f"best_value: {best[0]}" in written
    search("hydra.sweeper.n_trials=3")
    assert trials()[:2] == before
    assert [number for number, *_ in trials()] == [0, 1, 2]


def test_nothing_but_the_state_of_cma_es_is_unpickled(search, tmp_path):
    line = ["hydra/sweeper/sampler=cmaes", "hydra.sweeper.n_trials=1"]
    assert search(*line).code == 0
    state = cmaes.CMA(mean=np.zeros(2), sigma=1.0, bounds=np.array([[0, 1], [0, 1]]))
    state.tell([(state.ask(), 1.0) for _ in range(state.population_size)])
    mark = tmp_path / "mark"

    def resumed_from(kept):
        with contextlib.closing(sqlite3.connect(f"{FOLDER}/study.db")) as database, database:
            line = (
                "REPLACE INTO trial_system_attributes (trial_id, key, value_json) VALUES (1, ?, ?)"
            )
            database.execute(line, ["cma:optimizer", json.dumps(pickle.dumps(kept).hex())])
        return search(f"trainer.resume={FOLDER}", "hydra.sweeper.n_trials=1", said=[])

    done = resumed_from(state)
    assert done.code == 0, done.err
    done = resumed_from(Touch(mark))
    assert (done.code, mark.exists()) == (2, False)
    assert "a folder whose study can be read; trial 0: UnpicklingError: it names" in done.err


def test_several_objectives(search):
    both = ["objective=[val/loss,'|test/loss|']", "hydra.sweeper.direction=[minimize,maximize]"]
    done = search(*both, "hydra.sweeper.n_trials=2", **{"test/loss": -2.0})
    assert done.code == 0
    assert {tuple(t.values)[1] for t in study().trials if t.values} == {2.0}
    assert re.search(r"^best: trial \d, val/loss .*, \|test/loss\| 2: ", done.out, re.MULTILINE)


def test_a_search_without_a_result_says_so(search):
    done = search("hydra.sweeper.n_trials=1", figure=lambda _: math.nan)
    assert done.code == 1
    assert "no trial of the search has a result" in done.err
    done = search(
        "hydra.sweeper.max_failure_rate=0.5",
        "hydra.sweeper.study_name=strict",
        figure=lambda _: math.nan,
    )
    assert done.code == 2
    assert "hydra.sweeper.max_failure_rate: got 0.5" in done.err


def test_a_job_that_crashes_is_a_failed_trial(search):
    done = search("hydra.sweeper.n_trials=2", figure=lambda _: {}["not there"])
    assert done.code == 1
    assert "trial 0: failed" in done.out
    assert [state for *_, state in trials()] == ["FAIL", "FAIL"]


REFUSED = {
    "hydra.sweeper.n_jobs=0": ["hydra.sweeper.n_jobs: got 0", "at least 1"],
    "hydra.sweeper.n_trials=x": ["hydra.sweeper.n_trials: got 'x'", "a whole number"],
    "hydra.sweeper.direction=up": ["hydra.sweeper.direction: got 'up'", "minimize | maximize"],
    "objective=[val/loss,steps]": [
        "hydra.sweeper.direction",
        "'hydra.sweeper.direction=[minimize,",
    ],
    "objective=val/los": ["objective: got 'val/los'", "val/loss, ", "try: objective=val/loss"],
    "task.length=0": ["task.length: got 0"],
    "optimizer.learning_rate=interval(-3.0,-1.0)": ["optimizer.learning_rate: got -"],
}


@pytest.mark.parametrize("wrong", REFUSED)
def test_a_wrong_setting_is_refused_once_and_leaves_no_study(search, tmp_path, wrong):
    done = search(wrong)
    assert (done.code, done.out) == (2, "")
    assert done.err.count("gradlab: ") == 1
    for words in REFUSED[wrong]:
        assert words in done.err
    assert not (tmp_path / FOLDER).exists()


def test_another_search_of_the_same_name_is_refused(search):
    search("hydra.sweeper.n_trials=1")
    before = trials()
    for other in ("model.cell.forget_bias=interval(0.0,1.0)", "objective=test/loss"):
        done = search(other)
        assert done.code == 2
        assert "hydra.sweeper.study_name: got 'default'" in done.err
        assert other.partition("=")[0] in done.err
    assert search("record.figures=true", "hydra.sweeper.n_trials=1").code == 0  # changes no figure
    assert trials() == before


def test_without_the_package_the_extra_is_named(command, monkeypatch):
    Plugins.instance()  # which fills the store
    for option in ("optuna.yaml", "sampler"):
        monkeypatch.delitem(ConfigStore.instance().repo["hydra"]["sweeper"], option)
    for option in ("search", "optuna"):
        done = command("-m", f"hydra/sweeper={option}", "seed=1")
        assert (done.code, done.out) == (2, "")
        assert done.err.count("gradlab: ") == 1
        assert f"hydra/sweeper: got '{option}'" in done.err
        assert "pip install 'gradlab[optuna]'" in done.err


@pytest.mark.slow
def test_a_search_killed_in_the_middle_of_a_run_goes_on(process, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    long = ["trainer.steps=20000", "trainer.log_every=500", "trainer.checkpoint_seconds=0.5"]
    long += ["probe=none", "hydra.sweeper.n_trials=3"]
    whole = process(*SEARCH, *long, "hydra.sweep.dir=whole")
    _, err = whole.communicate(timeout=240)
    assert (whole.returncode, err) == (0, "")
    killed = process(*SEARCH, *long)
    checkpoints = tmp_path / FOLDER / "1" / "checkpoints"
    end = time.monotonic() + 120
    while not any(path.name.isdigit() for path in checkpoints.glob("*")):
        assert time.monotonic() < end
        assert killed.poll() is None
        time.sleep(0.02)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.communicate()
    before = trials()
    assert [state for *_, state in before] == ["COMPLETE", "RUNNING"]
    again = process(*SEARCH, *long)
    out, err = again.communicate(timeout=240)
    assert again.returncode == 0, err
    made = [line for line in out.splitlines() if line.startswith("trial")]
    assert [line.split(":")[0] for line in made] == ["trial 1", "trial 2"]
    assert trials() == trials("whole")
    resumed = json.loads((tmp_path / FOLDER / "1" / "run.json").read_text())["resumed"]
    assert [one["from"] for one in resumed] == ["killed"]
    assert f"val/loss {min(values[0] for _, _, values, _ in trials()):.4g}: " in out
