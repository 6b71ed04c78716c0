"""Our cells against Flax's with the same weights, and against the textbook in numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from gradlab.cells import GRU, LSTM, FeedForward, GRUResetBefore, MemoryCarry, SimpleRNN

PAIRS = [
    pytest.param(SimpleRNN, nnx.SimpleCell, {}, {}, id="rnn"),
    pytest.param(
        SimpleRNN, nnx.SimpleCell, {"activation_fn": "relu"}, {"activation_fn": jax.nn.relu},
        id="relu rnn",
    ),
    pytest.param(LSTM, nnx.OptimizedLSTMCell, {"forget_bias": 0.0}, {}, id="lstm"),
    pytest.param(GRU, nnx.GRUCell, {}, {}, id="gru"),
]  # fmt: skip


def outputs_and_gradients(cell, params, inputs, carry):
    def run(params):
        own, outputs, state = nnx.merge(cell, params, copy=True), [], carry
        for x in inputs:
            state, y = own(state, x)
            outputs.append(y)
        return jnp.sum(jnp.sin(jnp.stack(outputs))), jnp.stack(outputs)

    (_, outputs), grads = jax.value_and_grad(run, has_aux=True)(params)
    names = ["/".join(map(str, path)) for path, _ in nnx.to_flat_state(grads)]
    return outputs, dict(zip(names, jax.tree.leaves(grads), strict=True))


@pytest.mark.parametrize(("width", "hidden", "batch"), [(1, 1, 1), (6, 4, 3)])
@pytest.mark.parametrize(("ours", "theirs", "our_options", "their_options"), PAIRS)
def test_outputs_and_parameter_gradients_equal_flax(
    ours, theirs, our_options, their_options, width, hidden, batch
):
    bias = nnx.initializers.normal(0.5)
    mine = ours(width, hidden, bias_init=bias, rngs=nnx.Rngs(3), **our_options)
    stock = theirs(width, hidden, bias_init=bias, rngs=nnx.Rngs(3), **their_options)
    start = stock.initialize_carry((batch, width), nnx.Rngs(0))
    (mine, params), (stock, same) = nnx.split(mine), nnx.split(stock)
    jax.tree.map(np.testing.assert_array_equal, params, same)  # they also begin alike

    @jax.jit
    def both(params, inputs):  # Flax's bare carry is accepted
        return [outputs_and_gradients(cell, params, inputs, start) for cell in (mine, stock)]

    for seed in range(4):
        rng = np.random.default_rng(seed)
        if seed:
            draw = lambda a, rng=rng: rng.normal(size=a.shape).astype("f") / 2  # noqa: E731
            params = jax.tree.map(draw, same)
        inputs = rng.normal(size=(3, batch, width)).astype("f")
        (y_mine, g_mine), (y_stock, g_stock) = both(params, inputs)
        np.testing.assert_allclose(y_mine, y_stock, rtol=1e-6, atol=1e-6)
        assert g_mine.keys() == g_stock.keys()
        for name, gradient in g_mine.items():
            np.testing.assert_allclose(gradient, g_stock[name], rtol=1e-6, atol=1e-6, err_msg=name)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def random_step(cell, width, hidden):
    rng = np.random.default_rng(0)
    x, h, c = (
        rng.normal(size=(2, width)),
        rng.normal(size=(2, hidden)),
        rng.normal(size=(2, hidden)),
    )
    graph, state = nnx.split(cell)
    state = jax.tree.map(lambda a: jnp.asarray(rng.normal(size=a.shape), jnp.float32), state)
    return nnx.merge(graph, state), x, h, c


def kernel(layer):
    return np.asarray(layer.kernel[...], np.float64)


def test_lstm_is_the_textbook():
    cell, x, h, c = random_step(LSTM(3, 4, rngs=nnx.Rngs(0)), 3, 4)
    w_x = np.split(kernel(cell.dense_i), 4, axis=1)
    w_h = np.split(kernel(cell.dense_h), 4, axis=1)
    b = np.split(np.asarray(cell.dense_h.bias[...], np.float64), 4)
    pre_i, pre_f, pre_c, pre_o = (
        x @ wx + h @ wh + bias for wx, wh, bias in zip(w_x, w_h, b, strict=True)
    )
    i, f, o, c_tilde = sigmoid(pre_i), sigmoid(pre_f), sigmoid(pre_o), np.tanh(pre_c)
    new_c = f * c + i * c_tilde
    new_h = o * np.tanh(new_c)
    (got_c, got_h), gates = cell.step(MemoryCarry(jnp.asarray(c), jnp.asarray(h)), jnp.asarray(x))
    np.testing.assert_allclose(got_c, new_c, atol=1e-6)
    np.testing.assert_allclose(got_h, new_h, atol=1e-6)
    for name, want in {"i": i, "f": f, "o": o, "c_tilde": c_tilde}.items():
        np.testing.assert_allclose(getattr(gates, name), want, atol=1e-6)


def test_forget_bias_is_added_to_the_forget_block_alone():
    bias = nnx.initializers.constant(0.25)
    cell = LSTM(2, 3, bias_init=bias, forget_bias=1.5, rngs=nnx.Rngs(0))
    want = np.full(12, 0.25)
    want[3:6] += 1.5
    np.testing.assert_allclose(cell.dense_h.bias[...], want)


@pytest.mark.parametrize("recurrent_bias", [False, True])
def test_gru_resets_after_the_product(recurrent_bias):
    cell, x, h, _ = random_step(GRU(3, 4, recurrent_bias=recurrent_bias, rngs=nnx.Rngs(0)), 3, 4)
    from_x = np.split(x @ kernel(cell.dense_i) + np.asarray(cell.dense_i.bias[...]), 3, axis=1)
    recurrent = h @ kernel(cell.dense_h)
    if recurrent_bias:
        recurrent = recurrent + np.asarray(cell.dense_h.bias[...])
    from_h = np.split(recurrent, 3, axis=1)
    r, z = sigmoid(from_x[0] + from_h[0]), sigmoid(from_x[1] + from_h[1])
    n = np.tanh(from_x[2] + r * from_h[2])
    _, y = cell(jnp.asarray(h), jnp.asarray(x))
    np.testing.assert_allclose(y, (1 - z) * n + z * h, atol=1e-5)


def test_gru_reset_before_is_cho_2014():
    cell, x, h, _ = random_step(GRUResetBefore(3, 4, rngs=nnx.Rngs(0)), 3, 4)
    from_x = np.split(x @ kernel(cell.dense_i) + np.asarray(cell.dense_i.bias[...]), 3, axis=1)
    h_r, h_z = np.split(h @ kernel(cell.dense_rz), 2, axis=1)
    r, z = sigmoid(from_x[0] + h_r), sigmoid(from_x[1] + h_z)
    n = np.tanh(from_x[2] + (r * h) @ kernel(cell.dense_n))
    _, y = cell(jnp.asarray(h), jnp.asarray(x))
    np.testing.assert_allclose(y, (1 - z) * n + z * h, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "function"),
    [
        ("tanh", np.tanh),
        ("sigmoid", sigmoid),
        ("relu", lambda x: np.maximum(x, 0)),
        ("identity", lambda x: x),
    ],
)
def test_rnn_and_feed_forward_by_activation(name, function):
    rnn, x, h, _ = random_step(SimpleRNN(3, 4, activation_fn=name, rngs=nnx.Rngs(0)), 3, 4)
    pre = x @ kernel(rnn.dense_i) + np.asarray(rnn.dense_i.bias[...]) + h @ kernel(rnn.dense_h)
    np.testing.assert_allclose(rnn(jnp.asarray(h), jnp.asarray(x))[1], function(pre), atol=1e-5)
    net, x, h, _ = random_step(FeedForward(3, 4, activation_fn=name, rngs=nnx.Rngs(0)), 3, 4)
    pre = x @ kernel(net.dense) + np.asarray(net.dense.bias[...])
    np.testing.assert_allclose(net(jnp.asarray(h), jnp.asarray(x))[1], function(pre), atol=1e-5)


def test_a_carry_comes_back_in_the_form_it_was_given():
    lstm, gru = LSTM(2, 3, rngs=nnx.Rngs(0)), GRU(2, 3, rngs=nnx.Rngs(0))
    x, h = jnp.ones((1, 2)), jnp.zeros((1, 3))
    named = lstm.initialize_carry((1, 2))
    assert named._fields == ("c", "h")
    assert type(lstm(named, x)[0]) is type(named)
    assert type(lstm((h, h), x)[0]) is tuple
    assert gru.initialize_carry((1, 2)).shape == (1, 3)
    assert gru(h, x)[0].shape == (1, 3)


def test_a_carry_can_be_drawn():
    cell = LSTM(2, 3, rngs=nnx.Rngs(0))
    c, h = cell.initialize_carry((4, 2), nnx.Rngs(0), nnx.initializers.normal(1.0))
    assert c.shape == h.shape == (4, 3)
    assert not np.array_equal(c, h)
    with pytest.raises(ValueError, match="rngs"):
        cell.initialize_carry((4, 2), None, nnx.initializers.normal(1.0))
