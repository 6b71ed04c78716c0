"""A baseline without memory: a feed-forward layer that sees only the current input."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from flax.typing import Dtype, Initializer

from gradlab.cells.base import (
    Activation,
    Cell,
    HiddenCarry,
    default_bias_init,
    default_kernel_init,
    dense,
)
from gradlab.cells.rnn import ACTIVATIONS, ActivationName, NoGates


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
        self.in_features, self.hidden_features = in_features, hidden_features
        self.param_dtype = param_dtype
        named = isinstance(activation_fn, str)
        self.activation_fn = ACTIVATIONS[activation_fn] if named else activation_fn
        self.dense = dense(
            in_features,
            hidden_features,
            kernel_init=kernel_init,
            bias_init=bias_init,
            dtype=dtype,
            param_dtype=param_dtype,
            rngs=rngs,
        )

    def step(self, carry: HiddenCarry, x: jax.Array) -> tuple[HiddenCarry, NoGates]:
        """See :meth:`gradlab.cells.base.Cell.step`."""
        return HiddenCarry(h=self.activation_fn(self.dense(x))), NoGates()
