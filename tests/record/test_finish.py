"""A run whose process is killed after its last row: what is left is known, and made later."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gradlab.errors import BadInput, CannotRecord
from gradlab.record import figures
from gradlab.record.base import Outcome
from gradlab.record.directory import RunDirectory
from gradlab.record.finish import complete, finish, told
from gradlab.record.keys import Keys
from gradlab.record.reader import open_run
from tests import ROOT
from tests.record.made import made_of
from tests.record.synthetic import describe, finished, make_row

DESCRIPTION = dataclasses.replace(describe(T=12, steps=40), id="abcdefgh")
LEFT = ["figures", "wandb", "tensorboard"]
RECORD = {"figures": True, "tensorboard": True, "terminal": True}
RECORD |= {"wandb": {"mode": "offline", "code": False}}
FIGURES_ONLY = {**RECORD, "tensorboard": False, "wandb": {"mode": "disabled"}}


def record(folder: Path, left=LEFT) -> Path:
    """A run that has ended, and whose process is gone before it made anything of it."""
    description = DESCRIPTION
    directory = RunDirectory(folder)
    directory.open(description)
    for step in range(0, 40, 10):
        directory.log(make_row(description, step))
    directory.close(finished(), left)
    directory.release()
    return folder


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    return record(tmp_path_factory.mktemp("ended") / "run")


@pytest.fixture
def ended(recorded, tmp_path, monkeypatch):
    """The test's own copy; two figures are enough."""
    few = {name: figures.FIGURES[name] for name in ("forget_product", "loss")}
    monkeypatch.setattr(figures, "FIGURES", few)
    return shutil.copytree(recorded, tmp_path / "run")


def test_the_sinks_are_told_of_a_run_as_they_were_while_it_went_on(recorded):
    description, outcome = told(open_run(recorded))
    expected = DESCRIPTION
    for part in ("name", "config", "variables", "baseline", "id", "resumed"):
        assert getattr(description, part) == getattr(expected, part), part
    assert description.facts == {**expected.facts, "overrides": []}
    row = make_row(expected, 10)
    assert Keys(description)(row) == Keys(expected)(row)
    assert outcome.status == "finished"
    assert outcome.reason == finished().reason
    assert outcome.verdict == finished().verdict
    assert outcome.timings == finished().timings
    assert outcome.summary["train/loss"] == finished().summary["train/loss"]
    assert outcome.summary.keys() == finished().summary.keys()


def test_what_is_left_is_done_once(ended):
    assert open_run(ended).left == ("figures", "wandb", "tensorboard")
    assert open_run(ended).status == "finished"
    info = json.loads((ended / "run.json").read_text())
    done, left, _ = finish(ended, FIGURES_ONLY)
    assert (done, left) == (("figures",), ("wandb", "tensorboard"))
    assert (ended / "figures" / "loss.png").stat().st_size > 1000
    assert not (ended / "wandb").exists()
    after = json.loads((ended / "run.json").read_text())
    assert after == {**info, "left": ["wandb", "tensorboard"]}
    (ended / "figures" / "loss.png").unlink()
    assert finish(ended, FIGURES_ONLY).done == ()
    assert not (ended / "figures" / "loss.png").exists()


def test_older_records_and_odd_ones_have_nothing_left(ended):
    info = json.loads((ended / "run.json").read_text())
    for odd in (None, 3, "figures", {"figures": 1}, [3, None]):
        (ended / "run.json").write_text(json.dumps({**info, "left": odd}))
        assert open_run(ended).left == ()
    del info["left"]
    (ended / "run.json").write_text(json.dumps(info))
    assert open_run(ended).left == ()


def test_two_do_not_finish_the_same_run_at_once(ended):
    first = RunDirectory(ended)
    first.reopen()
    with pytest.raises(BadInput, match="a run that nobody is writing to"):
        finish(ended, FIGURES_ONLY)
    assert not (ended / "figures").exists()
    first.release()
    assert finish(ended, FIGURES_ONLY).done == ("figures",)


def test_the_one_that_ends_a_run_keeps_it_until_it_is_finished(tmp_path):
    directory = RunDirectory(tmp_path)
    directory.open(DESCRIPTION)
    directory.close(Outcome("finished"), ["figures"])
    with pytest.raises(BadInput, match="a run that nobody is writing to"):
        RunDirectory(tmp_path).reopen()
    complete(directory, [], Outcome("finished"))
    assert open_run(tmp_path).left == ()
    other = RunDirectory(tmp_path)
    other.reopen()
    other.release()


def test_figures_that_find_no_room_stay_left_and_earlier_ones_stay_whole(ended, monkeypatch):
    finish(ended, FIGURES_ONLY)
    pictures = {p.name: p.read_bytes() for p in (ended / "figures").glob("*.png")}
    info = json.loads((ended / "run.json").read_text())
    (ended / "run.json").write_text(json.dumps({**info, "left": LEFT}))

    def full(*_):
        raise OSError(28, os.strerror(28))

    with monkeypatch.context() as patch:
        patch.setattr(figures, "replace", full)
        with pytest.raises(CannotRecord, match=r"No space left[^~]*trainer\.resume="):
            finish(ended, {**RECORD, "wandb": {"mode": "disabled"}})
    assert open_run(ended).left == tuple(LEFT)
    assert {p.name: p.read_bytes() for p in (ended / "figures").glob("*.png")} == pictures
    assert finish(ended, FIGURES_ONLY, again=True).done == ("figures",)


