"""Every matrix product of what is compiled keeps the digits of float32, on every device.

On a CPU JAX always multiplies so; what is compiled says whether it would elsewhere.
"""

import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from gradlab import analysis
from gradlab.bptt.unroll import make_taps, unroll
from gradlab.cells import LSTM, SimpleRNN
from gradlab.model import SequenceModel
from gradlab.probes.setting import setting_of, supported
from gradlab.regularizers.flossing import Flossing
from gradlab.tasks import Adding
from gradlab.training.optimizer import Optimizer
from gradlab.training.program import held_out, scores
from gradlab.training.step import Steps
from tests import ROOT


def precisions(function, *arguments):
    """Of each product of floats in what is compiled of a function, how it is made."""
    text = jax.jit(function).lower(*arguments).as_text()
    products = [line for line in text.splitlines() if "dot_general" in line]
    assert products
    return {
        "highest" if line.count("HIGHEST") == 2 else "highly" if line.count("HIGH") == 2 else line
        for line in products
    }


def gradient(x):
    cell = LSTM(2, 3, rngs=nnx.Rngs(0))
    graph, params = nnx.split(cell)

    def loss(params, taps):
        return jnp.sum(unroll([[nnx.merge(graph, params, copy=True)]], x, taps=taps).last)

    return jax.grad(loss, argnums=(0, 1))(params, make_taps([[cell]], x.shape))


def test_of_an_unroll_with_its_gradient():
    x = jnp.ones((4, 2, 2))
    assert precisions(gradient, x) == {"highest"}
    with jax.default_matmul_precision("tensorfloat32"):  # one's own choice holds
        assert precisions(gradient, x) == {"highly"}


@pytest.mark.slow
def test_of_all_that_a_run_and_an_analysis_measure():
    task = Adding(length=4, held_out_examples=2)
    sizes = {"features": 2, "hidden": 3, "layers": 1, "outputs": 1, "readout": "last"}
    model = SequenceModel(LSTM, **sizes, rngs=nnx.Rngs(0))
    setting = setting_of(model.layers, model.width, length=4, clips=True)
    probes = {name: analysis.probe_class(name)() for name in analysis.probe_names()}
    probes, _ = supported(probes, setting, by_preset=True)
    optimizer = Optimizer(optax.sgd, steps=9, learning_rate=0.1, clip_norm=1.0)
    steps = Steps(model, task, optimizer, probes, 2, examples=1, regularizer=Flossing())
    state = steps.start(jax.random.key(0))
    assert precisions(steps.advance, state, (), jnp.int32(1)) == {"highest"}
    assert precisions(steps.probe, state, ()) == {"highest"}
    assert precisions(steps.measure, state, ()) == {"highest"}
    assert precisions(steps.inspect, state, ()) == {"highest"}
    split = held_out(task, 2)["val"]
    assert precisions(lambda p: scores(steps, p, split), state.params) == {"highest"}


@pytest.mark.skipif(jax.default_backend() == "cpu", reason="a CPU has no faster, coarser product")
def test_a_long_gradient_is_that_of_float64_on_an_accelerator():
    """In TF32 it is wrong by 1e-3."""
    spec = importlib.util.spec_from_file_location("script", ROOT / "scripts" / "accelerator.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    assert script.lstm_error("h") < 1e-5
    assert script.lstm_error("c") < 1e-5


class AnyRNN(SimpleRNN):
    """The same to the reader, and a cell like any other to the passes."""

    def __call__(self, carry, inputs):
        return super().__call__(carry, inputs)


@pytest.mark.parametrize("kind", [SimpleRNN, AnyRNN])
def test_products_in_bfloat16_round_their_operands_and_nothing_else(kind):
    cell = kind(3, 5, rngs=nnx.Rngs(0))
    graph, params = nnx.split(cell)
    x, h, by = (
        jax.random.normal(jax.random.key(seed), shape)
        for seed, shape in enumerate([(1, 4, 3), (4, 5), (4, 5)])
    )

    def loss(params, x, h):
        built = nnx.merge(graph, params, copy=True)
        run = unroll([[built]], x, start=[[h]], products="bfloat16")
        return jnp.sum(by * run.last), run.last

    gradient = jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))
    (_, last), (of_params, of_x, of_h) = gradient(params, x, h)

    def rounded(array):
        return np.asarray(jnp.asarray(array, jnp.bfloat16), np.float64)

    w_x, w_h, bias = (np.asarray(w[...], np.float64) for w in _weights(cell))
    new = np.tanh(rounded(x[0]) @ rounded(w_x) + rounded(h) @ rounded(w_h) + bias)
    sums = np.asarray(by) * (1 - new**2)
    close = {"rtol": 1e-5, "atol": 1e-6}
    np.testing.assert_allclose(last, new, **close)
    np.testing.assert_allclose(of_x[0], rounded(sums) @ rounded(w_x).T, **close)
    np.testing.assert_allclose(of_h, rounded(sums) @ rounded(w_h).T, **close)
    from_x, from_h, of_bias = _weights(of_params)
    np.testing.assert_allclose(from_x[...], rounded(x[0]).T @ rounded(sums), **close)
    np.testing.assert_allclose(from_h[...], rounded(h).T @ rounded(sums), **close)
    # Where the step is written out, the bias is a row of the matrix, and rounded likewise.
    by_bias = rounded(sums) if kind is SimpleRNN else sums
    np.testing.assert_allclose(of_bias[...], by_bias.sum(0), **close)


def _weights(of):
    return of.dense_i.kernel, of.dense_h.kernel, of.dense_i.bias
