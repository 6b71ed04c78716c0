"""How a cell is told its sizes, and where a model begins."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from gradlab.bptt.closeup import Closeup
from gradlab.bptt.unroll import initial_carries
from gradlab.cells import LSTM, SimpleRNN
from gradlab.cells.rnn import NoGates
from gradlab.errors import BadInput
from gradlab.experiment import build_steps
from gradlab.model import SequenceModel
from gradlab.probes import Lyapunov
from tests.experiments import experiment


class Swapped(SimpleRNN):
    def __init__(self, hidden_features, in_features, *, gain=1.0, rngs):
        super().__init__(in_features, hidden_features, recurrent_gain=gain, rngs=rngs)


class ByName(SimpleRNN):
    def __init__(self, *, in_features, hidden_features, rngs):
        super().__init__(in_features, hidden_features, rngs=rngs)


class OtherNames(SimpleRNN):
    def __init__(self, n_in, n_out, *, rngs):
        super().__init__(n_in, n_out, rngs=rngs)


class HiddenFirst(SimpleRNN):
    """A state whose parts are not in the order of their names."""

    class Carry(NamedTuple):
        h: jax.Array
        a: jax.Array

    def step(self, carry, x):
        h = jnp.tanh(self.dense_i(x) + self.dense_h(carry.h) + carry.a)
        return self.Carry(h, 0.5 * carry.a), NoGates()


def in_a_function(in_features, hidden_features, rngs):
    return SimpleRNN(in_features, hidden_features, rngs=rngs)


@pytest.mark.parametrize(
    "make_cell",
    [SimpleRNN, Swapped, partial(Swapped, gain=2.0), ByName, OtherNames, in_a_function],
)
def test_sizes_go_by_name_or_in_order(make_cell):
    sizes = {"features": 3, "hidden": 4, "layers": 2, "outputs": 1}
    model = SequenceModel(make_cell, **sizes, readout="last", rngs=nnx.Rngs(0))
    assert [cell.dense_i.kernel.shape for cell in model.cells()] == [(3, 4), (4, 4)]


@pytest.mark.parametrize(("layers", "said"), [(29, ""), (100, "each of 100 layers")])
def test_what_many_layers_cost_is_said_before_any_is_made(monkeypatch, caplog, layers, said):
    def made(_):
        raise TimeoutError

    monkeypatch.setattr("gradlab.experiment._model", made)
    with pytest.raises(TimeoutError):
        build_steps(experiment(layers=layers))
    assert said in caplog.text
    assert bool(caplog.text) == bool(said)


def model_of(make_cell=LSTM, *, seed=0, **more):
    sizes = {"features": 2, "hidden": 3, "layers": 1, "outputs": 1, "readout": "last"} | more
    return SequenceModel(make_cell, **sizes, rngs=nnx.Rngs(seed))


def parameters(model):
    flat = nnx.to_flat_state(nnx.state(model, nnx.Param))
    return {"/".join(map(str, path)): np.asarray(leaf[...]) for path, leaf in flat}


def test_a_model_begins_at_zero_at_random_or_at_what_it_learns():
    zero, learned, drawn, again, other = (
        model_of(initial_state=kind, seed=seed, bidirectional=True)
        for kind, seed in [("zero", 0), ("learned", 0), *[("random", n) for n in (0, 0, 1)]]
    )
    assert zero.start() is None
    weights = parameters(zero)
    for model in (learned, drawn):  # the same weights, whatever the initial state
        named = parameters(model)
        assert all(np.array_equal(named[name], value) for name, value in weights.items())
    assert parameters(drawn).keys() == weights.keys()
    added = parameters(learned).keys() - weights.keys()
    assert sorted(added) == [f"initial_state/0/{d}/{part}" for d in (0, 1) for part in "ch"]
    for leaf in jax.tree.leaves(learned.start()):
        np.testing.assert_array_equal(leaf, np.zeros(3))
    mine, same, others = (np.array(jax.tree.leaves(m.start())) for m in (drawn, again, other))
    np.testing.assert_array_equal(mine, same)
    assert len(np.unique([mine, others])) == 2 * 4 * 3  # a number for each direction, part and unit
    with pytest.raises(BadInput, match=r"zero \| random \| learned"):
        model_of(initial_state="zeros")


def test_the_parts_of_a_learned_state_are_named_whatever_their_order():
    model = model_of(HiddenFirst, initial_state="learned")
    model.initial_state[0][0]["a"][...] = jnp.ones(3)
    ((carry,),) = model.start()
    np.testing.assert_array_equal(carry.a, np.ones(3))
    inputs = jnp.ones((2, 4, 2))

    def closeup(inputs):
        return Closeup(
            *(model.layers, inputs, lambda read: jnp.square(read[:, 0])),
            readout=model.readout,
            start=model.start(),
            learns_start=True,
        )

    def gradients(inputs):
        look = closeup(inputs)
        return dict(look.gradient), jax.grad(look.loss)(dict(look.params))

    assert list(closeup(inputs).params) == list(parameters(model))
    gradient, true = jax.jit(gradients)(inputs)
    for name, want in true.items():
        np.testing.assert_allclose(gradient[name], want, rtol=1e-5, atol=1e-7, err_msg=name)
    assert np.any(true["initial_state/0/0/a"] != 0)


def test_an_autonomous_network_leaves_the_origin_only_if_it_begins_elsewhere():
    """W ~ N(0, g²/N): ½ ln(g² E[φ'²]) on the attractor, the logarithm of W's radius at 0."""
    size, steps = 128, 400
    make = partial(SimpleRNN, recurrent_kernel_init="gaussian", recurrent_gain=1.5)
    model = model_of(make, hidden=size, features=1, initial_state="random")
    inputs = jnp.zeros((steps, 1, 1))

    @jax.jit
    def exponent(start):
        closeup = Closeup(model.layers, inputs, lambda h: h[:, 0], start=start)
        return Lyapunov(exponents=1, transient=100)(closeup)["lyapunov_exponent"][0, 0]

    assert float(exponent(model.start())) == pytest.approx(0.0652, abs=0.015)
    (matrix,) = [cell.dense_h.kernel[...] for cell in model.cells()]
    radius = np.max(np.abs(np.linalg.eigvals(np.asarray(matrix))))
    origin = jax.tree.map(lambda leaf: leaf[0], initial_carries(model.layers, inputs.shape))
    assert float(exponent(origin)) == pytest.approx(np.log(radius), abs=1e-3)
