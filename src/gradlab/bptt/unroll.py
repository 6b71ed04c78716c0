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

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from gradlab.bptt import passes, scaling
from gradlab.bptt.passes import (
    Saved,
    hidden,
    hidden_plus,
    merge,
    output_is_state,
    state_names,
)
from gradlab.bptt.scaling import Scaled
from gradlab.errors import BadInput

Layer = Sequence[nnx.RNNCellBase]
"""The cells that read the same input: one, or a forward and a backward one."""


class Trace(NamedTuple):
    """What one direction of one layer went through, in its own reading order.

    Attributes:
      before: the carry that each step began from, leaves ``(T, B, H)``.
      inputs: what it read, ``(T, B, I)``.
      final: the carry after the last step, leaves ``(B, H)``.
    """

    before: Any
    inputs: jax.Array
    final: Any


class Unrolled(NamedTuple):
    """The result of :func:`unroll`.

    Attributes:
      outputs: the top layer's output at every step, ``(T, B, D)``; None with ``every=False``.
      last: its output after the last real step of each example, ``(B, D)``.
      traces: a tuple per layer with one :class:`Trace` per direction. Observations only: no
        gradient flows through them.
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

    Returns:
      :class:`Unrolled`.
    """
    start = initial_carries(layers, inputs.shape)
    top_is_state = _top_is_state(layers, start)
    spec, params, rest = _parts(layers, every or not top_is_state)
    ran: Any = _run(spec, params, rest, start, inputs, mask, taps)  # custom_vjp hides the type
    outputs, finals, seen = ran
    traces = lax.stop_gradient(_traces(seen, finals))
    last = _last(outputs, finals, mask, top_is_state)
    return Unrolled(outputs if every else None, last, traces)


def unroll_plainly(
    layers: Sequence[Layer], inputs: jax.Array, *, mask: jax.Array | None = None
) -> Unrolled:
    """The same forward pass with nothing hidden from JAX: any derivative of it can be taken.

    For second derivatives, and for a loss of the states themselves: here gradients do flow through
    the traces. Arguments as for :func:`unroll`.
    """
    start = initial_carries(layers, inputs.shape)
    spec, params, rest = _parts(layers, every=True)
    (outputs, finals, seen), _ = _run_forward(spec, params, rest, start, inputs, mask, None)
    last = _last(outputs, finals, mask, _top_is_state(layers, start))
    return Unrolled(outputs, last, _traces(seen, finals))


class Backward(NamedTuple):
    """What the backward pass of one direction of one layer gave, in its own reading order.

    Attributes:
      params: the gradient of its parameters, at its true scale.
      adjoint: the total adjoint of the state after each step, a carry with leaves ``(T, B, H)``
        with one exponent ``(T, B)``.
      direct: the part of it that does not come through this direction's own next state, ``(T, B,
        H)``: from the readout or from the layer above, in which time may have passed.
    """

    params: Any
    adjoint: Scaled
    direct: Scaled


