"""`gradlab.analyze` on modules of anyone's, against plain autodiff through Flax's own layers."""

import json
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

import gradlab
from gradlab import BadInput, SequenceModel
from gradlab.analysis import programs
from tests.oracles import as_float64

B, T, I, H = 3, 12, 2, 4  # noqa: E741
CHEAP = ["adjoint", "grad_norm"]


class Nudged(nnx.RNNCellBase):
    """A cell whose state is moved a little after each step; the derivative by that is its adjoint.

    The steps are counted in a second part of the carry.
    """

    num_feature_axes = 1

    def __init__(self, cell, steps):
        self.cell = cell
        carry = cell.initialize_carry((B, I), nnx.Rngs(0))
        zeros = jax.tree.map(lambda leaf: jnp.zeros((steps, *leaf.shape), jnp.float64), carry)
        self.nudges = nnx.Variable(zeros)

    def initialize_carry(self, input_shape, rngs=None, carry_init=None):
        own = self.cell.initialize_carry(input_shape, rngs or nnx.Rngs(0))
        return jax.tree.map(lambda leaf: leaf.astype(jnp.float64), own), jnp.int32(0)

    def __call__(self, carry, x):
        state, t = carry
        new, _ = self.cell(state, x)
        new = jax.tree.map(lambda leaf, nudge: leaf + nudge[t], new, self.nudges.get_value())
        return (new, t + 1), jax.tree.leaves(new)[-1]


class Oracle:
    """Loss, gradient norms and adjoints of a module in float64, by plain autodiff.

    Attributes:
      loss: the mean loss.
      norms: of the gradient, by parameter.
      adjoints: by layer, of each part of the state log10 norms ``(T, B)`` of each example's own
        loss, in the order of reading.
    """

    def __init__(self, module, call, losses, steps):
        with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
            wide = as_float64(module)
            places = [(path, n) for path, n in nnx.iter_graph(wide) if isinstance(n, nnx.RNN)]
            for path, layer in places:
                layer.cell = Nudged(layer.cell, steps.get("/".join(map(str, path)), T))
            graph, nudges, rest = nnx.split(wide, lambda path, _: path[-1] == "nudges", ...)

            def each(nudges, rest):
                module = nnx.merge(graph, nudges, rest, copy=True)
                return losses(call(module))

            total = lambda *state: jnp.sum(each(*state))  # noqa: E731
            own, all_ = jax.jit(jax.grad(total, (0, 1), allow_int=True))(nudges, rest)
            self.loss = float(jnp.mean(each(nudges, rest)))
            self.norms = {
                "/".join(map(str, path)).replace("cell/cell", "cell"): np.linalg.norm(leaf) / B
                for path, leaf in nnx.to_flat_state(nnx.filter_state(all_, nnx.Param))
            }
            self.adjoints = {}
            for path, _ in places:
                found = own
                for key in (*path, "cell", "nudges"):
                    found = found[key]
                with np.errstate(divide="ignore"):
                    self.adjoints["/".join(map(str, path))] = [
                        np.log10(np.linalg.norm(leaf, axis=-1)) for leaf in jax.tree.leaves(found)
                    ]


def check(found, oracle, lengths=None, tolerance=0.01):
    """That a dataset tells what the oracle knows."""
    assert found.attrs["loss"] == pytest.approx(oracle.loss, rel=1e-5)
    for name, norm in oracle.norms.items():
        got = float(found["grad_norm"].sel(parameter=name))
        assert got == pytest.approx(norm, rel=1e-4, abs=1e-9), name
    for layer, (*c, h) in oracle.adjoints.items():
        for name, log10 in [("adj_h_log10", h), *[("adj_c_log10", one) for one in c]]:
            steps, examples = log10.shape
            own = np.full(examples, steps) if lengths is None else np.minimum(lengths, steps)
            real = (np.arange(steps)[:, None] < own) & np.isfinite(log10)
            some = real.any(1)
            want = np.where(real, log10, 0).sum(1)[some] / real.sum(1)[some]
            got = found[name].sel(layer=layer).values
            np.testing.assert_allclose(got[:steps][some], want, atol=tolerance, err_msg=layer)
            assert np.isnan(got[steps:]).all()


