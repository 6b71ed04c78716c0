"""The long short-term memory (Hochreiter & Schmidhuber 1997), with Gers et al.'s forget gate."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from flax.typing import Dtype, Initializer

from gradlab.cells.base import (
    Activation,
    Cell,
    MemoryCarry,
    RecurrentInit,
    default_bias_init,
    default_kernel_init,
    recurrent_init,
)
from gradlab.errors import number


class LSTMGates(NamedTuple):
    """Activations of the input, forget and output gate and the candidate, ``(B, H)`` each."""

    i: jax.Array
    f: jax.Array
    o: jax.Array
    c_tilde: jax.Array


class LSTM(Cell):
    r"""The textbook LSTM; Flax's ``nnx.OptimizedLSTMCell`` with a forget bias.

    With ``σ`` the sigmoid::

        I  = σ(W_xi x + W_hi h + b_i)
        F  = σ(W_xf x + W_hf h + b_f)
        O  = σ(W_xo x + W_ho h + b_o)
        C̃  = tanh(W_xc x + W_hc h + b_c)
        C' = F ∘ C + I ∘ C̃
        H' = O ∘ tanh(C')

    The four blocks lie side by side in one kernel in Flax's order i, f, c̃, o.

    Args:
      in_features: ``I``.
      hidden_features: ``H``.
      forget_bias: added to ``bias_init``'s value in the forget block. 0 is Flax's default, where
        F starts near ½ and the memory's half-life is one step; 1 is Jozefowicz et al. (2015).
      gate_fn: σ.
      activation_fn: tanh.
      kernel_init: initializer of the input kernel ``(I, 4H)``.
      recurrent_kernel_init: initializer of the recurrent kernel ``(H, 4H)``, or its name:
        "orthogonal", "gaussian" (independent, N(0, 1/H)) or "identity" (in each block).
      recurrent_gain: what its values are multiplied by.
      bias_init: initializer of the bias ``(4H,)``.
      dtype: dtype of the computation; None takes it from inputs and parameters.
      param_dtype: dtype of the parameters.
      rngs: Flax random keys; the same ones give ``nnx.OptimizedLSTMCell`` the same weights.
    """

    Carry = MemoryCarry
    gate_names = ("i", "f", "o")
    retention_gate = "f"

    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        *,
        forget_bias: float = 1.0,
        gate_fn: Activation = jax.nn.sigmoid,
        activation_fn: Activation = jnp.tanh,
        kernel_init: Initializer = default_kernel_init,
        recurrent_kernel_init: RecurrentInit | Initializer = "orthogonal",
        recurrent_gain: float = 1.0,
        bias_init: Initializer = default_bias_init,
        dtype: Dtype | None = None,
        param_dtype: Dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        number("model.cell.forget_bias", forget_bias, -1e6, 1e6)
        dense = self._dense(in_features, hidden_features, dtype, param_dtype, rngs)
        self.gate_fn, self.activation_fn = gate_fn, activation_fn
        recurrent = recurrent_init(recurrent_kernel_init, recurrent_gain)
        self.dense_i = dense(in_features, 4 * hidden_features, kernel_init, None)
        self.dense_h = dense(hidden_features, 4 * hidden_features, recurrent, bias_init)
        bias = self.dense_h.bias
        assert bias is not None
        forget = slice(hidden_features, 2 * hidden_features)
        bias[...] = bias[...].at[forget].add(forget_bias)

    def step(self, carry: MemoryCarry, x: jax.Array) -> tuple[MemoryCarry, LSTMGates]:
        """See :meth:`gradlab.cells.base.Cell.step`."""
        blocks = jnp.split(self.dense_i(x) + self.dense_h(carry.h), 4, axis=-1)
        i, f, o = (self.gate_fn(blocks[k]) for k in (0, 1, 3))
        c_tilde = self.activation_fn(blocks[2])
        c = f * carry.c + i * c_tilde
        h = o * self.activation_fn(c)
        return MemoryCarry(c, h), LSTMGates(i, f, o, c_tilde)
