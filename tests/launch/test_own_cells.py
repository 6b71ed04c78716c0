"""A user's own cell on the command line, of kinds that Flax's own are not."""

import json

import numpy as np
import pytest

from gradlab.record.reader import open_run
from tests import zoo
from tests.small import QUIET, TINY

CELLS = {
    "changing": "tests.training.test_variables.Changing",
    "start": "tests.zoo.LearnedStart",
    "unlike": "tests.zoo.LSTMP",
    "lru": "tests.zoo.LRU",
    "complex": "tests.zoo.Bare",
}
FAULTY = {
    "WrongName": ["cell WrongName.h_leaf: got 'middle'", "fast | slow"],
    "MakesVariables": ["cell MakesVariables", "try: create them in __init__"],
    "Ambiguous": ["a carry whose h cannot be found", "try: h_leaf"],
}
HALF = ["+model.cell.param_dtype=float16"]


@pytest.fixture(autouse=True)
def types_are_promoted():
    with zoo.as_users_do():
        yield


@pytest.fixture
def conf(tmp_path):
    folder = tmp_path / "mine" / "model"
    folder.mkdir(parents=True)
    for name, target in (CELLS | {name: f"tests.zoo.{name}" for name in FAULTY}).items():
        (folder / f"{name}.yaml").write_text(f"cell:\n  _target_: {target}\n")
    return ["--config-dir", "mine", *TINY, *QUIET, "probe=[adjoint,grad_norm]"]


def the_run(tmp_path, done):
    assert (done.code, done.err) == (0, "")
    (info,) = tmp_path.glob("outputs/*/*/run.json")
    return open_run(info.parent)


def test_one_that_changes_variables_is_kept_and_resumed(command, conf, tmp_path):
    run = the_run(tmp_path, command(*conf, "model=changing"))
    assert run.status == "finished"
    assert np.isfinite(run.curves["adj_h_log10"]).all()
    mine = ["--config-dir", "mine", "model=changing"]
    done = command(*mine, f"trainer.resume={run.path}", "trainer.steps=5")
    assert (done.code, done.err) == (0, "")
    again = open_run(run.path)
    assert again.summary["steps"] == 5
    assert again.status == "finished"


@pytest.mark.slow
@pytest.mark.parametrize("model", [[f"model={name}"] for name in CELLS] + [HALF], ids=str)
def test_every_kind_is_trained_and_measured(command, conf, tmp_path, model):
    run = the_run(tmp_path, command(*conf, *model))
    assert np.isfinite(run.curves["adj_h_log10"]).all()
    assert np.isfinite(run.summary["train/grad_norm"])
    assert json.loads((run.path / "run.json").read_text())["facts"]["parameters"] > 0


@pytest.mark.parametrize("cell", FAULTY)
def test_what_is_no_cell_is_refused_before_anything_is_recorded(command, conf, tmp_path, cell):
    done = command(*conf, f"model={cell}")
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("gradlab: ")
    assert "Traceback" not in done.err
    for words in FAULTY[cell]:
        assert words in done.err
    assert not (tmp_path / "outputs").exists()
