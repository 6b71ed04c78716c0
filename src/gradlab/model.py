"""The model: cells stacked over the sequence and read out, and the loss of each example.

Shapes: time-major ``(T, B, ...)``; ``I`` input width, ``H`` hidden width, ``O`` outputs.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from gradlab.bptt.unroll import (
    Form,
    Forms,
    Products,
    Route,
    Trace,
    forms_of,
    initial_carries,
    is_inexact,
    unroll,
    wide,
    wide_type,
)
from gradlab.errors import BadInput

InitialState = Literal["zero", "random", "learned"]
LossKind = Literal["mse", "cross_entropy"]
Readout = Literal["last", "every"]
MakeCell = Callable[..., nnx.RNNCellBase]
EXAMPLES = 13
"""Of the batch that a cell is looked at with: as no other axis of its state is likely to be."""


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
      hidden: ``H`` of every layer. A layer reads what the one below gives out, of whatever width.
      layers: how many layers.
      outputs: ``O``.
      readout: read the last state (``"last"``) or every one (``"every"``).
      bidirectional: a second set of cells reads from the end, and the outputs are joined.
      initial_state: the state before the first step, ``(H,)`` for each part of it, the same for all
        examples. ``"zero"``: the cells' own, which is zero in all that gradlab and Flax have;
        ``"random"``: drawn once by ``rngs``, standard normal, and fixed; ``"learned"``: a parameter
        that starts as with ``"zero"``. Counters and what else has no adjoint of each example begin
        as the cells say.
      rngs: Flax random keys. The weights are the same whatever the initial state.

    Raises:
      BadInput: for a cell that :func:`gradlab.bptt.form.form_of` refuses.
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
        self.width = symbols or features
        new = partial(_new_cell, make_cell, rngs)
        stack, read = [], jax.ShapeDtypeStruct((self.width,), jnp.float32)
        for depth in range(layers):
            layer = [new(read.shape[-1], hidden) for _ in range(directions)]
            if depth == 0:
                self.reads = _type_read(layer, self.width)
                read = jax.ShapeDtypeStruct(read.shape, self.reads)
            (forms,) = forms_of([layer], (1, EXAMPLES, *read.shape), read.dtype)
            stack.append(nnx.List(layer))
            read = _joined(forms)
        self.layers = nnx.List(stack)
        self.readout = LinearReadout(read, outputs, rngs=rngs)
        self.learns_start = initial_state == "learned"
        zero = initial_state == "zero"
        own = None if zero else _initial_state(initial_state, *self._begun(), rngs)
        self.initial_state = own

    def __call__(
        self,
        inputs: jax.Array,
        mask: jax.Array | None = None,
        taps: Any = None,
        backward: Route = "full",
        *,
        segments: int | None = None,
        products: Products = "float32",
    ) -> Forward:
        """Read ``(T, B, I)``, or ``(T, B)`` int symbols.

        Args:
          inputs: the sequences.
          mask: ``(T, B)`` bool, True where a step is real.
          taps: from :func:`gradlab.bptt.unroll.make_taps`, to measure adjoints.
          backward: what passes back from each step, as for :func:`gradlab.bptt.unroll.unroll`.
          segments: of time, as there.
          products: of the cells, as there.
        """
        run = unroll(
            self.layers,
            self.encode(inputs),
            mask=mask,
            taps=taps,
            every=self.readout_at == "every",
            start=self.start(),
            backward=backward,
            segments=segments,
            products=products,
        )
        return Forward(self.readout(run.last if run.outputs is None else run.outputs), run.traces)

    def encode(self, inputs: jax.Array) -> jax.Array:
        """What the first layer reads, ``(T, B, I)``: symbols become one-hot.

        In half precision where the cells' own first states are all in it.
        """
        read = inputs if self.symbols is None else jax.nn.one_hot(inputs, self.symbols)
        return read.astype(self.reads) if self.reads != jnp.float32 else read

    def start(self) -> list[list[Any]] | None:
        """The carries before the first step, without the axis of examples; None: the cells' own."""
        if self.initial_state is None:
            return None
        parts = (*self._begun(), self.initial_state)
        return [list(map(_filled, *layer)) for layer in zip(*parts, strict=True)]

    def _begun(self) -> tuple[list[list[Any]], Forms]:
        """The cells' own first carries, and their forms."""
        shape = (1, EXAMPLES, self.width)
        carries = initial_carries(self.layers, shape, self.reads)
        return carries, forms_of(self.layers, shape, self.reads)

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


