"""A run that stopped and goes on is the run that never stopped, to the last bit."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import shutil
import signal
import threading
from pathlib import Path

import jax
import numpy as np
import pytest

from gradlab import recording as recording_module
from gradlab.errors import BadInput, CannotRecord
from gradlab.experiment import build_steps
from gradlab.record.reader import open_run
from gradlab.run import run
from gradlab.training import loop as train_module
from gradlab.training import program as program_module
from gradlab.training.checkpoint import Best, Checkpoints, Position
from gradlab.training.loop import Trainer
from gradlab.training.schedule import Schedule
from tests import experiments

TRAINER = Trainer(steps=14, batch=4, log_every=5, eval_every=4, checkpoint_seconds=0)
SELDOM = dataclasses.replace(TRAINER, checkpoint_seconds=1000)
"""No checkpoint but the last one, which takes a tenth of the time."""


experiment = functools.partial(experiments.experiment, trainer=TRAINER)


@functools.cache
def usual_steps():
    return build_steps(experiment())


@pytest.fixture(scope="module")
def compiled():
    """One compilation for all the runs in this file: a step that lowers to itself."""
    cache = {}
    compile_ = program_module.jax.jit

    class Kept:
        def __init__(self, function, **options):
            self.function = compile_(function, **options)
            self.name = function.__name__

        def lower(self, *arguments):
            self.arguments = arguments
            if self.name not in cache:
                lowered = self.function.lower(*arguments)
                cache[self.name] = lowered.out_info, lowered.compile()
            self.out_info = cache[self.name][0]
            return self

        def compile(self):
            return cache[self.name][1]

        def __call__(self, *arguments):
            if self.name not in cache:
                cache[self.name] = self.function
            return cache[self.name](*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(program_module.jax, "jit", Kept)
        patch.setattr(train_module, "STEPS", 2)
        yield


@pytest.fixture(scope="module")
def whole(compiled, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "run"
    run(experiment(), folder, [], figures=False)
    return folder


class KilledError(BaseException):
    pass


@pytest.fixture
def killed_at(monkeypatch):
    """``killed_at(n)``: the process is gone at the n-th look at whether to end or save.

    With nothing of what a process does when it ends: only what is on disk stays.
    """
    look = train_module._Loop._asked_to_end

    def kill_at(n, *, saves=True):
        left = n

        def looks(run):
            nonlocal left
            left -= 1
            if left < 0:
                raise KilledError
            return look(run) if saves else False

        monkeypatch.setattr(train_module._Loop, "_asked_to_end", looks)
        monkeypatch.setattr(recording_module.RunDirectory, "close", _gone)

    return kill_at


def _gone(directory, *_):
    directory._lock.release()


def stop(exp, folder, **kwargs):
    with pytest.raises(KilledError):
        run(exp, folder, [], figures=False, **kwargs)


@functools.cache
def final(folder: Path) -> list[np.ndarray]:
    """Everything in the last checkpoint."""
    checkpoints = Checkpoints(folder / "checkpoints")
    position = checkpoints.restore(usual_steps(), jax.random.key(0))
    checkpoints.close()
    assert position is not None
    assert position.best is not None
    state = position.state._replace(key=jax.random.key_data(position.state.key))
    leaves = jax.tree.leaves((state, position.best, position.next_validation, position.since))
    return [np.asarray(leaf) for leaf in leaves]


def assert_same(folder: Path, whole: Path) -> None:
    one, other = open_run(folder), open_run(whole)
    assert (one.status, one.damage) == ("finished", ())
    for mine, theirs in ((one.scalars, other.scalars), (one.curves, other.curves)):
        assert mine.equals(theirs)
    for mine, theirs in zip(final(folder), final(whole), strict=True):
        np.testing.assert_array_equal(mine, theirs)
    timed = {"steps_per_second", "probe_overhead"}
    for name in other.summary.keys() - timed:
        assert one.summary[name] == other.summary[name], name
    assert one.info["verdict"] == other.info["verdict"]
    assert one.info["id"] != other.info["id"]


# Looks come when 1 (a row), 3, 5, 6 (a row), 8, 10, 11 (a row), 13 and 14 (the last row) are done.


@pytest.mark.parametrize("looks", [0, 1, 2, 3, 4, 6, 8])
def test_a_killed_run_goes_on_to_the_same_end(whole, tmp_path, killed_at, monkeypatch, looks):
    killed_at(looks)
    stop(experiment(), tmp_path / "run")
    assert open_run(tmp_path / "run").status == "killed"
    monkeypatch.undo()
    run(experiment(trainer=SELDOM), tmp_path / "run", [], resume=True, figures=False)
    assert_same(tmp_path / "run", whole)


def test_rows_behind_the_last_checkpoint_are_kept_and_not_recorded_twice(
    whole, tmp_path, killed_at, monkeypatch
):
    folder = tmp_path / "run"
    exp = experiment(trainer=SELDOM)
    monkeypatch.setattr(recording_module.RunDirectory, "__init__", _always_flushing)
    killed_at(7)
    stop(exp, folder)
    assert not list(folder.glob("checkpoints/*"))
    recorded = open_run(folder).scalars.load()
    assert list(recorded["step"]) == [0, 5, 10]
    monkeypatch.undo()
    run(experiment(trainer=SELDOM), folder, [], resume=True, figures=False)
    assert_same(folder, whole)


def _always_flushing(directory, path, init=recording_module.RunDirectory.__init__):
    init(directory, path, flush_seconds=0)


def test_stopped_again_and_again(whole, tmp_path, killed_at, monkeypatch):
    folder = tmp_path / "run"
    for turn in range(4):
        killed_at(2)
        stop(experiment(), folder, resume=turn > 0)
    assert len(open_run(folder).info["resumed"]) == 3
    monkeypatch.undo()
    run(experiment(trainer=SELDOM), folder, [], resume=True, figures=False)
    assert_same(folder, whole)


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGUSR2"])
def test_a_signal_saves_and_ends(whole, tmp_path, name):
    """In the middle of the steps between two rows, with no checkpoint due."""
    number = getattr(signal, name)
    heard = []
    before = signal.signal(number, lambda *_: heard.append(name))
    exp = experiment(trainer=SELDOM)
    make = train_module._Loop._make

    def make_and_signal(loop, plans):
        make(loop, plans)
        if loop.members[0].done == 8:
            os.kill(os.getpid(), number)

    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(train_module._Loop, "_make", make_and_signal)
            outcome = run(exp, tmp_path / "run", [], figures=False)
    finally:
        signal.signal(number, before)
    assert heard == []
    assert (outcome.status, outcome.signal) == ("interrupted", number)
    assert outcome.reason.startswith("interrupted at step 8")
    assert (name in outcome.reason) == (name != "SIGINT")
    assert open_run(tmp_path / "run").status == "interrupted"
    run(experiment(trainer=SELDOM), tmp_path / "run", [], resume=True, figures=False)
    assert_same(tmp_path / "run", whole)


class Rows:
    def __init__(self):
        self.rows = []

    def open(self, description):
        self.description, self.rows = description, []

    def log(self, row):
        self.rows.append(row)

    def close(self, outcome):
        self.outcome = outcome


def test_other_sinks_see_every_row_once(whole, tmp_path, killed_at, monkeypatch):
    folder, alone, first, second = tmp_path / "run", Rows(), Rows(), Rows()
    run(experiment(trainer=SELDOM), tmp_path / "alone", [alone], figures=False)
    killed_at(6)
    with pytest.raises(KilledError):
        run(experiment(), folder, [first], figures=False)
    monkeypatch.undo()
    run(experiment(trainer=SELDOM), folder, [second], resume=True, figures=False)
    assert second.description.resumed
    assert not first.description.resumed
    assert second.description.id == first.description.id != alone.description.id
    assert [row.step for row in second.rows] == [row.step for row in alone.rows] == [0, 5, 10, 13]
    assert second.description.recorded in (5, 10)
    for mine, theirs in zip(second.rows, alone.rows, strict=True):
        assert mine.scalars == theirs.scalars
        for name, array in theirs.arrays.items():
            np.testing.assert_array_equal(mine.arrays[name], array)


def test_a_finished_run_can_be_made_longer(whole, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    longer = experiment(trainer=dataclasses.replace(SELDOM, steps=21))
    run(longer, folder, [], resume=True, figures=False)
    found = open_run(folder)
    assert list(found.scalars["step"]) == [0, 5, 10, 13, 15, 20]
    assert found.scalars["train/loss"].notnull().all()
    assert found.summary["steps"] == 21


def test_a_run_whose_last_checkpoint_cannot_be_written_has_not_finished(
    whole, tmp_path, monkeypatch
):
    """Else nothing would be left to do, and its final parameters were lost."""
    close = Checkpoints.close

    def fails(checkpoints):
        close(checkpoints)
        shutil.rmtree(checkpoints.folder / "14")
        raise CannotRecord(str(tmp_path), "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "close", fails)
        with pytest.raises(CannotRecord):
            run(experiment(), tmp_path / "run", [], figures=False)
    found = open_run(tmp_path / "run")
    assert found.status == "crashed"
    assert found.info["reason"] == "cannot record: No space left on device"
    run(experiment(), tmp_path / "run", [], resume=True, figures=False)
    assert_same(tmp_path / "run", whole)


# Checkpoints.


def position_at(step: int, steps) -> Position:
    state = steps.start(jax.random.key(3))
    state = state._replace(step=jax.numpy.int32(step))
    state = state._replace(params=jax.tree.map(lambda x: x + step, state.params))
    return Position(state, best=Best(0.5, 2, state.params, {"loss": 0.5}), next_validation=8)


@pytest.fixture
def kept(tmp_path):
    steps = usual_steps()
    checkpoints = Checkpoints(tmp_path / "run" / "checkpoints")
    for step in (3, 6, 9):
        checkpoints.save(position_at(step, steps))
    checkpoints.close()
    return steps, checkpoints


def test_a_position_comes_back_as_it_was(kept):
    steps, checkpoints = kept
    assert sorted(p.name for p in checkpoints.folder.iterdir()) == ["6", "9"]
    found = checkpoints.restore(steps, jax.random.key(3))
    checkpoints.close()
    expected = position_at(9, steps)
    assert jax.tree.structure(found.state) == jax.tree.structure(expected.state)
    for mine, theirs in zip(
        jax.tree.leaves((found.state.params, found.state.opt_state, found.best)),
        jax.tree.leaves((expected.state.params, expected.state.opt_state, expected.best)),
        strict=True,
    ):
        np.testing.assert_array_equal(mine, theirs)
        assert np.asarray(mine).dtype == np.asarray(theirs).dtype
    assert jax.random.key_data(found.state.key).tolist() == [0, 3]
    assert (found.next_validation, int(found.state.step)) == (8, 9)


def cut(folder: Path) -> None:
    """Half of every file."""
    for path in folder.rglob("*"):
        if path.is_file():
            os.truncate(path, path.stat().st_size // 2)


def test_one_that_is_cut_in_half_gives_way_to_the_one_before(kept, caplog):
    steps, checkpoints = kept
    cut(checkpoints.folder / "9" / "arrays")
    found = checkpoints.restore(steps, jax.random.key(3))
    checkpoints.close()
    assert int(found.state.step) == 6
    (warning,) = [r.getMessage() for r in caplog.records if r.name == "gradlab.training.checkpoint"]
    assert warning.startswith("resumed from step 6, for checkpoint 9: ")


def test_where_none_can_be_read_it_is_said(kept):
    steps, checkpoints = kept
    cut(checkpoints.folder)
    with pytest.raises(BadInput, match="a checkpoint that can be read") as refusal:
        checkpoints.restore(steps, jax.random.key(3))
    checkpoints.close()
    assert refusal.value.key == "trainer.resume"
    assert refusal.value.given == str(checkpoints.folder.parent)


@pytest.mark.parametrize("key", ["since", "best", "next_validation", "seconds"])
def test_one_that_holds_nonsense_gives_way_to_the_one_before(kept, key):
    steps, checkpoints = kept
    file = checkpoints.folder / "9" / "rest" / "metadata"
    whole = json.loads(file.read_text())
    for nonsense in ("x", [[1, "x"]], {"x": 1}, [0.5, 2, 3]):
        file.write_text(json.dumps(whole | {key: nonsense}))
        found = checkpoints.restore(steps, jax.random.key(3))
        assert int(found.state.step) == 6
    checkpoints.close()


def test_one_that_lies_where_another_belongs_gives_way(kept):
    steps, checkpoints = kept
    (checkpoints.folder / "9").rename(checkpoints.folder / "99")
    found = checkpoints.restore(steps, jax.random.key(3))
    checkpoints.close()
    assert int(found.state.step) == 6


@pytest.mark.parametrize("text", ["3", "[]", "[" * 100_000, '{"item_handlers": 1e308}'])
def test_what_orbax_does_not_expect_is_said(kept, text):
    steps, checkpoints = kept
    (checkpoints.folder / "9" / "_CHECKPOINT_METADATA").write_text(text)
    with pytest.raises(BadInput, match="a checkpoint that can be read"):
        checkpoints.restore(steps, jax.random.key(3))
    checkpoints.close()


def test_one_of_another_model_is_refused(kept):
    _, checkpoints = kept
    other = build_steps(experiment(hidden=6))
    with pytest.raises(BadInput, match=r"differs in .*params/") as refusal:
        checkpoints.restore(other, jax.random.key(3))
    checkpoints.close()
    assert refusal.value.key == "trainer.resume"


def test_a_folder_without_any_gives_none(tmp_path):
    steps = usual_steps()
    assert Checkpoints(tmp_path / "checkpoints").restore(steps, jax.random.key(0)) is None
    assert not (tmp_path / "checkpoints").exists()


def test_a_checkpoint_that_cannot_be_written_ends_the_run(tmp_path):
    steps = usual_steps()
    (tmp_path / "file").write_text("")
    checkpoints = Checkpoints(tmp_path / "file" / "checkpoints")
    with pytest.raises((CannotRecord, OSError)):
        checkpoints.save(position_at(3, steps))


def test_the_files_hold_no_code(kept):
    _, checkpoints = kept
    for path in checkpoints.folder.rglob("*"):
        if path.is_file():
            assert b"cnumpy" not in path.read_bytes()
            assert not path.name.endswith((".pkl", ".pickle"))
    rest = checkpoints.folder / "9" / "rest" / "metadata"
    assert json.loads(rest.read_text())["next_validation"] == 8


@pytest.mark.slow
def test_a_run_leaves_no_thread_and_no_open_file(whole, tmp_path):
    def left() -> tuple[int, int]:
        return threading.active_count(), len(os.listdir("/proc/self/fd"))

    run(experiment(close=Schedule(None, 1)), tmp_path / "first", [], figures=False)
    before = left()
    for number in range(10):
        run(experiment(), tmp_path / str(number), [], figures=False)
    assert left() == before