def backward(
    layers: Sequence[Layer],
    run: Unrolled,
    from_outputs: jax.Array,
    from_last: jax.Array,
    *,
    mask: jax.Array | None = None,
    cuts: Sequence[jax.Array] | None = None,
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
    """
    spec, params, rest = _parts(layers, every=True)
    saved = []
    for layer in run.traces:
        masks = [_reading_order(mask, direction) for direction in range(len(layer))]
        saved.append(
            [Saved(trace.before, trace.inputs, m) for trace, m in zip(layer, masks, strict=True)]
        )
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
    pieces = (params, rest, saved)
    results, _ = _backward_through(
        spec, pieces, from_outputs, finals, scaled=True, keep=True, cuts=cuts
    )
    return tuple(
        tuple(
            Backward(
                one.params, cast(Scaled, one.adjoint), _with_final(one.direct, final, part.mask)
            )
            for one, final, part in zip(layer, layer_finals, layer_saved, strict=True)
        )
        for layer, layer_finals, layer_saved in zip(results, finals, saved, strict=True)
    )


class Spec(NamedTuple):
    """The static part of an unroll: what the compiled program depends on."""

    graphs: tuple[tuple[Any, ...], ...]
    every: bool


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _run(spec: Spec, params, rest, start, inputs, mask, taps):
    return _run_forward(spec, params, rest, start, inputs, mask, taps)[0]


def _run_forward(spec: Spec, params, rest, start, inputs, mask, taps):
    finals, saved = [], []
    read = inputs
    for depth, graphs in enumerate(spec.graphs):
        wanted = spec.every or depth < len(spec.graphs) - 1
        layer, ends, outputs = [], [], []
        for direction, graph in enumerate(graphs):
            cell = merge(graph, params[depth][direction], rest[depth][direction])
            one = Saved(start[depth][direction], *_reading_order((read, mask), direction))
            final, before, own_outputs = passes.forward(cell, one, wanted)
            ends.append(final)
            layer.append(one._replace(before=before))
            outputs.append(_reading_order(own_outputs, direction))
        saved.append(layer)
        finals.append(ends)
        read = outputs[0] if len(outputs) == 1 or not wanted else jnp.concatenate(outputs, -1)
    seen = [[(one.before, one.inputs) for one in layer] for layer in saved]
    return (read, finals, seen), (params, rest, saved, taps is not None)


def _run_backward(spec: Spec, residuals, cotangents):
    *parts, scaled = residuals
    from_outputs, from_finals, _ = cotangents
    results, from_inputs = _backward_through(spec, parts, from_outputs, from_finals, scaled=scaled)
    param_grads = [[one.params for one in layer] for layer in results]
    norms = [[one.norms for one in layer] for layer in results]
    return param_grads, None, None, scaling.plain(from_inputs), None, norms if scaled else None


def _backward_through(
    spec: Spec, parts, from_outputs, from_finals, *, scaled, keep=False, cuts=None
):
    """Every layer's :class:`Gradients`, found from the top down, and the inputs' cotangent."""
    params, rest, saved = parts
    from_above = None if from_outputs is None else _as_scaled(from_outputs, 2, scaled)
    found = []
    for depth in reversed(range(len(spec.graphs))):
        results = [
            passes.backward(
                graph,
                params[depth][direction],
                rest[depth][direction],
                saved[depth][direction],
                _part_of(from_above, direction, saved[depth]),
                _as_scaled(from_finals[depth][direction], 1, scaled),
                keep,
                None if cuts is None else cuts[direction],
            )
            for direction, graph in enumerate(spec.graphs[depth])
        ]
        found.insert(0, results)
        from_above = results[0].inputs
        for direction, result in enumerate(results[1:], start=1):
            from_above = scaling.add(from_above, _reading_order(result.inputs, direction))
    assert from_above is not None
    return found, from_above


_run.defvjp(_run_forward, _run_backward)


def _with_final(direct: Any, final: Any, mask: jax.Array | None) -> Scaled:
    """``direct`` with the cotangent of the final h put in at each example's last real step."""
    own = hidden(final)
    steps = direct.mantissa.shape[0]
    ends = jnp.arange(steps)[:, None] == steps - 1
    if mask is not None:
        ends = jnp.arange(steps)[:, None] == steps - 1 - jnp.argmax(mask[::-1], axis=0)
    placed = scaling.scale(jnp.where(ends[..., None], own, 0), 2)
    return scaling.add(direct, placed)


def _as_scaled(tree: Any, axes: int, scaled: bool) -> Scaled:
    return scaling.scale(tree, axes) if scaled else Scaled(tree, None)


def _reading_order(tree: Any, direction: int) -> Any:
    """Arrays ``(T, ...)`` as a direction reads them: as they are, or last step first."""
    return jax.tree.map(lambda a: a[::-1], tree) if direction else tree


def _part_of(joined: Scaled | None, direction: int, layer: list[Saved]) -> Scaled | None:
    """One direction's share of the cotangent of the joined outputs, in its reading order."""
    if joined is None or len(layer) == 1:
        return joined
    widths = [hidden(one.before).shape[-1] for one in layer]
    begin = sum(widths[:direction])
    part = Scaled(joined.mantissa[..., begin : begin + widths[direction]], joined.exponent)
    return _reading_order(scaling.normalise(part), direction)


def _parts(layers: Sequence[Layer], every: bool):
    """The static part of a stack of cells, its parameters and whatever else it holds."""
    split = [[nnx.split(cell, nnx.Param, ...) for cell in layer] for layer in layers]
    spec = Spec(tuple(tuple(graph for graph, _, _ in layer) for layer in split), every)
    params = [[params for _, params, _ in layer] for layer in split]
    return spec, params, [[rest for _, _, rest in layer] for layer in split]


def _traces(seen: Any, finals: Any) -> tuple[tuple[Trace, ...], ...]:
    return tuple(
        tuple(
            Trace(before, read, final)
            for (before, read), final in zip(layer, layer_finals, strict=True)
        )
        for layer, layer_finals in zip(seen, finals, strict=True)
    )


def _top_is_state(layers: Sequence[Layer], carries: Any) -> bool:
    return all(map(output_is_state, layers[-1], carries[-1]))


def _last(outputs: Any, finals: Any, mask: jax.Array | None, is_state: bool) -> jax.Array:
    """The top layer's output after the last real step of each example."""
    if is_state:
        return jnp.concatenate([hidden(final) for final in finals[-1]], axis=-1)
    return _last_output(outputs, mask)


def _last_output(outputs: jax.Array, mask: jax.Array | None) -> jax.Array:
    if mask is None:
        return outputs[-1]
    last = jnp.maximum(jnp.sum(mask, axis=0) - 1, 0)
    return jnp.take_along_axis(outputs, last[None, :, None], axis=0)[0]
