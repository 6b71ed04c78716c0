"""The gradient is that of nnx.value_and_grad, and what is seen beside it is true."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx

import gradlab
from gradlab.bptt.parts import names_of
from gradlab.cells import GRU, LSTM, SimpleRNN
from gradlab.probes import ForgetProduct, GateSaturation
from gradlab.probes.base import Seen as StepSeen
from tests.zoo import HALF, ZOO, as_users_do, weigh

B, T, H, SYMBOLS = 4, 12, 8, 5
X = jnp.asarray(np.random.default_rng(0).integers(SYMBOLS, size=(B, T)))
Y = X[:, 0]
LENGTHS = jnp.array([12, 3, 7, 1])


class Reader(nnx.Module):
    """Embedding, two stacked layers, readout of the last real step."""

    def __init__(self, rngs, cell=nnx.OptimizedLSTMCell, dropout=0.0):
        self.embed = nnx.Embed(SYMBOLS, H, rngs=rngs)
        self.lower = nnx.RNN(cell(H, H, rngs=rngs))
        self.upper = nnx.RNN(cell(H, H, rngs=rngs))
        self.dropout = nnx.Dropout(dropout, rngs=rngs)
        self.readout = nnx.Linear(H, SYMBOLS, rngs=rngs)

    def __call__(self, x, lengths=None):
        y = self.lower(self.embed(x), seq_lengths=lengths)
        y = self.upper(self.dropout(y), seq_lengths=lengths)
        last = y[:, -1] if lengths is None else y[jnp.arange(len(x)), lengths - 1]
        return self.readout(last)


def losses(model, x, y, lengths=None):
    return optax.softmax_cross_entropy_with_integer_labels(model(x, lengths), y)


def loss(model, x, y, lengths=None):
    return losses(model, x, y, lengths).mean()


def trained(model, differentiate, steps=50):
    """Each step's result under nnx.jit; the module is trained in place."""
    optimizer = nnx.Optimizer(model, optax.adam(1e-2), wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer):
        value, grads, *seen = differentiate(model, X, Y)
        with jax.numpy_dtype_promotion("standard"):  # Adam's own code mixes types
            optimizer.update(model, grads)
        return value, *seen

    return [step(model, optimizer) for _ in range(steps)], step


def lstm_by_hand(cell, x):
    """States ``(T, B, H)`` and gates of Flax's LSTM in float64, by the equations."""
    w, u, b = (
        np.asarray(one[...], np.float64)
        for one in (cell.dense_i.kernel, cell.dense_h.kernel, cell.dense_h.bias)
    )
    h = c = np.zeros((x.shape[1], len(u)))
    went = []
    for now in x:
        i, f, g, o = np.split(now @ w + h @ u + b, 4, axis=-1)
        i, f, o = (1 / (1 + np.exp(-a)) for a in (i, f, o))
        before, g = c, np.tanh(g)
        c = f * c + i * g
        h = o * np.tanh(c)
        went.append((i, f, g, o, before, np.tanh(c), h))
    return went, (w, u)


def lstm_back_by_hand(went, weights, by_outputs):
    """Adjoints of h and c, ``(T, B, H)``, and the cotangent of the inputs."""
    w, u = weights
    by_h, by_c = np.zeros_like(by_outputs[0]), np.zeros_like(by_outputs[0])
    adjoints, inputs = [], []
    for (i, f, g, o, before, squashed, _), own in zip(
        reversed(went), reversed(by_outputs), strict=True
    ):
        by_h = by_h + own
        adjoints.append((by_h, by_c))
        by_c = by_c + by_h * o * (1 - squashed**2)
        by_gates = [
            by_c * g * i * (1 - i),
            by_c * before * f * (1 - f),
            by_c * i * (1 - g**2),
            by_h * squashed * o * (1 - o),
        ]
        by_gates = np.concatenate(by_gates, axis=-1)
        by_h, by_c = by_gates @ u.T, by_c * f
        inputs.append(by_gates @ w.T)
    by_h, by_c = (np.array([one[k] for one in adjoints[::-1]]) for k in range(2))
    return {"h": by_h, "c": by_c}, np.array(inputs[::-1])


