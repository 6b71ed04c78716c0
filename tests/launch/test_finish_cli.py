"""``trainer.resume`` of runs that are trained, but whose figures and sinks were never made."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import pytest

from gradlab.launch.sweep.report import report
from gradlab.record import figures
from gradlab.record.lock import Lock
from gradlab.record.reader import open_run
from tests.record.wandb_file import load
from tests.small import TINY

MADE = [*TINY, "model=rnn", "probe=none", "record.wandb.mode=offline", "record.terminal=false"]
LEFT = ["figures", "wandb"]


@pytest.fixture(autouse=True)
def one_figure(monkeypatch):
    """The others show the same."""
    monkeypatch.setattr(figures, "FIGURES", {"loss": figures.FIGURES["loss"]})


@pytest.fixture(scope="module")
def once(tmp_path_factory):
    return tmp_path_factory.mktemp("once") / "run"


@pytest.fixture
def ended(command, tmp_path, once):
    """A run that has ended, with all that is made of it; the test's own copy."""
    if not once.exists():
        done = command(*MADE, "hydra.run.dir=outputs/day/run")
        assert (done.code, done.err) == (0, ""), done.err
        assert "figure: outputs/day/run/figures/loss.png" in done.out
        shutil.move(tmp_path / "outputs" / "day" / "run", once)
    return shutil.copytree(once, tmp_path / "outputs" / "day" / "run")


def change(folder: Path, **info: object) -> None:
    """As if the run had said something else of itself."""
    file = folder / "run.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | info))


def killed(folder: Path, **info: object) -> Path:
    """As if the process had been killed after its last row; W&B has a part of the run."""
    change(folder, left=LEFT, **info)
    shutil.rmtree(folder / "figures")
    (file,) = folder.glob("wandb/*/run-*.wandb")
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    return folder


def rows(folder: Path) -> list[int]:
    """Those in W&B's file, of which there is one."""
    (file,) = folder.glob("wandb/*/run-*.wandb")
    kept = load(file)
    assert kept["exit"] == 0
    assert kept["run"].run_id == open_run(folder).info["id"]
    return [row["train_step"] for row in kept["history"]]


def whole(folder: Path) -> dict:
    """What may not change when a run is only finished."""
    kept = {
        p.relative_to(folder): p.read_bytes()
        for p in folder.glob("arrays.zarr/**/*/*")
        if p.is_file()
    }
    return kept | {"info": json.loads((folder / "run.json").read_text()) | {"left": []}}


@pytest.fixture
def never_trained(monkeypatch):
    """From here on nothing is trained or compiled."""
    monkeypatch.setattr("gradlab.run.run", None)
    monkeypatch.setattr("gradlab.experiment.build_steps", None)


@pytest.mark.parametrize("status", ["finished", "diverged"])
def test_what_is_left_of_a_run_is_made_by_its_path(command, ended, never_trained, status):
    picture = (ended / "figures" / "loss.png").read_bytes()
    assert open_run(ended).left == ()
    killed(ended, status=status, reason="")
    before = whole(ended)
    done = command("trainer.resume=outputs/day/run")
    assert (done.code, done.err) == (0, "")
    assert f"{status}: figures and W&B left to do" in done.out
    assert "figure: outputs/day/run/figures/loss.png" in done.out
    assert "wandb sync wandb/offline-run-" in done.out
    assert done.out.endswith("figures and W&B done\n")
    assert whole(ended) == before
    assert open_run(ended).left == ()
    assert (ended / "figures" / "loss.png").read_bytes() == picture
    if status == "finished":
        assert rows(ended) == [0, 2]
        done = command("trainer.resume=outputs/day/run")
        assert "finished: nothing left to do" in done.out


def test_only_what_the_command_asks_for_is_made(command, ended, never_trained):
    killed(ended)
    done = command("trainer.resume=outputs/day/run", "record.wandb.mode=disabled")
    assert (done.code, done.err) == (0, "")
    assert "finished: figures left to do" in done.out
    assert open_run(ended).left == ("wandb",)
    done = command("trainer.resume=outputs/day/run", "record.wandb.mode=disabled")
    assert "finished: nothing left to do" in done.out


def test_auto_finds_it_unless_somebody_is_at_it(command, ended, tmp_path, never_trained):
    killed(ended)
    change(ended, overrides=MADE)
    lock = Lock(ended)
    lock.acquire()
    done = command("trainer.resume=outputs/day/run")
    assert done.code == 2
    assert "a run that nobody is writing to" in done.err
    lock.release()
    done = command(*MADE, "trainer.resume=auto")
    assert (done.code, done.err) == (0, "")
    assert rows(ended) == [0, 2]
    assert [p.name for p in (tmp_path / "outputs" / "day").iterdir()] == ["run"]


def test_a_longer_run_makes_all_anew(command, ended):
    killed(ended)
    done = command("trainer.resume=outputs/day/run", "trainer.steps=5")
    assert (done.code, done.err) == (0, "")
    assert open_run(ended).left == ()
    assert rows(ended) == [0, 2, 4]
    assert (ended / "figures" / "loss.png").exists()


@pytest.mark.parametrize("launcher", ["basic", pytest.param("population", marks=pytest.mark.slow)])
def test_a_sweep_makes_what_is_left_of_its_runs(command, tmp_path, launcher):
    sweep = tmp_path / "sweep"
    line = ["-m", *MADE, "seed=0,1", "hydra.sweep.dir=sweep", f"hydra/launcher={launcher}"]
    done = command(*line)
    assert done.code == 0
    picture = (sweep / "0" / "figures" / "loss.png").read_bytes()
    assert [open_run(sweep / str(n)).left for n in range(2)] == [(), ()]
    killed(sweep / "0")
    told = io.StringIO()
    report(sweep, told)
    assert "2 finished" in told.getvalue()
    assert "left to do:\n  job 0 (seed=0): figures and W&B\n" in told.getvalue()
    assert "to make what is left:\n  python -m gradlab -m trainer.resume=sweep" in told.getvalue()
    done = command("trainer.resume=sweep")
    assert done.code == 0, done.err
    assert done.out.count("nothing left to do") == 1
    assert "finished: figures and W&B left to do" in done.out
    assert (sweep / "0" / "figures" / "loss.png").read_bytes() == picture
    assert rows(sweep / "0") == rows(sweep / "1") == [0, 2]
    assert "to make what is left" not in done.out
