"""More padding changes nothing, in both directions, whatever stands in it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from gradlab.bptt.closeup import Closeup
from gradlab.cells import LSTM, SimpleRNN
from gradlab.probes import (
    ClipRemoved,
    GateStatistics,
    MeanField,
    PascanuBound,
    RecurrentMatrix,
    StepJacobian,
    TemporalContribution,
    TrajectoryEnd,
    Truncation,
)
from gradlab.probes.setting import setting_of

LENGTHS, SHORT, LONG, WIDTH, HIDDEN = np.array([5, 3, 4]), 5, 8, 2, 3
GRADIENTS = (ClipRemoved(), TemporalContribution(split=2), Truncation())
PLAIN = (MeanField(), PascanuBound(), RecurrentMatrix(), TrajectoryEnd())


def measured(cell, probes):
    """``(variables, with as much padding as the longest example needs, with more)``."""
    makes = [cell(WIDTH, HIDDEN, rngs=nnx.Rngs(k)) for k in range(2)]
    readout = nnx.Linear(2 * HIDDEN, 1, rngs=nnx.Rngs(2))
    setting = setting_of([makes], WIDTH, length=SHORT, clips=True)
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(LONG, 3, WIDTH)).astype(np.float32)
    weights = rng.uniform(size=(LONG, 3)).astype(np.float32)

    params = Closeup([makes], inputs, lambda read: read, readout=readout).params

    @jax.jit
    def look(inputs):
        found = []
        for length in (SHORT, LONG):
            real = np.arange(length)[:, None] < LENGTHS
            weight = jnp.asarray(weights[:length] * real)

            def losses(read, weight=weight):
                return jnp.sum(weight * jnp.square(read[..., 0]), axis=0)

            closeup = Closeup(
                [makes],
                jnp.where(real[..., None], inputs[:length], 99.0),
                losses,
                readout=readout,
                every=True,
                mask=jnp.asarray(real),
                removed=lambda: params,
            )
            found.append({k: v for probe in probes for k, v in probe(closeup).items()})
        return found

    variables = {k: v for probe in probes for k, v in probe.variables(setting).items()}
    return variables, *jax.tree.map(np.asarray, look(inputs))


@pytest.mark.parametrize(
    ("cell", "probes"),
    [(SimpleRNN, (*GRADIENTS, *PLAIN, StepJacobian(examples=3))), (LSTM, (GateStatistics(),))],
)
def test_more_padding_changes_nothing(cell, probes):
    variables, short, long = measured(cell, probes)
    for name, variable in variables.items():
        few, many = short[name], long[name]
        if name == "trajectory_end":
            assert np.all(few == SHORT)
            assert np.all(many == LONG)
        elif "t" in variable.dims and "layer" in variable.dims:
            same(many[0, ..., :SHORT], few[0], name)
            same(many[1, ..., LONG - SHORT :], few[1], name)  # it reads the padding first
        elif name == "temporal_contribution_log10":
            forward, backward = np.split(np.arange(6), 2)
            same(many[forward, :SHORT], few[forward], name)
            same(many[backward, LONG - SHORT :], few[backward], name)
            same(many[6:, :SHORT], few[6:], name)
        else:  # over the lag, windows, or nothing that is longer with padding
            last = variable.dims[-1] if variable.dims else ""
            longer = last in ("t", "back", "window")
            same(many[..., : few.shape[-1]] if longer else many, few, name)


def same(many, few, name):
    np.testing.assert_allclose(many, few, rtol=2e-5, atol=1e-6, err_msg=name)
