"""Sweeps whose jobs run in other processes, and sweeps that are resumed by their folder."""

from __future__ import annotations

import importlib.util
import io
import json
import os
import re
import shutil
import signal
import time
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from gradlab.compare.jobs import folders, standing
from gradlab.errors import BadInput
from gradlab.launch.extras import EXTRAS, missing_extra
from gradlab.launch.resume import with_resumed
from gradlab.launch.session import Session
from gradlab.launch.sweep.elsewhere import Ended, bring_home, tell_losses
from gradlab.launch.sweep.jobs import name_of
from gradlab.launch.sweep.notes import Note, leave_note, read_notes
from gradlab.launch.sweep.watch import Watcher
from gradlab.record.lock import Lock
from gradlab.record.reader import open_run
from tests import ROOT

SMALL = [
    *("model.hidden=4", "task.length=8", "task.held_out_examples=4", "model=rnn"),
    *("trainer.batch=3", "trainer.log_every=2", "trainer.steps=3", "probe=adjoint"),
    *("record.figures=false", "record.wandb.mode=disabled"),
]
JOBS = [["model=rnn", f"seed={seed}"] for seed in range(4)]
CONF = ROOT / "conf"


def begin(sweep: Path, number: int, status: str | None = None, reason: str = "") -> Path:
    """A folder as a job leaves it: without a record, or with one of this status."""
    folder = sweep / str(number)
    (folder / ".hydra").mkdir(parents=True, exist_ok=True)
    (folder / ".hydra" / "hydra.yaml").write_text(
        f"hydra:\n  job:\n    name: gradlab\n    num: {number}\n"
    )
    if status is not None:
        info = {"status": status, "reason": reason}
        (folder / "run.json").write_text(json.dumps(info))
    return folder


def change(folder: Path, **info: object) -> None:
    """As if the run had said something else of itself."""
    file = folder / "run.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | info))


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """This process as one in which a launcher runs a job of the sweep in ``tmp_path``."""
    other = Session(sweep=tmp_path)
    monkeypatch.setattr("gradlab.launch.sweep.elsewhere.session", other)
    settings = OmegaConf.create({"job": {"num": 3}})
    monkeypatch.setattr("gradlab.launch.sweep.elsewhere.HydraConfig.get", lambda: settings)
    return other


# What a job in another process says, and how it ends.


def test_a_job_in_another_process_prints_into_its_own_folder(elsewhere, tmp_path, capsys):
    folder = begin(tmp_path, 3)

    def work() -> float:
        print("a line")
        return 1.5

    assert bring_home(work, folder) == 1.5
    assert capsys.readouterr().out == ""
    assert (folder / "output.txt").read_text() == "a line\n"
    assert bring_home(lambda: 2.5, begin(tmp_path, 2)) == 2.5
    assert not (tmp_path / "2" / "output.txt").exists()


def test_at_home_nothing_is_changed(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        "gradlab.launch.sweep.elsewhere.session", Session(process=1, sweep=tmp_path)
    )

    def work() -> float:
        print("a line")
        raise BadInput("seed", -1, "0 or more")

    with pytest.raises(BadInput):
        bring_home(work, tmp_path)
    assert capsys.readouterr().out == "a line\n"
    assert not list(tmp_path.iterdir())


def test_what_goes_wrong_in_another_process_leaves_a_note(elsewhere, tmp_path, capsys, monkeypatch):
    folder = begin(tmp_path, 3)

    def raises(error: BaseException):
        def work() -> float:
            raise error

        return work

    assert bring_home(raises(BadInput("seed", -1, "0 or more")), folder) != 0  # NaN
    assert read_notes(tmp_path)[3].refused
    with pytest.raises(RuntimeError, match="lost"):
        bring_home(raises(RuntimeError("lost")), folder)
    assert read_notes(tmp_path)[3] == Note(3, "RuntimeError: lost")
    assert "Traceback" in capsys.readouterr().err  # which does not travel
    change_to = {"status": "interrupted", "reason": "interrupted at step 5 (SIGTERM)"}
    (folder / "run.json").write_text(json.dumps(change_to))
    with pytest.raises(Ended):  # and does not end a process of a pool
        bring_home(raises(SystemExit(143)), folder)
    assert read_notes(tmp_path)[3].message == "interrupted at step 5 (SIGTERM)"
    assert bring_home(lambda: 1.0, folder) == 1.0  # it went well at last
    assert read_notes(tmp_path) == {}
    monkeypatch.setenv("SUBMITIT_EXECUTOR", "slurm")
    with pytest.raises(SystemExit):  # it may have asked to be queued again
        bring_home(raises(SystemExit(255)), folder)
    assert read_notes(tmp_path) == {}


