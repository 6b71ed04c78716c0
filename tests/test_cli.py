"""The command line as a user meets it: in a process of its own, in an empty folder."""

import json
import math
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from gradlab.record.reader import open_run
from tests.small import QUIET, TINY, ended

MINE = {
    "conf/model/mine.yaml": "cell:\n  _target_: mine.Leaky\n  leak: 0.5  # in [0, 1]\n",
    "conf/task/mine.yaml": "_target_: mine.Echo\nlength: 8  # T, timesteps\n",
    "conf/probe/mine.yaml": "# @package probe.measure\nmine:\n  _target_: mine.Largest\n",
    "mine.py": '''
import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from gradlab.cells.base import Cell, HiddenCarry, NamedTuple
from gradlab.probes.base import StepProbe
from gradlab.tasks.base import Baseline, Batch, Task
from gradlab.variable import Variable


class Gates(NamedTuple):
    k: jax.Array


class Leaky(Cell):
    gate_names = ("k",)
    retention_gate = "k"

    def __init__(self, in_features: int, hidden_features: int, *, leak: float = 0.5, rngs):
        self.in_features, self.hidden_features, self.leak = in_features, hidden_features, leak
        self.dense = nnx.Linear(in_features, hidden_features, rngs=rngs)

    def step(self, carry, x):
        h = self.leak * carry.h + (1 - self.leak) * jnp.tanh(self.dense(x))
        return HiddenCarry(h), Gates(jnp.full_like(h, self.leak))


@dataclasses.dataclass(frozen=True)
class Echo(Task):
    """Say the first number that was read."""

    length: int = 8
    outputs, loss, readout = 1, "mse", "last"

    def sample(self, data, key, batch):
        x = jax.random.uniform(key, (self.length, batch, 1))
        return Batch(x, x[0])

    def held_out(self, split):
        return self.sample((), jax.random.key(["val", "test"].index(split)), 4)

    def baseline(self, split):
        return Baseline("always answer 1/2", 1 / 12)


@dataclasses.dataclass(frozen=True)
class Largest(StepProbe):
    def variables(self, setting):
        return {"largest_log10": Variable(("layer",), "log10", "largest adjoint of all")}

    def __call__(self, seen):
        return {"largest_log10": jnp.max(seen.adjoints["h"], axis=(1, 2))}
''',
}


def only_run(tmp_path):
    (info,) = tmp_path.glob("outputs/*/*/run.json")
    return info.parent


@pytest.mark.slow
def test_own_cell_task_and_probe_in_a_process_of_its_own(process, tmp_path):
    """Also: a normal run says nothing on stderr, and everything it promises is on disk."""
    for name, text in MINE.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    own = ["--config-dir", "conf", "model=mine", "task=mine", "probe=[adjoint,forget_product,mine]"]
    sizes = [option for option in TINY if "held_out" not in option]
    code, out, err = ended(process(*own, *sizes, "model.cell.leak=0.25"))
    assert (code, err) == (0, "")
    folder = only_run(tmp_path)
    run = open_run(folder)
    assert run.status == "finished"
    assert (run.info["facts"]["cell"], run.info["facts"]["task"]) == ("Leaky", "Echo")
    assert run.info["facts"]["task_in_words"] == "Say the first number that was read."
    # All that is known of a leaky unit: its gradient falls by the leak at every step back.
    adjoint = run.curves["adj_h_log10"].values
    np.testing.assert_allclose(np.diff(adjoint, axis=-1), -np.log10(0.25), rtol=1e-4)
    product = run.curves["forget_product_log10"].values
    np.testing.assert_allclose(product[0, 0], np.arange(7, -1, -1) * np.log10(0.25), rtol=1e-4)
    assert np.isfinite(run.curves["largest_log10"]).all()

    assert f"run directory: {folder.relative_to(tmp_path)}" in out
    figures = sorted(path.name for path in folder.glob("figures/*.png"))
    assert "loss.png" in figures
    for name in figures:
        assert f"figures/{name}" in out
    assert list(folder.glob("wandb/offline-run-*/*.wandb"))  # as WANDB_MODE says
    assert re.search(r"W&B: cd \S+ && .*wandb sync wandb/offline-run-", out)
    assert "\x1b" not in out  # no colours into a pipe
    assert (folder / ".hydra" / "config.yaml").exists()
    assert {p.name for p in tmp_path.iterdir()} - {"__pycache__"} == {"conf", "mine.py", "outputs"}


