"""Time cut into segments: the same numbers with a fraction of the memory."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from gradlab.bptt import segments
from gradlab.bptt.scaling import LOG10_2, times
from gradlab.bptt.unroll import in_full, make_taps, unroll, whole_taps
from gradlab.cells import LSTM, SimpleRNN
from gradlab.errors import BadInput
from tests.zoo import Dropout

T, B, I = 13, 3, 2  # noqa: E741


def test_every_number_is_that_of_a_pass_that_keeps_all_states():
    rngs = nnx.Rngs(0)
    layers = [[LSTM(I, 4, rngs=rngs), Dropout(I, 3, rngs=rngs)]]  # the second reads from the end
    graph, params, rest = nnx.split(layers, nnx.Param, ...)
    inputs = jax.random.normal(jax.random.key(1), (T, B, I))
    mask = jnp.arange(T)[:, None] < jnp.array([[T, 1, 6]])
    weights = jax.random.normal(jax.random.key(2), (T, B, 7))

    def loss(params, inputs, taps, count):
        built = nnx.merge(graph, params, rest, copy=True)
        run = unroll(built, inputs, mask=mask, taps=taps, segments=count)
        traces = in_full(layers, run.forms, run.traces, mask)
        drawn = [one[...] for one in jax.tree.leaves(nnx.state(built, nnx.RngCount))]
        return jnp.sum(weights * run.outputs) + jnp.sum(run.last), (traces, run.finals, drawn)

    def everything(count):
        gradient = jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True), static_argnums=3)
        others, (*grads, seen) = gradient(params, inputs, whole_taps(layers, inputs.shape), count)
        adjoints = [
            jax.tree.map(lambda leaf, two=tap["exponent"]: times(leaf, 2.0**two), tap["adjoint"])
            for layer in seen
            for tap in layer
        ]
        return others, grads, adjoints

    plainly, cut = everything(None), everything(3)  # segments of 5, 5 and 3 steps
    assert jax.tree.structure(plainly) == jax.tree.structure(cut)
    for expected, found in zip(jax.tree.leaves(plainly), jax.tree.leaves(cut), strict=True):
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6 * np.max(np.abs(expected)))


@pytest.mark.parametrize("w", [0.5, 2.0])
def test_nothing_underflows_over_5000_steps(w):
    cell = SimpleRNN(1, 1, activation_fn="identity", rngs=nnx.Rngs(0))
    cell.dense_h.kernel[...] = jnp.full((1, 1), w)
    inputs = jnp.zeros((5000, 1, 1))

    def loss(taps):
        return jnp.sum(unroll([[cell]], inputs, taps=taps, every=False, segments=71).last)

    norms = jax.jit(jax.grad(loss))(make_taps([[cell]], inputs.shape))[0][0]["h"]
    lag = np.arange(4999, -1, -1)[:, None]
    np.testing.assert_allclose(norms * LOG10_2, lag * math.log10(w), atol=1e-3)


def test_memory_is_that_of_the_root_of_t_steps():
    steps, batch, hidden = 2500, 4, 32
    cell = LSTM(2, hidden, rngs=nnx.Rngs(0))
    graph, params = nnx.split(cell)
    inputs = jnp.ones((steps, batch, 2))

    def loss(params, count):
        built = nnx.merge(graph, params, copy=True)
        return jnp.sum(unroll([[built]], inputs, every=False, segments=count).last)

    def memory(count):
        compiled = jax.jit(jax.grad(loss), static_argnums=1).lower(params, count).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    states = 4 * 2 * batch * hidden  # c and h of one step
    assert memory(None) > steps * states
    # Borders, the states of a segment, and what a step reads and writes.
    assert memory(segments.about_root(steps)) < 6 * 50 * states + 4 * steps * batch * 4


def test_about_the_root_of_t_they_are_equally_long_where_they_can_be():
    for steps in (4, 5, 97, 784, 1000, 100_000):
        found = segments.about_root(steps)
        assert math.isqrt(steps) / 2 <= found <= 2 * math.isqrt(steps)
        if steps not in (5, 97):
            assert steps % found == 0


def test_what_cannot_be_cut_is_refused():
    cell, inputs = SimpleRNN(I, 2, rngs=nnx.Rngs(0)), jnp.ones((T, B, I))
    mask = jnp.ones((T, B), bool)
    for count, more, allowed in [
        (1, {}, "at least 2"),
        (2.5, {}, "a whole number"),
        (T + 1, {}, f"{T} at most"),
        (3, {"mask": mask, "waits": False}, "None where states do not wait"),
    ]:
        with pytest.raises(BadInput, match=allowed):
            unroll([[cell]], inputs, segments=count, **more)
