"""Layers of Keras' give Keras' numbers, by its equations in numpy."""

import jax
import numpy as np
import pytest
from flax import nnx

from gradlab import BadInput, from_keras
from gradlab.convert.from_keras import ACTIVATIONS
from tests.convert.equations import (
    FUNCTIONS,
    GRU,
    LSTM,
    Bidirectional,
    Layer,
    SimpleRNN,
    keras_layer,
    keras_run,
)

READ = np.random.default_rng(1).standard_normal((3, 5, 3)).astype("f")


def agree(layer):
    module = from_keras(layer)
    due, (due_h, due_c) = keras_run(layer, READ)
    carry, outputs = nnx.jit(lambda module: module(READ, return_carry=True))(module)
    np.testing.assert_allclose(outputs, due, rtol=0, atol=1e-5)
    np.testing.assert_allclose(carry.h, due_h, rtol=0, atol=1e-5)
    if isinstance(layer, LSTM):
        np.testing.assert_allclose(carry.c, due_c, rtol=0, atol=1e-5)
    return module


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        (SimpleRNN, {}),
        (SimpleRNN, {"activation": "relu", "use_bias": False, "go_backwards": True}),
        (LSTM, {"recurrent_activation": "hard_sigmoid", "activation": "softsign"}),
        (LSTM, {"use_bias": False, "go_backwards": True}),
        (GRU, {}),
        (GRU, {"use_bias": False}),
        (GRU, {"reset_after": False, "activation": "relu"}),
        (GRU, {"reset_after": False, "use_bias": False, "go_backwards": True}),
    ],
)
def test_outputs_and_final_states_are_those_of_keras_equations(kind, config):
    module = agree(keras_layer(kind, **config))
    names = [path[-1] for path, _ in nnx.to_flat_state(nnx.state(module, nnx.Param))]
    two = kind is GRU and config.get("reset_after", True)
    assert names.count("bias") == (1 + two if config.get("use_bias", True) else 0)


def test_both_directions_are_put_together_as_said():
    forward, backward = keras_layer(GRU), keras_layer(LSTM, seed=1, go_backwards=True)
    a, b = keras_run(forward, READ)[0], keras_run(backward, READ)[0][:, ::-1]
    due = {"concat": np.concatenate([a, b], -1), "sum": a + b, "mul": a * b, "ave": (a + b) / 2}
    modules = [from_keras(Bidirectional(forward, backward, merge)) for merge in due]
    run = nnx.jit(lambda modules: [module(READ) for module in modules])
    for found, expected in zip(run(modules), due.values(), strict=True):
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def test_activations_are_keras_own():
    assert FUNCTIONS.keys() == ACTIVATIONS.keys()
    x = np.linspace(-4, 4, 33, dtype="f")
    for name, function in ACTIVATIONS.items():
        np.testing.assert_allclose(function(x), FUNCTIONS[name](x), rtol=1e-5, atol=1e-6)


def test_dropout_is_left_out_and_said(caplog):
    agree(keras_layer(GRU, dropout=0.5))
    assert "leaves the dropout of GRU out" in caplog.text


def test_a_subclass_is_what_it_is_made_from():
    own = type("MyGRU", (GRU,), {})
    layer = keras_layer(GRU)
    made = from_keras(own(layer.weights, **layer.config))
    pairs = (nnx.state(module, nnx.Param) for module in (made, from_keras(layer)))
    jax.tree.map(np.testing.assert_array_equal, *pairs)


@pytest.mark.parametrize(
    ("layer", "key"),
    [
        (None, "layer"),
        (LSTM, "layer"),
        (Layer([], units=3), "layer"),
        (type("LSTM", (), {})(), "layer"),
        (Bidirectional(Layer([]), keras_layer(LSTM), "concat"), "layer"),
        (LSTM([], **keras_layer(LSTM).config), "layer"),
        (LSTM(keras_layer(LSTM).weights[:2], **keras_layer(LSTM).config), "layer.get_weights()"),
        (LSTM(keras_layer(GRU).weights, **keras_layer(LSTM).config), "layer.get_weights()"),
        (LSTM([np.zeros(()), *keras_layer(LSTM).weights[1:]], **keras_layer(LSTM).config),
         "layer.get_weights()"),
        (keras_layer(LSTM, activation="mish"), "activation"),
        (keras_layer(LSTM, activation={"class_name": "LeakyReLU"}), "activation"),
        (keras_layer(GRU, recurrent_activation=None), "recurrent_activation"),
        (Bidirectional(keras_layer(LSTM), keras_layer(LSTM), "sum"), "go_backwards"),
        (Bidirectional(keras_layer(LSTM), keras_layer(LSTM, go_backwards=True), None),
         "merge_mode"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_refused_in_one_message(layer, key):
    with pytest.raises(BadInput) as caught:
        from_keras(layer)
    assert caught.value.key == key
    assert caught.value.allowed
