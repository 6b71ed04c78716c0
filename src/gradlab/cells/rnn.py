"""The simple recurrent network (Elman 1990)."""

from __future__ import annotations

from typing import Literal, NamedTuple

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

ActivationName = Literal["tanh", "relu", "sigmoid", "identity"]
ACTIVATIONS: dict[str, Activation] = {
    "tanh": jnp.tanh,
    "relu": jax.nn.relu,
    "sigmoid": jax.nn.sigmoid,
    "identity": lambda x: x,
}


def activation(given: ActivationName | Activation) -> Activation:
    """The function itself, or the one of this name."""
    return ACTIVATIONS[given] if isinstance(given, str) else given


class NoGates(NamedTuple):
    """A cell without gates."""


class SimpleRNN(Cell):
    """``h' = φ(W_i x + b + W_h h)``, the Elman network; Flax's ``nnx.SimpleCell``.

    Args:
      in_features: ``I``.
      hidden_features: ``H``.
      activation_fn: φ, one of ``"tanh" "relu" "sigmoid" "identity"`` or a function of an array.
      kernel_init: initializer of ``W_i`` ``(I, H)``.
      recurrent_kernel_init: initializer of ``W_h`` ``(H, H)``, or its name:
        "orthogonal", "gaussian" (independent, N(0, 1/H)) or "identity" (in each block).
      recurrent_gain: what its values are multiplied by.
      bias_init: initializer of ``b`` ``(H,)``.
      dtype: dtype of the computation; None takes it from inputs and parameters.
      param_dtype: dtype of the parameters.
      rngs: Flax random keys; the same ones give ``nnx.SimpleCell`` the same weights.
    """

    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        *,
        activation_fn: ActivationName | Activation = "tanh",
        kernel_init: Initializer = default_kernel_init,
        recurrent_kernel_init: RecurrentInit | Initializer = "orthogonal",
        recurrent_gain: float = 1.0,
        bias_init: Initializer = default_bias_init,
        dtype: Dtype | None = None,
        param_dtype: Dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        dense = self._dense(in_features, hidden_features, dtype, param_dtype, rngs)
        self.activation_fn = activation(activation_fn)
        recurrent = recurrent_init(recurrent_kernel_init, recurrent_gain)
        self.dense_h = dense(hidden_features, hidden_features, recurrent, None)
        self.dense_i = dense(in_features, hidden_features, kernel_init, bias_init)

    def step(self, carry: HiddenCarry, x: jax.Array) -> tuple[HiddenCarry, NoGates]:
        """See :meth:`gradlab.cells.base.Cell.step`."""
        return HiddenCarry(h=self.activation_fn(self.dense_i(x) + self.dense_h(carry.h))), NoGates()