class Reader(nnx.Module):
    """What people write: an embedding, two layers with code of its own between, a readout."""

    def __init__(self, rngs):
        self.embedding = nnx.Embed(5, I, rngs=rngs)
        self.rnns = nnx.List(
            [nnx.RNN(nnx.OptimizedLSTMCell(I if n == 0 else H, H, rngs=rngs)) for n in range(2)]
        )
        self.norm = nnx.LayerNorm(H, rngs=rngs)
        self.drop = nnx.Rngs(dropout=1).dropout
        self.readout = nnx.Linear(H, 5, rngs=rngs)

    def __call__(self, symbols):
        x = self.embedding(symbols)
        x = self.rnns[0](x)
        kept = jax.random.bits(self.drop(), x.shape, "uint8") < 200
        x = (nnx.relu(self.norm(x)) + 0.1 * x) * kept.astype(x.dtype)
        return self.readout(self.rnns[1](x))


def test_a_module_that_people_write():
    """Far below what float32 holds, through what stands between; the module stays as it was."""
    steps = 150
    module = Reader(nnx.Rngs(0))
    symbols = jax.random.randint(jax.random.key(0), (B, steps), 0, 5)
    for layer in module.rnns:
        layer.cell.dense_h.kernel[...] *= 0.1
        layer.cell.dense_h.bias[...] = layer.cell.dense_h.bias[...].at[H : 2 * H].add(-2)  # f
    before = [np.asarray(leaf) for leaf in jax.tree.leaves(nnx.state(module, nnx.Param))]

    def losses(logits):  # nothing but the last step
        return jnp.sum(jnp.square(logits[:, -1]), -1)

    found = gradlab.analyze(module, symbols, losses, probes=CHEAP)
    oracle = Oracle(module, lambda m: m(symbols), losses, {"rnns/0": steps, "rnns/1": steps})
    check(found, oracle)
    assert found["layer"].values.tolist() == ["rnns/0", "rnns/1"]
    assert float(found["adj_c_log10"][0, 0]) < -40
    after = [np.asarray(leaf) for leaf in jax.tree.leaves(nnx.state(module, nnx.Param))]
    for one, other in zip(before, after, strict=True):
        np.testing.assert_array_equal(one, other)
    assert type(module.rnns[0]) is nnx.RNN
    assert int(module.drop.count[...]) == 0


class Options(nnx.Module):
    """Layers of two kinds and lengths, with options; the first reads as far as it is told."""

    def __init__(self, rngs):
        self.back = nnx.RNN(nnx.OptimizedLSTMCell(I, H, rngs=rngs), reverse=True, keep_order=True)
        self.half = nnx.RNN(nnx.GRUCell(I, H, rngs=rngs), time_major=True, reverse=True)
        self.weight = nnx.Param(jnp.ones(()))

    def __call__(self, x, scale, *, seq_lengths, initial_carry):
        back = self.back(x * scale, seq_lengths=seq_lengths, initial_carry=initial_carry)
        return back, {"half": self.half(jnp.swapaxes(x[:, ::2], 0, 1))}


