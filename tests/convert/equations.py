"""Recurrent layers as PyTorch and Keras define them, in numpy and float64.

A state dict holds arrays by PyTorch's names; Keras' layers are stood in for by :class:`Layer`.
"""

from __future__ import annotations

from typing import Any

import numpy as np


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def relu(x):
    return np.maximum(x, 0)


BLOCKS = {"tanh": 1, "relu": 1, "gru": 3, "lstm": 4}


def state_dict(
    kind: str,
    *,
    layers: int = 1,
    ways: int = 1,
    bias: bool = True,
    proj: int = 0,
    width: int = 3,
    hidden: int = 4,
    seed: int = 0,
    dtype: Any = np.float32,
) -> dict[str, np.ndarray]:
    """As ``module.state_dict()``, with random values."""
    rng, rows, out = np.random.default_rng(seed), BLOCKS[kind] * hidden, proj or hidden
    state = {}
    for layer in range(layers):
        for way in range(ways):
            shapes = {"weight_ih": (rows, width), "weight_hh": (rows, out)}
            if bias:
                shapes |= {"bias_ih": (rows,), "bias_hh": (rows,)}
            if proj:
                shapes["weight_hr"] = (proj, hidden)
            for name, shape in shapes.items():
                key = f"{name}_l{layer}" + "_reverse" * way
                state[key] = (rng.standard_normal(shape) / 2).astype(dtype)
        width = ways * out
    return state


def torch_step(kind: str, own: dict[str, np.ndarray], x: np.ndarray, h: np.ndarray, c: np.ndarray):
    """The equations in the documentation of ``torch.nn``: the new h and c."""
    zero = np.zeros(len(own["weight_ih"]))
    read = x @ own["weight_ih"].T + own.get("bias_ih", zero)
    fed = h @ own["weight_hh"].T + own.get("bias_hh", zero)
    if kind in ("tanh", "relu"):
        return (np.tanh if kind == "tanh" else relu)(read + fed), c
    if kind == "gru":
        (i_r, i_z, i_n), (h_r, h_z, h_n) = np.split(read, 3, -1), np.split(fed, 3, -1)
        r, z = sigmoid(i_r + h_r), sigmoid(i_z + h_z)
        n = np.tanh(i_n + r * h_n)
        return (1 - z) * n + z * h, c
    i, f, g, o = np.split(read + fed, 4, -1)
    c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
    h = sigmoid(o) * np.tanh(c)
    return (h @ own["weight_hr"].T if "weight_hr" in own else h), c


def torch_run(kind: str, state: dict[str, np.ndarray], x: np.ndarray, lengths: np.ndarray):
    """Outputs ``(B, T, D)``, zero beyond the end, and final ``(h, c)`` by layer and direction."""
    state = {name: array.astype(np.float64) for name, array in state.items()}
    layers = 1 + max(int(name.split("_l")[1][0]) for name in state)
    ways = 1 + any(name.endswith("_reverse") for name in state)
    finals = []
    for layer in range(layers):
        outputs = []
        for way in range(ways):
            end = f"_l{layer}" + "_reverse" * way
            own = {name.removesuffix(end): a for name, a in state.items() if name.endswith(end)}
            hidden = len(own["weight_ih"]) // BLOCKS[kind]
            out = own["weight_hh"].shape[1]
            y, h, c = (
                np.zeros((*x.shape[:2], out)),
                np.zeros((len(x), out)),
                np.zeros((len(x), hidden)),
            )
            for b, length in enumerate(lengths):
                for t in range(length)[:: -1 if way else 1]:
                    h[b], c[b] = torch_step(kind, own, x[b, t], h[b], c[b])
                    y[b, t] = h[b]
            outputs.append(y)
            finals.append((h, c))
        x = np.concatenate(outputs, -1)
    return x, finals


class Layer:
    """What :func:`gradlab.from_keras` asks of a layer of Keras': configuration and weights."""

    def __init__(self, weights, **config):
        self.weights, self.config = weights, config

    def get_config(self):
        return self.config

    def get_weights(self):
        return self.weights


class SimpleRNN(Layer):
    blocks = 1


class LSTM(Layer):
    blocks = 4


class GRU(Layer):
    blocks = 3


class Bidirectional(Layer):
    def __init__(self, forward_layer, backward_layer, merge_mode):
        super().__init__([], merge_mode=merge_mode)
        self.forward_layer, self.backward_layer = forward_layer, backward_layer


def keras_layer(
    kind: type[Any], *, width: int = 3, units: int = 4, seed: int = 0, **config: Any
) -> Layer:
    """One with Keras' defaults and random weights."""
    rng, wide = np.random.default_rng(seed), kind.blocks * units
    config = {
        "units": units,
        "activation": "tanh",
        "recurrent_activation": "sigmoid",
        "use_bias": True,
        "reset_after": True,
        "go_backwards": False,
        **config,
    }
    two = kind is GRU and config["reset_after"]
    shapes = [(width, wide), (units, wide), (2, wide) if two else (wide,)]
    shapes = shapes if config["use_bias"] else shapes[:2]
    return kind([(rng.standard_normal(shape) / 2).astype("f") for shape in shapes], **config)


FUNCTIONS = {
    "tanh": np.tanh,
    "relu": relu,
    "sigmoid": sigmoid,
    "linear": lambda x: x,
    "hard_sigmoid": lambda x: np.clip(x / 6 + 0.5, 0, 1),
    "softsign": lambda x: x / (1 + abs(x)),
    "softplus": lambda x: np.log1p(np.exp(x)),
    "exponential": np.exp,
    "silu": lambda x: x * sigmoid(x),
    "elu": lambda x: np.where(x > 0, x, np.expm1(x)),
    "selu": lambda x: 1.05070098 * np.where(x > 0, x, 1.67326324 * np.expm1(x)),
}


def keras_run(layer: Layer, x: np.ndarray):
    """Outputs ``(B, T, D)`` in the order in which the layer reads, and final ``(h, c)``."""
    config, gated = layer.config, not isinstance(layer, SimpleRNN)
    kernel, recurrent, *bias = (array.astype(np.float64) for array in layer.weights)
    act = FUNCTIONS[config["activation"]]
    gate = FUNCTIONS[config["recurrent_activation"]] if gated else None
    bias = bias[0] if bias else np.zeros(kernel.shape[1])
    h = c = np.zeros((len(x), config["units"]))
    outputs = []
    for t in range(x.shape[1])[:: -1 if config["go_backwards"] else 1]:
        if isinstance(layer, SimpleRNN):
            h = act(x[:, t] @ kernel + bias + h @ recurrent)
        elif isinstance(layer, LSTM):
            i, f, g, o = np.split(x[:, t] @ kernel + h @ recurrent + bias, 4, -1)
            c = gate(f) * c + gate(i) * act(g)
            h = gate(o) * act(c)
        else:
            own, inner = bias if bias.ndim == 2 else (bias, 0 * bias)
            x_z, x_r, x_h = np.split(x[:, t] @ kernel + own, 3, -1)
            u_z, u_r, u_h = np.split(recurrent, 3, -1)
            b_z, b_r, b_h = np.split(inner, 3, -1)
            z, r = gate(x_z + h @ u_z + b_z), gate(x_r + h @ u_r + b_r)
            reset = r * (h @ u_h + b_h) if config["reset_after"] else (r * h) @ u_h
            h = z * h + (1 - z) * act(x_h + reset)
        outputs.append(h)
    return np.stack(outputs, 1), (h, c)
