"""What every probe of conf/probe must keep; the probes are found from the folder."""

from pathlib import Path

import jax
import numpy as np
import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf

from gradlab.probes.base import Setting, Unsupported
from gradlab.variable import Variable

from .seen import SETTING, B, H, L, T, make_seen

FOLDER = Path(__file__).parents[2] / "conf" / "probe"
NODES = {
    f"{path.stem}/{name}": node
    for path in sorted(FOLDER.glob("*.yaml"))
    for name, node in OmegaConf.load(path).items()
    if OmegaConf.is_dict(node) and "_target_" in node
}
SIZES = {"layer": L, "t": T, "quantile": 5, "gate": 3, "parameter": 2}

every_probe = pytest.mark.parametrize("node", list(NODES.values()), ids=list(NODES))


def test_probes_were_found():
    assert len(NODES) >= 7


@every_probe
def test_it_gives_what_it_announces(node):
    probe = instantiate(node)
    variables = probe.variables(SETTING)
    measured = jax.jit(probe)(make_seen())
    assert measured.keys() == variables.keys()
    for name, variable in variables.items():
        assert isinstance(variable, Variable)
        assert variable.units
        assert variable.long_name
        assert measured[name].shape == tuple(SIZES[dim] for dim in variable.dims), name
        assert (variable.units == "log10") == ("_log10" in name), name


@every_probe
@pytest.mark.parametrize("masked", [False, True])
def test_it_is_finite_on_finite_sightings(node, masked):
    for name, array in instantiate(node)(make_seen(masked=masked)).items():
        if name != "update_ratio":  # nan for the parameter that is zero
            assert np.all(np.isfinite(array)), name


@every_probe
def test_its_docstring_says_how_to_read_it(node):
    assert "How to read it:" in type(instantiate(node)).__doc__


def test_a_probe_without_its_gate_says_which_gates_there_are():
    plain = Setting("SimpleRNN", ("h",), (), None)
    refusals = {}
    for name, node in NODES.items():
        try:
            instantiate(node).variables(plain)
        except Unsupported as reason:
            refusals[name.split("/")[1]] = str(reason)
    assert set(refusals) == {"forget_product", "gate_saturation"}
    assert all("SimpleRNN" in reason for reason in refusals.values())


assert H == 3 and B == 5  # noqa: PT018  (the sizes that SIZES leaves out)