def test_bad_input_in_a_process_of_its_own(process, tmp_path):
    code, out, err = ended(process("trainer.steps=0"))
    assert (code, out) == (2, "")
    assert err == "gradlab: trainer.steps: got 0\n  allowed: a whole number of at least 1\n"
    assert not list(tmp_path.iterdir())


QUESTIONS = {
    "--help": ["model: feedforward", "python -m gradlab -m model=rnn,lstm", "clip_norm"],
    "--cfg job model=gru": ["_target_: gradlab.cells.GRU", "hidden: 32"],
    "--info defaults": ["model/lstm", "experiment/default"],
}
ASK = f"""
import contextlib, sys
from gradlab.__main__ import main
for question in {list(QUESTIONS)}:
    sys.argv = ["gradlab", *question.split()]
    with contextlib.suppress(SystemExit):
        main()
    print("ANSWERED")
print(*sys.modules)
"""


def test_questions_are_answered_without_jax(tmp_path):
    done = subprocess.run([sys.executable, "-c", ASK], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    *answers, imported = done.stdout.split("ANSWERED\n")
    for answer, words in zip(answers, QUESTIONS.values(), strict=True):
        for word in words:
            assert word in answer
    modules = set(imported.split())
    assert "hydra.main" in modules
    assert not modules & {"jax", "flax", "wandb", "matplotlib", "xarray", "gradlab.training.loop"}
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_an_interrupt_keeps_what_was_recorded(process, tmp_path):
    """As from a keyboard: the signal reaches every process of the terminal, W&B's too."""
    long = ["trainer.steps=10000000", "model=rnn", "probe=adjoint", "record.figures=false"]
    running = process(*TINY, *long)
    begun = time.monotonic()
    while not list(tmp_path.glob("outputs/*/*/arrays.zarr/train_loss/c/0")):
        assert running.poll() is None
        assert time.monotonic() - begun < 120
        time.sleep(0.1)
    os.killpg(running.pid, signal.SIGINT)
    code, out, err = ended(running)
    assert (code, err) == (130, "")
    run = open_run(only_run(tmp_path))
    assert run.status == "interrupted"
    assert re.fullmatch(r"interrupted at step \d+", run.info["reason"])
    assert run.scalars.sizes["step"] > 0
    assert np.isfinite(run.summary["val/loss"])
    assert "interrupted at step" in out


def test_a_sweep_gives_each_job_a_run_directory(command, tmp_path):
    sweep = ["-m", "model=rnn,feedforward", "seed=1,2", "probe=none"]
    done = command(*sweep, *TINY, *QUIET)
    assert (done.code, done.err) == (0, "")
    (folder,) = tmp_path.glob("multirun/*/*")
    runs = [open_run(folder / str(job)) for job in range(4)]
    assert {run.status for run in runs} == {"finished"}
    names = [(run.info["facts"]["model"], run.config["seed"]) for run in runs]
    assert names == [("rnn", 1), ("rnn", 2), ("feedforward", 1), ("feedforward", 2)]
    assert len({run.summary["test/loss"] for run in runs}) == 4
    made = sorted(path.name for path in folder.iterdir())
    assert made == ["0", "1", "2", "3", "compare.html", "multirun.yaml", "sweep.csv"]
    assert "sweep of 4 runs: 4 finished" in done.out


def test_the_siblings_of_a_refused_job_finish(command, tmp_path):
    done = command("-m", *TINY, "task.length=0,8", *QUIET, "model=feedforward", "probe=none")
    assert done.code == 2
    first, allowed, last = done.err.splitlines()
    assert first.startswith("gradlab: job 0 (")
    assert first.endswith("): task.length: got 0")
    assert "(task.length=0)" in first
    assert "at least 2" in allowed
    assert last == "gradlab: 1 job of this sweep was refused, see above"
    (folder,) = tmp_path.glob("multirun/*/*")
    assert sorted(path.name for path in folder.iterdir()) == ["1", "compare.html", "multirun.yaml"]
    assert open_run(folder / "1").status == "finished"


def test_a_run_that_diverges_keeps_its_record(command, tmp_path):
    explode = ["model=rnn", "model.cell.activation_fn=identity", "optimizer=sgd"]
    rate = ["optimizer.learning_rate=3", "optimizer.clip_norm=null"]
    done = command(*explode, *rate, *TINY, "trainer.steps=20", "trainer.log_every=1")
    assert (done.code, done.err) == (0, "")
    folder = only_run(tmp_path)
    run = open_run(folder)
    assert run.status == "diverged"
    reason = run.info["reason"]
    assert re.match(r"diverged at step \d+: in layer 0 .* timestep \d+ ", reason)
    assert reason in done.out
    step = int(re.findall(r"\d+", reason)[0])
    # The last row is the step that failed, with what could be measured and without a loss.
    assert run.scalars.step.values.tolist() == list(range(step + 1))
    assert np.isfinite(run.scalars["train/loss"]).values.tolist() == [True] * step + [False]
    assert 1 < step < 20
    assert np.isfinite(run.curves["adj_h_log10"][:-1]).all()
    assert math.isfinite(run.summary["train/loss"])
    assert (folder / "figures" / "loss.png").stat().st_size > 1000


def test_a_crash_shows_its_traceback_and_is_recorded(command, tmp_path, monkeypatch):
    def fails(*_):
        raise RuntimeError("the disk is full")

    monkeypatch.setattr("gradlab.training.loop._Loop.go", fails)
    with pytest.raises(RuntimeError, match="the disk is full"):
        command(*TINY, *QUIET, "model=feedforward", "probe=none")
    info = json.loads((only_run(tmp_path) / "run.json").read_text())
    assert (info["status"], info["reason"]) == ("crashed", "RuntimeError: the disk is full")


def test_tensorboard_is_written_only_when_asked_for(command, tmp_path):
    small = [*TINY, *QUIET, "model=feedforward", "probe=none"]
    for name, choice in (("with", ["record.tensorboard=true"]), ("without", [])):
        assert command(*small, *choice, f"hydra.run.dir={name}").code == 0
    (path,) = (tmp_path / "with" / "tensorboard").iterdir()
    assert path.name.startswith("events.out.tfevents.")
    assert b"train/loss" in path.read_bytes()
    assert (tmp_path / "without" / "run.json").exists()
    assert not (tmp_path / "without" / "tensorboard").exists()


def test_tensorboard_without_its_package_is_refused(command, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    done = command(*TINY, *QUIET, "record.tensorboard=true")
    assert (done.code, done.out) == (2, "")
    assert "record.tensorboard: got True" in done.err
    assert "pip install 'gradlab[tensorboard]'" in done.err
    assert not list(tmp_path.iterdir())


def test_an_interrupt_before_the_run_leaves_nothing(command, tmp_path, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("gradlab.recording.build_steps", interrupt)
    done = command(*TINY, *QUIET)
    assert (done.code, done.out, done.err) == (130, "", "gradlab: interrupted\n")
    assert not list(tmp_path.iterdir())


def test_an_environment_variable_of_wandb_is_a_default(command, monkeypatch):
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    assert "mode: disabled" in command("--cfg", "job", "--resolve").out  # see conftest.py
    assert "project: mine" in command("--cfg", "job", "--resolve").out
    chosen = command("--cfg", "job", "--resolve", "record.wandb.project=other").out
    assert "project: other" in chosen
