"""A baseline without memory: a feed-forward layer that sees only the current input."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from flax.typing import Dtype, Initializer

from gradlab.cells.base import Activation, Cell, HiddenCarry, default_bias_init, default_kernel_init
from gradlab.cells.rnn import ActivationName, NoGates, activation


class FeedForward(Cell):
    """``h' = φ(W x + b)``: the old state is not read, so no gradient passes from t to t - 1.

    Args:
      in_features: ``I``.
      hidden_features: ``H``.
      activation_fn: φ, a name as in :class:`gradlab.cells.SimpleRNN` or a function of an array.
      kernel_init: initializer of ``W`` ``(I, H)``.
      bias_init: initializer of ``b`` ``(H,)``.
      dtype: dtype of the computation; None takes it from inputs and parameters.
      param_dtype: dtype of the parameters.
      rngs: Flax random keys.
    """

    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        *,
        activation_fn: ActivationName | Activation = "tanh",
        kernel_init: Initializer = default_kernel_init,
        bias_init: Initializer = default_bias_init,
        dtype: Dtype | None = None,
        param_dtype: Dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        dense = self._dense(in_features, hidden_features, dtype, param_dtype, rngs)
        self.activation_fn = activation(activation_fn)
        self.dense = dense(in_features, hidden_features, kernel_init, bias_init)

    def step(self, carry: HiddenCarry, x: jax.Array) -> tuple[HiddenCarry, NoGates]:
        """See :meth:`gradlab.cells.base.Cell.step`."""
        return HiddenCarry(h=self.activation_fn(self.dense(x))), NoGates()