def test_every_job_that_did_not_finish_is_named_with_its_reason(tmp_path, monkeypatch, capsys):
    home = Session(process=1, sweep=tmp_path, jobs=[*JOBS, ["model=rnn", "seed=4"]])
    home.watcher = Watcher(tmp_path, home.jobs, stream=io.StringIO())
    home.watcher.start()
    monkeypatch.setattr("gradlab.launch.sweep.elsewhere.session", home)
    begin(tmp_path, 0, "finished")
    begin(tmp_path, 1, "running")  # and nobody holds its lock
    begin(tmp_path, 3, "crashed", "OSError: no")
    leave_note(tmp_path, Note(2, "seed: got -1", refused=True))
    tell_losses(ValueError("two\nlines"))
    assert capsys.readouterr().err.splitlines() == [
        "gradlab: the launcher has given up: ValueError: two lines",
        "gradlab: job 2 (seed=2): seed: got -1",
        "gradlab: job 1 (seed=1): killed",
        "gradlab: job 3 (seed=3): OSError: no",
        "gradlab: job 4 (seed=4): never began",
    ]
    assert home.refused == ["job 2 (seed=2)"]
    assert home.failed[1:] == ["job 1 (seed=1)", "job 3 (seed=3)", "job 4 (seed=4)"]
    assert not (tmp_path / ".notes").exists()


# How the jobs stand.


def test_the_watcher_names_a_killed_job_once_and_tells_what_changes(tmp_path):
    said = io.StringIO()
    watcher = Watcher(tmp_path, JOBS, stream=said)
    watcher.look()
    begin(tmp_path, 0, "finished")
    begin(tmp_path, 1, "running")
    begin(tmp_path, 2)
    watcher.look()
    watcher.look()
    lock = Lock(begin(tmp_path, 2, "running"))
    lock.acquire()
    begin(tmp_path, 0, "diverged", "diverged at step 3")
    watcher.look()
    begin(tmp_path, 2, "finished")
    lock.release()
    leave_note(tmp_path, Note(3, "no", refused=True))
    watcher.look()
    lines = [
        re.sub("about .* left", "about TIME left", line) for line in said.getvalue().split("\n")
    ]
    assert lines == [
        "sweep: 0/4 finished, 4 waiting",
        "sweep: 1/4 finished, 1 starting, 1 killed: job 1 (seed=1), 1 waiting  about TIME left",
        "sweep: 0/4 finished, 1 diverged, 1 running, 1 killed: job 1 (seed=1), 1 waiting"
        "  about TIME left",
        "sweep: 1/4 finished, 1 diverged, 1 killed: job 1 (seed=1), 1 refused: job 3 (seed=3)"
        "  about TIME left",
        "",
    ]


def test_the_watcher_looks_by_itself_until_it_is_stopped(tmp_path):
    said = io.StringIO()
    watcher = Watcher(tmp_path, None, seconds=0.01, stream=said)
    watcher.start()
    begin(tmp_path, 0, "running")
    end = time.monotonic() + 10
    while "1 killed: job 0" not in said.getvalue():
        assert time.monotonic() < end
        time.sleep(0.01)
    begin(tmp_path, 0, "finished")
    watcher.stop()
    watcher.stop()
    assert said.getvalue().splitlines()[-1] == "sweep: 1 finished"


def test_a_launcher_that_starts_nothing_is_one_line(tmp_path, monkeypatch, capsys):
    home = Session(process=1, sweep=tmp_path, jobs=JOBS)
    home.watcher = Watcher(tmp_path, JOBS, stream=io.StringIO())
    home.watcher.start()
    monkeypatch.setattr("gradlab.launch.sweep.elsewhere.session", home)
    tell_losses(OSError("sbatch: invalid partition"))
    said = "gradlab: the launcher has given up: OSError: sbatch: invalid partition\n"
    assert capsys.readouterr().err == said
    assert home.failed


def test_jobs_are_found_below_any_subfolder_and_named_by_what_sets_them_apart(tmp_path):
    for number, place in enumerate(("rnn/0", "rnn/1", "lstm/0")):
        begin(tmp_path / place, number).rename(tmp_path / place / "x")
    (tmp_path / ".submitit" / "1").mkdir(parents=True)
    found = [path.relative_to(tmp_path).as_posix() for path in folders(tmp_path)]
    assert found == ["lstm/0/x", "rnn/0/x", "rnn/1/x"]
    assert standing(tmp_path / "rnn/1/x").number == 1
    assert standing(tmp_path / "rnn/1/x").status == "starting"
    assert name_of(2, JOBS) == "job 2 (seed=2)"
    assert name_of(0, JOBS[:1]) == "job 0 (model=rnn seed=0)"
    assert name_of(7, JOBS) == "job 7"
    assert name_of(None, JOBS, tmp_path / "rnn/1/x") == "job x"


