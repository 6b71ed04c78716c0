"""A stack of cells over time, forward and backward: where every adjoint comes from.

The backward pass is written out rather than left to autodiff, for three reasons. It carries the
adjoint as a mantissa and an exponent (:mod:`gradlab.bptt.scaling`), so that nothing underflows; it
hands out the norm of every adjoint it passes as the cotangent of a dummy argument, a *tap*, so
that measuring costs ``O(T B)`` memory; and it keeps only the carries of the forward pass and runs
each step again where it is transposed, which is kinder to a processor's cache than stored
activations. With taps or without, the parameter gradients come from the same arithmetic.

Shapes: time-major ``(T, B, ...)``; ``D`` is ``H`` times the number of directions.

The adjoint of t is that of the state after reading x_t, in the order in which the direction
reads: for a backward direction t = 0 is the last input.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

from gradlab.bptt import passes
from gradlab.bptt.parts import Parts
from gradlab.bptt.passes import (
    Gradients,
    Route,
    Trace,
    hidden,
    hidden_plus,
    output_is_state,
    state_names,
)
from gradlab.bptt.scaling import Plain, Scaled
from gradlab.cells import stock
from gradlab.errors import BadInput

Layer = Sequence[nnx.RNNCellBase]
"""The cells that read the same input: one, or a forward and a backward one."""
Carries = Sequence[Sequence[Any]]
"""A carry for each layer and direction."""


class Unrolled(NamedTuple):
    """The result of :func:`unroll`.

    Attributes:
      outputs: the top layer's output at every step, ``(T, B, D)``; None with ``every=False``.
      last: its output after the last real step of each example, ``(B, D)``.
      traces: a tuple per layer with one :class:`gradlab.bptt.passes.Trace` per direction.
        Observations only: no gradient flows through them.
    """

    outputs: jax.Array | None
    last: jax.Array
    traces: tuple[tuple[Trace, ...], ...]


def initial_carries(layers: Sequence[Layer], shape: tuple[int, ...]) -> list[list[Any]]:
    """The carries before the first step, by layer and direction, for ``(T, B, I)`` inputs.

    Raises:
      BadInput: if a cell does not return a carry like the one it began with.
    """
    _, batch, width = shape
    carries = []
    for layer in layers:
        carries.append([cell.initialize_carry((batch, width), nnx.Rngs(0)) for cell in layer])
        outputs = [_output_shape(*pair, width) for pair in zip(layer, carries[-1], strict=True)]
        width = sum(output[-1] for output in outputs)
    return carries


def starting_carries(
    layers: Sequence[Layer], shape: tuple[int, ...], given: Carries | None, key: str = "start"
) -> list[list[Any]]:
    """The carries before the first step, leaves ``(B, H)``, by layer and direction.

    Args:
      layers: as for :func:`unroll`.
      shape: ``(T, B, I)`` of the inputs.
      given: for each layer and direction a carry like that of the cell's ``initialize_carry``, or
        its leaves in that order as a tuple (a single one by itself); each leaf ``(H,)``, the same
        for every example, or ``(B, H)``. None: ``initialize_carry``'s own.
      key: what a caller calls them.

    Raises:
      BadInput: for carries of another form.
    """
    due = initial_carries(layers, shape)
    if given is None:
        return due
    try:
        return [
            [_as_carry(*pair) for pair in zip(own, row, strict=True)]
            for own, row in zip(due, given, strict=True)
        ]
    except (TypeError, ValueError, OverflowError):
        allowed = (
            f"real numbers by layer and direction, {_shapes(due)}, or (H,) in the place of (B, H)"
        )
        raise BadInput(key, _shapes(given), allowed) from None


def _as_carry(due: Any, given: Any) -> Any:
    """A carry in the form that is due, or an error that says that it cannot be."""
    wanted, tree = jax.tree.flatten(due)
    if jax.tree.structure(given) == tree:
        leaves = jax.tree.leaves(given)
    else:
        leaves = given if isinstance(given, list | tuple) else [given]
    return tree.unflatten([_as_leaf(*pair) for pair in zip(wanted, leaves, strict=True)])


def _as_leaf(due: jax.Array, given: Any) -> jax.Array:
    array = jnp.asarray(given)
    if not any(jnp.issubdtype(array.dtype, kind) for kind in (jnp.floating, jnp.integer)):
        raise TypeError
    if array.shape not in (due.shape, due.shape[-1:]):
        raise ValueError
    return jnp.broadcast_to(array.astype(due.dtype), due.shape)


def _shapes(carries: Any) -> Any:
    return jax.tree.map(lambda leaf: np.shape(leaf) or leaf, carries)


def _output_shape(cell: nnx.RNNCellBase, carry: Any, width: int) -> tuple[int, ...]:
    name = type(cell).__name__
    leaf = jax.tree.leaves(carry)[0]
    x = jax.ShapeDtypeStruct((leaf.shape[0], width), leaf.dtype)
    after, y = jax.eval_shape(lambda c, x: cell(c, x), carry, x)
    before = jax.eval_shape(lambda c: c, carry)
    if jax.tree.structure(before) != jax.tree.structure(after) or any(
        (old.shape, old.dtype) != (new.shape, new.dtype)
        for old, new in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True)
    ):
        raise BadInput(
            f"cell {name}",
            after,
            f"a new carry of the same form as the old one, {before}",
            f"return (carry, y) from {name}.__call__ with the carry's names, shapes and dtypes",
        )
    return y.shape


def make_taps(layers: Sequence[Layer], shape: tuple[int, ...]) -> list[list[dict[str, jax.Array]]]:
    """Zeros for ``taps=``: one ``(T, B)`` array a layer, direction and state leaf.

    Args:
      layers: as for :func:`unroll`.
      shape: ``(T, B, I)`` of the inputs.
    """
    return [
        [{name: jnp.zeros(shape[:2]) for name in state_names(carry)} for carry in carries]
        for carries in initial_carries(layers, shape)
    ]


def unroll(
    layers: Sequence[Layer],
    inputs: jax.Array,
    *,
    mask: jax.Array | None = None,
    taps: Any = None,
    every: bool = True,
    start: Carries | None = None,
    backward: Route = "full",
) -> Unrolled:
    """Run stacked cells over a sequence, so that its gradient carries the adjoints out.

    Differentiate a loss of the result by ``taps`` along with the parameters: the "gradient" of a
    tap is the base-2 logarithm of the 2-norm of the adjoint of that state, for every timestep and
    example. It is the adjoint of whatever scalar is differentiated, so a mean over ``B`` examples
    gives every example's own adjoint divided by ``B``. Exactly zero adjoints give -inf.

    Args:
      layers: for each layer a sequence of one cell, or of a forward and a backward cell.
      inputs: ``(T, B, I)``.
      mask: ``(T, B)`` bool, False where there is nothing to read: the state waits there.
      taps: from :func:`make_taps`, or None to measure nothing.
      every: also give the top layer's outputs at every step.
      start: the carries before the first step, as for :func:`starting_carries`; the gradient flows
        to them, too. None: the cells' own.
      backward: what passes back from each step; the forward pass is the same.

    Returns:
      :class:`Unrolled`.
    """
    check_route(backward, layers, "backward")
    carries = starting_carries(layers, inputs.shape, start)
    top_is_state = _top_is_state(layers, carries)
    cells = _parts(layers)
    ran: Any = _run(every or not top_is_state, backward, cells, carries, inputs, mask, taps)
    outputs, traces = ran  # custom_vjp hides the type
    last = _last(outputs, traces, mask, top_is_state)
    return Unrolled(outputs if every else None, last, lax.stop_gradient(traces))


def unroll_plainly(
    layers: Sequence[Layer],
    inputs: jax.Array,
    *,
    mask: jax.Array | None = None,
    start: Carries | None = None,
) -> Unrolled:
    """The same forward pass with nothing hidden from JAX: any derivative of it can be taken.

    For second derivatives, and for a loss of the states themselves: here gradients do flow through
    the traces. Arguments as for :func:`unroll`.
    """
    carries = starting_carries(layers, inputs.shape, start)
    (outputs, traces), _ = _run_forward(True, "full", _parts(layers), carries, inputs, mask, None)
    last = _last(outputs, traces, mask, _top_is_state(layers, carries))
    return Unrolled(outputs, last, traces)


def check_route(route: str, layers: Sequence[Layer], key: str) -> None:
    """Refuse a route that is none, or that the cells do not have.

    Args:
      route: one of :data:`gradlab.bptt.passes.Route`.
      layers: as for :func:`unroll`.
      key: what a caller calls it.

    Raises:
      BadInput: naming ``key``.
    """
    if route not in get_args(Route):
        raise BadInput(key, route, " | ".join(get_args(Route)))
    without = [
        cell for layer in layers for cell in layer if stock.gate_view(cell).retention is None
    ]
    if route != "full" and without:
        reason = "has no retention gate, which would divide the way back through time in two"
        allowed = f"full: {type(without[0]).__name__} {reason}"
        raise BadInput(key, route, allowed, "an LSTM or a GRU")


class Backward(NamedTuple):
    """What the backward pass of one direction of one layer gave, in its own reading order.

    Attributes:
      params: the gradient of its parameters, at its true scale.
      adjoint: the total adjoint of the state after each step, a carry with leaves ``(T, B, H)``
        with one exponent ``(T, B)``.
      direct: the part of it that does not come through this direction's own next state, ``(T, B,
        H)``: from the readout or from the layer above, in which time may have passed.
      start: the adjoint of the carry before the first step, leaves ``(B, H)``.
    """

    params: Any
    adjoint: Scaled
    direct: Scaled
    start: Scaled


def backward(
    layers: Sequence[Layer],
    run: Unrolled,
    from_outputs: jax.Array,
    from_last: jax.Array,
    *,
    mask: jax.Array | None = None,
    cuts: Sequence[jax.Array] | None = None,
    backward: Route = "full",
) -> tuple[tuple[Backward, ...], ...]:
    """Every adjoint itself, where :func:`unroll` with taps gives the norms: O(T B H) memory.

    Args:
      layers: as for :func:`unroll`.
      run: of :func:`unroll_plainly` on them.
      from_outputs: the cotangent of ``run.outputs``, ``(T, B, D)``.
      from_last: that of ``run.last``, ``(B, D)``.
      mask: as for :func:`unroll`.
      cuts: for each direction ``(T, B)`` bool in its own reading order, True where nothing passes
        back from the next step into this one, as in truncated backpropagation.
      backward: as for :func:`unroll`.
    """
    check_route(backward, layers, "backward")
    finals = [
        [jax.tree.map(jnp.zeros_like, trace.final) for trace in layer] for layer in run.traces
    ]
    if _top_is_state(layers, finals):
        begin = 0
        for direction, final in enumerate(finals[-1]):
            width = hidden(final).shape[-1]
            finals[-1][direction] = hidden_plus(final, from_last[:, begin : begin + width])
            begin += width
    else:
        _, pull = jax.vjp(lambda outputs: _last_output(outputs, mask), from_outputs)
        from_outputs = from_outputs + pull(from_last)[0]

    def adjoint_itself(adjoint: Scaled) -> Scaled:
        return adjoint

    results, _ = _backward_through(
        _parts(layers), run.traces, mask, from_outputs, finals, adjoint_itself, backward, cuts
    )

    def whole(result: Gradients, final: Any, direction: int) -> Backward:
        direct = with_final(result.direct, final, _reading_order(mask, direction))
        return Backward(result.params, result.observed, direct, result.start)

    return tuple(
        tuple(map(whole, layer, layer_finals, range(2)))
        for layer, layer_finals in zip(results, finals, strict=True)
    )


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _run(every: bool, route: Route, cells, start, inputs, mask, taps):
    return _run_forward(every, route, cells, start, inputs, mask, taps)[0]


def _run_forward(every: bool, route: Route, cells, start, inputs, mask, taps):
    """The outputs and the traces, and what the backward pass needs besides."""
    read, traces = inputs, []
    for depth, layer in enumerate(cells):
        wanted = every or depth < len(cells) - 1
        runs = []
        for direction, (cell, carry) in enumerate(zip(layer, start[depth], strict=True)):
            own_read, own_mask = _reading_order((read, mask), direction)
            runs.append(passes.forward(cell.module(), carry, own_read, own_mask, wanted))
        outputs = [_reading_order(own, direction) for direction, (_, own) in enumerate(runs)]
        read = outputs[0] if len(outputs) == 1 or not wanted else jnp.concatenate(outputs, -1)
        traces.append(tuple(trace for trace, _ in runs))
    return (read, tuple(traces)), (cells, tuple(traces), mask, taps is not None)


def _run_backward(every: bool, route: Route, residuals, cotangents):
    cells, traces, mask, measured = residuals
    from_outputs, from_traces = cotangents
    finals = [[trace.final for trace in layer] for layer in from_traces]
    observe = passes.log2_norms if measured else None
    results, from_inputs = _backward_through(
        cells, traces, mask, from_outputs, finals, observe, route
    )
    grads = [[Parts(None, result.params, None) for result in layer] for layer in results]
    norms = [[result.observed for result in layer] for layer in results]
    starts = [[result.start.plain() for result in layer] for layer in results]
    return grads, starts, from_inputs.plain(), None, norms if measured else None


def _backward_through(
    cells: Sequence[Sequence[Parts]],
    traces: Sequence[Sequence[Trace]],
    mask: jax.Array | None,
    from_outputs: jax.Array | None,
    from_finals: Sequence[Sequence[Any]],
    observe: Callable[[Scaled], Any] | None,
    route: Route,
    cuts: Sequence[jax.Array] | None = None,
) -> tuple[list[list[Gradients]], Any]:
    """Every layer's gradients, from the top down, and the inputs' cotangent.

    With nothing to observe, all of it in plain numbers.
    """
    kind = Plain if observe is None else Scaled
    from_above: Any = None if from_outputs is None else kind.of(from_outputs, 2)
    results: list[list[Gradients]] = []
    for depth in reversed(range(len(cells))):
        layer = [
            passes.backward(
                cell,
                traces[depth][direction],
                _reading_order(mask, direction),
                _part_of(from_above, direction, traces[depth]),
                kind.of(from_finals[depth][direction], 1),
                observe=observe or (lambda _: None),
                cut=None if cuts is None else cuts[direction],
                route=route,
            )
            for direction, cell in enumerate(cells[depth])
        ]
        results.insert(0, layer)
        from_above = layer[0].inputs
        for direction, result in enumerate(layer[1:], start=1):
            from_above = from_above.add(_reading_order(result.inputs, direction))
    return results, from_above


_run.defvjp(_run_forward, _run_backward)


def with_final(direct: Scaled, final: Any, mask: jax.Array | None) -> Scaled:
    """``direct`` with the cotangent of the final h put in at each example's last real step."""
    own = hidden(final)
    steps = direct.mantissa.shape[0]
    ends = jnp.arange(steps)[:, None] == steps - 1
    if mask is not None:
        ends = jnp.arange(steps)[:, None] == steps - 1 - jnp.argmax(mask[::-1], axis=0)[None]
    return direct.add(Scaled.of(jnp.where(ends[..., None], own, 0), 2))