def by_hand(model, lengths):
    """log10 of each example's adjoint norms ``(B, T)`` by layer and state, in float64."""
    x = np.swapaxes(np.asarray(model.embed.embedding[...], np.float64)[np.asarray(X)], 0, 1)
    lower = lstm_by_hand(model.lower.cell, x)
    upper = lstm_by_hand(model.upper.cell, np.array([one[-1] for one in lower[0]]))
    at = np.asarray(lengths) - 1, np.arange(B)
    last = np.array([one[-1] for one in upper[0]])[at]
    kernel = np.asarray(model.readout.kernel[...], np.float64)
    logits = last @ kernel + np.asarray(model.readout.bias[...], np.float64)
    shares = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    by_outputs = np.zeros((T, B, H))
    by_outputs[at] = (shares - np.eye(SYMBOLS)[np.asarray(Y)]) @ kernel.T
    found = {}
    for name, layer in (("upper", upper), ("lower", lower)):
        adjoints, by_outputs = lstm_back_by_hand(*layer, by_outputs)
        with np.errstate(divide="ignore"):
            found[name] = {
                state: np.log10(np.linalg.norm(one, axis=-1)).T for state, one in adjoints.items()
            }
    return found


@pytest.fixture(scope="module")
def runs():
    """The module of a user's trained both ways, and what was seen at every step."""
    plain, watched = Reader(nnx.Rngs(0)), gradlab.watch(Reader(nnx.Rngs(0)))
    due, _ = trained(plain, nnx.value_and_grad(loss))
    found, step = trained(watched, gradlab.value_and_grad(loss))
    return plain, watched, due, found, step


@pytest.mark.smoke
def test_after_fifty_steps_the_parameters_are_those_of_the_unwatched_module(runs):
    plain, watched, due, found, step = runs
    for one, other in zip(due, found, strict=True):
        np.testing.assert_allclose(other[0], one[0], rtol=1e-5)
    assert found[-1][0] < 0.5 * found[0][0]
    own, others = (nnx.state(model, nnx.Param) for model in (watched, plain))
    assert jax.tree.structure(own) == jax.tree.structure(others)
    for one, other in zip(jax.tree.leaves(own), jax.tree.leaves(others), strict=True):
        np.testing.assert_allclose(one, other, atol=3e-6)  # 50 steps of float32, rounded otherwise
    assert step.jitted_fn._cache_size() == 1


def test_what_was_seen_is_a_tree_of_plain_arrays_by_layer(runs):
    _, watched, _, found, _ = runs
    seen = found[-1][1]
    assert isinstance(seen, gradlab.Seen)
    assert list(seen) == ["lower", "upper"]
    assert list(seen.gradient_norms) == names_of(nnx.state(watched, nnx.Param))
    one = seen["lower"]
    assert set(one) == {"adj_h_log10", "adj_c_log10", "mask", "measured"}
    assert one["adj_h_log10"].shape == one["mask"].shape == (B, T)
    assert one["mask"].dtype == bool
    assert np.all(one["mask"])
    assert one["measured"]["gate_saturation"].shape == (3,)
    assert one["measured"]["forget_product_log10_q"].shape == (5, T)
    twice = jax.tree.map(lambda *leaves: jnp.stack(leaves), seen, seen)
    assert isinstance(twice, gradlab.Seen)
    assert twice["upper"]["adj_c_log10"].shape == (2, B, T)
    assert set(twice.gradient_norms) == set(seen.gradient_norms)


@pytest.fixture(scope="module")
def padded():
    """The module, its gradients and what was seen of padded examples."""
    model = gradlab.watch(Reader(nnx.Rngs(1)))
    _, grads, seen = nnx.jit(gradlab.value_and_grad(loss, examples=3))(model, X, Y, LENGTHS)
    return model, grads, seen


