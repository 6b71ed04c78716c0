"""The gated recurrent unit of Cho et al. (2014), reset before the product."""

from __future__ import annotations

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
from gradlab.cells.gru import GRUGates


class GRUResetBefore(Cell):
    r"""The GRU with the reset gate inside the product: ``n = tanh(W_in x + b_n + W_hn (r ∘ h))``.

    Cho et al. (2014), equations 5 to 8, with Flax's convention that z keeps the old state. Its
    second product needs the first one's result, so it costs more per step than
    :class:`gradlab.cells.GRU`.

    Args: as :class:`gradlab.cells.GRU`, without ``recurrent_bias``.
    """

    gate_names = ("r", "z")
    retention_gate = "z"

    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        *,
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
        self.dense_i = dense(in_features, 3 * hidden_features, kernel_init, bias_init)
        self.dense_rz = dense(hidden_features, 2 * hidden_features, recurrent, None)
        self.dense_n = dense(hidden_features, hidden_features, recurrent, None)

    def step(self, carry: HiddenCarry, x: jax.Array) -> tuple[HiddenCarry, GRUGates]:
        """See :meth:`gradlab.cells.base.Cell.step`."""
        x_r, x_z, x_n = jnp.split(self.dense_i(x), 3, axis=-1)
        h_r, h_z = jnp.split(self.dense_rz(carry.h), 2, axis=-1)
        r, z = self.gate_fn(x_r + h_r), self.gate_fn(x_z + h_z)
        n = self.activation_fn(x_n + self.dense_n(r * carry.h))
        return HiddenCarry(h=(1.0 - z) * n + z * carry.h), GRUGates(r, z, n)
