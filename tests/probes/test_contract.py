"""What every probe of conf/probe must keep; the probes are found from the folder."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hydra.utils import instantiate
from omegaconf import OmegaConf

from gradlab import analysis
from gradlab.bptt.closeup import Closeup
from gradlab.cells import LSTM, SimpleRNN
from gradlab.probes import base
from gradlab.probes.base import CloseProbe, Setting, StepProbe, Unsupported
from gradlab.probes.setting import setting_of
from gradlab.variable import Variable
from tests import ROOT
from tests.probes.seen import SETTING, B, H, L, T, make_seen

FOLDER = ROOT / "conf" / "probe"
NODES = {
    name: node
    for path in sorted(FOLDER.glob("*.yaml"))
    for name, node in OmegaConf.load(path).items()
    if OmegaConf.is_dict(node) and "_target_" in node
}
PROBES = {name: instantiate(node, _convert_="all") for name, node in NODES.items()}
PRESETS = {
    path.stem: OmegaConf.load(path)
    for path in sorted(FOLDER.glob("*.yaml"))
    if "preset" in OmegaConf.load(path)
}
SIZES = {"layer": L, "t": T, "back": T, "quantile": 5, "gate": 3, "parameter": 2}

every_probe = pytest.mark.parametrize("name", list(PROBES))
every_step_probe = pytest.mark.parametrize(
    "name", [name for name, probe in PROBES.items() if isinstance(probe, StepProbe)]
)
every_close_probe = pytest.mark.parametrize(
    "name", [name for name, probe in PROBES.items() if isinstance(probe, CloseProbe)]
)


@functools.cache
def close_look(cell, layers, masked, beside=None):
    """``(setting, all that the close probes measure, parameter names)`` of stacked layers.

    Of the probes that can measure a setting ``beside`` this one, the shapes alone.
    """
    layers = [[cell(width, H, rngs=nnx.Rngs(k))] for k, width in enumerate([2, H][:layers])]
    setting = setting_of(layers, 2, length=T, clips=True)
    inputs = jax.random.normal(jax.random.key(2), (T, B, 2))
    mask = jnp.arange(T)[:, None] < jnp.array([[7, 5, 3, 6, 1]]) if masked else None
    graph, state = nnx.split(nnx.List([nnx.List(layer) for layer in layers]))

    chosen = {
        name: dataclasses.replace(probe, **probe.research)
        for name, probe in PROBES.items()
        if isinstance(probe, CloseProbe) and supports(probe, setting)
    }

    def look(state, inputs, names):
        closeup = Closeup(
            nnx.merge(graph, state),
            inputs,
            lambda last: jnp.sum(jnp.square(last), axis=-1),
            mask=mask,
            batch=8,
            removed=lambda: {name: 0.1 * g for name, g in closeup.gradient.items()},
        )
        return {name: chosen[name](closeup) for name in names}

    known = tuple(k for k, v in chosen.items() if beside is not None and supports(v, beside))
    alone = tuple(k for k in chosen if k not in known)
    shapes = jax.eval_shape(functools.partial(look, names=known), state, inputs)
    values = jax.device_get(jax.jit(look, static_argnums=2)(state, inputs, alone))
    parameters = list(Closeup(layers, inputs, lambda last: last[:, 0]).params)
    return setting, shapes | values, parameters


def supports(probe, setting):
    try:
        probe.variables(setting)
    except Unsupported:
        return False
    return True


def test_presets_hold_the_same_probes_as_yaml_and_by_class():
    """Each the one before it, and those probes whose class names it."""
    assert {name for name, probe in PROBES.items() if isinstance(probe, StepProbe)} == {
        name for name, probe in PROBES.items() if probe.preset == "standard"
    }
    before = set()
    for preset in base.PRESETS:
        own = {name for name, probe in PROBES.items() if probe.preset == preset}
        assert {line for line in PRESETS[preset].defaults if line != "_self_"} == own | before
        before = {preset}


def test_a_probe_is_named_as_its_file():
    assert sorted(PROBES) == analysis.probe_names()
    for name, probe in PROBES.items():
        assert type(probe) is analysis.probe_class(name)
        options = {field.name for field in dataclasses.fields(probe)}
        assert options == {key for key in NODES[name] if key != "_target_"}
        for option in options:  # the yaml holds the defaults
            default = getattr(type(probe)(), option)
            given = getattr(probe, option)
            assert (tuple(given) if isinstance(given, list) else given) == default, option


@every_step_probe
def test_a_step_probe_gives_what_it_announces(name):
    check(
        PROBES[name].variables(SETTING),
        jax.jit(lambda seen: PROBES[name](seen))(make_seen()),
        SIZES,
    )


@every_close_probe
def test_a_close_probe_gives_what_it_announces(name):
    probe, looked = PROBES[name], 0
    gated, *_ = close_look(LSTM, 1, True)
    for look in ((LSTM, 1, True), (SimpleRNN, 2, False, gated)):
        setting, measured, names = close_look(*look)
        if not supports(probe, setting):
            continue
        looked += 1
        sizes = {"layer": look[1], "t": T, "back": T, "parameter": len(names)}
        sizes |= {dim: len(values) for dim, values in probe.coords(setting).items()}
        check(probe.variables(setting), measured[name], sizes)
    assert looked


def check(variables, measured, sizes):
    assert measured.keys() == variables.keys()
    for name, variable in variables.items():
        assert isinstance(variable, Variable)
        assert variable.units
        assert variable.long_name
        assert measured[name].shape == tuple(sizes[dim] for dim in variable.dims), name
        assert (variable.units == "log10") == ("_log10" in name), name
        if not isinstance(measured[name], jax.ShapeDtypeStruct):
            assert not np.isnan(measured[name]).all(), name


@every_step_probe
@pytest.mark.parametrize("masked", [False, True])
def test_it_is_finite_on_finite_sightings(name, masked):
    for variable, array in PROBES[name](make_seen(masked=masked)).items():
        if variable != "update_ratio":  # nan for the parameter that is zero
            assert np.all(np.isfinite(array)), variable


@every_probe
def test_its_docstring_says_what_it_is_and_how_to_read_it(name):
    doc = type(PROBES[name]).__doc__
    for heading in ("Definition:", "Source:", "Cost:", "How to read it:"):
        assert f"\n    {heading}" in doc, heading


def test_a_probe_without_its_gate_says_which_gates_there_are():
    plain = Setting("SimpleRNN", ("h",), (), None, ("h",), "tanh", length=T, hidden=H, clips=True)
    refusals = {}
    for name, probe in PROBES.items():
        try:
            probe.variables(plain)
        except Unsupported as reason:
            refusals[name] = str(reason)
    assert set(refusals) == {"forget_path", "forget_product", "gate_saturation", "gate_statistics"}
    assert all("SimpleRNN" in reason for reason in refusals.values())
