"""How many cores a job takes."""

from __future__ import annotations

import math
import multiprocessing
import os
import subprocess
import sys

import jax
import pytest

from gradlab.__main__ import main
from gradlab.launch import cores as room
from gradlab.launch.cores import cores, cores_of_job, use_cores
from gradlab.record.reader import open_run
from tests import ROOT
from tests.small import QUIET, TINY


@pytest.fixture
def eight(monkeypatch):
    """A machine of eight cores, all of them ours."""
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setattr(room, "_quota", lambda: math.inf)


def test_the_cores_are_those_that_the_process_may_use(eight, monkeypatch):
    assert cores({}) == 8
    assert cores({"SLURM_CPUS_PER_TASK": "3"}) == 3
    assert cores({"SLURM_CPUS_PER_TASK": "many"}) == 8
    assert cores({"SLURM_STEP_NUM_TASKS": "4"}) == 1
    assert cores({"SLURM_STEP_NUM_TASKS": "4", "SLURM_CPUS_PER_TASK": "2"}) == 2
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {1, 5})
    assert cores({}) == 2
    assert cores({"SLURM_CPUS_PER_TASK": "3"}) == 2
    monkeypatch.setattr(room, "_quota", lambda: 1)
    assert cores({}) == 1


def test_the_quota_is_the_tightest_of_the_control_groups(tmp_path):
    own, inner = tmp_path / "cgroup", tmp_path / "groups" / "a" / "b"
    own.write_text("1:cpu:/elsewhere\n0::/a/b\n")
    inner.mkdir(parents=True)
    assert room._quota(tmp_path / "groups", own) == math.inf
    (inner / "cpu.max").write_text("max 100000\n")
    (inner.parent / "cpu.max").write_text("250000 100000\n")
    assert room._quota(tmp_path / "groups", own) == 2
    (inner / "cpu.max").write_text("50000 100000\n")
    assert room._quota(tmp_path / "groups", own) == 1
    (inner / "cpu.max").write_text("what is this\n")
    assert room._quota(tmp_path / "groups", own) == math.inf
    assert room._quota(tmp_path / "groups", tmp_path / "nowhere") == math.inf


def test_a_job_beside_others_takes_one_core(eight, monkeypatch):
    for name in ("SLURM_CPUS_PER_TASK", "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(name, raising=False)
    basic = "hydra._internal.core_plugins.basic_launcher.BasicLauncher"
    assert cores_of_job(elsewhere=False, launcher=basic) == 8
    for launcher in ("joblib_launcher.JoblibLauncher", "gradlab_submitit.LocalLauncher"):
        assert cores_of_job(elsewhere=True, launcher=launcher) == 1
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "4")
    assert cores_of_job(elsewhere=True, launcher="gradlab_submitit.SlurmLauncher") == 4
    monkeypatch.setattr(multiprocessing, "parent_process", lambda: "another")
    assert cores_of_job(elsewhere=False, launcher=basic) == 1


def test_the_users_own_number_of_devices_holds(monkeypatch):
    asked = []
    monkeypatch.setattr(jax.config, "update", lambda *what: asked.append(what))
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=3")
    use_cores(8)
    assert asked == []
    monkeypatch.setenv("XLA_FLAGS", "")
    use_cores(8)
    assert asked == [("jax_num_cpu_devices", 8)]


SPLIT = [
    *(*TINY, *QUIET, "model=rnn", "probe=grad_norm", "record.wandb.mode=disabled"),
    *("trainer.batch=4", "trainer.log_every=1", "trainer.mesh=data"),
]


def two_devices() -> None:
    """A run over two of them in one go, and one that is resumed half-way by ``auto``."""
    use_cores(2)
    assert jax.device_count() == 2
    use_cores(3)  # too late, and no error
    for line in (
        [*SPLIT, "trainer.steps=6", "hydra.run.dir=straight"],
        [*SPLIT, "trainer.steps=3", "hydra.run.dir=resumed"],
        ["trainer.resume=resumed", "trainer.steps=6", "trainer.mesh=auto"],
    ):
        sys.argv[1:] = line
        main()


def test_a_resumed_run_keeps_its_split_or_says_that_it_cannot(command, tmp_path, caplog):
    done = subprocess.run(
        [sys.executable, "-m", "tests.launch.test_cores"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}"},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    straight, resumed = (open_run(tmp_path / name) for name in ("straight", "resumed"))
    assert [run.info["facts"]["split"] for run in (straight, resumed)] == [2, 2]
    assert "not_split" not in resumed.info["facts"]
    for name in ("train/loss", "train/grad_norm"):
        assert list(resumed.scalars[name].values) == list(straight.scalars[name].values)
    done = command("trainer.resume=resumed", "trainer.steps=7", "trainer.mesh=auto")
    assert done.code == 0
    assert caplog.text.count("resumed over 1 device where it was split over 2 before") == 1
    facts = open_run(tmp_path / "resumed").info["facts"]
    assert (facts["split"], facts["not_split"]) == (1, "there is one core for it")


if __name__ == "__main__":
    two_devices()