def _reading_order(tree: Any, direction: int) -> Any:
    """Arrays ``(T, ...)`` as a direction reads them: as they are, or last step first."""
    return jax.tree.map(lambda a: a[::-1], tree) if direction else tree


def _part_of(joined: Any, direction: int, layer: Sequence[Trace]) -> Any:
    """One direction's share of the cotangent of the joined outputs, in its reading order."""
    if joined is None or len(layer) == 1:
        return joined
    widths = [hidden(trace.final).shape[-1] for trace in layer]
    begin = sum(widths[:direction])
    part = joined._replace(mantissa=joined.mantissa[..., begin : begin + widths[direction]])
    return _reading_order(part.normalise(), direction)


def _parts(layers: Sequence[Layer]) -> list[list[Parts]]:
    return [[Parts.of(cell) for cell in layer] for layer in layers]


def _top_is_state(layers: Sequence[Layer], carries: Any) -> bool:
    return all(map(output_is_state, layers[-1], carries[-1]))


def _last(outputs: Any, traces: Any, mask: jax.Array | None, is_state: bool) -> jax.Array:
    """The top layer's output after the last real step of each example."""
    if is_state:
        return jnp.concatenate([hidden(trace.final) for trace in traces[-1]], axis=-1)
    return _last_output(outputs, mask)


def _last_output(outputs: jax.Array, mask: jax.Array | None) -> jax.Array:
    if mask is None:
        return outputs[-1]
    last = jnp.maximum(jnp.sum(mask, axis=0) - 1, 0)
    return jnp.take_along_axis(outputs, last[None, :, None], axis=0)[0]
