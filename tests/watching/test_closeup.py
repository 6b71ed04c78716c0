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
        new = jax.tree.map(lambda leaf, nudge: leaf + nudge[t], new, self.nudges[...])
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
        with jax.enable_x64(True):
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
                        np.log10(np.linalg.norm(leaf, axis=-1))
                        for leaf in jax.tree.leaves(found[...])
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
    """What people write: symbols, an embedding, two layers with their own code between, a readout."""

    def __init__(self, rngs):
        self.embedding = nnx.Embed(5, I, rngs=rngs)
        self.rnns = nnx.List(
            [nnx.RNN(nnx.OptimizedLSTMCell(I if n == 0 else H, H, rngs=rngs)) for n in range(2)]
        )
        self.norm = nnx.LayerNorm(H, rngs=rngs)
        self.dropout = nnx.Dropout(0.3, rngs=rngs)
        self.readout = nnx.Linear(H, 5, rngs=rngs)

    def __call__(self, symbols):
        x = self.embedding(symbols)
        x = self.rnns[0](x)
        x = self.dropout(nnx.relu(self.norm(x)) + 0.1 * x)
        return self.readout(self.rnns[1](x))


def test_a_module_that_people_write(caplog):
    """Far below what float32 holds, through layer normalisation and dropout."""
    steps = 150
    module = Reader(nnx.Rngs(0))
    symbols = jax.random.randint(jax.random.key(0), (B, steps), 0, 5)
    for layer in module.rnns:
        layer.cell.dense_h.kernel[...] *= 0.1
    before = jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(module, nnx.Not(nnx.RngKey))))

    def losses(logits):  # nothing but the last step
        return jnp.sum(jnp.square(logits[:, -1]), -1)

    found = gradlab.analyze(module, symbols, losses, probes=[*CHEAP, "temporal_contribution"])
    oracle = Oracle(module, lambda m: m(symbols), losses, {"rnns/0": steps, "rnns/1": steps})
    check(found, oracle)
    assert found["layer"].values.tolist() == ["rnns/0", "rnns/1"]
    assert float(found["adj_c_log10"][0, 0]) < -45
    after = jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(module, nnx.Not(nnx.RngKey))))
    jax.tree.map(np.testing.assert_array_equal, before, after)
    assert type(module.rnns[0]) is nnx.RNN
    assert found.attrs["mode"] == "train"
