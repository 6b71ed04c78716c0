"""Sweeps by ``hydra/launcher=population`` as a user meets them."""

import json
import os
import signal
import time

import numpy as np
import pytest

from gradlab.record.reader import open_run
from tests.record.wandb_file import load
from tests.small import QUIET, TINY, ended

TOGETHER = ["-m", "hydra/launcher=population"]
SMALL = [*TINY, *QUIET, "probe=adjoint"]


def runs(folder):
    paths = sorted(folder.glob("*/run.json"), key=lambda path: int(path.parent.name))
    return [open_run(path.parent) for path in paths]


@pytest.mark.slow
def test_a_sweep_trained_together_is_the_sweep(command, tmp_path):
    """Two models, two rates, and one rate that is refused; the rest as by Hydra's own launcher."""
    sweep = [*SMALL, "model=rnn,gru", "optimizer.learning_rate=0.1,-1,0.01", "seed=3"]
    done = command(*TOGETHER, *sweep, "hydra.sweep.dir=together")
    assert done.code == 2
    assert done.err.count("optimizer.learning_rate: got -1") == 2
    assert "job 1 (" in done.err
    assert "2 jobs of this sweep were refused" in done.err
    assert "2 programs of 2 members each, divided by model" in done.out
    command("-m", *sweep, "hydra.sweep.dir=apart")
    mine, theirs = runs(tmp_path / "together"), runs(tmp_path / "apart")
    assert [run.path.name for run in mine] == [run.path.name for run in theirs]
    assert len(mine) == 4
    for one, other in zip(mine, theirs, strict=True):
        assert one.status == "finished"
        assert one.info["overrides"] == other.info["overrides"]
        assert {p.name for p in one.path.iterdir()} == {p.name for p in other.path.iterdir()}
        settings = [
            {key: value for key, value in run.config.items() if key != "record"}
            for run in (one, other)
        ]
        assert settings[0] == settings[1]
        np.testing.assert_allclose(one.scalars["train/loss"], other.scalars["train/loss"], 1e-5)
        np.testing.assert_allclose(one.curves["adj_h_log10"], other.curves["adj_h_log10"], 1e-4)
    assert len({one.info["id"] for one in mine}) == 4


@pytest.mark.slow
def test_a_population_again_in_its_folder_is_refused_and_with_resume_is_left_as_it_is(
    command, tmp_path
):
    sweep = [*TOGETHER, *SMALL, "model=feedforward", "seed=0,1", "hydra.sweep.dir=sweep"]
    assert command(*sweep).code == 0
    before = [path.read_text() for path in sorted(tmp_path.glob("sweep/*/run.json"))]
    assert command(*sweep).code == 2
    assert command(*sweep, "trainer.resume=auto").code == 0
    assert [p.read_text() for p in sorted(tmp_path.glob("sweep/*/run.json"))] == before
    longer = command(*sweep, "trainer.resume=auto", "trainer.steps=5")
    assert longer.code == 0, longer.err
    assert [run.summary["steps"] for run in runs(tmp_path / "sweep")] == [5, 5]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["seed=range(0)"], "seed: got 'range(0)'\n  allowed: at least one value"),
        (["seed=range(10000)"], "the 10,000 jobs of this sweep; to begin and end them takes some"),
        (["seed=1,2", "hydra.launcher.at_once=0"], "hydra.launcher.at_once: got 0"),
        (["seed=1,2", "hydra.launcher.workers=x"], "hydra.launcher.workers: got 'x'"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_begins(command, tmp_path, arguments, message):
    done = command(*TOGETHER, *arguments)
    assert done.code == 2
    assert message in done.err
    assert not list(tmp_path.iterdir())


def test_members_too_large_for_memory_are_refused_with_the_estimate(command, tmp_path, monkeypatch):
    monkeypatch.setattr("gradlab.training.population.free", lambda _: 1000)
    done = command(*TOGETHER, *SMALL, "seed=0,1")
    assert done.code == 2
    assert "2 members that need about" in done.err
    assert "hydra.sweeper.max_batch_size=1" in done.err
    assert not list(tmp_path.glob("multirun/*/*/*/run.json"))


@pytest.mark.slow
def test_figures_and_wandb_are_made_beside_the_training(process, tmp_path):
    code, out, err = ended(process(*TOGETHER, *TINY, "probe=adjoint", "seed=0,1"))
    assert (code, err) == (0, "")
    (sweep,) = tmp_path.glob("multirun/*/*/")
    for run in runs(sweep):
        assert (run.path / "figures" / "loss.png").stat().st_size > 1000
        (file,) = run.path.glob("wandb/offline-run-*/run-*.wandb")
        kept = load(file)
        assert kept["run"].run_id == run.info["id"]
        assert kept["run"].run_group == sweep.name
        assert [row["train_step"] for row in kept["history"]] == list(run.scalars["step"])
        assert kept["exit"] == 0
        assert "figures/loss" in kept["history"][-1] or "figures" in kept["history"][-1]
    assert "2 finished" in out


@pytest.mark.slow
def test_looks_at_members_on_two_devices_do_not_wait_for_each_other(process, tmp_path):
    looks = ["probe=full", "probe.every=2", "trainer.steps=60", "trainer.log_every=2"]
    sizes = ["experiment=adding", "task.length=40", "model.hidden=16", "record.figures=false"]
    sweep = process(*TOGETHER, *sizes, *looks, *QUIET, "seed=range(4)")
    out, err = sweep.communicate(timeout=400)  # it stood still for ever with a thread a core
    assert (sweep.returncode, err) == (0, "")
    assert "4 finished" in out


@pytest.mark.slow
def test_a_population_that_is_stopped_goes_on_with_every_member(process, tmp_path):
    sweep = [*TOGETHER, *TINY, *QUIET, "probe=adjoint", "seed=range(3)"]
    longer = ["trainer.steps=3000", "trainer.log_every=100", "trainer.checkpoint_seconds=0.2"]
    assert ended(process(*sweep, *longer, "hydra.sweep.dir=whole"))[0] == 0
    alone = process(*TINY, *QUIET, "probe=adjoint", "seed=2", *longer, "hydra.run.dir=alone")
    assert ended(alone)[0] == 0
    dealt_out, solo = open_run(tmp_path / "whole" / "2"), open_run(tmp_path / "alone")
    losses = [run.scalars["train/loss"] for run in (dealt_out, solo)]
    np.testing.assert_allclose(*losses, rtol=1e-4)
    stopped = process(*sweep, *longer, "hydra.sweep.dir=parts")
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        steps = [len(run.scalars["step"]) for run in runs(tmp_path / "parts")]
        if len(steps) == 3 and min(steps) > 3:
            break
        time.sleep(0.2)
    os.kill(stopped.pid, signal.SIGTERM)
    code, _, _ = ended(stopped)
    assert code == 128 + signal.SIGTERM
    infos = [json.loads((run.path / "run.json").read_text()) for run in runs(tmp_path / "parts")]
    assert [info["status"] for info in infos] == ["interrupted"] * 3
    again = process(*sweep, *longer, "hydra.sweep.dir=parts", "trainer.resume=auto")
    assert ended(again)[0] == 0
    for mine, theirs in zip(runs(tmp_path / "parts"), runs(tmp_path / "whole"), strict=True):
        assert mine.status == "finished"
        np.testing.assert_array_equal(mine.scalars["train/loss"], theirs.scalars["train/loss"])
