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

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jax.sharding import AxisType

from gradlab.bptt import passes
from gradlab.bptt.folding import Fold, Folding, Folds, Tap
from gradlab.bptt.form import FIXED, Form, Step, chosen, form_of, joined
from gradlab.bptt.parts import Parts
from gradlab.bptt.passes import (
    Gradients,
    Route,
    Trace,
    is_inexact,
    last_real,
    wide,
    wide_type,
)
from gradlab.bptt.port import Port, is_nothing
from gradlab.bptt.precision import Products
from gradlab.bptt.scaling import ZERO, Scaled, shift
from gradlab.bptt.segments import about_root
from gradlab.bptt.written import written_of
from gradlab.cells import stock
from gradlab.errors import BadInput, whole_number

Layer = Sequence[nnx.RNNCellBase]
"""The cells that read the same input: one, or a forward and a backward one."""
Carries = Sequence[Sequence[Any]]
"""A carry for each layer and direction."""


Forms = tuple[tuple[Form, ...], ...]
"""The form of each cell, by layer and direction."""
FOLDS = "folds of the gates"
"""Where taps hold those of folds, beside the states."""


class Unrolled(NamedTuple):
    """The result of :func:`unroll`.

    Attributes:
      outputs: the top layer's output at every step, ``(T, B, D)``; None with ``every=False``.
      last: its output after the last real step of each example, ``(B, D)``.
      traces: a tuple per layer with one :class:`gradlab.bptt.passes.Trace` per direction.
        Observations only: no gradient flows through them.
      finals: likewise the carry after the last real step of each example; gradients flow.
      port: of the outputs, where one was asked for.
      forms: of the cells.
    """

    outputs: jax.Array | None
    last: jax.Array
    traces: tuple[tuple[Trace, ...], ...]
    finals: tuple[tuple[Any, ...], ...] = ()
    port: Port | None = None
    forms: Forms = ()


def initial_carries(
    layers: Sequence[Layer],
    shape: tuple[int, ...],
    dtype: Any = None,
    *,
    state_axes: Mapping[Any, Any] | None = None,
) -> list[list[Any]]:
    """The carries before the first step, by layer and direction, for ``(T, B, I)`` inputs.

    Args:
      layers: as for :func:`unroll`.
      shape: of the inputs.
      dtype: of the inputs; None: that of the first carry.
      state_axes: as for :func:`unroll`.

    Raises:
      BadInput: as of :func:`gradlab.bptt.form.form_of`.
    """
    return _begun(layers, shape, dtype, state_axes=state_axes)[0]


def forms_of(
    layers: Sequence[Layer],
    shape: tuple[int, ...],
    dtype: Any = None,
    *,
    state_axes: Mapping[Any, Any] | None = None,
    broadcast_rngs: Any = None,
) -> Forms:
    """The form of each cell; arguments as for :func:`initial_carries` and :func:`unroll`."""
    scan = {"state_axes": state_axes, "broadcast_rngs": broadcast_rngs}
    return _begun(layers, shape, dtype, **scan)[1]


def starting_carries(
    layers: Sequence[Layer],
    shape: tuple[int, ...],
    given: Carries | None,
    key: str = "start",
    dtype: Any = None,
) -> list[list[Any]]:
    """The carries before the first step, leaves ``(B, H)``, by layer and direction.

    Args:
      layers: as for :func:`unroll`.
      shape: ``(T, B, I)`` of the inputs.
      given: for each layer and direction a carry like that of the cell's ``initialize_carry``, or
        its leaves in that order as a tuple (a single one by itself); each leaf ``(H,)``, the same
        for every example, or ``(B, H)``. None: ``initialize_carry``'s own.
      key: what a caller calls them.
      dtype: of the inputs; None: that of the first carry.

    Raises:
      BadInput: for carries of another form.
    """
    return _begun(layers, shape, dtype, given, key)[0]


