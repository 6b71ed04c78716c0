"""watch: layers in the place of Flax's, wherever they lie, and what it cannot see."""

import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import gradlab
from gradlab.errors import BadInput
from gradlab.watching.tape import Tape

N = 3


def rnn():
    return nnx.RNN(nnx.OptimizedLSTMCell(N, N, rngs=nnx.Rngs(0)))


class Encoder(nnx.RNN):
    """A user's layer that leaves the call as it is."""

    def __init__(self):
        super().__init__(nnx.GRUCell(N, N, rngs=nnx.Rngs(0)))


class OwnCall(nnx.RNN):
    """A user's layer with a call of its own."""

    def __call__(self, inputs, **options):
        return 2 * super().__call__(inputs, **options)


class Everything(nnx.Module):
    """Layers in every place that a module has for them."""

    def __init__(self):
        self.stack = nnx.List([rnn(), nnx.Dropout(0.1, rngs=nnx.Rngs(0)), rnn()])
        self.by_name = nnx.Dict({"one": rnn(), "both": nnx.Bidirectional(rnn(), rnn())})
        self.chain = nnx.Sequential(rnn(), nnx.Linear(N, N, rngs=nnx.Rngs(0)))
        self.pair = nnx.data((rnn(), 3))
        self.shared = self.stack[0]
        self.encoder = Encoder()


def test_every_layer_is_replaced_in_place_wherever_it_lies():
    module = Everything()
    held, before = module.stack[0], nnx.state(module)
    assert gradlab.watch(gradlab.watch(module)) is module
    layers = {node.path: node for _, node in nnx.iter_graph(module) if isinstance(node, nnx.RNN)}
    assert set(layers) == {
        "shared", "stack/2", "by_name/one", "by_name/both/forward_rnn",
        "by_name/both/backward_rnn", "chain/layers/0", "pair/0", "encoder",
    }  # fmt: skip
    assert all(isinstance(layer, gradlab.RNN) for layer in layers.values())
    assert isinstance(module.by_name["both"], gradlab.Bidirectional)
    assert isinstance(module.encoder, Encoder)
    assert held is module.shared is layers["shared"]
    # A checkpoint of the one is a checkpoint of the other.
    same = jax.tree.map(lambda a, b: a is b, before, nnx.state(module))
    assert all(jax.tree.leaves(same))


def test_a_layer_by_itself_is_watched():
    layer = rnn()
    assert gradlab.watch(layer) is layer
    assert (type(layer), layer.path) == (gradlab.RNN, "rnn")


class Bare(nnx.RNNCellBase):
    """A cell that holds no function, so that it can be pickled."""

    num_feature_axes = 1

    def __init__(self):
        self.weight = nnx.Param(jnp.eye(N) / 2)

    def initialize_carry(self, input_shape, rngs=None):
        return jnp.zeros(input_shape)

    def __call__(self, carry, inputs):
        h = jnp.sin(carry @ self.weight[...] + inputs)
        return h, h


@pytest.mark.parametrize("kind", [nnx.RNN, Encoder])
def test_what_is_watched_is_copied_split_and_pickled(kind):
    layer = nnx.RNN(Bare())
    layer.__class__ = kind
    layer = gradlab.watch(nnx.Dict({"inner": layer}))["inner"]
    x = jnp.ones((2, 4, N))
    due = layer(x)
    loaded = pickle.loads(pickle.dumps(layer))  # noqa: S301
    for other in (nnx.clone(layer), nnx.merge(*nnx.split(layer)), loaded):
        assert type(other) is type(layer)
        assert other.path == "inner"
        np.testing.assert_array_equal(other(x), due)


@pytest.mark.parametrize(
    ("own", "place", "reason"),
    [
        (nnx.GRUCell(N, N, rngs=nnx.Rngs(0)), "(GRUCell)", "no layer holds this cell"),
        (OwnCall(Bare()), "(OwnCall)", "it writes its own __call__"),
        (nnx.bridge.ToNNX(linen.RNN(linen.GRUCell(N))), "/to_nnx__module (RNN)", "a linen module"),
    ],
    ids=["a cell by hand", "a call of its own", "linen"],
)
def test_what_cannot_be_seen_is_told_once_with_its_place_and_the_reason(own, place, reason, caplog):
    kind = type(own)
    gradlab.watch(nnx.Dict({"layer": rnn(), "own": own, "shared": own}))
    (said,) = caplog.messages
    assert said.startswith(
        (f"gradlab cannot see own{place}: ", f"gradlab cannot see own {place}: ")
    )
    assert reason in said
    assert type(own) is kind


def test_a_cell_within_a_cell_is_not_told(caplog):
    class Zoneout(nnx.RNNCellBase):
        def __init__(self):
            self.inner = nnx.GRUCell(N, N, rngs=nnx.Rngs(0))

    gradlab.watch(nnx.RNN(Zoneout()))
    assert not caplog.messages


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (Everything, "an instance: Everything"),
        (linen.RNN(linen.GRUCell(N)), "a linen module"),
        (linen.RNN, "the class"),
        ({"rnn": 3}, "a dict"),
        (nnx.Linear(N, N, rngs=nnx.Rngs(0)), "a Linear without one"),
        (nnx.GRUCell(N, N, rngs=nnx.Rngs(0)), "hold nnx.RNN(cell) in its place"),
    ],
)
def test_where_there_is_nothing_to_see_it_says_what_to_do(given, said):
    with pytest.raises(BadInput, match="module") as refused:
        gradlab.watch(given)
    assert said in str(refused.value)


@pytest.mark.parametrize("shape", [(2, 0, 3), (0, 4, 3)])
def test_nothing_to_measure_is_refused_and_without_a_measurement_it_is_flaxs(shape):
    layer = gradlab.watch(nnx.RNN(nnx.SimpleCell(3, 2, rngs=nnx.Rngs(0))))
    with pytest.raises(BadInput, match="at least one of each"):
        gradlab.value_and_grad(lambda layer: jnp.sum(layer(jnp.zeros(shape))))(layer)
    assert layer(jnp.zeros(shape)).shape == (*shape[:2], 2)


def test_a_mesh_with_explicit_axes_is_refused_and_one_with_automatic_ones_is_followed():
    layer = gradlab.watch(nnx.RNN(nnx.SimpleCell(3, 2, rngs=nnx.Rngs(0))))
    measured = gradlab.value_and_grad(lambda layer, x: jnp.mean(layer(x) ** 2))
    x = jnp.ones((2, 4, 3))
    due, *_ = measured(layer, x)

    def on(kind):
        mesh = jax.make_mesh((1,), ("data",), axis_types=(kind,))
        return jax.device_put(x, NamedSharding(mesh, P("data")))

    with pytest.raises(BadInput, match=r"AxisType\.Explicit.*\n.*AxisType\.Auto"):
        measured(layer, on(AxisType.Explicit))
    np.testing.assert_allclose(measured(layer, on(AxisType.Auto))[0], due, rtol=1e-6)


def test_two_layers_of_one_name_are_refused_and_nothing_is_changed():
    module = nnx.Dict({"a/b": rnn(), "a": nnx.Dict({"b": rnn()})})
    with pytest.raises(BadInput, match="two layers of this name"):
        gradlab.watch(module)
    assert type(module["a/b"]) is nnx.RNN


def test_layers_that_were_watched_apart_are_refused_where_they_meet():
    one, other = gradlab.watch(rnn()), gradlab.watch(rnn())
    x = jnp.ones((2, 4, N))

    with Tape().running(), pytest.raises(BadInput, match="two layers of this name"):
        other(one(x))