def test_curves_are_those_of_float64_for_each_example(padded):
    model, _, seen = padded
    real = np.arange(T)[None] < np.asarray(LENGTHS)[:, None]
    for layer, states in by_hand(model, LENGTHS).items():
        np.testing.assert_array_equal(seen[layer]["mask"], real)
        for state, log10 in states.items():
            own = np.asarray(seen[layer][f"adj_{state}_log10"])
            np.testing.assert_allclose(own[real], log10[real], atol=1e-5)


def test_gates_and_gradient_norms_are_measured_as_in_gradlab_s_own_loop(padded):
    model, grads, seen = padded
    x = np.asarray(model.embed.embedding[...])[np.asarray(X)].swapaxes(0, 1)
    went, _ = lstm_by_hand(model.lower.cell, x[:, :3])
    each = [np.float32([step[at] for step in went])[None] for at in (0, 1, 3)]
    own = dict(zip("ifo", map(jnp.asarray, each), strict=True))
    mask = jnp.arange(T)[None, :, None] < LENGTHS[None, None, :3]
    step = StepSeen({}, mask, own, own["f"], {}, {}, {}, {})
    due = jax.jit(lambda step: ForgetProduct()(step) | GateSaturation()(step))(step)
    assert set(due) == set(seen["lower"]["measured"])
    for name, value in seen["lower"]["measured"].items():
        np.testing.assert_allclose(value, due[name][0], rtol=1e-4, atol=1e-5, err_msg=name)
    named = dict(zip(names_of(grads), jax.tree.leaves(grads), strict=True))
    assert list(named) == list(seen.gradient_norms)
    for name, norm in seen.gradient_norms.items():
        np.testing.assert_allclose(norm, np.linalg.norm(np.ravel(named[name])), rtol=1e-5)


# Whatever nnx.value_and_grad can be asked.


class Mixed(nnx.Module):
    """A layer that is called twice, one in both directions, and one whose result is not used."""

    def __init__(self, rngs):
        self.first = nnx.RNN(LSTM(H, H, rngs=rngs))
        cells = [GRU(H, H, rngs=rngs) for _ in range(2)]
        self.both = nnx.Bidirectional(*map(nnx.RNN, cells))
        self.aside = nnx.RNN(SimpleRNN(2 * H, H, rngs=rngs))
        self.norm = nnx.BatchNorm(2 * H, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        y = self.norm(self.both(self.dropout(self.first(self.first(x)))))
        return y, jax.lax.stop_gradient(self.aside(y))


REALS = jnp.asarray(np.random.default_rng(1).normal(size=(B, T, H)), jnp.float32)


def with_aux(scale, model, x, power=2):
    y, aside = model(x)
    return scale * jnp.mean(y**power) + jnp.mean(aside), {"y": y}


def test_gates_of_half_precision_are_measured_in_float32():
    def seen(**dtypes):
        layer = gradlab.RNN(LSTM(2, H, rngs=nnx.Rngs(0), **dtypes))
        x = jnp.zeros((B, T, 2), dtypes.get("dtype", jnp.float32))
        derive = gradlab.value_and_grad(lambda layer, x: layer(x).astype(jnp.float32).mean())
        (own,) = nnx.eval_shape(lambda layer, x: derive(layer, x)[2], layer, x).values()
        return {name: (one.shape, one.dtype) for name, one in own["measured"].items()}

    assert seen(dtype=jnp.float16, param_dtype=jnp.float16) == seen() != {}


@pytest.mark.slow
def test_value_gradient_aux_and_changes_are_those_of_nnx():
    """Every kind of argument; dropout and batch statistics; layers of every kind."""
    by = (0, nnx.DiffState(1, nnx.PathContains("kernel")))
    plain, watched = Mixed(nnx.Rngs(0)), gradlab.watch(Mixed(nnx.Rngs(0)))
    theirs = nnx.jit(nnx.value_and_grad(with_aux, argnums=by, has_aux=True))
    ours = nnx.jit(gradlab.value_and_grad(with_aux, argnums=by, has_aux=True))
    due = theirs(jnp.float32(2.0), plain, x=REALS)
    *found, seen = ours(jnp.float32(2.0), watched, x=REALS)
    assert jax.tree.structure(tuple(found)) == jax.tree.structure(due)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(due), strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-4, atol=2e-6)
    kept = [nnx.state(model, nnx.Not(nnx.RngKey)) for model in (watched, plain)]
    for one, other in zip(*map(jax.tree.leaves, kept), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-7)
    assert int(watched.dropout.rngs.count[...]) == 1
    assert set(seen) == {"first", "first#2", "both/forward_rnn", "both/backward_rnn", "aside"}
    assert {"scale", "model/first/cell/dense_h/kernel"} < set(seen.gradient_norms)
    assert np.all(seen["aside"]["adj_h_log10"] == -np.inf)  # its backward pass never runs
    assert np.all(np.isfinite(seen["first#2"]["adj_h_log10"]))
    assert "adj_c_log10" not in seen["both/forward_rnn"]
    assert not seen["aside"]["measured"]


