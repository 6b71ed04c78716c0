"""Every option of every group of the configuration runs, without a list of them here.

Compiling is what costs, so one run takes the next option of several groups at once.
"""

from itertools import chain, cycle, islice, repeat

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from gradlab import analysis
from gradlab.errors import BadInput
from gradlab.experiment import build_steps
from gradlab.launch.build import build, plain
from gradlab.probes import base
from gradlab.record.reader import open_run
from tests import ROOT

CONF = ROOT / "conf"
T = 39  # the least that every task takes
SIZES = {"held_out_examples": 4, "max_characters": 2000, "length": T}


def options(group):
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def single(experiment):
    """Whether an experiment is one run, and not the sweep that its yaml holds."""
    return "hydra" not in OmegaConf.load(CONF / "experiment" / f"{experiment}.yaml")


def side_by_side(*groups):
    """Rows with one option of each group, as many as the longest group needs."""
    lists = [
        [name for name in options(group) if group != "experiment" or single(name)]
        for group in groups
    ]
    longest = max(map(len, lists))
    return list(zip(*(islice(cycle(names), longest) for names in lists), strict=True))


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
        done = command(*overrides, f"task={task}", *sizes, *quiet, *small_task(task))
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


@pytest.mark.parametrize(
    ("model", "task", "optimizer", "experiment"),
    side_by_side("model", "task", "optimizer", "experiment"),
)
def test_model_task_optimizer_and_experiment(run, model, task, optimizer, experiment):
    names = [f"experiment={experiment}", f"model={model}", f"optimizer={optimizer}"]
    recorded = run(*names, task=task)
    facts = recorded.info["facts"]
    assert (recorded.info["name"], facts["model"], facts["T"]) == (experiment, model, T)
    assert (
        recorded.config["task"]["_target_"] == OmegaConf.load(CONF / f"task/{task}.yaml")._target_
    )

    adjoint = recorded.curves["adj_h_log10"].values
    assert adjoint.shape == (2, 1, T)
    heard = {"last": 1, "every": 10 if task == "dates" else T}[facts["readout"]]
    if model == "feedforward":  # only the steps that answer matter
        assert (adjoint[..., : T - heard] == -np.inf).all()
        adjoint = adjoint[..., T - heard :]
    assert np.isfinite(adjoint).all()

    ratio = recorded.curves["update_ratio"].values[-1]  # of every parameter, after the first step
    assert np.isfinite(ratio).all()
    blind = model == "feedforward" and task == "digits"  # it sees the last pixel only: blank
    assert (ratio > 0).all() or blind

    gated = "forget_product_log10" in recorded.curves
    assert gated == any(name in model for name in ("lstm", "gru"))
    reason = facts["probes_left_out"].get("forget_product", "")
    assert ("no retention gate" in reason) == (not gated)


@pytest.mark.parametrize("experiment", options("experiment"))
def test_experiment_is_what_its_file_says(command, experiment):
    composed = OmegaConf.create(command(f"experiment={experiment}", "--cfg", "job").out)
    own = OmegaConf.load(CONF / "experiment" / f"{experiment}.yaml")
    overridden = {}
    for line in own.pop("defaults"):
        overridden |= {key.removeprefix("override /"): value for key, value in dict(line).items()}
    assert {"task", "model"} <= overridden.keys()
    own.pop("hydra", None)  # how a sweep of it is run; not part of a run
    for group, option in overridden.items():
        if group.startswith("hydra/"):
            continue
        for one in [option] if isinstance(option, str) else option:
            chosen = OmegaConf.load(CONF / group / f"{one}.yaml")
            chosen.pop("defaults", None)
            if group == "probe" and "preset" not in chosen:
                chosen = OmegaConf.create({"measure": chosen})
            merged = OmegaConf.merge(composed[group], chosen, own.get(group, {}))
            assert merged == composed[group]
    assert OmegaConf.merge(composed, own) == composed


