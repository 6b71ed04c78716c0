"""The contract of a recurrent cell.

A cell is a Flax ``nnx.RNNCellBase``: ``(carry, x) -> (carry, y)``. Any such cell runs in gradlab,
stock Flax cells and a user's own included. A :class:`Cell` names its gates besides, so that the
probes can see them.

To add one: a file with a subclass of :class:`Cell` (or of ``nnx.RNNCellBase``) and a yaml in
``conf/model``. ``tests/cells/test_contract.py`` finds it there.

Shapes: ``B`` examples (any leading axes), ``I`` input width, ``H`` hidden width.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial, wraps
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from flax.typing import Dtype, Initializer

from gradlab.errors import BadInput, nearest, number

default_kernel_init = nnx.initializers.lecun_normal()
default_recurrent_init = nnx.initializers.orthogonal()
default_bias_init = nnx.initializers.zeros_init()

RecurrentInit = Literal["orthogonal", "gaussian", "identity"]
RECURRENT_INITS: dict[str, Initializer] = {
    "orthogonal": default_recurrent_init,
    "gaussian": nnx.initializers.variance_scaling(1.0, "fan_in", "normal"),
    "identity": lambda key, shape, dtype=jnp.float32, **_: jnp.tile(
        jnp.eye(shape[0], dtype=dtype), shape[1] // shape[0]
    ),
}
"""By name: Flax's orthogonal, independent N(0, 1/H), and the identity in each block (Le, Jaitly &
Hinton 2015)."""


def recurrent_init(init: RecurrentInit | Initializer, gain: float) -> Initializer:
    """The initializer of a recurrent kernel ``(H, blocks * H)``, times a gain.

    Args:
      init: itself, or a name in :data:`RECURRENT_INITS`.
      gain: what its values are multiplied by; 1 changes no bit.

    Raises:
      BadInput: for another name, or a gain beyond ±1e6.
    """
    if isinstance(init, str) and init not in RECURRENT_INITS:
        key, close = "model.cell.recurrent_kernel_init", nearest(init, RECURRENT_INITS, 1)
        hint = ", ".join(f"{key}={name}" for name in close)
        raise BadInput(key, init, " | ".join(RECURRENT_INITS), hint)
    number("model.cell.recurrent_gain", gain, -1e6, 1e6)
    drawn = RECURRENT_INITS[init] if isinstance(init, str) else init

    def scaled(key: jax.Array, shape: Any, dtype: Any = jnp.float32, **kwargs: Any) -> jax.Array:
        # No machine makes a matrix orthogonal in half precision.
        wide = dtype if jnp.finfo(dtype).bits >= 32 else jnp.float32
        return (gain * jnp.asarray(drawn(key, shape, wide, **kwargs))).astype(dtype)

    return scaled


class HiddenCarry(NamedTuple):
    """The carry of a cell whose only state is h, ``(B, H)``."""

    h: jax.Array

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of ``h``, as if this carry were Flax's bare array."""
        return self.h.shape


class MemoryCarry(NamedTuple):
    """The carry of the LSTM family in Flax's order: cell state c and hidden state h, ``(B, H)``."""

    c: jax.Array
    h: jax.Array