class Linear(nnx.RNNCellBase):
    """``h' = w h + x``, whose adjoint is known: ``w`` to the steps that are left."""

    num_feature_axes = 1

    def __init__(self, w):
        self.w = nnx.Param(jnp.float32(w))

    def initialize_carry(self, input_shape, rngs=None):
        return jnp.zeros(input_shape)

    def __call__(self, carry, x):
        h = self.w * carry + x
        return h, h


LONES = jnp.ones((3, 5, 1))
LAG = np.arange(5)[::-1]


def last(layer, x):
    return jnp.sum(layer(x)[:, -1])


def linear(w=0.5):
    return gradlab.watch(nnx.RNN(Linear(w)))


@pytest.mark.parametrize(
    ("reduction", "divisor", "given"), [("sum", 1, "sum"), ("mean", 3, "mean"), ("whole", 7, 7)]
)
def test_each_example_has_the_adjoint_of_its_own_loss(reduction, divisor, given):
    differentiate = nnx.jit(
        gradlab.value_and_grad(lambda layer, x: last(layer, x) / divisor, reduction=given)
    )
    for w in (0.5, 1.0):
        value, grad, seen = differentiate(linear(w), LONES)
        np.testing.assert_allclose(
            seen["rnn"]["adj_h_log10"], np.tile(LAG * np.log10(w), (3, 1)), atol=1e-6
        )
    np.testing.assert_allclose(value, 15 / divisor, rtol=1e-6)
    assert isinstance(grad, nnx.State)


def test_a_loss_that_reads_numbers_runs_without_jit():
    """As nnx.value_and_grad lets it; arguments that are no arrays pass as they are."""

    def cut(layer, x, lengths, how, scale=1.0):
        assert how == "sum"
        return last(layer, x[:, : int(jnp.max(lengths))]) * scale

    lengths = jnp.array([2, 4, 3])
    _, _, seen = gradlab.value_and_grad(cut, reduction="sum")(linear(), LONES, lengths, how="sum")
    np.testing.assert_allclose(seen["rnn"]["adj_h_log10"][0], LAG[1:] * np.log10(0.5), atol=1e-6)