# A job that is begun again, and a sweep that is.


def test_only_a_folder_that_this_command_made_is_an_earlier_start(tmp_path):
    old, new = tmp_path / "0", tmp_path / "rnn" / "1"
    job = Session(sweep=tmp_path, existed={old, tmp_path})
    assert not job.has_begun(old)
    assert job.has_begun(new)
    job.existed.add(tmp_path / "rnn")
    assert not job.has_begun(new)
    assert not Session(process=1, sweep=tmp_path).has_begun(new)  # no launcher begins it twice


def test_a_requeued_command_goes_on_by_itself(command, tmp_path, monkeypatch):
    line = [*SMALL, "hydra.run.dir=run", "record.terminal=false", "probe=none"]
    assert command(*line).code == 0
    assert command(*line).code == 2  # occupied
    change(tmp_path / "run", status="interrupted")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    done = command(*line)
    assert done.code == 0, done.err
    assert [one["from"] for one in open_run(tmp_path / "run").info["resumed"]] == ["interrupted"]


def test_a_sweep_goes_on_by_its_folder_alone(command, tmp_path, monkeypatch):
    """Also without -m; what was killed goes on, what never began begins, the rest is left."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "conf" / "experiment").mkdir(parents=True)
    mine = "# @package _global_\ndefaults:\n  - override /model: rnn\n"
    (tmp_path / "conf" / "experiment" / "mine.yaml").write_text(mine)
    line = ["experiment=mine", *SMALL, "seed=0,1,2", "record.terminal=false", "probe=none"]
    own = ["--config-dir", str(tmp_path / "conf")]
    first = command("-m", *own, *line, "hydra.sweep.dir=a sweep", "hydra.sweep.subdir=run${seed}")
    assert first.code == 0, first.err
    sweep = tmp_path / "a sweep"
    assert str(tmp_path) not in (sweep / "multirun.yaml").read_text()
    change(sweep / "run1", status="running")
    shutil.rmtree(sweep / "run2")
    before = (sweep / "run0" / "run.json").read_bytes()
    done = command("trainer.resume=a sweep")
    assert (done.code, done.out) == (2, "")
    assert done.err.endswith(f"try: --config-dir {tmp_path / 'conf'}\n")
    done = command(*own, "trainer.resume=a sweep")
    assert done.code == 0, done.err
    assert done.out.count("nothing left to do") == 1
    runs = [open_run(sweep / f"run{n}") for n in range(3)]
    assert [run.status for run in runs] == ["finished"] * 3
    assert [len(run.info["resumed"]) for run in runs] == [0, 1, 0]
    assert (sweep / "run0" / "run.json").read_bytes() == before
    done = command("-m", *own, "trainer.resume=a sweep")  # and once more, by what that has recorded
    assert done.out.count("nothing left to do") == 3, done.err


def test_the_launcher_of_a_sweep_is_taken_too_unless_another_is_given(tmp_path):
    recorded = {
        "overrides": {
            "task": ["seed=0,1", "task.path=~/x", "trainer.resume=auto"],
            "hydra": ["hydra/launcher=joblib", "hydra.mode=MULTIRUN", "hydra.sweep.dir=old"],
        },
        "runtime": {"config_sources": [{"path": "a", "provider": "main"}]},
    }
    OmegaConf.save(OmegaConf.create({"hydra": recorded}), tmp_path / "multirun.yaml")
    place = ["trainer.resume=auto", f"hydra.sweep.dir='{tmp_path}'"]
    path = f"task.path={Path.home()}/x"
    arguments = with_resumed(["-m", f"trainer.resume={tmp_path}"])
    assert arguments == ["-m", "seed=0,1", path, "hydra/launcher=joblib", *place]
    arguments = with_resumed([f"trainer.resume={tmp_path}", "hydra/launcher=basic"])
    assert arguments == ["-m", "hydra/launcher=basic", "seed=0,1", path, *place]
    with pytest.raises(BadInput, match=r"hydra.sweep.dir: got 'x'"):
        with_resumed([f"trainer.resume={tmp_path}", "hydra.sweep.dir=x"])
    (tmp_path / "multirun.yaml").write_text("hydra: [")
    with pytest.raises(BadInput, match=r"whose multirun.yaml can be read"):
        with_resumed([f"trainer.resume={tmp_path}"])


# What has to be installed.


@pytest.mark.parametrize("path", EXTRAS)
def test_a_launcher_without_its_package_names_the_extra(path):
    group, extra = EXTRAS[path]
    asked = []
    message = str(missing_extra(path, lambda group: asked.append(group) or "mine"))
    assert asked == [group]
    assert message.startswith(f"{group}: got 'mine'\n")
    assert f"try: pip install 'gradlab[{extra}]'" in message
    unsaid = str(missing_extra(path, lambda _: ""))
    assert unsaid.startswith(f"{group}: got '{path.rpartition('/')[2]}'\n")
    assert missing_extra("hydra/launcher/nothing", lambda _: "") is None


@pytest.mark.skipif(importlib.util.find_spec("ray") is not None, reason="Ray is installed")
def test_on_the_command_line_too(command, tmp_path):
    done = command("-m", "hydra/launcher=ray", "seed=0,1")
    assert (done.code, done.out) == (2, "")
    assert done.err.splitlines()[0] == "gradlab: hydra/launcher: got 'ray'"
    assert done.err.splitlines()[-1] == "  try: pip install 'gradlab[ray]'"
    assert not list(tmp_path.iterdir())


def test_an_option_of_ours_that_builds_on_another_has_an_extra():
    for path in (CONF / "hydra" / "launcher").glob("*.yaml"):
        first = (OmegaConf.load(path).get("defaults") or [None])[0]
        if first is None:
            continue
        assert f"hydra/launcher/{first}" in EXTRAS
        assert f"hydra/launcher/{path.stem}" in EXTRAS


def test_slurm_is_refused_where_there_is_none(command, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    done = command("-m", "hydra/launcher=slurm", "seed=0,1")
    assert (done.code, done.out) == (2, "")
    assert "hydra/launcher: got 'slurm'" in done.err
    assert "try: hydra/launcher=local" in done.err
    assert not list(tmp_path.iterdir())


# For real.


def kill_when_saved(running, sweep: Path, number: int) -> None:
    """SIGKILL for the process of a job, once it has a checkpoint."""
    folder, end = sweep / str(number), time.monotonic() + 100
    while not any(path.name.isdigit() for path in folder.glob("checkpoints/*")):
        assert running.poll() is None, running.communicate()
        assert time.monotonic() < end
        time.sleep(0.05)
    writer = re.match(r"process (\d+) on ", (folder / "writer.lock").read_text(errors="replace"))
    assert writer
    os.kill(int(writer[1]), signal.SIGKILL)


def sweep_with_a_wrong_job(process, tmp_path, launcher):
    line = ["-m", f"hydra/launcher={launcher}", *SMALL, "task.length=8,0,9", "hydra.sweep.dir=x"]
    out, err = (running := process(*line)).communicate(timeout=200)
    assert running.returncode == 2, err
    errors = [text for text in err.splitlines() if text.startswith("gradlab: ")]
    assert errors == [
        "gradlab: job 1 (task.length=0): task.length: got 0",
        "gradlab: 1 job of this sweep was refused, see above",
    ]
    assert "Traceback" not in err
    assert "sweep: 2/3 finished, 1 refused: job 1 (task.length=0)" in out
    assert {open_run(tmp_path / "x" / name).status for name in "02"} == {"finished"}
    assert not (tmp_path / "x" / "1").exists()
    assert not (tmp_path / "x" / ".notes").exists()


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["joblib", "local", "submitit_local"])
def test_a_wrong_job_fails_alone(process, tmp_path, launcher):
    sweep_with_a_wrong_job(process, tmp_path, launcher)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="gradlab[ray] is not installed")
def test_a_wrong_job_fails_alone_under_ray(process, tmp_path):
    sweep_with_a_wrong_job(process, tmp_path, "ray")


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["joblib", "local"])
def test_a_killed_job_is_named_and_one_command_goes_on(process, tmp_path, launcher):
    long = ["trainer.steps=40000", "trainer.log_every=20", "trainer.checkpoint_seconds=0.3"]
    line = ["-m", f"hydra/launcher={launcher}", *SMALL, *long, "seed=0,1,2", "hydra.sweep.dir=x"]
    running = process(*line)
    kill_when_saved(running, tmp_path / "x", 1)
    out, err = running.communicate(timeout=200)
    assert running.returncode == 1, err
    assert re.search(r"^gradlab: job 1 \(seed=1\): ", err, re.MULTILINE)
    assert "1 killed: job 1 (seed=1)" in out or "2 killed: job 0 (seed=0), job 1 (seed=1)" in out
    assert "python -m gradlab -m trainer.resume=x" in out
    siblings = [standing(tmp_path / "x" / name).status for name in "02"]
    if launcher == "local":  # joblib ends all of its processes with the first
        assert siblings == ["finished", "finished"]
        assert len(re.findall(r"^gradlab: job", err, re.MULTILINE)) == 1
    again = process("-m", "trainer.resume=x")
    out, err = again.communicate(timeout=200)
    assert again.returncode == 0, err
    runs = [open_run(tmp_path / "x" / name) for name in "012"]
    assert [run.status for run in runs] == ["finished"] * 3
    assert [one["from"] for one in runs[1].info["resumed"]] == ["killed"]
