"""The model: cells stacked over the sequence and read out, and the loss of each example.

Shapes: time-major ``(T, B, ...)``; ``I`` input width, ``H`` hidden width, ``O`` outputs.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from gradlab.bptt.passes import state_names
from gradlab.bptt.unroll import Route, Trace, initial_carries, unroll
from gradlab.errors import BadInput

InitialState = Literal["zero", "random", "learned"]
LossKind = Literal["mse", "cross_entropy"]
Readout = Literal["last", "every"]
MakeCell = Callable[..., nnx.RNNCellBase]


class Forward(NamedTuple):
    """What the model answered and what its layers went through.

    Attributes:
      outputs: ``(B, O)``, or ``(T, B, O)`` for a model read at every step.
      traces: as in :class:`gradlab.bptt.unroll.Unrolled`.
    """

    outputs: jax.Array
    traces: tuple[tuple[Trace, ...], ...]


class SequenceModel(nnx.Module):
    """Stacked recurrent layers, then one linear readout.

    Args:
      make_cell: ``make_cell(in_features, hidden_features, rngs=rngs)`` gives one cell; the sizes
        are given by name if it has arguments of these names.
      features: ``I`` of real-valued inputs; with ``symbols`` that many one-hot inputs instead.
      symbols: number of input symbols, or None.
      hidden: ``H`` of every layer.
      layers: how many layers.
      outputs: ``O``.
      readout: read the last state (``"last"``) or every one (``"every"``).
      bidirectional: a second set of cells reads from the end, and the outputs are joined.
      initial_state: the state before the first step, ``(H,)`` for each part of it, the same for all
        examples. ``"zero"``: the cells' own, which is zero in all that gradlab and Flax have;
        ``"random"``: drawn once by ``rngs``, standard normal, and fixed; ``"learned"``: a parameter
        that starts as with ``"zero"``.
      rngs: Flax random keys. The weights are the same whatever the initial state.

    Raises:
      BadInput: if a cell does not return a carry like the one it began with.
    """

    def __init__(
        self,
        make_cell: MakeCell,
        *,
        features: int,
        symbols: int | None = None,
        hidden: int,
        layers: int,
        outputs: int,
        readout: Readout,
        bidirectional: bool = False,
        initial_state: InitialState = "zero",
        rngs: nnx.Rngs,
    ):
        if initial_state not in get_args(InitialState):
            allowed = " | ".join(get_args(InitialState))
            raise BadInput("model.initial_state", initial_state, allowed)
        self.symbols, self.readout_at = symbols, readout
        directions = 2 if bidirectional else 1
        width = symbols or features
        self.width = width
        new = partial(_new_cell, make_cell, rngs)
        stack = []
        for _ in range(layers):
            stack.append(nnx.List([new(width, hidden) for _ in range(directions)]))
            width = directions * hidden
        self.layers = nnx.List(stack)
        carries = initial_carries(self.layers, (1, 1, self.width))  # refuses a wrong one
        self.readout = nnx.Linear(width, outputs, rngs=rngs)
        self.learns_start = initial_state == "learned"
        self.initial_state = _initial_state(initial_state, carries, rngs)

    def __call__(
        self,
        inputs: jax.Array,
        mask: jax.Array | None = None,
        taps: Any = None,
        backward: Route = "full",
    ) -> Forward:
        """Read ``(T, B, I)``, or ``(T, B)`` int symbols.

        Args:
          inputs: the sequences.
          mask: ``(T, B)`` bool, True where a step is real.
          taps: from :func:`gradlab.bptt.unroll.make_taps`, to measure adjoints.
          backward: what passes back from each step, as for :func:`gradlab.bptt.unroll.unroll`.
        """
        run = unroll(
            self.layers,
            self.encode(inputs),
            mask=mask,
            taps=taps,
            every=self.readout_at == "every",
            start=self.start(),
            backward=backward,
        )
        return Forward(self.readout(run.last if run.outputs is None else run.outputs), run.traces)

    def encode(self, inputs: jax.Array) -> jax.Array:
        """What the first layer reads, ``(T, B, I)``: symbols become one-hot."""
        return inputs if self.symbols is None else jax.nn.one_hot(inputs, self.symbols)

    def start(self) -> list[list[Any]] | None:
        """The carries before the first step, leaves ``(H,)``; None: the cells' own."""
        if self.initial_state is None:
            return None
        carries = initial_carries(self.layers, (1, 1, self.width))
        return [
            [_filled(*pair) for pair in zip(layer, own, strict=True)]
            for layer, own in zip(carries, self.initial_state, strict=True)
        ]

    def layer_names(self) -> list[str]:
        """Labels of the recorded layers: ``"0", "1", ...``, with ``" backward"`` for the second."""
        return [
            f"{depth}{' backward' if direction else ''}"
            for depth, layer in enumerate(self.layers)
            for direction in range(len(layer))
        ]

    def cells(self) -> list[nnx.RNNCellBase]:
        """The cells, in the order of :meth:`layer_names`."""
        return [cell for layer in self.layers for cell in layer]