def test_calls_arguments_and_aux_as_nnx_has_them():
    """A layer that is called twice; an adjoint of exactly 1 is told from one that never came."""

    def twice(scale, layers, x):
        y = layers.one(layers.one(x))
        aside = jax.lax.stop_gradient(layers.aside(x))
        return scale * jnp.sum(y[:, -1]) + jnp.sum(aside), {"y": y}

    layers = {"one": nnx.RNN(Linear(1.0)), "aside": nnx.RNN(Linear(1.0))}
    layers = gradlab.watch(nnx.Dict(layers))
    options = {"argnums": (0, nnx.DiffState(1, nnx.Param)), "has_aux": True}

    @nnx.jit
    def both(layers):
        scale = jnp.float32(1.0)
        due = nnx.value_and_grad(twice, **options)(scale, layers, LONES)
        found = gradlab.value_and_grad(twice, reduction="sum", **options)
        return due, found(scale, layers, LONES)

    due, (*found, seen) = both(layers)
    assert jax.tree.structure(tuple(found)) == jax.tree.structure(due)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(due), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)
    assert set(seen) == {"one", "one#2", "aside"}
    assert set(seen.gradient_norms) == {"scale", "layers/one/cell/w", "layers/aside/cell/w"}
    np.testing.assert_allclose(seen["one#2"]["adj_h_log10"][0], np.zeros(5), atol=1e-6)
    np.testing.assert_allclose(seen["one"]["adj_h_log10"][0], np.log10(LAG + 1), atol=1e-6)
    assert np.all(seen["aside"]["adj_h_log10"] == -np.inf)
    assert not seen["aside"]["measured"]


def test_it_works_as_a_decorator_and_within_scan_and_vmap():
    @gradlab.value_and_grad(reduction="sum")
    def differentiate(layer, x):
        return last(layer, x)

    @nnx.jit
    def steps(layer, xs):
        graph, params, rest = nnx.split(layer, nnx.Param, ...)

        def step(params, x):
            _, grads, seen = differentiate(nnx.merge(graph, params, rest, copy=True), x)
            return jax.tree.map(lambda w, grad: w - 0.01 * grad, params, grads), seen

        return jax.lax.scan(step, params, xs)

    _, seen = steps(linear(), jnp.stack([LONES] * 2))
    assert isinstance(seen, gradlab.Seen)
    assert seen["rnn"]["adj_h_log10"].shape == (2, 3, 5)
    np.testing.assert_allclose(seen["rnn"]["adj_h_log10"][0, 0], LAG * np.log10(0.5), atol=1e-6)
    graph, params, rest = nnx.split(linear(), nnx.Param, ...)
    two = jax.tree.map(lambda w: jnp.stack([w, 2 * w]), params)

    def seen_of(params):
        return differentiate(nnx.merge(graph, params, rest, copy=True), LONES)[2]

    seen = jax.jit(jax.vmap(seen_of))(two)
    np.testing.assert_allclose(seen["rnn"]["adj_h_log10"][1, 0], np.zeros(5), atol=1e-6)


def compared(specimen, run):
    """nnx's result and gradlab's for a layer of one cell, by ``run(differentiate)``."""

    def loss(layer, x):
        return weigh(layer(x)).astype(jnp.float32)

    with as_users_do():
        layers = [nnx.RNN(specimen.build(), **specimen.scan) for _ in range(2)]
        theirs = run(nnx.value_and_grad(loss))(layers[0], specimen.inputs())
        ours = gradlab.value_and_grad(loss, reduction="sum")
        return theirs, run(ours)(gradlab.watch(layers[1]), specimen.inputs())


CELLS = ZOO | HALF
SOME = ["carry dict", "LRU", "LSTMP", "Flax LSTMCell, bfloat16", "gradlab GRU, dtype=float16"]


@pytest.mark.parametrize("name", SOME)
def test_h_is_there_by_that_name_and_all_is_in_float32(name):
    specimen = CELLS[name]

    def run(differentiate):
        return lambda *args: nnx.eval_shape(differentiate, *args)

    (_, due), (_, grads, seen) = compared(specimen, run)
    assert jax.tree.map(lambda leaf: leaf.dtype, grads) == jax.tree.map(lambda a: a.dtype, due)
    states = {f"adj_{state}_log10" for state in (*specimen.states, "h")}
    assert set(seen["rnn"]) == states | {"mask", "measured"}
    mask = seen["rnn"].pop("mask")
    assert {leaf.dtype for leaf in jax.tree.leaves(seen)} == {jnp.dtype("float32")}
    assert mask.shape == seen["rnn"]["adj_h_log10"].shape