class LinearReadout(nnx.Linear):
    """A linear layer that reads what a layer of cells gives out, whatever numbers these are.

    Several axes of features count as one, and half precision is read as float32. Complex numbers
    are read as twice as many real ones: their real parts, then their imaginary parts.

    Args:
      read: what one example's outputs are like.
      outputs: ``O``.
      rngs: Flax random keys.
    """

    def __init__(self, read: jax.ShapeDtypeStruct, outputs: int, *, rngs: nnx.Rngs):
        parts = 2 if jnp.issubdtype(read.dtype, jnp.complexfloating) else 1
        super().__init__(parts * math.prod(read.shape), outputs, rngs=rngs)
        self.axes = len(read.shape)

    def __call__(self, inputs: jax.Array) -> jax.Array:
        """``(..., *features) -> (..., O)``."""
        read = wide(inputs)
        if self.axes > 1:
            read = read.reshape(*read.shape[: -self.axes], -1)
        if jnp.iscomplexobj(read):
            read = jnp.concatenate([read.real, read.imag], axis=-1)
        return super().__call__(read)


def _type_read(cells: Sequence[nnx.RNNCellBase], width: int) -> jnp.dtype:
    """That of the cells' first states where it is in half precision, else float32."""
    carries = [cell.initialize_carry((EXAMPLES, width), nnx.Rngs(0)) for cell in cells]
    leaves = [leaf for leaf in jax.tree.leaves(carries) if is_inexact(leaf)]
    kinds = {leaf.dtype for leaf in leaves}
    half = len(kinds) == 1 and all(wide_type(leaf) != leaf.dtype for leaf in leaves)
    return kinds.pop() if half else jnp.dtype(jnp.float32)


def _joined(forms: Sequence[Form]) -> jax.ShapeDtypeStruct:
    """What the outputs of a layer's directions are like, side by side."""
    outputs = [form.output for form in forms]
    width = sum(output.shape[-1] for output in outputs)
    return jax.ShapeDtypeStruct((*outputs[0].shape[:-1], width), outputs[0].dtype)


def _initial_state(
    kind: InitialState, carries: list[list[Any]], forms: Forms, rngs: nnx.Rngs
) -> Any:
    """What is kept of the states before the first step, by layer, direction and name."""

    def kept(leaf: jax.Array) -> nnx.Variable:
        if kind == "learned":
            return nnx.Param(leaf[0])
        return nnx.Variable(rngs.params.normal(leaf[0].shape, leaf.dtype))

    def parts(carry: Any, form: Form) -> nnx.Dict:
        named = zip(form.names, jax.tree.leaves(carry), strict=True)
        return nnx.Dict({name: kept(leaf) for name, leaf in named if name in form.states})

    return nnx.List(nnx.List(map(parts, *layer)) for layer in zip(carries, forms, strict=True))


def _filled(carry: Any, form: Form, parts: nnx.Dict) -> Any:
    """A carry without the axis of examples, its states taken from ``parts``."""
    leaves, tree = jax.tree.flatten(carry)
    own = [leaf[0] if batched else leaf for leaf, batched in zip(leaves, form.batched, strict=True)]
    named = zip(form.names, own, strict=True)
    return tree.unflatten(
        [parts[name][...] if name in form.states else leaf for name, leaf in named]
    )


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


def moving(model: SequenceModel, batch: int) -> frozenset[tuple[Any, ...]]:
    """The paths of the Variables that a forward pass changes, found by tracing one.

    Args:
      model: as it trains.
      batch: ``B``.
    """
    graph, state = nnx.split(model)
    shape = (2, batch) if model.symbols else (2, batch, model.width)
    inputs = jax.ShapeDtypeStruct(shape, jnp.int32 if model.symbols else jnp.float32)

    def run(state: Any, inputs: jax.Array) -> Any:
        own = nnx.merge(graph, state, copy=True)
        own(inputs)
        return nnx.state(own)

    jaxpr = jax.make_jaxpr(run)(state, inputs).jaxpr
    paths = [path for path, _ in nnx.to_flat_state(state)]
    pairs = zip(paths, jaxpr.invars[:-1], jaxpr.outvars, strict=True)
    return frozenset(path for path, before, after in pairs if after is not before)


def per_example_loss(
    kind: LossKind, outputs: jax.Array, targets: jax.Array, weights: jax.Array | None
) -> jax.Array:
    """The loss ℓ of each example, ``(B,)``.

    Args:
      kind: ``"mse"``, the mean over ``O`` of squared errors, or ``"cross_entropy"`` in nats.
      outputs: ``(B, O)``, or ``(T, B, O)`` with ``weights``.
      targets: like ``outputs`` for ``"mse"``, integer classes without ``O`` otherwise.
      weights: ``(T, B)``, summing to 1 over ``T``, or None. What the targets hold where a weight is
        0 is not read, be it NaN.
    """
    if weights is not None:
        counts = weights if kind == "cross_entropy" else weights[..., None]
        targets = jnp.where(counts != 0, targets, 0)
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
