"""``trainer.resume`` on the command line: what goes on, and what is refused."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time

import numpy as np
import pytest

from gradlab.errors import BadInput
from gradlab.launch.resume import with_resumed
from gradlab.record.reader import open_run

SMALL = [
    *("model.hidden=4", "task.length=8", "task.held_out_examples=4", "model=rnn"),
    *("trainer.batch=3", "trainer.log_every=2", "probe=none"),
    *("record.figures=false", "record.terminal=false"),
]


def change(folder, **info):
    """As if the run had said something else of itself."""
    file = folder / "run.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | info))


def test_a_run_goes_on_by_its_path_alone(command, tmp_path):
    first = command(*SMALL, "trainer.steps=3", "hydra.run.dir=a run")
    assert first.code == 0, first.err
    folder, hydra = tmp_path / "a run", (tmp_path / "a run" / ".hydra" / "config.yaml").read_text()
    done = command("trainer.resume=a run")
    assert (done.code, done.err) == (0, "")
    assert "finished: nothing left to do" in done.out
    change(folder, status="running")  # killed just before its end
    before = open_run(folder).scalars.load()
    done = command("trainer.resume='a run'", "trainer.steps=7")
    assert done.code == 0, done.err
    after = open_run(folder)
    assert list(after.scalars["step"]) == [0, 2, 4, 6]
    assert after.scalars.isel(step=slice(2)).equals(before)
    assert after.config["model"]["hidden"] == 4
    assert after.config["trainer"]["steps"] == 7
    assert after.info["overrides"][-1] == "trainer.resume='a run'"
    assert "model.hidden=4" in after.info["overrides"]
    assert (folder / ".hydra" / "config.yaml").read_text() == hydra
    assert not (tmp_path / "outputs").exists()


def test_auto_begins_goes_on_and_stops(command, tmp_path):
    line = [*SMALL, "trainer.steps=3", "trainer.resume=auto"]
    assert command(*line).code == 0
    (folder,) = (tmp_path / "outputs").glob("*/*")
    assert command(*line).code == 0  # that one is finished: another begins
    assert len(list((tmp_path / "outputs").glob("*/*"))) == 2
    change(folder, status="interrupted")
    assert command(*line, "seed=1").code == 0  # that is another command
    assert len(list((tmp_path / "outputs").glob("*/*"))) == 3
    assert command(*line).code == 0
    assert len(list((tmp_path / "outputs").glob("*/*"))) == 3
    assert len(open_run(folder).info["resumed"]) == 1


def test_a_sweep_goes_on_with_each_of_its_runs(command, tmp_path):
    line = ["-m", *SMALL, "trainer.steps=3", "seed=0,1", "hydra.sweep.dir=sweep"]
    line.append("trainer.resume=auto")
    done = command(*line)
    assert done.code == 0, done.err
    change(tmp_path / "sweep" / "1", status="running")
    done = command(*line)
    assert done.code == 0, done.err
    assert done.out.count("nothing left to do") == 1
    runs = [open_run(tmp_path / "sweep" / str(n)) for n in range(2)]
    assert [len(run.info["resumed"]) for run in runs] == [0, 1]
    assert runs[0].info["id"] != runs[1].info["id"]


@pytest.fixture(scope="module")
def once(tmp_path_factory):
    """Where a run lies that has ended, once a test has needed one."""
    return tmp_path_factory.mktemp("once") / "ended"


@pytest.fixture
def ended(command, tmp_path, once):
    """A run that has ended, the test's own copy of it."""
    if not once.exists():
        assert command(*SMALL, "trainer.steps=3", "hydra.run.dir=ended").code == 0
        shutil.move(tmp_path / "ended", once)
    return shutil.copytree(once, tmp_path / "ended")


def test_what_cannot_go_on_is_refused(command, ended):
    """One message each: the key, what was given, what is allowed."""
    before = {path: path.stat().st_mtime_ns for path in ended.rglob("*")}

    def refused(*arguments) -> str:
        done = command("trainer.resume=ended", *arguments)
        assert done.code == 2, (arguments, done)
        assert "Traceback" not in done.err
        return done.err

    assert "model.hidden: got 5\n  allowed: 4, as in the run" in refused("model.hidden=5")
    assert "as in the run that is resumed" in refused("model=lstm")
    assert "seed: got 3" in refused("seed=3")
    assert "trainer.steps: got 2\n  allowed: 3" in refused("trainer.steps=2")
    assert "hydra.run.dir: got 'elsewhere'" in refused("hydra.run.dir=elsewhere")
    assert "trainer.resume: got 'ended'\n  allowed: auto, in a sweep" in refused("-m", "seed=0,1")
    assert {path: path.stat().st_mtime_ns for path in ended.rglob("*")} == before
    for status, message in (
        ({"status": "diverged", "reason": "diverged at step 2"}, "this one diverged at step 2"),
        ({"format": 99}, "this one is of format 99"),
        ({"format": 1, "id": None}, None),
    ):
        change(ended, **status)
        if message:
            assert message in refused("trainer.steps=4")


def test_what_is_no_run_is_refused(command, tmp_path):
    (tmp_path / "folder").mkdir()
    for given in ("folder", "missing"):
        done = command(f"trainer.resume={given}")
        assert done.code == 2
        assert f"trainer.resume: got '{given}'\n  allowed: a run directory" in done.err
    assert list((tmp_path / "folder").iterdir()) == []
    assert not (tmp_path / "missing").exists()