def _initial_state(kind: InitialState, carries: list[list[Any]], rngs: nnx.Rngs) -> Any:
    """What is kept of the carries before the first step, by layer, direction and part."""
    if kind == "zero":
        return None

    def kept(leaf: jax.Array) -> nnx.Variable:
        if kind == "learned":
            return nnx.Param(leaf[0])
        return nnx.Variable(rngs.params.normal(leaf[0].shape, leaf.dtype))

    def parts(carry: Any) -> nnx.Dict:
        leaves = map(kept, jax.tree.leaves(carry))
        return nnx.Dict(zip(state_names(carry), leaves, strict=True))

    return nnx.List(nnx.List(map(parts, layer)) for layer in carries)


def _filled(carry: Any, parts: nnx.Dict) -> Any:
    """A carry of the same form from its parts."""
    leaves = [parts[name][...] for name in state_names(carry)]
    return jax.tree.unflatten(jax.tree.structure(carry), leaves)


def _new_cell(
    make_cell: MakeCell, rngs: nnx.Rngs, in_features: int, hidden_features: int
) -> nnx.RNNCellBase:
    """One cell, told its sizes by name if it calls them so: their order is then its own."""
    made = make_cell.func if isinstance(make_cell, partial) else make_cell
    own = made.__init__ if inspect.isclass(made) else made
    named = inspect.signature(own).parameters
    sizes = {"in_features": in_features, "hidden_features": hidden_features}
    if sizes.keys() <= named.keys():
        return make_cell(**sizes, rngs=rngs)
    return make_cell(in_features, hidden_features, rngs=rngs)


def per_example_loss(
    kind: LossKind, outputs: jax.Array, targets: jax.Array, weights: jax.Array | None
) -> jax.Array:
    """The loss ℓ of each example, ``(B,)``.

    Args:
      kind: ``"mse"``, the mean over ``O`` of squared errors, or ``"cross_entropy"`` in nats.
      outputs: ``(B, O)``, or ``(T, B, O)`` with ``weights``.
      targets: like ``outputs`` for ``"mse"``, integer classes without ``O`` otherwise.
      weights: ``(T, B)``, summing to 1 over ``T``, or None.
    """
    if kind == "mse":
        loss = jnp.mean(jnp.square(outputs - targets), axis=-1)
    else:
        loss = optax.softmax_cross_entropy_with_integer_labels(outputs, targets)
    return loss if weights is None else jnp.sum(weights * loss, axis=0)


def per_example_accuracy(
    outputs: jax.Array, targets: jax.Array, weights: jax.Array | None
) -> jax.Array:
    """The share of right answers of each example, ``(B,)``; arguments as for the loss."""
    right = (jnp.argmax(outputs, axis=-1) == targets).astype(jnp.float32)
    return right if weights is None else jnp.sum(weights * right, axis=0)
