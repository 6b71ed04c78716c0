"""gradlab's cells with given weights: kernels as in Flax, ``(inputs, outputs)``.

A bias that is None is none, so that training goes on with the parameters there were and no others.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from gradlab.cells import GRU, LSTM, GRUResetBefore, SimpleRNN
from gradlab.cells.base import Activation
from gradlab.convert.projected import ProjectedLSTM

Weights = np.ndarray
_ZEROS = nnx.initializers.zeros_init()


def simple_rnn(
    kernel: Weights, recurrent: Weights, bias: Weights | None, activation: Activation = jnp.tanh
) -> SimpleRNN:
    """Kernels ``(I, H)`` and ``(H, H)``, bias ``(H,)``."""
    cell = SimpleRNN(*_sizes(kernel, 1), activation_fn=activation, **_keys(kernel))
    cell.dense_i, cell.dense_h = _linear(kernel, bias), _linear(recurrent, None)
    return cell


def lstm(
    kernel: Weights,
    recurrent: Weights,
    bias: Weights | None,
    projection: Weights | None = None,
    gate: Activation = jax.nn.sigmoid,
    activation: Activation = jnp.tanh,
) -> LSTM | ProjectedLSTM:
    """Kernels ``(I, 4H)`` and ``(P, 4H)``, bias ``(4H,)``, in the order i, f, c̃, o; ``(H, P)``."""
    sizes, fns = _sizes(kernel, 4), {"gate_fn": gate, "activation_fn": activation}
    if projection is None:
        cell = LSTM(*sizes, **fns, **_keys(kernel))
    else:
        cell = ProjectedLSTM(*sizes, projection.shape[1], **fns, **_keys(kernel))
        cell.dense_p = _linear(projection, None)
    cell.dense_i, cell.dense_h = _linear(kernel, None), _linear(recurrent, bias)
    return cell


def gru(
    kernel: Weights,
    recurrent: Weights,
    bias: Weights | None,
    recurrent_bias: Weights | None,
    gate: Activation = jax.nn.sigmoid,
    activation: Activation = jnp.tanh,
) -> GRU:
    """The reset after the product: kernels ``(I, 3H)``, ``(H, 3H)``, biases, in the order r, z, n.

    Both biases stay: that of the recurrent product is inside of the reset in n.
    """
    fns = {"gate_fn": gate, "activation_fn": activation}
    cell = GRU(*_sizes(kernel, 3), recurrent_bias=True, **fns, **_keys(kernel))
    cell.dense_i, cell.dense_h = _linear(kernel, bias), _linear(recurrent, recurrent_bias)
    return cell


def gru_reset_before(
    kernel: Weights,
    recurrent: Weights,
    bias: Weights | None,
    gate: Activation = jax.nn.sigmoid,
    activation: Activation = jnp.tanh,
) -> GRUResetBefore:
    """The reset before the product; kernels and bias as for :func:`gru`."""
    sizes, fns = _sizes(kernel, 3), {"gate_fn": gate, "activation_fn": activation}
    cell = GRUResetBefore(*sizes, **fns, **_keys(kernel))
    gates, candidate = np.split(recurrent, [2 * sizes[1]], -1)
    cell.dense_i = _linear(kernel, bias)
    cell.dense_rz, cell.dense_n = _linear(gates, None), _linear(candidate, None)
    return cell


def _sizes(kernel: Weights, blocks: int) -> tuple[int, int]:
    return kernel.shape[0], kernel.shape[1] // blocks


def _keys(kernel: Weights) -> dict:
    """What every cell is made with; its first weights are no draws, since they are replaced."""
    zeros = {"kernel_init": _ZEROS, "recurrent_kernel_init": _ZEROS}
    return {**zeros, "param_dtype": jnp.asarray(kernel).dtype, "rngs": nnx.Rngs(0)}


def _linear(kernel: Weights, bias: Weights | None) -> nnx.Linear:
    """With copies of them: what was given may go on changing in place."""
    layer = nnx.Linear(
        *kernel.shape,
        use_bias=bias is not None,
        kernel_init=_ZEROS,
        param_dtype=jnp.asarray(kernel).dtype,
        rngs=nnx.Rngs(0),
    )
    layer.kernel.set_value(jnp.array(kernel))
    if bias is not None:
        assert layer.bias is not None
        layer.bias.set_value(jnp.array(bias))
    return layer