def _begun(
    layers: Sequence[Layer],
    shape: tuple[int, ...],
    dtype: Any,
    given: Carries | None = None,
    key: str = "start",
    as_given: bool = False,
    **scan: Any,
) -> tuple[list[list[Any]], Forms]:
    """The carries before the first step, and the form of each cell."""
    read = tuple(shape[1:])
    due = []
    forms: list[tuple[Form, ...]] = []
    for depth, layer in enumerate(layers):
        if given is not None and as_given:
            own = list(given[depth])
        else:
            own = [cell.initialize_carry(read, nnx.Rngs(0)) for cell in layer]
        kind = _dtype_of(own) if dtype is None else dtype
        x = jax.ShapeDtypeStruct(read, kind)
        found = [form_of(*pair, x, **scan) for pair in zip(layer, own, strict=True)]
        above = _read_above(x, found)
        read, dtype = above.shape, above.dtype
        due.append(own)
        forms.append(tuple(found))
    if given is None or as_given:
        return due, tuple(forms)
    try:
        carries = [
            [_as_carry(*pair) for pair in zip(own, row, strict=True)]
            for own, row in zip(due, given, strict=True)
        ]
    except (TypeError, ValueError, OverflowError):
        allowed = (
            f"real numbers by layer and direction, {_shapes(due)}, or (H,) in the place of (B, H)"
        )
        raise BadInput(key, _shapes(given), allowed) from None
    return carries, tuple(forms)


def _read_above(x: jax.ShapeDtypeStruct, layer: Sequence[Form]) -> jax.ShapeDtypeStruct:
    """What the next layer reads at a step where this one reads x: the joined outputs."""
    output, *others = (form.output for form in layer)
    shape = output.shape
    if shape:
        shape = (*shape[:-1], shape[-1] + sum(other.shape[-1] for other in others))
    return jax.ShapeDtypeStruct((x.shape[0], *shape), output.dtype)


def _dtype_of(carries: Any) -> Any:
    """The type of a real input that fits to these carries."""
    found = [leaf.dtype for leaf in jax.tree.leaves(carries) if is_inexact(leaf)]
    return jnp.finfo(found[0]).dtype if found else jnp.float32


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
    kinds = (jnp.bool_, jnp.integer, jnp.floating, jnp.complexfloating)
    rank = [jnp.issubdtype(array.dtype, kind) for kind in kinds]
    most = [jnp.issubdtype(due.dtype, kind) for kind in kinds]
    if array.dtype == due.dtype:
        pass
    elif not any(rank) or not any(most) or rank.index(True) > max(most.index(True), 2):
        raise TypeError
    if array.shape not in (due.shape, due.shape[1:]):
        raise ValueError
    return jnp.broadcast_to(array.astype(due.dtype), due.shape)


def _shapes(carries: Any) -> Any:
    return jax.tree.map(lambda leaf: np.shape(leaf) or leaf, carries)


def make_taps(
    layers: Sequence[Layer],
    shape: tuple[int, ...],
    dtype: Any = None,
    *,
    folds: Sequence[Fold] = (),
    **scan: Any,
) -> list[list[dict[str, Any]]]:
    """Zeros for ``taps=``: one ``(T, B)`` array a layer, direction and state.

    Args:
      layers: as for :func:`unroll`.
      shape: ``(T, B, I)`` of the inputs.
      dtype: of the inputs; None: that of the first carry.
      folds: to be made of the gates of cells that all have some; besides the states each dict then
        has :data:`FOLDS`, a :class:`gradlab.bptt.folding.Tap`.
      scan: ``state_axes`` and ``broadcast_rngs``, as for :func:`unroll`.
    """
    carries, forms = _begun(layers, shape, dtype, **scan)
    x = jax.ShapeDtypeStruct(shape[1:], _dtype_of(carries[0]) if dtype is None else dtype)
    taps: list[list[dict[str, Any]]] = []
    for layer, begun, own in zip(layers, carries, forms, strict=True):
        taps.append([{name: jnp.zeros(shape[:2]) for name in form.states} for form in own])
        for found, cell, carry, form in zip(taps[-1], layer, begun, own, strict=True):
            if folds:
                folding = Folding(Folds(tuple(folds)), Step(Parts.of(cell), form))
                found[FOLDS] = folding.tap(carry, jnp.zeros(x.shape, x.dtype), shape[0])
        x = _read_above(x, own)
    return taps