PRESETS = [
    name for name in options("probe") if "preset" in OmegaConf.load(CONF / f"probe/{name}.yaml")
]
SINGLE = [name for name in options("probe") if name not in PRESETS]
PLAIN = {"mean_field", "pascanu_bound"}  # of plain recurrent networks only


@pytest.mark.parametrize(
    ("probe", "model", "measuring"),
    [
        pytest.param("research", "gru", set(SINGLE) - PLAIN, marks=pytest.mark.slow),
        ("[adjoint,mean_field,pascanu_bound]", "rnn", PLAIN | {"adjoint"}),
        ("none", "gru", set()),
    ],
)
def test_every_probe_records_all_that_it_announces(run, probe, model, measuring):
    recorded = run(f"probe={probe}", f"model={model}")
    experiment = build(dict(recorded.config), {})
    steps = build_steps(experiment)
    assert set(steps.probes) == measuring == set(experiment.probes) - set(steps.left_out)
    assert recorded.info["facts"]["probes_left_out"] == steps.left_out
    announced = {name: probe.variables(steps.setting) for name, probe in steps.probes.items()}
    assert all(announced.values())
    always = {"train/loss", "train/grad_norm", "train/clip_rate", "val/loss", "val/accuracy"}
    measured = dict(recorded.curves.data_vars)
    measured |= {n: v for n, v in recorded.scalars.data_vars.items() if n not in always}
    assert set(measured) == {name for variables in announced.values() for name in variables}
    for name, variable in measured.items():
        assert not np.isnan(variable).all(), name
        assert variable.attrs["units"], name
        assert variable.attrs["long_name"], name


def test_presets_hold_single_probes_and_are_those_of_analyze():
    assert {"none", *base.PRESETS} <= set(PRESETS)
    single = {name: OmegaConf.load(CONF / f"probe/{name}.yaml") for name in SINGLE}
    with initialize_config_dir(str(CONF), version_base="1.3"):
        chosen = {name: compose("config", [f"probe={name}"]).probe for name in PRESETS}
    for preset, probe in chosen.items():
        assert probe.preset == preset
        for name, settings in probe.measure.items():
            changed = {}  # but for what research sets
            if preset == "research":
                changed = analysis.probe_class(name).research
            assert {**single[name][name], **changed} == settings
    for preset in base.PRESETS:
        assert set(chosen[preset].measure) == set(analysis._probes(preset)), preset
    lookers = (chosen["research"].measure.lyapunov, analysis._probes("research")["lyapunov"])
    assert [one.examples for one in lookers] == [8, 8]
    assert set(chosen["research"].measure) == set(SINGLE)
    assert not chosen["none"].measure


@pytest.mark.parametrize("experiment", options("experiment"))
def test_every_option_fits_every_experiment_as_it_is(read_once, experiment):
    """Built, not run: nothing that an experiment sets stands in the way of another option.

    But for the length of its sequences, which not every task can have.
    """
    own_length = OmegaConf.select(
        OmegaConf.load(CONF / f"experiment/{experiment}.yaml"), "task.length"
    )
    probes = chain([*PRESETS, f"[{','.join(SINGLE)}]"], repeat("none"))
    rows = side_by_side("model", "task", "optimizer", "trainer")
    assert len(rows) > len(PRESETS)

    def built(*overrides):
        cfg = compose("config", overrides=[f"experiment={experiment}", *overrides])
        build(plain(cfg), {"experiment": experiment})

    with initialize_config_dir(str(CONF), version_base="1.3"):
        for (model, task, optimizer, trainer), probe in zip(rows, probes, strict=False):
            said = [f"model={model}", f"optimizer={optimizer}", f"trainer={trainer}"]
            said.append(f"probe={probe}")
            try:
                built(*said, f"task={task}")
            except BadInput as refusal:
                if (refusal.key, refusal.given) != ("task.length", own_length):
                    raise
                built(*said)