@pytest.mark.slow
@pytest.mark.parametrize("name", CELLS)
def test_any_cell_has_nnx_s_gradient(name):
    (value, due), (own, grads, seen) = compared(CELLS[name], nnx.jit)
    assert jax.tree.structure(grads) == jax.tree.structure(due)
    tolerance = CELLS[name].half or 1e-4
    np.testing.assert_allclose(own, value, rtol=tolerance)
    for one, other in zip(jax.tree.leaves(grads), jax.tree.leaves(due), strict=True):
        one, other = (np.asarray(leaf).astype(complex) for leaf in (one, other))
        np.testing.assert_allclose(one, other, atol=tolerance * (np.abs(other).max() + 1e-6))
    h = CELLS[name].h
    np.testing.assert_array_equal(seen["rnn"]["adj_h_log10"], seen["rnn"][f"adj_{h}_log10"])


# What cannot be, and what cannot be seen.


class Bound(nnx.Module):
    def __init__(self):
        self.rnn = nnx.RNN(SimpleRNN(1, 1, rngs=nnx.Rngs(0)))

    def loss(self, x):
        return last(self.rnn, x)


class Linen(linen.Module):
    @linen.compact
    def __call__(self, x):
        return x


def two(one, other, x):
    return last(one, x) + last(other, x)


def untaped(layer, x):
    return nnx.jit(last)(layer, x)


UNWATCHED = nnx.RNN(SimpleRNN(1, 1, rngs=nnx.Rngs(0)))


@pytest.mark.parametrize(
    ("loss", "args", "options", "said"),
    [
        (last, (UNWATCHED, LONES), {}, "gradlab.watch(module)"),
        (last, (type(UNWATCHED), LONES), {}, "the class RNN"),
        (lambda m, x: 0.0, (Linen(), LONES), {}, "a linen module"),
        (lambda m, x: m(x)[:, -1, 0], (linear(), LONES), {}, "jnp.mean"),
        (lambda m, x: (last(m, x), 1), (linear(), LONES), {}, "has_aux=True"),
        (last, (linear(), LONES), {"has_aux": True}, "(value, aux)"),
        (lambda m, x: last(m, x) > 0, (linear(), LONES), {}, "a real number"),
        (last, (linear(), LONES), {"argnums": 2}, "argnums: got 2"),
        (last, (linear(), LONES), {"argnums": "m"}, "argnums: got 'm'"),
        (two, (linear(), linear(), LONES), {}, "nnx.Dict(encoder=encoder, decoder=decoder)"),
        (untaped, (linear(), LONES), {}, "within a transformation"),
        (lambda m, x: jnp.sum(x), (linear(), LONES), {}, "it is handed rnn"),
        (last, (linear(), LONES), {"reduction": "max"}, '"mean" or "sum"'),
        (last, (linear(), LONES), {"examples": 0}, "examples: got 0"),
        (linear(), (LONES,), {}, "a function loss(module, ...)"),
        (gradlab.watch(Bound()).loss, (LONES,), {}, "Bound.loss"),
    ],
)
def test_one_message_says_what_to_do(loss, args, options, said):
    with pytest.raises(gradlab.BadInput) as error:
        gradlab.value_and_grad(loss, **options)(*args)
    assert said in str(error.value)


def test_a_layer_that_is_not_called_is_told_once(caplog):
    layers = gradlab.watch(nnx.Dict(used=nnx.RNN(Linear(1.0)), idle=nnx.RNN(Linear(1.0))))
    differentiate = gradlab.value_and_grad(lambda m, x: last(m.used, x))
    for _ in range(2):
        _, _, seen = nnx.eval_shape(differentiate, layers, LONES)
    assert list(seen) == ["used"]
    assert [record.message.partition(":")[0] for record in caplog.records] == [
        "gradlab cannot see idle"
    ]