def whole_taps(
    layers: Sequence[Layer], shape: tuple[int, ...], dtype: Any = None, **scan: Any
) -> list[list[dict[str, Any]]]:
    """Zeros for ``taps=`` whose cotangents are the adjoints themselves: ``O(T B H)`` memory.

    For each layer and direction ``"adjoint"``, the mantissas ``(T, B, ...)`` by the name of the
    state, with ``"exponent"``, of two, ``(T, B)``; and ``"direct"`` with ``"direct_exponent"``, the
    cotangent of the output of that direction. Adjoints are zero where the exponent is -2^30.
    Arguments as for :func:`make_taps`.
    """
    carries, forms = _begun(layers, shape, dtype, **scan)
    steps, batch = shape[:2]

    def taps(carry: Any, form: Form) -> dict[str, Any]:
        each = zip(form.live_names, form.live_leaves(carry), form.live_batched, strict=True)
        return {
            "adjoint": {
                name: jnp.zeros((steps, *leaf.shape), wide_type(leaf))
                for name, leaf, own in each
                if own
            },
            "exponent": jnp.zeros((steps, batch)),
            "direct": jnp.zeros((steps, batch, *form.output.shape), wide_type(form.output)),
            "direct_exponent": jnp.zeros((steps, batch)),
        }

    return [
        [taps(*pair) for pair in zip(layer, own, strict=True)]
        for layer, own in zip(carries, forms, strict=True)
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
    as_given: bool = False,
    waits: bool = True,
    state_axes: Mapping[Any, Any] | None = None,
    broadcast_rngs: Any = None,
    steps_at_once: int = 1,
    segments: int | None = None,
    products: Products = "float32",
    port: Port | None = None,
    ported: bool = False,
) -> Unrolled:
    """Run stacked cells over a sequence, so that its gradient carries the adjoints out.

    Differentiate a loss of the result by ``taps`` along with the parameters: the "gradient" of a
    tap is the base-2 logarithm of the 2-norm of the adjoint of that state, for every timestep and
    example. It is the adjoint of whatever scalar is differentiated, so a mean over ``B`` examples
    gives every example's own adjoint divided by ``B``. Exactly zero adjoints give -inf. Of complex
    states it is the norm over real and imaginary parts. The "gradient" of the tap of a fold is its
    result.

    Variables that a step changes are carried from step to step, and the cells' own are updated in
    place, as ``nnx.RNN`` does.

    Args:
      layers: for each layer a sequence of one cell, or of a forward and a backward cell.
      inputs: ``(T, B, I)``, or with several axes of features, or with none.
      mask: ``(T, B)`` bool, False where there is nothing to read: the state waits there, an output
        that is not a state is 0, and what the inputs hold is not read, be it NaN.
      taps: from :func:`make_taps` or :func:`whole_taps`, or None to measure nothing.
      every: also give the top layer's outputs at every step.
      start: the carries before the first step, as for :func:`starting_carries`; the gradient flows
        to them, too. None: the cells' own.
      backward: what passes back from each step; the forward pass is the same.
      as_given: take ``start`` as it is, of any form that the cells take, without asking them for
        theirs.
      waits: False: the cells run on where the mask is False, exactly as ``nnx.RNN`` does beyond
        ``seq_lengths``. The gradient is that of such a pass; where nothing of an example is read,
        what its inputs and states hold there cannot make it NaN.
      state_axes: as for ``nnx.RNN``: what becomes of the cells' Variables over time.
      broadcast_rngs: as for ``nnx.RNN``: which random streams are the same at every step.
      steps_at_once: how many steps one turn of the compiled loop makes; changes no number.
      segments: cut time into so many segments and keep the states at their borders only; the
        backward pass runs each forward again. About √T of them need ``O(√T B H)`` memory in place
        of ``O(T B H)`` (:mod:`gradlab.bptt.segments`). None: keep all states. A mask needs
        ``waits``.
      products: what the matrix products of the cells are made in, forward and backward, as of
        :func:`gradlab.bptt.precision.with_products`.
      port: of the inputs, which are the outputs of another run: takes their cotangent in their
        place. Only with taps.
      ported: give a port of the outputs. Only with taps.

    Returns:
      :class:`Unrolled`.
    """
    check_route(backward, layers, "backward")
    check_segments(segments, inputs.shape[0], "segments")
    _check_axes(inputs)
    if segments is not None and mask is not None and not waits:
        raise BadInput("segments", segments, "None where states do not wait beyond the mask")
    with _split_rngs(layers, broadcast_rngs):
        carries, forms = _begun(
            layers,
            inputs.shape,
            inputs.dtype,
            start,
            as_given=as_given,
            state_axes=state_axes,
            broadcast_rngs=broadcast_rngs,
        )
        spec = _Spec(
            every or not _top_is_leaf(forms),
            backward,
            forms,
            waits,
            steps_at_once,
            ported,
            segments,
            products,
        )
        cells = _parts(layers)
        read = _readable(spec, inputs, mask)
        run = _run_ported if ported else _run
        ran: Any = run(spec, cells, carries, read, mask, taps, port)
        outputs, traces, finals, variables, own_port = ran  # custom_vjp hides the type
        for place in _places(cells):
            _update(*(_at(place, one) for one in (layers, cells, forms, variables)))
    last = _last(forms, outputs, finals, mask)
    outputs, traces = outputs if every else None, lax.stop_gradient(traces)
    return Unrolled(outputs, last, traces, finals, own_port, forms)


