"""The gated recurrent unit (Cho et al. 2014), reset after the product as in Flax and cuDNN."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from flax.typing import Dtype, Initializer

from gradlab.cells.base import (
    Activation,
    Cell,
    HiddenCarry,
    RecurrentInit,
    default_bias_init,
    default_kernel_init,
    recurrent_init,
)


class GRUGates(NamedTuple):
    """Activations of the reset and update gate and the candidate, ``(B, H)`` each.

    As in Flax, ``z`` keeps the old state: ``h' = (1 - z) n + z h``.
    """

    r: jax.Array
    z: jax.Array
    n: jax.Array


class GRU(Cell):
    r"""The GRU as in Flax's ``nnx.GRUCell``: z keeps the state, and r acts after the product.

    ::

        r  = σ(W_ir x + b_r + W_hr h)
        z  = σ(W_iz x + b_z + W_hz h)
        n  = tanh(W_in x + b_n + r ∘ (W_hn h [+ b_hn]))
        h' = (1 - z) ∘ n + z ∘ h

    The original equation of Cho et al. (2014), with r before the product, is
    :class:`gradlab.cells.GRUResetBefore`.

    Args:
      in_features: ``I``.
      hidden_features: ``H``.
      recurrent_bias: also learn a bias of the recurrent product, as cuDNN and Keras'
        ``reset_after`` do; it differs from the input's bias in n only.
      gate_fn: σ.
      activation_fn: tanh.
      kernel_init: initializer of the input kernel ``(I, 3H)``, blocks in the order r, z, n.
      recurrent_kernel_init: initializer of the recurrent kernel ``(H, 3H)``, or its name:
        "orthogonal", "gaussian" (independent, N(0, 1/H)) or "identity" (in each block).
      recurrent_gain: what its values are multiplied by.
      bias_init: initializer of the biases ``(3H,)``.
      dtype: dtype of the computation; None takes it from inputs and parameters.
      param_dtype: dtype of the parameters.
      rngs: Flax random keys; the same ones give ``nnx.GRUCell`` the same weights.
    """

    gate_names = ("r", "z")
    retention_gate = "z"

    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        *,
        recurrent_bias: bool = False,
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
        dense = self._dense(in_features, hidden_features, dtype, param_dtype, rngs)
        self.gate_fn, self.activation_fn = gate_fn, activation_fn
        recurrent = recurrent_init(recurrent_kernel_init, recurrent_gain)
        own_bias = bias_init if recurrent_bias else None
        self.dense_i = dense(in_features, 3 * hidden_features, kernel_init, bias_init)
        self.dense_h = dense(hidden_features, 3 * hidden_features, recurrent, own_bias)

    def step(self, carry: HiddenCarry, x: jax.Array) -> tuple[HiddenCarry, GRUGates]:
        """See :meth:`gradlab.cells.base.Cell.step`."""
        x_r, x_z, x_n = jnp.split(self.dense_i(x), 3, axis=-1)
        h_r, h_z, h_n = jnp.split(self.dense_h(carry.h), 3, axis=-1)
        r, z = self.gate_fn(x_r + h_r), self.gate_fn(x_z + h_z)
        n = self.activation_fn(x_n + r * h_n)
        return HiddenCarry(h=(1.0 - z) * n + z * carry.h), GRUGates(r, z, n)