def test_layers_with_options_of_other_kinds_and_lengths():
    module, x = Options(nnx.Rngs(0)), jax.random.normal(jax.random.key(0), (B, T, I))
    lengths = np.array([T, 5, 9])
    start = (jnp.full((B, H), 0.5), jnp.full((B, H), -0.5))
    real = jnp.asarray(np.arange(T)[None] < lengths[:, None])

    def losses(outputs, network):
        back, half = outputs[0], outputs[1]["half"]
        own = jnp.sum(jnp.where(real[..., None], back, 0) ** 2, (1, 2))
        return own * network.weight[...] + jnp.sum(half[-1] ** 2, -1)

    inputs, scale = (x, jnp.float32(2)), 2
    found = gradlab.analyze(
        module, inputs, losses, probes=CHEAP, seq_lengths=lengths, initial_carry=start
    )

    def call(m):
        outputs = m(x, scale, seq_lengths=jnp.asarray(lengths), initial_carry=(start, jnp.int32(0)))
        return outputs[0], {"half": outputs[1]["half"], "weight": m.weight[...]}

    def same(outputs):
        class Network:
            weight = outputs[1]["weight"][None]

        return losses(outputs, Network)

    oracle = Oracle(module, call, same, {"half": T // 2})
    only = {"back": lengths, "half": np.full(B, T // 2)}
    for layer, adjoints in oracle.adjoints.items():
        oracle.adjoints = {layer: adjoints}
        check(found, oracle, only[layer])
    assert np.isnan(found["adj_c_log10"].sel(layer="half")).all()
    assert found["lag"].sel(layer="half").values[: T // 2].tolist() == list(range(T // 2))[::-1]
    assert found["lag"].sel(layer="back").values.tolist() == list(range(T))[::-1]


@pytest.mark.parametrize(
    "probes",
    [
        ["adjoint_slope", "grad_norm", "temporal_contribution"],
        pytest.param("full", marks=pytest.mark.slow),
    ],
)
def test_a_bidirectional_model_by_hand(probes):
    """A gradlab.SequenceModel, and the same in Flax's own layers: every variable."""
    options = {"features": I, "hidden": H, "layers": 1, "outputs": 2, "readout": "last"}
    model = SequenceModel(nnx.GRUCell, bidirectional=True, **options, rngs=nnx.Rngs(0))
    layer = nnx.Bidirectional(*map(nnx.RNN, model.layers[0]), return_carry=True)
    by_hand = nnx.Sequential(layer, lambda ends, _: jnp.concatenate(ends, -1), model.readout)
    x, targets = jax.random.normal(jax.random.key(0), (B, T, I)), np.ones((B, 2), np.float32)
    one = gradlab.analyze(model, x, targets, probes=probes)
    two = gradlab.analyze(by_hand, x, targets, probes=probes)
    names = {
        name: name.replace("layers/0/0/", "layers/0/forward_rnn/cell/")
        .replace("layers/0/1/", "layers/0/backward_rnn/cell/")
        .replace("readout", "layers/2")
        for name in one["parameter"].values
    }
    assert two["layer"].values.tolist() == ["layers/0/forward_rnn", "layers/0/backward_rnn"]
    two = two.sel(parameter=list(names.values()))
    assert set(one) == set(two)
    for name in one:
        np.testing.assert_allclose(one[name], two[name], rtol=2e-4, atol=2e-4, err_msg=str(name))


class Tied(nnx.Module):
    """A layer that is called twice, the second time from where the first one ended."""

    def __init__(self, rngs):
        self.rnn = nnx.RNN(nnx.SimpleCell(I, I, rngs=rngs))

    def __call__(self, x):
        carry, y = self.rnn(x, return_carry=True)
        return self.rnn(y, initial_carry=carry)


@pytest.mark.slow
def test_a_layer_that_is_called_twice(monkeypatch, caplog):
    """And a second call of the same analysis compiles nothing; what takes long is told."""
    module, x = Tied(nnx.Rngs(0)), jax.random.normal(jax.random.key(0), (B, T, I))
    loss = lambda y: jnp.sum(y[:, -1] ** 2, -1)  # noqa: E731
    monkeypatch.setattr(programs, "PATIENCE", 0.01)
    with caplog.at_level(logging.WARNING, "gradlab"):
        found = gradlab.analyze(module, x, loss, probes=[*CHEAP, "temporal_contribution"])
    assert "compiling 3 probes of 2 layers" in caplog.text
    assert found["layer"].values.tolist() == ["rnn", "rnn#2"]
    gradient = nnx.grad(lambda m: jnp.mean(loss(m(x))))(module)
    for path, leaf in nnx.to_flat_state(gradient):
        name = "/".join(map(str, path))
        got = float(found["grad_norm"].sel(parameter=name))
        assert got == pytest.approx(float(jnp.linalg.norm(leaf[...])), rel=1e-5)
    assert np.isnan(found["temporal_contribution_log10"]).all()
    reasons = json.loads(found.attrs["steps_not_known"])
    assert "more than one call" in reasons["rnn/cell/dense_h/kernel"]
    compiled = len(programs._programs)
    again = gradlab.analyze(module, x, loss, probes=[*CHEAP, "temporal_contribution"])
    assert len(programs._programs) == compiled
    np.testing.assert_array_equal(found["adj_h_log10"], again["adj_h_log10"])


class Within(nnx.Module):
    """A layer inside of a transformation of the module's own."""

    def __init__(self, rngs):
        self.rnn = nnx.RNN(nnx.SimpleCell(I, H, rngs=rngs))

    def __call__(self, x):
        return nnx.jit(lambda m, x: m(x))(self.rnn, x)


class Many(nnx.Module):
    """A layer that reads other sequences than those of the examples."""

    def __init__(self, rngs):
        self.rnn = nnx.RNN(nnx.SimpleCell(I, H, rngs=rngs))

    def __call__(self, x):
        return self.rnn(jnp.concatenate([x, x]))[:B]


def first(y):
    return jnp.sum(y[:, 0], -1)


@pytest.mark.parametrize(
    ("network", "loss", "options", "says"),
    [
        (nnx.RNN, first, {}, "instance"),
        (linen.RNN(linen.SimpleCell(H)), first, {}, "linen"),
        (nnx.Linear(I, H, rngs=nnx.Rngs(0)), first, {}, "nnx.RNNCellBase"),
        (Within(nnx.Rngs(0)), first, {}, "calls none of its recurrent layers"),
        (Many(nnx.Rngs(0)), first, {}, "one value per example, (6,)"),
        (Tied(nnx.Rngs(0)), jnp.sum, {}, "one value per example, (3,)"),
        (Tied(nnx.Rngs(0)), first, {"initial_carry": {"rn": 0}}, "rnn"),
        (Tied(nnx.Rngs(0)), first, {"initial_carry": 0}, "a dict from names of layers"),
        (Tied(nnx.Rngs(0)), first, {"seq_lengths": [T + 1] * B}, "from 1 to 12"),
        (Tied(nnx.Rngs(0)), first, {"seq_lengths": [T] * 5}, "for each example"),
        (Tied(nnx.Rngs(0)), first, {"seq_lengths": [[1], [1, 2]]}, "for each example"),
        (Tied(nnx.Rngs(0)), first, {"probes": ["forget_path"]}, "SimpleCell"),
        (Tied(nnx.Rngs(0)), np.ones((B, T)), {}, "targets (3, 12, 2)"),
        (Tied(nnx.Rngs(0)), lambda module, x, y: 0, {}, "closes over the targets"),
        (Tied(nnx.Rngs(0)), first, {"inputs": (jnp.ones((B, T, I)), 0)}, "as a tuple"),
    ],
)
def test_bad_input_is_named(network, loss, options, says):
    given = {"inputs": jnp.ones((B, T, I)), "targets_or_loss": loss, "probes": CHEAP, **options}
    with pytest.raises(BadInput) as refused:
        gradlab.analyze(network, **given)
    assert says in str(refused.value)


class Reads(nnx.RNNCellBase):
    """A cell that reads symbols, ``(B,)`` at a step."""

    num_feature_axes = 0

    def __init__(self, rngs):
        self.rows = nnx.Param(jax.random.normal(rngs(), (3, H)))
        self.mix = nnx.Param(0.3 * jax.random.normal(rngs(), (H, H)))

    def initialize_carry(self, input_shape, rngs=None, carry_init=None):
        return jnp.zeros((*input_shape, H))

    def __call__(self, carry, inputs):
        new = jnp.tanh(self.rows[...][inputs] + carry @ self.mix[...])
        return new, new


def test_a_cell_that_reads_symbols_itself():
    symbols = jnp.arange(B * T).reshape(B, T) % 3
    cell = Reads(nnx.Rngs(0))
    last = lambda y: jnp.sum(y[:, -1] ** 2, -1)  # noqa: E731
    found = gradlab.analyze(nnx.RNN(cell), symbols, last, probes=["adjoint"])
    h = nnx.RNN(cell)(symbols)[:, -1]
    due = np.mean(np.log10(np.linalg.norm(2 * h, axis=-1)))
    assert found["adj_h_log10"].values[0, -1] == pytest.approx(due, abs=1e-6)