def unroll_plainly(
    layers: Sequence[Layer],
    inputs: jax.Array,
    *,
    mask: jax.Array | None = None,
    start: Carries | None = None,
    as_given: bool = False,
    waits: bool = True,
    state_axes: Mapping[Any, Any] | None = None,
    broadcast_rngs: Any = None,
    steps_at_once: int = 1,
    moves: bool = False,
) -> Unrolled:
    """The same forward pass with nothing hidden from JAX: any derivative of it can be taken.

    For second derivatives, and for a loss of the states themselves: here gradients do flow through
    the traces. The cells' Variables stay what they are, unless ``moves``. Other arguments as for
    :func:`unroll`.
    """
    _check_axes(inputs)
    with _split_rngs(layers, broadcast_rngs):
        carries, forms = _begun(
            layers,
            inputs.shape,
            inputs.dtype,
            start,
            as_given=as_given,
            state_axes=state_axes,
            broadcast_rngs=broadcast_rngs,
        )
        spec = _Spec(True, "full", forms, waits, steps_at_once)
        cells, read = _parts(layers), _readable(spec, inputs, mask)
        ran, _ = _run_forward(spec, cells, carries, read, mask, None, None, keep=False)
        outputs, traces, finals, variables, *_ = ran
        for place in _places(cells) if moves else ():
            _update(*(_at(place, one) for one in (layers, cells, forms, variables)))
    last = _last(forms, outputs, finals, mask)
    return Unrolled(outputs, last, traces, finals, forms=forms)


def _check_axes(inputs: jax.Array) -> None:
    """Refuse inputs on a mesh whose axes JAX follows from operation to operation."""
    if AxisType.Explicit in jax.typeof(inputs).sharding.mesh.axis_types:
        hint = (
            "jax.make_mesh(…, axis_types=(AxisType.Auto,)): then the layers are split as they are"
        )
        raise BadInput("inputs", "an array on a mesh with AxisType.Explicit", "AxisType.Auto", hint)


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


def check_segments(segments: int | None, steps: int, key: str) -> None:
    """Refuse a number of segments that ``T`` steps cannot be cut into.

    Args:
      segments: None: none.
      steps: ``T``.
      key: what a caller calls them.

    Raises:
      BadInput: naming ``key``.
    """
    if segments is not None:
        whole_number(key, segments, 2)
        if segments > steps:
            allowed = f"{steps} at most, the steps of a sequence"
            raise BadInput(key, segments, allowed, f"{key}={about_root(steps)}, about their root")


def in_full(
    layers: Sequence[Layer],
    forms: Forms,
    traces: Sequence[Sequence[Trace]],
    mask: jax.Array | None,
    products: Products = "float32",
) -> tuple[tuple[Trace, ...], ...]:
    """The traces of :func:`unroll` with every state, made again where segments left them out.

    ``O(T B H)`` memory.

    Args:
      layers, mask, products: as there.
      forms, traces: as it gave them.
    """

    return _of_traces(passes.in_full, layers, forms, traces, mask, products)


def finite(
    layers: Sequence[Layer],
    forms: Forms,
    traces: Sequence[Sequence[Trace]],
    mask: jax.Array | None,
    products: Products = "float32",
) -> tuple[tuple[list[jax.Array], ...], ...]:
    """Whether the carry is finite after each step, as of :func:`gradlab.bptt.passes.finite`.

    Arguments as for :func:`in_full`.
    """
    return _of_traces(passes.finite, layers, forms, traces, mask, products)


def _of_traces(
    function: Callable[..., Any],
    layers: Sequence[Layer],
    forms: Forms,
    traces: Sequence[Sequence[Trace]],
    mask: jax.Array | None,
    products: Products,
) -> Any:
    def one(place: tuple[int, int]) -> Any:
        step = Step(_at(place, _parts(layers)), _at(place, forms), products)
        return function(step, _at(place, traces), _reading_order(mask, place[1]))

    return tuple(
        tuple(one((depth, direction)) for direction in range(len(layer)))
        for depth, layer in enumerate(layers)
    )


class Backward(NamedTuple):
    """What the backward pass of one direction of one layer gave, in its own reading order.

    Attributes:
      params: the gradient of its parameters, at its true scale.
      adjoint: the total adjoint of the states after each step, a tuple of mantissas ``(T, B, H)``
        in the order of ``Form.states`` with one exponent ``(T, B)``.
      direct: the cotangent of its output, ``(T, B, H)``: from the readout or from the layer above,
        in which time may have passed. Where the output is h, it is the part of h's adjoint that
        does not come through this direction's own next state.
      start: the adjoint of the states before the first step, mantissas ``(B, H)``.
      common: likewise of the numbers that the examples share, for the batch as a whole.
    """

    params: Any
    adjoint: Scaled
    direct: Scaled
    start: Scaled
    common: tuple[jax.Array, ...] = ()


