"""What every cell of conf/model must keep; the cells are found from the folder."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from gradlab.bptt.form import form_of
from gradlab.bptt.unroll import initial_carries, unroll
from gradlab.cells import stock
from tests.models import every_model

WIDTH, HIDDEN, BATCH = 3, 5, 4


def built(make):
    return make(WIDTH, HIDDEN, rngs=nnx.Rngs(0))


@every_model()
def test_a_step_gives_a_carry_like_the_old_one_and_an_output(make):
    cell = built(make)
    ((carry,),) = initial_carries([[cell]], (1, BATCH, WIDTH))
    new, y = cell(carry, jnp.ones((BATCH, WIDTH)))
    assert jax.tree.structure(new) == jax.tree.structure(carry)
    assert all(leaf.shape == (BATCH, HIDDEN) for leaf in jax.tree.leaves(new))
    form = form_of(cell, carry, jnp.ones((BATCH, WIDTH)))
    np.testing.assert_array_equal(form.hidden(new), y)
    assert form.is_leaf
    assert form.h == "h"


@every_model()
def test_the_same_seed_gives_the_same_cell_and_another_seed_another(make):
    one, same, other = (nnx.state(make(WIDTH, HIDDEN, rngs=nnx.Rngs(s))) for s in (0, 0, 1))
    pairs = list(zip(jax.tree.leaves(one), jax.tree.leaves(same), strict=True))
    assert all(np.array_equal(a, b) for a, b in pairs)
    others = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    assert any(not np.array_equal(a, b) for a, b in others)


@every_model()
def test_gates_lie_between_zero_and_one_and_are_those_of_the_step(make):
    cell = built(make)
    view = stock.gate_view(cell)
    ((carry,),) = initial_carries([[cell]], (1, BATCH, WIDTH))
    key = jax.random.key(1)
    carry = jax.tree.map(lambda leaf: jax.random.normal(key, leaf.shape), carry)
    x = jax.random.normal(jax.random.key(2), (BATCH, WIDTH))
    gates = stock.gates(cell, carry, x)
    for name in view.names:
        gate = getattr(gates, name)
        assert gate.shape == (BATCH, HIDDEN)
        assert np.all((np.asarray(gate) > 0) & (np.asarray(gate) < 1))
    if view.retention is None:
        return
    # The retention gate is what multiplies the old state: ∂(new)/∂(old), the gates held fixed.
    kept, old = getattr(gates, view.retention), jax.tree.leaves(carry)[0]
    new = jax.tree.leaves(cell(carry, x)[0])[0]
    candidate = gates.c_tilde * gates.i if "i" in view.names else gates.n * (1 - kept)
    np.testing.assert_allclose(new, kept * old + candidate, rtol=1e-5, atol=1e-6)


@every_model()
def test_gates_of_a_whole_sequence_are_those_of_its_steps(make):
    cell = built(make)
    inputs = jax.random.normal(jax.random.key(0), (6, BATCH, WIDTH))
    trace = unroll([[cell]], inputs).traces[0][0]
    together = stock.gates(cell, trace.before, trace.inputs)
    for t in range(6):
        before = jax.tree.map(lambda leaf, t=t: leaf[t], trace.before)
        alone = stock.gates(cell, before, inputs[t])
        for one, many in zip(alone or (), together or (), strict=True):
            np.testing.assert_allclose(many[t], one, rtol=1e-5, atol=1e-6)


@every_model()
def test_flax_rnn_runs_the_cell_as_the_unroll_does(make):
    cell = built(make)
    inputs = jax.random.normal(jax.random.key(0), (6, BATCH, WIDTH))
    theirs = nnx.RNN(cell, time_major=True)(inputs, rngs=nnx.Rngs(0))
    np.testing.assert_allclose(unroll([[cell]], inputs).outputs, theirs, rtol=1e-5, atol=1e-6)
