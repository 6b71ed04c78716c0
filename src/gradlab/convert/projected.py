"""The LSTM whose h is a projection, narrower than its memory (Sak, Senior & Beaufays 2014)."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from flax.typing import Dtype, Initializer

from gradlab.cells.base import (
    Activation,
    Cell,
    MemoryCarry,
    default_bias_init,
    default_kernel_init,
    default_recurrent_init,
)
from gradlab.cells.lstm import LSTMGates


class ProjectedLSTM(Cell):
    r"""The LSTM of PyTorch's ``proj_size``: ``h' = P (o ∘ tanh(c'))``, with h in all products.

    Args:
      in_features: ``I``.
      hidden_features: ``H``, the width of c and of the gates.
      projection: ``P``, the width of h and of the output.
      kernel_init: initializer of the input kernel ``(I, 4H)``, blocks in the order i, f, c̃, o, and
        of the projection ``(H, P)``.
      recurrent_kernel_init: initializer of the recurrent kernel ``(P, 4H)``.
      bias_init: initializer of the bias ``(4H,)``.
      gate_fn: σ.
      activation_fn: tanh.
      dtype: dtype of the computation; None takes it from inputs and parameters.
      param_dtype: dtype of the parameters.
      rngs: Flax random keys.
    """

    Carry = MemoryCarry
    gate_names = ("i", "f", "o")
    retention_gate = "f"

    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        projection: int,
        *,
        gate_fn: Activation = jax.nn.sigmoid,
        activation_fn: Activation = jnp.tanh,
        kernel_init: Initializer = default_kernel_init,
        recurrent_kernel_init: Initializer = default_recurrent_init,
        bias_init: Initializer = default_bias_init,
        dtype: Dtype | None = None,
        param_dtype: Dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        dense = self._dense(in_features, hidden_features, dtype, param_dtype, rngs)
        self.projection = projection
        self.gate_fn, self.activation_fn = gate_fn, activation_fn
        self.dense_i = dense(in_features, 4 * hidden_features, kernel_init, None)
        self.dense_h = dense(projection, 4 * hidden_features, recurrent_kernel_init, bias_init)
        self.dense_p = dense(hidden_features, projection, kernel_init, None)

    def step(self, carry: MemoryCarry, x: jax.Array) -> tuple[MemoryCarry, LSTMGates]:
        """See :meth:`gradlab.cells.base.Cell.step`."""
        blocks = jnp.split(self.dense_i(x) + self.dense_h(carry.h), 4, axis=-1)
        i, f, o = (self.gate_fn(blocks[k]) for k in (0, 1, 3))
        c_tilde = self.activation_fn(blocks[2])
        c = f * carry.c + i * c_tilde
        h = self.dense_p(o * self.activation_fn(c))
        return MemoryCarry(c, h), LSTMGates(i, f, o, c_tilde)

    def initialize_carry(
        self,
        input_shape: tuple[int, ...],
        rngs: nnx.Rngs | nnx.RngStream | None = None,
        carry_init: Initializer | None = None,
    ) -> Any:
        """See :meth:`gradlab.cells.base.Cell.initialize_carry`; h is ``(B, P)``."""
        c, h = super().initialize_carry(input_shape, rngs, carry_init)
        return MemoryCarry(c, h[..., : self.projection])