def backward(
    layers: Sequence[Layer],
    run: Unrolled,
    from_outputs: jax.Array,
    from_last: jax.Array,
    *,
    mask: jax.Array | None = None,
    cuts: Sequence[jax.Array] | None = None,
    backward: Route = "full",
    waits: bool = True,
    forms: Forms | None = None,
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
      waits: as for :func:`unroll`.
      forms: of the cells; needed where ``run`` had ``state_axes`` or ``broadcast_rngs``.
    """
    check_route(backward, layers, "backward")
    if forms is None:
        forms = _forms_of_run(layers, run)
    # What enters comes from the last outputs: as cotangents of outputs and of final carries.
    _, pull = jax.vjp(
        lambda outputs, finals: _last(forms, outputs, finals, mask), run.outputs, run.finals
    )
    from_late, from_finals = pull(from_last)

    def adjoint_itself(_: Form, adjoint: Scaled) -> Scaled:
        return adjoint

    spec = _Spec(True, backward, forms, waits)
    results, _ = _backward_through(
        spec,
        _parts(layers),
        run.traces,
        mask,
        from_outputs + from_late,
        from_finals,
        None,
        adjoint_itself,
        cuts,
    )

    def whole(place: tuple[int, int]) -> Backward:
        result, final, form = (_at(place, one) for one in (results, from_finals, forms))
        direct = _with_final(form, result.direct, final, _reading_order(mask, place[1]))
        params = _at(place, _parts(layers)).with_leaves(result.variables).params
        plain = zip(form.live_batched, chosen(form.live, result.start_leaves), strict=True)
        common = tuple(wide(leaf) for own, leaf in plain if not own)
        return Backward(params, result.observed, direct, result.start, common)

    return tuple(
        tuple(whole((depth, direction)) for direction in range(len(layer)))
        for depth, layer in enumerate(results)
    )


class Alone(NamedTuple):
    """What :func:`backward_of_one` gives.

    Attributes:
      back: the pass.
      inputs: the cotangent of what the cell read, ``(T, B, ...)``; None for whole numbers.
      start: of each inexact leaf of the first carry.
    """

    back: Backward
    inputs: Scaled | None
    start: list[Scaled]


def backward_of_one(
    cell: nnx.RNNCellBase,
    form: Form,
    trace: Trace,
    direct: Scaled,
    final: Sequence[Scaled],
    *,
    mask: jax.Array | None = None,
    waits: bool = True,
    cut: jax.Array | None = None,
    backward: Route = "full",
) -> Alone:
    """:func:`backward` of one cell by itself, from cotangents of any size to such.

    Args:
      cell: with its Variables as they were before the run.
      form: of it.
      trace: of :func:`unroll_plainly`.
      direct: the cotangent of its outputs, normalised, exponents ``(T, B)``.
      final: that of each inexact leaf of its last carry, exponents ``(B,)``; of a leaf that is
        common to the batch ``()``.
      mask, waits, backward: as for :func:`unroll`.
      cut: as one of the cuts of :func:`backward`.
    """
    exponent = jnp.max(
        jnp.stack([jnp.broadcast_to(f.exponent, direct.exponent.shape[1:]) for f in final]), axis=0
    )
    if form.shared:
        exponent = jnp.broadcast_to(jnp.max(exponent), exponent.shape)
    at_one = [
        shift(leaf.mantissa, leaf.exponent - (exponent if leaf.exponent.ndim else exponent[0]))
        for leaf in final
    ]
    leaves, tree = jax.tree.flatten(trace.final)
    ends = joined(form.live, at_one, chosen([not live for live in form.live], leaves))
    parts = Parts.of(cell)
    step = Step(parts, form)
    found = passes.backward(
        step,
        trace,
        mask,
        direct,
        tree.unflatten(ends),
        written=written_of(step, trace.final, trace.inputs),
        observe=lambda adjoint: adjoint,
        final_exponent=exponent,
        waits=waits,
        cut=cut,
        route=backward,
    )
    direct = _with_final(form, direct, tree.unflatten(ends), mask, exponent)
    params = parts.with_leaves(found.variables).params
    states = iter(found.start.mantissa)
    plain = chosen(form.live, found.start_leaves)
    start = [
        Scaled(next(states), found.start.exponent).normalise() if own else Scaled.of(wide(leaf), 0)
        for own, leaf in zip(form.live_batched, plain, strict=True)
    ]
    return Alone(Backward(params, found.observed, direct, found.start), found.inputs, start)


class _Spec(NamedTuple):
    """What a run depends on besides arrays; arguments as for :func:`unroll`."""

    every: bool
    backward: Route
    forms: Forms
    waits: bool
    steps_at_once: int = 1
    ported: bool = False
    segments: int | None = None
    products: Products = "float32"


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _run(spec: _Spec, cells, start, inputs, mask, taps, port):
    return _run_forward(spec, cells, start, inputs, mask, taps, port, keep=False)[0]


def _run_forward(spec: _Spec, cells, start, inputs, mask, taps, port, keep: bool = True):
    """Outputs, traces, final carries and Variables, a port, and what the backward pass needs.

    With ``keep`` also the gates, where they are kept.
    """
    read: Any = inputs
    traces, finals, variables, kept = [], [], [], []
    for depth, layer in enumerate(cells):
        wanted = spec.every or depth < len(cells) - 1
        runs = []
        for direction, cell in enumerate(layer):
            form = spec.forms[depth][direction]
            own_read, own_mask = _reading_order((read, mask), direction)
            first = start[depth][direction]
            step = Step(cell, form, spec.products)
            options = (wanted, spec.waits, spec.steps_at_once, spec.segments)
            written = written_of(step, first, own_read) if keep else None
            runs.append(passes.forward(step, first, own_read, own_mask, *options, written))
        outputs = [_reading_order(own, direction) for direction, (_, own, _) in enumerate(runs)]
        read = outputs[0] if len(outputs) == 1 or not wanted else jnp.concatenate(outputs, -1)
        traces.append(tuple(trace for trace, *_ in runs))
        kept.append(tuple(own for *_, own in runs))
        finals.append(
            tuple(
                passes.last_carry(trace, None if spec.waits else _reading_order(mask, direction))
                for direction, trace in enumerate(traces[-1])
            )
        )
        variables.append(tuple(trace.final_variables for trace in traces[-1]))
    own_port = Port.of(read, wide_type(read)) if spec.ported else None
    results = (read, tuple(traces), tuple(finals), tuple(variables), own_port)
    return results, (cells, tuple(traces), tuple(kept), mask, taps, port)


def _run_backward(spec: _Spec, residuals, cotangents):
    cells, traces, kept, mask, taps, port = residuals
    from_outputs, _, from_finals, from_variables, from_port = cotangents
    whole = taps is not None and isinstance(taps[0][0].get("adjoint"), dict)
    observe = None if taps is None else _states if whole else passes.log2_norms
    if from_outputs is not None and from_outputs.dtype == jax.dtypes.float0:
        from_outputs = None
    results, from_inputs = _backward_through(
        spec,
        cells,
        traces,
        mask,
        from_outputs,
        from_finals,
        from_variables,
        observe,
        None,
        from_port,
        kept,
        folds=_folds(taps),
    )
    grads = [
        [
            Parts(None, *cell.with_leaves(result.variables)[1:])
            for cell, result in zip(*pair, strict=True)
        ]
        for pair in zip(cells, results, strict=True)
    ]
    starts = [
        [_carry_of(*pair) for pair in zip(layer, own, strict=True)]
        for layer, own in zip(traces, results, strict=True)
    ]
    by_inputs, by_port = None, None
    if port is not None:
        by_port = Port.holding(from_inputs)
    elif from_inputs is not None:
        by_inputs = from_inputs.plain().astype(traces[0][0].inputs.dtype)
    if taps is None:
        return grads, starts, by_inputs, None, None, None
    seen = [
        [_observed(*pair) for pair in zip(layer, own, strict=True)]
        for layer, own in zip(results, taps, strict=True)
    ]
    if whole:
        seen = [
            [
                _whole(
                    spec.forms[depth][direction],
                    result,
                    from_finals[depth][direction],
                    _reading_order(mask, direction),
                )
                for direction, result in enumerate(layer)
            ]
            for depth, layer in enumerate(results)
        ]
    seen = jax.tree.map(lambda found, tap: found.astype(tap.dtype), seen, taps)
    return grads, starts, by_inputs, None, seen, by_port


_run.defvjp(_run_forward, _run_backward)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _run_ported(spec: _Spec, *arrays):
    """The same with a port of the outputs: where a cotangent is nothing, none is calculated."""
    return _run_forward(spec, *arrays)[0]


def _ported_forward(spec: _Spec, *arrays):
    return _run_forward(spec, *jax.custom_derivatives.custom_vjp_primal_tree_values(arrays))


def _ported_backward(spec: _Spec, residuals, cotangents):
    outputs, *others, port = cotangents
    port = None if is_nothing(port) else port
    outputs = None if is_nothing(outputs) and port is not None else outputs
    return _run_backward(spec, residuals, (*jax.tree.map(_array, (outputs, *others)), port))


def _array(cotangent: Any) -> Any:
    return jnp.zeros(cotangent.shape, cotangent.dtype) if is_nothing(cotangent) else cotangent


_run_ported.defvjp(_ported_forward, _ported_backward, symbolic_zeros=True)


def _folds(taps: Any) -> list[list[Folds]] | None:
    """What is to be made of the gates, by layer and direction."""
    if taps is None or FOLDS not in taps[0][0]:
        return None
    return [[own[FOLDS].folds for own in layer] for layer in taps]


def _observed(result: Gradients, taps: Mapping[str, Any]) -> Any:
    """What was observed of one direction, as its taps have it."""
    if FOLDS not in taps:
        return result.observed
    return {**result.observed, FOLDS: Tap(taps[FOLDS].folds, list(result.folded))}


def _states(_: Form, adjoint: Scaled) -> Scaled:
    return adjoint


def _whole(form: Form, result: Gradients, final: Any, mask: jax.Array | None) -> dict[str, Any]:
    """What the taps of :func:`whole_taps` give."""
    adjoint = result.observed
    direct = _with_final(form, result.direct, final, mask)
    return {
        "adjoint": dict(zip(form.states, adjoint.mantissa, strict=True)),
        "exponent": adjoint.exponent,
        "direct": direct.mantissa,
        "direct_exponent": direct.exponent,
    }


def _carry_of(trace: Trace, result: Gradients) -> Any:
    return jax.tree.unflatten(jax.tree.structure(trace.final), result.start_leaves)


def _backward_through(
    spec: _Spec,
    cells: Sequence[Sequence[Parts]],
    traces: Sequence[Sequence[Trace]],
    mask: jax.Array | None,
    from_outputs: jax.Array | None,
    from_finals: Sequence[Sequence[Any]],
    from_variables: Sequence[Sequence[Any]] | None,
    observe: Callable[[Form, Scaled], Any] | None,
    cuts: Sequence[jax.Array] | None = None,
    from_port: Port | None = None,
    kept: Sequence[Sequence[Any]] | None = None,
    folds: Sequence[Sequence[Folds]] | None = None,
) -> tuple[list[list[Gradients]], Any]:
    """Every layer's gradients, from the top down, and the inputs' cotangent.

    With nothing to observe the arithmetic is the same, to the last bit of the gradients.
    """
    from_above: Any = None if from_outputs is None else Scaled.of(wide(from_outputs), 2)
    if from_port is not None:
        handed = from_port.number()
        from_above = handed if from_above is None else handed.add(from_above)
    results: list[list[Gradients]] = []
    for depth in reversed(range(len(cells))):
        layer = []
        for direction, cell in enumerate(cells[depth]):
            place, form = (depth, direction), spec.forms[depth][direction]
            step, trace = Step(cell, form, spec.products), _at(place, traces)
            layer.append(
                passes.backward(
                    step,
                    trace,
                    _reading_order(mask, direction),
                    _part_of(from_above, direction, spec.forms[depth]),
                    _at(place, from_finals),
                    written=written_of(step, trace.final, trace.inputs),
                    kept=None if kept is None else _at(place, kept),
                    observe=(lambda _: None) if observe is None else partial(observe, form),
                    final_variables=None if from_variables is None else _at(place, from_variables),
                    waits=spec.waits,
                    cut=None if cuts is None else cuts[direction],
                    route=spec.backward,
                    steps_at_once=spec.steps_at_once,
                    folds=None if folds is None else _at(place, folds),
                )
            )
        results.insert(0, layer)
        from_above = layer[0].inputs
        for direction, result in enumerate(layer[1:], start=1):
            if from_above is not None:
                from_above = from_above.add(_reading_order(result.inputs, direction))
    return results, from_above


def _with_final(
    form: Form,
    direct: Any,
    final: Any,
    mask: jax.Array | None,
    exponent: jax.Array | None = None,
) -> Scaled:
    """``direct`` with the cotangent of the final h put in at each example's last real step.

    Where the output is h. With an exponent ``(B,)`` if that is of mantissas.
    """
    if not form.is_leaf:
        return direct
    own, steps = wide(form.hidden(final)), direct.mantissa.shape[0]
    ends = jnp.arange(steps)[:, None] == steps - 1 if mask is None else last_real(mask)
    flags = ends.reshape(ends.shape + (1,) * (own.ndim - 1))
    entering = Scaled.of(jnp.where(flags, own[None], 0), 2)
    if exponent is not None:
        moved = entering.exponent + exponent[None]
        entering = entering._replace(exponent=jnp.where(entering.exponent == ZERO, ZERO, moved))
    return direct.add(entering)


def _readable(spec: _Spec, inputs: jax.Array, mask: jax.Array | None) -> jax.Array:
    """The inputs with harmless ones where nothing is read, for cells that mix the examples.

    For the others a pass takes care of it. Here the gradient of what stands in is known, too.
    """
    if mask is None or not spec.waits or not any(form.mixes for form in spec.forms[0]):
        return inputs
    return passes.harmless(inputs, mask)


def _reading_order(tree: Any, direction: int) -> Any:
    """Arrays ``(T, ...)`` as a direction reads them: as they are, or last step first."""
    return jax.tree.map(lambda a: a[::-1], tree) if direction else tree


def _part_of(joined: Any, direction: int, layer: Sequence[Form]) -> Any:
    """One direction's share of the cotangent of the joined outputs, in its reading order."""
    if joined is None or len(layer) == 1:
        return joined
    part = joined._replace(mantissa=_share(joined.mantissa, direction, layer))
    return _reading_order(part.normalise(), direction)


def _share(joined: jax.Array, direction: int, layer: Sequence[Form]) -> jax.Array:
    """What belongs to one direction, of an array whose last axis holds them all."""
    widths = [form.output.shape[-1] for form in layer]
    begin = sum(widths[:direction])
    return joined[..., begin : begin + widths[direction]]


def _places(tree: Sequence[Sequence[Any]]) -> Iterator[tuple[int, int]]:
    """Every layer and direction."""
    return ((depth, d) for depth, layer in enumerate(tree) for d in range(len(layer)))


def _at(place: tuple[int, int], tree: Sequence[Sequence[Any]]) -> Any:
    depth, direction = place
    return tree[depth][direction]


def _parts(layers: Sequence[Layer]) -> list[list[Parts]]:
    return [[Parts.of(cell) for cell in layer] for layer in layers]


def _forms_of_run(layers: Sequence[Layer], run: Unrolled) -> Forms:
    def form(cell: Any, trace: Trace) -> Form:
        before, x = jax.tree.map(lambda leaf: leaf[0], (trace.before, trace.inputs))
        return form_of(cell, before, x)

    pairs = zip(layers, run.traces, strict=True)
    return tuple(tuple(form(*one) for one in zip(*pair, strict=True)) for pair in pairs)


def _split_rngs(layers: Sequence[Layer], only: Any) -> Any:
    """A context in which these random streams begin anew; after it they have moved by one."""
    if only is None:
        return nullcontext()
    cells = [list(layer) for layer in layers]
    return nnx.split_rngs(cells, splits=1, only=only, squeeze=True)


def _update(cell: nnx.RNNCellBase, parts: Parts, form: Form, variables: Any) -> None:
    """The cell's Variables that the run has changed, in place."""
    if variables is None:
        return
    step = Step(parts, form)
    after = parts.with_leaves(step.whole(step.fixed, variables))
    marked = parts.with_leaves(form.variables)
    both = zip((after.params, after.rest), (marked.params, marked.rest), strict=True)
    changed = {}
    for state, kinds in both:
        for (path, new), (_, kind) in zip(
            nnx.to_flat_state(state), nnx.to_flat_state(kinds), strict=True
        ):
            if any(own != FIXED for own in jax.tree.leaves(kind)):
                changed[path] = new
    nnx.update(cell, nnx.from_flat_state(changed))


def _top_is_leaf(forms: Forms) -> bool:
    return all(form.is_leaf for form in forms[-1])


def _last(
    forms: Forms, outputs: Any, finals: Sequence[Sequence[Any]], mask: jax.Array | None
) -> jax.Array:
    """The top layer's output after the last real step of each example."""
    top = list(enumerate(forms[-1]))
    if _top_is_leaf(forms):
        ends = [form.hidden(finals[-1][direction]) for direction, form in top]
    else:
        shares = [outputs] if len(top) == 1 else [_share(outputs, d, forms[-1]) for d, _ in top]
        ends = [
            passes.at_end(_reading_order(share, d), _reading_order(mask, d))
            for share, (d, _) in zip(shares, top, strict=True)
        ]
    return ends[0] if len(ends) == 1 else jnp.concatenate(ends, axis=-1)
