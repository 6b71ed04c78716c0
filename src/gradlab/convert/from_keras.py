"""Keras' ``SimpleRNN``, ``LSTM``, ``GRU`` and ``Bidirectional``, with the weights they have."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from gradlab.cells.base import Activation
from gradlab.convert import filled
from gradlab.errors import BadInput, nearest
from gradlab.watching.layers import RNN, Bidirectional

ACTIVATIONS: dict[str, Activation] = {
    "elu": jax.nn.elu,
    "exponential": jnp.exp,
    "hard_sigmoid": jax.nn.hard_sigmoid,
    "linear": lambda x: x,
    "relu": jax.nn.relu,
    "selu": jax.nn.selu,
    "sigmoid": jax.nn.sigmoid,
    "silu": jax.nn.silu,
    "softplus": jax.nn.softplus,
    "softsign": jax.nn.soft_sign,
    "tanh": jnp.tanh,
}
"""By Keras' names for them, as Keras 3 defines them."""
MERGES: dict[str, Callable[[jax.Array, jax.Array], jax.Array]] = {
    "concat": lambda a, b: jnp.concatenate([a, b], -1),
    "sum": lambda a, b: a + b,
    "mul": lambda a, b: a * b,
    "ave": lambda a, b: (a + b) / 2,
}
_BLOCKS = {"SimpleRNN": 1, "LSTM": 4, "GRU": 3}
_log = logging.getLogger("gradlab")


def from_keras(layer: Any) -> RNN | Bidirectional:
    """A recurrent layer of Keras' as one of gradlab's, which computes and trains the same.

    Keras is not imported. The outputs are those of every step, ``(B, T, D)``, as with
    ``return_sequences=True``, and those of ``training=False``: dropout is left out. With
    ``go_backwards`` they come in the order in which the layer reads, as in Keras. Several layers
    are put together by ``nnx.Sequential(from_keras(a), from_keras(b))``.

    Args:
      layer: a ``SimpleRNN``, ``LSTM``, ``GRU`` (either ``reset_after``), or a ``Bidirectional`` of
        one, that has been built.

    Returns:
      :class:`gradlab.RNN` or :class:`gradlab.Bidirectional`. Its cell is a
      :class:`gradlab.cells.SimpleRNN`, ``LSTM``, ``GRU`` with ``recurrent_bias`` or, without
      ``reset_after``, ``GRUResetBefore``.

    Raises:
      BadInput: for another layer, one that is not built, or an activation that is not known.
    """
    config = _config_of(layer)
    if not hasattr(layer, "forward_layer"):
        return _one(layer)
    forward, backward = _one(layer.forward_layer), _one(layer.backward_layer)
    reads = (forward.reverse, backward.reverse)
    if reads != (False, True):
        raise BadInput("go_backwards", reads, "(False, True) of the two layers in a Bidirectional")
    merge = config["merge_mode"]
    if merge not in MERGES:
        raise BadInput("merge_mode", merge, " | ".join(MERGES))
    return Bidirectional(RNN(forward.cell), RNN(backward.cell), merge_fn=MERGES[merge])


def _kind_of(layer: Any) -> str | None:
    """The name of Keras' class that it is, or of the one that it is made from."""
    names = [kind.__name__ for kind in type(layer).__mro__]
    return next((name for name in names if name in _BLOCKS), None)


def _config_of(layer: Any) -> dict[str, Any]:
    ready = not isinstance(layer, type) and callable(getattr(layer, "get_config", None))
    if not ready or not (hasattr(layer, "forward_layer") or _kind_of(layer)):
        given = layer if isinstance(layer, type) else type(layer).__name__
        allowed = "a SimpleRNN, LSTM or GRU layer of Keras', or a Bidirectional of one"
        raise BadInput(
            "layer", given, allowed, "one layer of the model: from_keras(model.layers[1])"
        )
    return layer.get_config()


def _one(layer: Any) -> RNN:
    config, kind = _config_of(layer), _kind_of(layer)
    kernel, recurrent, bias = _weights(layer, kind, config)
    activation = _activation(config, "activation")
    if config.get("dropout") or config.get("recurrent_dropout"):
        _log.warning("from_keras leaves the dropout of %s out, as training=False does", kind)
    cell: nnx.RNNCellBase
    if kind == "SimpleRNN":
        cell = filled.simple_rnn(kernel, recurrent, bias, activation)
    else:
        fns = _activation(config, "recurrent_activation"), activation
        if kind == "LSTM":
            cell = filled.lstm(kernel, recurrent, bias, None, *fns)
        elif config["reset_after"]:
            own, inner = (None, None) if bias is None else bias
            cell = filled.gru(kernel, recurrent, own, inner, *fns)
        else:
            cell = filled.gru_reset_before(kernel, recurrent, bias, *fns)
    return RNN(cell, reverse=config["go_backwards"])


def _weights(layer: Any, kind: Any, config: dict[str, Any]) -> Any:
    """Kernel, recurrent kernel and bias, with the blocks in gradlab's order; None for no bias."""
    arrays = [np.asarray(array) for array in layer.get_weights()]
    wide, count = _BLOCKS[kind] * config["units"], 2 + config["use_bias"]
    bias = (2, wide) if kind == "GRU" and config["reset_after"] else (wide,)
    due = [(None, wide), (config["units"], wide), bias][:count]
    shapes = [array.shape for array in arrays]
    if not arrays:
        hint = "layer.build((None, None, width)), or call it once"
        raise BadInput("layer", f"{kind} without weights", "a layer that is built", hint)
    if len(due) != len(shapes) or [(None, *shapes[0][1:]), *shapes[1:]] != due:
        raise BadInput("layer.get_weights()", shapes, f"arrays of shapes {due}, None: any")
    if kind == "GRU":  # Keras has z before r
        arrays = [np.concatenate([r, z, n], -1) for z, r, n in map(_thirds, arrays)]
    return (*arrays, None)[:3]


def _thirds(array: np.ndarray) -> list[np.ndarray]:
    return np.split(array, 3, -1)


def _activation(config: dict[str, Any], key: str) -> Activation:
    name = config[key]
    if not isinstance(name, str) or name not in ACTIVATIONS:
        close = nearest(name, ACTIVATIONS, 1) if isinstance(name, str) else []
        raise BadInput(key, name, " | ".join(ACTIVATIONS), " ".join(close))
    return ACTIVATIONS[name]
