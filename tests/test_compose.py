"""Every option of every group of the configuration runs, without a list of them here."""

from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf

from gradlab.record.reader import open_run

CONF = Path(__file__).parents[1] / "conf"
T = 24
SIZES = {"held_out_examples": 4, "max_characters": 2000, "length": T}


def options(group):
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def small_task(task):
    """Small sizes for those keys that the task has."""
    keys = OmegaConf.load(CONF / "task" / f"{task}.yaml")
    return [f"task.{key}={value}" for key, value in SIZES.items() if key in keys]


@pytest.fixture
def run(command, tmp_path):
    """Three tiny steps, two of them measured; gives what was recorded."""

    def go(*overrides, task="adding"):
        sizes = ["model.hidden=4", "trainer.batch=3", "trainer.steps=3", "trainer.log_every=2"]
        quiet = ["record.figures=false", "record.terminal=false"]
        done = command("experiment=adding", *overrides, *sizes, *quiet, *small_task(task))
        assert (done.code, done.err) == (0, "")
        (folder,) = tmp_path.glob("outputs/*/*")
        recorded = open_run(folder)
        assert recorded.status == "finished"
        assert recorded.scalars.step.values.tolist() == [0, 2]
        for name in ("train/loss", "val/loss"):
            assert np.isfinite(recorded.scalars[name]).all()
        assert np.isfinite(recorded.summary["test/loss"])
        return recorded

    return go


@pytest.mark.parametrize("model", options("model"))
def test_model(run, model):
    recorded = run(f"model={model}")
    left_out = recorded.info["facts"]["probes_left_out"]
    adjoint = recorded.curves["adj_h_log10"].values
    assert adjoint.shape == (2, 1, T)
    if model == "feedforward":  # nothing is remembered: only the last step has a gradient
        assert (adjoint[..., :-1] == -np.inf).all()
        adjoint = adjoint[..., -1:]
    assert np.isfinite(adjoint).all()
    gated = "forget_product_log10" in recorded.curves
    assert gated == (left_out.get("forget_product") is None)
    assert gated == any(name in model for name in ("lstm", "gru"))
    if not gated:
        assert "no retention gate" in left_out["forget_product"]


@pytest.mark.parametrize("task", options("task"))
def test_task(run, task):
    recorded = run(f"task={task}", "model=feedforward", "probe=adjoint", task=task)
    adjoint = recorded.curves["adj_h_log10"]
    assert adjoint.sizes["t"] == T
    assert np.isfinite(adjoint[..., -1]).all()
    fed_at_every_step = recorded.info["facts"]["readout"] == "every"
    assert np.isfinite(adjoint).all() == fed_at_every_step


@pytest.mark.parametrize("optimizer", options("optimizer"))
def test_optimizer(run, optimizer):
    recorded = run(f"optimizer={optimizer}", "model=feedforward", "probe=update_ratio")
    ratio = recorded.curves["update_ratio"].values
    assert (ratio[-1] > 0).all()
    assert np.isfinite(ratio[-1]).all()


@pytest.mark.parametrize("experiment", options("experiment"))
def test_experiment(run, experiment):
    chosen = {}
    for line in OmegaConf.load(CONF / "experiment" / f"{experiment}.yaml").get("defaults", []):
        chosen |= {key.split("/")[-1]: value for key, value in dict(line).items()}
    task = chosen.get("task", "adding")
    recorded = run(f"experiment={experiment}", "probe=none", task=task)
    assert recorded.info["name"] == experiment
    assert recorded.info["facts"]["model"] == chosen.get("model", "lstm")


@pytest.mark.parametrize("probe", options("probe"))
def test_probe(run, probe):
    recorded = run(f"probe={probe}", "model=gru")
    names = recorded.config["probe"]["measure"]
    measured = recorded.curves.data_vars
    assert bool(measured) == bool(names) == (probe != "none")
    for name, variable in measured.items():
        assert not np.isnan(variable).all(), name
        assert variable.attrs["units"], name
        assert variable.attrs["long_name"], name


def test_a_list_of_probes(run):
    recorded = run("probe=[adjoint,grad_norm]", "model=rnn")
    assert list(recorded.config["probe"]["measure"]) == ["adjoint", "grad_norm"]
    assert {"adj_h_log10", "grad_norm"} <= set(recorded.curves)
    assert "adjoint_slope" not in recorded.curves


def test_presets_leave_out_and_single_probes_do_not():
    presets = [
        name for name in options("probe") if "preset" in OmegaConf.load(CONF / f"probe/{name}.yaml")
    ]
    assert {"none", "standard"} <= set(presets)
    for name in set(options("probe")) - set(presets):
        assert list(OmegaConf.load(CONF / f"probe/{name}.yaml")) == [name]