class Cell(nnx.RNNCellBase):
    """A recurrent cell as one step that also names its gates.

    A subclass writes :meth:`step`; everything else follows from it. One that writes ``__call__``
    may return the carry as a plain tuple: the caller has it back in the form that it gave.

    Attributes:
      Carry: the NamedTuple of the state; its field ``h`` is the output.
      gate_names: which fields of the gates are gates, with values in [0, 1]; the others are
        candidates.
      retention_gate: which of them multiplies the old state; None if none does.
      in_features: ``I``.
      hidden_features: ``H``.
      param_dtype: dtype of the parameters and of the first state.
    """

    Carry: ClassVar[type[Any]] = HiddenCarry
    gate_names: ClassVar[tuple[str, ...]] = ()
    retention_gate: ClassVar[str | None] = None

    in_features: int
    hidden_features: int
    param_dtype: Dtype = jnp.float32

    def _dense(
        self,
        in_features: int,
        hidden_features: int,
        dtype: Dtype | None,
        param_dtype: Dtype,
        rngs: nnx.Rngs,
    ) -> Callable[..., nnx.Linear]:
        """Takes note of sizes and types; gives :func:`dense` for layers of these types."""
        self.in_features, self.hidden_features = in_features, hidden_features
        self.param_dtype = param_dtype
        return partial(dense, dtype=dtype, param_dtype=param_dtype, rngs=rngs)

    def step(self, carry: Any, x: jax.Array) -> tuple[Any, NamedTuple]:
        """``(carry, (B, I)) -> (carry, gates)``, with the carry as ``self.Carry``."""
        raise NotImplementedError

    def gates(self, carry: Any, x: jax.Array) -> NamedTuple:
        """The gates' activations, ``(B, H)`` each, when the state is ``carry`` and x is read."""
        return self.step(self._named(carry), x)[1]

    def recurrent_matrices(self) -> dict[str, jax.Array]:
        """The matrices ``(H, H)`` that multiply h as a column, by what they feed; for the probes.

        Empty unless a subclass says more. Those of gradlab's own cells are known to
        :mod:`gradlab.cells.stock`.
        """
        return {}

    def __call__(self, carry: Any, inputs: jax.Array) -> tuple[Any, jax.Array]:
        """``(carry, (B, I)) -> (carry, (B, H))``; the carry comes back in the form it was given.

        A bare array (or a plain tuple or list, in the order of ``Carry``) is taken as Flax's own
        cells take it. Each state keeps its type, whatever the types of inputs and parameters.
        """
        old = self._named(carry)
        new, _ = self.step(old, inputs)
        new = jax.tree.map(lambda after, before: after.astype(before.dtype), new, old)
        return _like(carry, new), new.h

    def __init_subclass__(cls, **kwargs: Any):
        super().__init_subclass__(**kwargs)
        if own := cls.__dict__.get("__call__"):

            @wraps(own)
            def call(self: Any, carry: Any, inputs: jax.Array) -> Any:
                new, output = own(self, carry, inputs)
                return _like(carry, new), output

            cls.__call__ = call

    def _named(self, carry: Any) -> Any:
        if isinstance(carry, self.Carry):
            return carry
        return self.Carry(*(carry if isinstance(carry, tuple | list) else (carry,)))

    def initialize_carry(
        self,
        input_shape: tuple[int, ...],
        rngs: nnx.Rngs | nnx.RngStream | None = None,
        carry_init: Initializer | None = None,
    ) -> Any:
        """The state before the first step, zeros unless ``carry_init`` draws it with ``rngs``.

        Args:
          input_shape: ``(B, I)``, any leading axes.
          rngs: needed only with ``carry_init``.
          carry_init: a Flax initializer.

        Raises:
          ValueError: if ``carry_init`` is given without ``rngs``.
        """
        shape = (*input_shape[:-1], self.hidden_features)
        if carry_init is None:
            return self.Carry(*(jnp.zeros(shape, self.param_dtype) for _ in self.Carry._fields))
        if rngs is None:
            raise ValueError("initialize_carry needs rngs to draw the carry with carry_init")
        stream = rngs.carry if isinstance(rngs, nnx.Rngs) else rngs
        return self.Carry(
            *(carry_init(stream(), shape, self.param_dtype) for _ in self.Carry._fields)
        )

    @property
    def num_feature_axes(self) -> int:
        """One: the last axis of the input is its features."""
        return 1


def _like(carry: Any, new: Any) -> Any:
    """The new carry in the form of the old one, if it has as many parts."""
    leaves, form = jax.tree.leaves(new), jax.tree.structure(carry)
    return form.unflatten(leaves) if form.num_leaves == len(leaves) else new


def dense(
    in_features: int,
    out_features: int,
    kernel_init: Initializer,
    bias_init: Initializer | None,
    **types: Any,
) -> nnx.Linear:
    """A Flax linear layer; without a bias when ``bias_init`` is None."""
    return nnx.Linear(
        in_features,
        out_features,
        use_bias=bias_init is not None,
        kernel_init=kernel_init,
        bias_init=bias_init or default_bias_init,
        **types,
    )


Activation = Callable[[jax.Array], jax.Array]
