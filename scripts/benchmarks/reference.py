"""The loss and gradient of the problem, in numpy and float64, by the equations written out."""

from __future__ import annotations

import numpy as np

from benchmarks import problem
from benchmarks.problem import Arrays, First, Size


def first(cell: str, size: Size) -> First:
    """What every contestant must compute."""
    own = {name: array.astype(float) for name, array in problem.weights(cell, size).items()}
    inputs, targets = (array.astype(float) for array in problem.batch(size))
    forward, back = STEPS[cell]
    state = {name: np.zeros((size.B, size.H)) for name in "hc"}
    went = []
    for x in inputs:
        into = (x @ own["kernel"] + own["bias"], state["h"] @ own["recurrent"])
        before, (state, kept) = state, forward(*into, state)
        went.append((x, before, kept))
    error = state["h"] @ own["readout"] + own["offset"] - targets
    by_output = 2 * error / size.B
    grads: Arrays = {name: np.zeros_like(array) for name, array in own.items()}
    grads["readout"], grads["offset"] = state["h"].T @ by_output, by_output.sum(0)
    adjoint = {"h": by_output @ own["readout"].T, "c": np.zeros((size.B, size.H))}
    for x, before, kept in reversed(went):
        outer, inner, adjoint = back(adjoint, before, kept)
        grads["kernel"] += x.T @ outer
        grads["bias"] += outer.sum(0)
        grads["recurrent"] += before["h"].T @ inner
        adjoint["h"] = adjoint["h"] + inner @ own["recurrent"].T
    return First(float(np.mean(error**2)), grads)


def _sigmoid(a):
    return 1 / (1 + np.exp(-a))


def _rnn(outer, inner, state):
    h = np.tanh(outer + inner)
    return {"h": h, "c": state["c"]}, h


def _rnn_back(adjoint, _, h):
    inside = adjoint["h"] * (1 - h**2)
    return inside, inside, {"h": 0, "c": adjoint["c"]}


def _lstm(outer, inner, state):
    i, f, g, o = np.split(outer + inner, 4, axis=-1)
    i, f, g, o = _sigmoid(i), _sigmoid(f), np.tanh(g), _sigmoid(o)
    c = f * state["c"] + i * g
    return {"h": o * np.tanh(c), "c": c}, (i, f, g, o, np.tanh(c))


def _lstm_back(adjoint, before, kept):
    i, f, g, o, squashed = kept
    by_c = adjoint["c"] + adjoint["h"] * o * (1 - squashed**2)
    inside = [
        by_c * g * i * (1 - i),
        by_c * before["c"] * f * (1 - f),
        by_c * i * (1 - g**2),
        adjoint["h"] * squashed * o * (1 - o),
    ]
    inside = np.concatenate(inside, axis=-1)
    return inside, inside, {"h": 0, "c": by_c * f}


def _gru(outer, inner, state):
    x_r, x_z, x_n = np.split(outer, 3, axis=-1)
    h_r, h_z, h_n = np.split(inner, 3, axis=-1)
    r, z = _sigmoid(x_r + h_r), _sigmoid(x_z + h_z)
    n = np.tanh(x_n + r * h_n)
    return {"h": (1 - z) * n + z * state["h"], "c": state["c"]}, (r, z, n, h_n)


def _gru_back(adjoint, before, kept):
    r, z, n, h_n = kept
    by_n = adjoint["h"] * (1 - z) * (1 - n**2)
    by_z = adjoint["h"] * (before["h"] - n) * z * (1 - z)
    by_r = by_n * h_n * r * (1 - r)
    outer = np.concatenate([by_r, by_z, by_n], axis=-1)
    inner = np.concatenate([by_r, by_z, by_n * r], axis=-1)
    return outer, inner, {"h": adjoint["h"] * z, "c": adjoint["c"]}


STEPS = {"lstm": (_lstm, _lstm_back), "gru": (_gru, _gru_back), "rnn": (_rnn, _rnn_back)}
