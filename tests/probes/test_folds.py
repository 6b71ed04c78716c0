"""What the step probes make of gates in the backward pass is what they make of gates kept whole."""

from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from gradlab.cells import GRU, LSTM
from gradlab.cells.base import Cell, HiddenCarry
from gradlab.model import SequenceModel
from gradlab.probes import ForgetProduct, GateSaturation, GradNorm
from gradlab.probes.base import StepProbe
from gradlab.tasks import Adding
from gradlab.training.optimizer import Optimizer
from gradlab.training.step import Steps
from gradlab.variable import Variable

BATCH = 6


class Kept(NamedTuple):
    """The only gate of the cell below."""

    k: jax.Array


class Tiring(Cell):
    """A user's own cell, whose gate opens a little at each step that it has made."""

    gate_names, retention_gate = ("k",), "k"

    def __init__(self, in_features, hidden_features, *, rngs):
        self.in_features, self.hidden_features = in_features, hidden_features
        self.dense = nnx.Linear(in_features, hidden_features, rngs=rngs)
        self.made = nnx.Variable(jnp.float32(0))

    def step(self, carry, x):
        read = self.dense(x)
        k = jax.nn.sigmoid(read - 0.2 * self.made[...])
        self.made[...] = self.made[...] + 1
        return HiddenCarry(k * carry.h + (1 - k) * read), Kept(k)


@dataclass(frozen=True)
class Whole(StepProbe):
    """A user's own probe of gates: it reads them over time, and gives what the others would."""

    def variables(self, setting):
        return {"gates": Variable((), "1", "what was seen")}

    def __call__(self, seen):
        found = ForgetProduct()(seen) | GateSaturation(low=0.4, high=0.6)(seen)
        return {f"whole_{name}": value for name, value in found.items()}


def steps_of(cell, probes, *, rule=optax.adam, **options):
    padded = {"min_length": 3} if options.pop("padded", False) else {}
    model = SequenceModel(
        cell,
        features=2,
        hidden=4,
        outputs=1,
        readout="last",
        rngs=nnx.Rngs(0),
        **{"layers": 1, **options},
    )
    optimizer = Optimizer(rule, steps=10, learning_rate=0.05, clip_norm=0.1)
    task = Adding(length=9, held_out_examples=2, **padded)
    return Steps(model, task, optimizer, probes, BATCH)


DEEP = "gates that it has not, deep, both directions"
CASES = {
    "gates that the pass has, padded": (LSTM, {"padded": True}),
    DEEP: (
        partial(GRU, gate_fn=jax.nn.hard_sigmoid),
        {"padded": True, "layers": 2, "bidirectional": True},
    ),
    "a user's cell": (Tiring, {}),
}


@pytest.mark.parametrize(
    "name", [pytest.param(one, marks=[pytest.mark.slow] if one == DEEP else []) for one in CASES]
)
def test_by_products_of_the_pass_are_what_gates_over_time_give(name):
    cell, options = CASES[name]
    probes = {
        "forget_product": ForgetProduct(),
        "whole": Whole(),
        "gate_saturation": GateSaturation(low=0.4, high=0.6),
    }
    steps = steps_of(cell, probes, **options)
    _, _, found = jax.jit(steps.probe)(steps.start(jax.random.key(0)), ())
    whole = {key.removeprefix("whole_"): found.pop(key) for key in list(found) if "whole" in key}
    assert whole.keys() == found.keys()
    for key, value in whole.items():
        assert np.isfinite(value).mean() > 0, key
        np.testing.assert_allclose(found[key], value, rtol=1e-6, atol=1e-6, err_msg=key)
    assert found["gate_saturation"].shape == (len(steps.names), len(steps.setting.gates))
    assert len(set(np.asarray(found["gate_saturation"]).ravel().tolist())) > 1 or cell is Tiring


@pytest.mark.slow
def test_members_that_differ_in_what_a_fold_reads_share_a_program():
    """Its limits are then arrays that are traced."""

    def share(low):
        steps = steps_of(LSTM, {"gate_saturation": GateSaturation(low=0.4)})
        probe = GateSaturation(low=0.4)
        object.__setattr__(probe, "low", low)
        steps.probes = {"gate_saturation": probe}
        return steps.probe(steps.start(jax.random.key(0)), ())[2]["gate_saturation"]

    lows = jnp.array([0.1, 0.4, 0.5])
    one_by_one = jax.jit(lambda: jax.lax.map(share, lows))()
    together = jax.jit(jax.vmap(share))(lows)
    np.testing.assert_array_equal(one_by_one, together)
    assert np.all(np.diff(np.sum(together, axis=(1, 2))) > 0)


@pytest.mark.parametrize("cell", [LSTM, pytest.param(GRU, marks=pytest.mark.slow)])
def test_trained_parameters_have_the_same_bits_with_probes_and_without(cell):
    probes = {
        "grad_norm": GradNorm(),
        "forget_product": ForgetProduct(),
        "gate_saturation": GateSaturation(),
    }
    found = []
    for chosen in ({}, probes):
        steps = steps_of(cell, chosen)
        state, step = steps.start(jax.random.key(0)), jax.jit(steps.probe)
        for _ in range(5):
            state, *_ = step(state, ())
        found.append((state.params, state.opt_state))
    jax.tree.map(np.testing.assert_array_equal, *found)
