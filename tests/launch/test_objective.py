"""What a run is worth to a sweeper."""

import json
import math

import pytest

from gradlab.launch.objective import lacking, objective_of
from tests.small import QUIET, TINY

SUMMARY = {
    "status": "finished",
    "val/loss": 0.5,
    "lyapunov_exponent/layer_0": -0.25,
    "memory_horizon/layer_0": 3.0,
    "test/loss": math.inf,
    "probe_overhead": None,
}


def test_a_name_gives_a_figure_and_bars_its_magnitude():
    assert objective_of("val/loss", SUMMARY) == 0.5
    assert objective_of("lyapunov_exponent/layer_0", SUMMARY) == -0.25
    assert objective_of("|lyapunov_exponent/layer_0|", SUMMARY) == 0.25


def test_a_list_gives_a_tuple():
    names = ["val/loss", "|lyapunov_exponent/layer_0|"]
    assert objective_of(names, SUMMARY) == (0.5, 0.25)
    assert objective_of(["val/loss"], SUMMARY) == (0.5,)


@pytest.mark.parametrize("name", ["test/loss", "|test/loss|", "probe_overhead", "gone", "status"])
def test_what_is_not_there_or_not_finite_is_nan(name):
    assert math.isnan(objective_of(name, SUMMARY))
    first, second = objective_of([name, "val/loss"], SUMMARY)
    assert math.isnan(first)
    assert second == 0.5


def test_the_names_that_there_are_come_nearest_first():
    message = lacking(["|memory_horizon/layer_1|", "val/loss"], SUMMARY)
    assert "recorded no memory_horizon/layer_1;" in message
    assert "it has: memory_horizon/layer_0, " in message
    assert "status" not in message
    assert lacking(["val/loss", "|test/loss|"], SUMMARY) == ""


def test_the_objective_of_a_run_may_change_when_it_goes_on(command, tmp_path):
    small = [*TINY, *QUIET, "model=rnn", "probe=memory_horizon"]
    assert command(*small, "hydra.run.dir=run").code == 0
    other = "objective=[memory_horizon/layer_0,'|train/loss|']"
    again = command("trainer.resume=run", "trainer.steps=4", other)
    assert (again.code, again.err) == (0, "")
    info = json.loads((tmp_path / "run" / "run.json").read_text())
    assert info["summary"]["steps"] == 4
    refused = command("trainer.resume=run", "trainer.steps=5", "objective=memory_horizon/layer_1")
    assert refused.code == 2
    assert "objective: got 'memory_horizon/layer_1'" in refused.err
    assert "try: objective=memory_horizon/layer_0" in refused.err