def test_a_run_that_is_going_is_refused(command, ended):
    from gradlab.record.lock import Lock

    change(ended, status="running")
    lock = Lock(ended)
    lock.acquire()
    done = command("trainer.resume=ended", "trainer.steps=5")
    lock.release()
    assert done.code == 2
    assert "this one is still going" in done.err


def test_a_run_without_a_part_of_its_arrays_is_refused(command, ended):
    change(ended, status="running")
    (ended / "arrays.zarr" / "step" / "c" / "0").unlink()
    done = command("trainer.resume=ended")
    assert done.code == 2
    assert "a run that is whole; arrays.zarr/step/c/0" in done.err


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write everywhere")
def test_no_permission_is_said(command, ended):
    change(ended, status="running")
    ended.chmod(0o500)
    try:
        done = command("trainer.resume=ended")
    finally:
        ended.chmod(0o700)
    assert done.code == 1
    assert "Permission denied" in done.err


def wait_for_rows(running, folder, rows):
    """Until a run in another process has recorded so many."""
    end = time.monotonic() + 90
    while not (folder / "run.json").exists() or open_run(folder).scalars.sizes["step"] < rows:
        assert running.poll() is None, running.communicate()
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_killed_run_goes_on_to_the_same_end(process, command, tmp_path):
    """SIGKILL between two checkpoints, in a process of its own; the longer half is a script."""
    line = [*SMALL, "trainer.steps=3000", "trainer.log_every=20", "trainer.checkpoint_seconds=0.1"]
    line.append("probe=adjoint")
    running = process(*line, "hydra.run.dir=run", "record.wandb.mode=disabled")
    folder = tmp_path / "run"
    wait_for_rows(running, folder, 2)
    while not list(folder.glob("checkpoints/[0-9]*")):
        assert running.poll() is None, running.communicate()
        time.sleep(0.01)
    running.kill()
    running.communicate()
    killed = open_run(folder)
    assert (killed.status, killed.damage) == ("killed", ())
    rows = killed.scalars.sizes["step"]
    assert 2 <= rows < 150
    assert killed.scalars["train/loss"].notnull().all()
    done = command("trainer.resume=run")
    assert done.code == 0, done.err
    assert command(*line, "hydra.run.dir=whole").code == 0
    one, other = open_run("run"), open_run("whole")
    assert one.info["resumed"][0]["rows"] == rows
    assert one.scalars.equals(other.scalars)
    assert one.curves.equals(other.curves)
    assert one.scalars.sizes["step"] == 151
    last = [
        json.loads((p / "checkpoints/3000/rest/metadata").read_text())
        for p in (folder, tmp_path / "whole")
    ]
    assert last[0]["best"] == last[1]["best"]


def test_a_termination_saves_and_the_run_goes_on(process, command, tmp_path):
    """As from a cluster that wants its node back, in a process of its own."""
    line = [*SMALL, "hydra.run.dir=run", "trainer.steps=100000"]
    running = process(*line, "record.wandb.mode=disabled")
    folder = tmp_path / "run"
    wait_for_rows(running, folder, 1)
    running.send_signal(signal.SIGTERM)
    _, err = running.communicate(timeout=60)
    assert (running.returncode, err) == (128 + signal.SIGTERM, "")
    run = open_run(folder)
    assert run.status == "interrupted"
    step = int(run.info["reason"].split()[3])
    assert run.info["reason"] == f"interrupted at step {step} (SIGTERM)"
    assert [path.name for path in (folder / "checkpoints").iterdir()] == [str(step)]
    np.testing.assert_array_equal(run.scalars["step"], range(0, step, 2))


def test_home_and_secrets_stay_out_of_every_file(command, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SOME_API_KEY", "k3y-0123456789")
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    book = tmp_path / "book.txt"
    book.write_text("to be or not to be " * 100)
    line = ["task=text", f"task.path={book}", *SMALL[4:], "model.hidden=4", "trainer.steps=2"]
    line += ["task.length=6", "record.wandb.notes=k3y-0123456789", "hydra.run.dir=run"]
    done = command(*[part for part in line if "held_out" not in part])
    assert done.code == 0, done.err
    for path in (tmp_path / "work").rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert b"k3y-0123456789" not in content, path
            assert os.fsencode(tmp_path) not in content, path
    change(tmp_path / "work" / "run", status="running")
    done = command("trainer.resume=run")
    assert done.code == 0, done.err
    assert open_run("run").config["task"]["path"] == "~/book.txt"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], []),
        (["trainer.resume=null", "seed=1"], ["trainer.resume=null", "seed=1"]),
        (["-m", "trainer.resume=auto"], ["-m", "trainer.resume=auto"]),
        (["trainer.resume=auto", "hydra.run.dir=x"], ["trainer.resume=auto", "hydra.run.dir=x"]),
    ],
)
def test_command_lines_that_stay_as_they_are(arguments, expected):
    assert with_resumed(arguments) == expected


def test_a_folder_that_is_no_run_is_refused_before_anything_else(tmp_path):
    with pytest.raises(BadInput, match="a run directory"):
        with_resumed([f"trainer.resume={tmp_path}"])