def test_a_figure_that_cannot_be_drawn_is_one_warning_and_is_not_tried_for_ever(
    ended, monkeypatch, caplog
):
    def fails(*_):
        raise ValueError("no such colour\nand more")

    monkeypatch.setitem(figures.FIGURES, "forget_product", fails)
    assert finish(ended, FIGURES_ONLY).done == ("figures",)
    (warning,) = [one.getMessage() for one in caplog.records]
    expected = f"the figure forget_product of {ended} cannot be drawn (ValueError: no such colour)"
    assert warning == expected
    drawn = {p.stem for p in (ended / "figures").glob("*.png")}
    assert "loss" in drawn
    assert "forget_product" not in drawn


def test_a_sink_that_failed_stays_left(ended, caplog):
    (ended / "wandb").write_text("a file where W&B wants a folder")
    (ended / "tensorboard").write_text("likewise")
    done, left, on_wandb = finish(ended, RECORD)
    assert (done, left, on_wandb) == (("figures",), ("wandb", "tensorboard"), "")
    assert len(caplog.records) == 2


# Killed at every boundary: a process forks one for each, after it has imported everything.

KILLED = """
import json, os, shutil, sys
from pathlib import Path
import matplotlib
matplotlib.use("agg")
import tensorboardX, wandb  # before the forks
import matplotlib.figure
from gradlab.record import figures, finish, shard, sinks
from gradlab.record.directory import RunDirectory
from gradlab.record.tensorboard_sink import TensorBoardSink
from gradlab.record.wandb import sender
import gradlab.record.wandb.start

ended, place, record, wanted = Path(sys.argv[1]), Path(sys.argv[2]), *map(json.loads, sys.argv[3:])
figures.FIGURES = {name: figures.FIGURES[name] for name in ("forget_product", "loss")}

def forked(action):
    child = os.fork()
    if not child:
        try:
            action()
            os._exit(0)
        except BaseException:
            import traceback
            traceback.print_exc()
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

def boundaries(reached):
    for owner, name in (
        (figures, "draw_one"), (RunDirectory, "done"), (sinks.Guarded, "open"),
        (sinks.Guarded, "close"), (sender, "start"), (sender.Sender, "_send_media"),
        (sender.Sender, "_send_summary"), (sender.Sender, "_end_run"),
        (sender.Sender, "_make_private"), (TensorBoardSink, "_write_outcome"), (os, "replace"),
    ):
        def outer(*a, inner=getattr(owner, name), said=f"before {name}", **k):
            reached(said)
            return inner(*a, **k)
        setattr(owner, name, outer)

def whole():
    seen = []
    boundaries(seen.append)
    finish.finish(place / "whole", record)
    (place / "boundaries").write_text("\\n".join(seen))

def killed(folder, at):
    left = at
    def reached(_):
        nonlocal left
        left -= 1
        if left < 0:
            os._exit(9)
    boundaries(reached)
    finish.finish(folder, record)

shutil.copytree(ended, place / "whole")
assert forked(whole) == 0
count = len((place / "boundaries").read_text().splitlines())
for at in range(count) if wanted is None else [round(share * (count - 1)) for share in wanted]:
    folder = place / f"killed {at}"
    shutil.copytree(ended, folder)
    assert forked(lambda: killed(folder, at)) == 9, at
    assert json.loads((folder / "run.json").read_text())["left"], at
    assert forked(lambda: finish.finish(folder, record, again=True)) == 0, at
"""


def killed_and_finished(recorded: Path, place: Path, shares: list[float] | None) -> None:
    """Finish a run, killed at boundaries on the way, and again; compare with one left alone."""
    environment = {"PYTHONPATH": str(ROOT / "src"), "WANDB_MODE": "offline"}
    words = [str(recorded), str(place), json.dumps(RECORD), json.dumps(shares)]
    done = subprocess.run(
        [sys.executable, "-c", KILLED, *words],
        env={k: v for k, v in os.environ.items() if k != "WANDB_SERVICE"} | environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    whole = made_of(place / "whole")
    assert set(whole["figures"]) >= {"forget_product.png", "loss.png"}
    assert [row["train_step"] for row in whole["rows on W&B"]] == [0, 10, 20, 30]
    assert whole["exit on W&B"] == 0
    folders = sorted(place.glob("killed *"))
    assert len(folders) == len(shares) if shares else len(folders) > 15
    for folder in folders:
        assert open_run(folder).left == ()
        assert made_of(folder) == whole, folder.name


def test_a_kill_on_the_way_loses_nothing(recorded, tmp_path):
    """In the midst, and just before the last word."""
    killed_and_finished(recorded, tmp_path, [0.3, 1.0])


@pytest.mark.slow
def test_a_kill_at_any_boundary_loses_nothing(recorded, tmp_path):
    killed_and_finished(recorded, tmp_path, None)


# The processes beside the training.

MAIN = """
import sys, time
from gradlab.record.finish import Finisher
if __name__ == "__main__":
    finisher = Finisher(2)
    finisher.begin()
    while len(finisher._pool._processes) < 2:
        time.sleep(0.01)
    print(*finisher._pool._processes, flush=True)
    time.sleep(600)
"""


def alive(pid: int) -> bool:
    """Whether a process is there, and not only waits to be buried."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_no_process_outlives_the_one_that_started_it(tmp_path):
    script = tmp_path / "main.py"
    script.write_text(MAIN)
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    words = [sys.executable, str(script)]
    with subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, text=True) as main:
        workers = [int(pid) for pid in main.stdout.readline().split()]
        assert len(workers) == 2
        assert all(map(alive, workers))
        time.sleep(1.0)  # now they are making themselves ready
        main.kill()
    end = time.monotonic() + 10
    while any(map(alive, workers)) and time.monotonic() < end:
        time.sleep(0.05)
    assert not any(map(alive, workers))
