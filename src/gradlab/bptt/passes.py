"""One direction of one layer over time: its forward pass, and that pass transposed.

The backward pass stores the carries only and runs each step again where it is transposed. It
carries the adjoint as a mantissa and an exponent per example, so that nothing underflows.

The adjoint of a leaf of the carry is the total derivative by that leaf after a step, the leaves
being independent of each other: through the next step, and through the step's own output where
that is made of the leaf. So where the output is not h itself, a step is transposed in two: first
the output as a function of the new carry (and of whatever else it reads), then the new carry.

Shapes: time-major ``(T, B, ...)``, in the direction's own reading order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from gradlab.bptt import scaling, segments
from gradlab.bptt.folding import Folded, Folding, Folds
from gradlab.bptt.form import Form, Step, chosen, joined, parted
from gradlab.bptt.precision import in_all_digits, with_products
from gradlab.bptt.scaling import Scaled
from gradlab.bptt.written import Written
from gradlab.cells import stock

Route = Literal["full", "no_h_path", "no_c_path"]
"""What of an adjoint passes back from one timestep to the one before, in the backward pass alone.

A cell keeps its memory by a retention gate: c in an LSTM, h in a GRU. ``full``: all passes, which
is the gradient. ``no_h_path``: only what passes through the memory. Where c is a part of its own,
the cotangent of the old h is zero; else the adjoint is multiplied by the gate and by nothing else.
``no_c_path``: the rest. The cotangent of the old c is zero; else what the gate keeps is left out.
Where the gates read c as well (a peephole), that is a way through c, and stays with it.
"""


class Trace(NamedTuple):
    """What one direction of one layer went through, in its own reading order.

    Attributes:
      before: the carry that each step began from, leaves ``(T, B, H)``; one that is common to the
        batch is ``(T, ...)``. Where time is cut into segments, those that the segments began from;
        :func:`in_full` makes the others.
      inputs: what it read, ``(T, B, I)``.
      final: the carry after the last step, leaves ``(B, H)``.
      variables: the cell's Variables that are not fixed, as each step began with them, stacked
        over T, in the order of :attr:`gradlab.bptt.form.Step.moved`; None if there are none. Where
        time is cut into segments, those that move as the segments began with them.
      final_variables: the same after the last step; those with an axis of time have it in front.
    """

    before: Any
    inputs: jax.Array
    final: Any
    variables: Any = None
    final_variables: Any = None


class Gradients(NamedTuple):
    """What :func:`backward` gives.

    Attributes:
      variables: the gradient of each array of the cell's Variables, as they were before the first
        step, at its true scale; zeros of type float0 for whole numbers.
      inputs: the cotangent of what was read, ``(T, B, I)``, normalised; None for whole numbers.
      direct: that of the outputs, as it came in.
      observed: what was made of each step's adjoint, stacked over time.
      start: the adjoint of the states before the first step, as of :func:`of_states`.
      start_leaves: the cotangent of each leaf of the first carry.
      folded: what each fold made of the gates.
    """

    variables: list[Any]
    inputs: Any
    direct: Any
    observed: Any
    start: Any
    start_leaves: list[Any]
    folded: Sequence[Folded] = ()


@in_all_digits
def forward(
    step: Step,
    start: Any,
    inputs: jax.Array,
    mask: jax.Array | None,
    wanted: bool,
    waits: bool,
    steps_at_once: int = 1,
    count: int | None = None,
    written: Written | None = None,
) -> tuple[Trace, jax.Array | None, Any]:
    """What a cell goes through from the carry ``start`` on, and its outputs if they are wanted.

    Besides the gates that ``written`` keeps for the backward pass, ``(T, B, H)`` each, or None.

    Args:
      step: of the cell.
      start: the first carry.
      inputs: ``(T, B, I)``.
      mask: ``(T, B)``, or None.
      wanted: whether outputs are.
      waits: whether the state waits where the mask is False, and the output is that of the state
        (or 0 where it is not h). There the cell reads the example's first real input; one that
        mixes the examples reads what is there, as it is a part of what it does.
      steps_at_once: ``lax.scan``'s ``unroll``.
      count: of the segments that time is cut into; None: it is not cut.
      written: the cell's step where that is written out, and a backward pass is to come.
    """
    moving, sliced = parted(step.moves_on, step.moved)
    # A state that runs on may come to be NaN where nothing is read, and so would its gates.
    keeper = written if written and written.keeps and (mask is None or waits) else None
    holds = mask if waits else None
    if holds is not None and not step.form.mixes:
        inputs = harmless(inputs, holds)
    body = _advance(step, wanted, keeper if count is None else None)
    (final, moved), (before, on_way), (made, outputs, kept) = segments.forward(
        body, (start, moving), (inputs, holds, sliced), count, steps_at_once
    )
    if not step.moved:
        return Trace(before, inputs, final), outputs, kept
    variables, last = joined(step.moves_on, on_way, sliced), joined(step.moves_on, moved, made)
    return Trace(before, inputs, final, variables, last), outputs, kept


def _advance(step: Step, wanted: bool = False, keeper: Written | None = None) -> segments.Body:
    """The body of the forward loop.

    It gives the Variables that the step has made, the output if wanted, and gates by a ``keeper``.
    """
    form = step.form

    def one(state: Any, read: Any) -> Any:
        carry, moving = state
        x, real, sliced = read
        y: Any
        kept = None
        if keeper is None:
            new, y, after = step(step.fixed, joined(step.moves_on, moving, sliced), carry, x)
        else:
            new, kept = keeper(carry, x)
            y, after = form.hidden(new), []
        new = _hold(form, new, carry, real)
        output = None
        if wanted:
            output = form.hidden(new) if form.is_leaf else _silent(y, real)
        moving_after, sliced_after = parted(step.moves_on, after)
        return (new, moving_after), (sliced_after, output, kept)

    return with_products(one, step.products)


@in_all_digits
def in_full(step: Step, trace: Trace, mask: jax.Array | None, waits: bool = True) -> Trace:
    """A trace with the carry that every step began from, made again where segments left it out.

    Arguments as for :func:`backward`.
    """
    before, on_way = _every_state(step, trace, mask, waits, lambda states: states)
    _, sliced = parted(step.moves_on, trace.variables or [])
    variables = joined(step.moves_on, on_way, sliced) if step.moved else None
    return trace._replace(before=before, variables=variables)


@in_all_digits
def finite(step: Step, trace: Trace, mask: jax.Array | None, waits: bool = True) -> list[jax.Array]:
    """Of each leaf of the carry whether all of it is finite after each step, ``(T,)`` bool.

    Arguments as for :func:`backward`. Where time is cut into segments it takes the memory of one.
    """

    def look(states: Any) -> list[jax.Array]:
        leaves = jax.tree.leaves(states[0])
        return [jnp.all(jnp.isfinite(leaf), axis=tuple(range(1, leaf.ndim))) for leaf in leaves]

    before = _every_state(step, trace, mask, waits, look)
    last = look((jax.tree.map(lambda leaf: leaf[None], trace.final), ()))
    return [jnp.concatenate([own[1:], end]) for own, end in zip(before, last, strict=True)]


def _every_state(
    step: Step, trace: Trace, mask: jax.Array | None, waits: bool, look: Callable[[Any], Any]
) -> Any:
    """What ``look`` makes of ``(carry, moving Variables)`` before every step."""
    moving, sliced = parted(step.moves_on, trace.variables or [])
    forth = (trace.inputs, mask if waits else None, sliced)
    return segments.every_state(_advance(step), (trace.before, moving), forth, look)


@in_all_digits
def backward(
    step: Step,
    trace: Trace,
    mask: jax.Array | None,
    direct: Any,
    final: Any,
    *,
    observe: Callable[[Any], Any],
    written: Written | None = None,
    kept: Any = None,
    final_exponent: jax.Array | None = None,
    final_variables: Sequence[Any] | None = None,
    waits: bool = True,
    cut: jax.Array | None = None,
    route: Route = "full",
    steps_at_once: int = 1,
    folds: Folds | None = None,
) -> Gradients:
    """The gradients of one direction, from those of its outputs and of its final carry.

    Args:
      step: of the cell.
      trace: of its forward pass.
      mask: as it was there.
      direct: cotangents of its outputs ``(T, B, H)`` in reading order, normalised, or None.
      final: cotangents of the leaves of its final carry: after the last step, or after each
        example's last real one where the state does not wait.
      observe: what to keep of each step's adjoint of the states (:func:`of_states`), itself no part
        of the result.
      written: the cell's step where that is written out.
      kept: of the forward pass.
      final_exponent: ``(B,)``, of two, where those cotangents are mantissas; the same for all
        examples where a step mixes them.
      final_variables: cotangents of ``trace.final_variables``; None: zeros.
      waits: as it was there.
      cut: ``(T, B)`` bool in reading order, True where nothing passes back from the next step into
        this one; of scaled numbers only.
      route: what passes back from each step.
      steps_at_once: ``lax.scan``'s ``unroll``.
      folds: of the gates of each step.
    """
    form, batch = step.form, trace.inputs.shape[1]
    calculus = Generic(step) if written is None else written
    moving, sliced = parted(step.moves_on, trace.variables or [])
    end_moving, end_sliced = calculus.final(final_variables)
    own_final = wide(form.live_leaves(final))
    ends, late = None, None
    if mask is not None and not waits:
        # The state ran on: the cotangent of what was handed out enters at each example's end.
        states, common = (
            [
                leaf if own is late else jnp.zeros_like(leaf)
                for own, leaf in zip(form.live_batched, own_final, strict=True)
            ]
            for late in (True, False)
        )
        late = _ended(form, states, final_exponent)
        ends, own_final = last_real(mask), common
    begin = _ended(form, (own_final, end_moving), final_exponent)
    direct_of = _direct(form, direct, end_sliced)
    first = None if mask is None else _first_real(trace.inputs, mask)
    start = jax.tree.map(lambda leaf: leaf[0], trace.before)
    folding = Folding(folds or Folds(), step)
    unfolded = folding.begin(start, [leaf[0] for leaf in trace.variables or []], trace.inputs[0])

    def one(state: Any, read: Any) -> Any:
        after, total, folded = state
        (before, moved), (sliced, x, real, from_output, cut_here, end, gates) = read
        if cut_here is not None:
            after = _cut(form, after, cut_here)
        if end is not None:
            after = _entered(form, after, late, end)
        adjoint, from_y, from_sliced = _inject(form, after, from_output)
        if real is not None and waits:
            from_y = None if from_y is None else _silent(from_y, real)
        elif real is not None and not form.mixes:
            quiet = ~real & _is_silent(form, adjoint.mantissa[0], from_y)
            x = _where(quiet, first, x)
            before = _hold(form, before, start, ~quiet)
        moved = joined(step.moves_on, moved, sliced)
        through = calculus.at(before, moved, x, gates)
        if from_y is not None and not form.is_leaf:
            adjoint = through.add_output(adjoint, from_y)
        silenced = _silenced(form, adjoint.mantissa, real if waits else None)
        cotangents = (*silenced, from_sliced, from_y)
        total, made, earlier, from_x = through.pull(adjoint, cotangents, total)
        if route != "full":
            carried = _without(route, form, step, before, x, silenced[0], earlier[0])
            earlier = (carried, earlier[1])
        if real is not None and waits:
            earlier = _held_back(form, earlier, adjoint.mantissa, real)
        passed = adjoint._replace(mantissa=earlier).normalise()
        # Whether it is looked at or not, the adjoint is calculated by the same program.
        seen = observe(of_states(form, lax.optimization_barrier(adjoint), batch))
        folded, noted = folding.step(folded, before, moved, x, real, through.gates)
        given = adjoint._replace(mantissa=from_x), made, seen, noted
        return (passed, total, folded), given

    reads = (sliced, trace.inputs, mask, direct_of, cut, ends, kept)
    forth = (trace.inputs, mask if waits else None, sliced)
    (start_adjoint, total, folded), (inputs, made, observed, noted) = segments.backward(
        with_products(one, step.products),
        _advance(step),
        (begin, calculus.zeros(kept), unfolded),
        (trace.before, moving),
        (reads, forth),
        steps_at_once,
    )
    finish = with_products(calculus.finish, step.products)
    total, from_x = finish(trace, total, inputs.mantissa, made, inputs.exponent)
    inputs = inputs._replace(mantissa=from_x)
    by_leaves, by_moving = start_adjoint.plain()
    read = None
    if jax.tree.leaves(inputs.mantissa):
        read = inputs._replace(mantissa=inputs.mantissa[0])
        read = read.of_each(batch) if form.shared else read.normalise()
    return Gradients(
        calculus.gradient(total, by_moving, made),
        read,
        direct,
        observed,
        of_states(form, start_adjoint, batch),
        cotangents_like(jax.tree.leaves(start), form.live, by_leaves),
        folding.finish(folded, noted),
    )


class Generic:
    """A step as a function of its inexact arrays, and its transpose.

    Half-precision numbers are cast at its border: outside they are in float32.
    """

    def __init__(self, step: Step):
        self.step, self.form, self.moves = step, step.form, step.moves_on
        self.live_fixed = [is_inexact(leaf) for leaf in step.fixed]
        self.live_moved = [is_inexact(leaf) for leaf in step.moved]

    def _live(self, moved: Sequence[Any]) -> tuple[list[Any], list[Any]]:
        """The inexact ones of the arrays that are not fixed: moving ones, and sliced ones."""
        moving, sliced = parted(self.moves, moved)
        live_moving, live_sliced = parted(self.moves, self.live_moved)
        return chosen(live_moving, moving), chosen(live_sliced, sliced)

    def _with_live(self, moved: Sequence[Any], moving: Any, sliced: Any) -> list[Any]:
        """All arrays that are not fixed, the inexact ones replaced."""
        new_moving, new_sliced = iter(moving), iter(sliced)
        return [
            (next(new_moving) if moves else next(new_sliced)) if live else old
            for moves, live, old in zip(self.moves, self.live_moved, moved, strict=True)
        ]

    def zeros(self, _: Any) -> list[Any]:
        """A gradient of nothing of the fixed arrays, which the loop sums."""
        live = chosen(self.live_fixed, self.step.fixed)
        return [jnp.zeros_like(leaf, dtype=wide_type(leaf)) for leaf in live]

    def final(self, cotangents: Sequence[Any] | None) -> tuple[list[Any], list[Any]]:
        """Those of the inexact arrays that are not fixed, after the last step."""
        moving, sliced = self._live(self.step.moved if cotangents is None else cotangents)
        found = wide(moving), wide(sliced)
        return jax.tree.map(jnp.zeros_like, found) if cotangents is None else found

    def finish(
        self, trace: Trace, total: Any, from_x: Any, made: Any, exponent: jax.Array
    ) -> tuple[Any, Any]:
        """What the loop has summed, and the cotangents of what each step read.

        Args:
          trace: of the forward pass.
          total: what the loop has summed.
          from_x: what each step gave as the cotangent of its input.
          made: what it gave besides.
          exponent: of the adjoints of each step.
        """
        return total, from_x

    def gradient(self, fixed: Sequence[Any], moving: Sequence[Any], sliced: Sequence[Any]) -> Any:
        """A cotangent of each array of the Variables, in their own order and axes."""
        step, live = self.step, self.live_moved
        moved = chosen(live, self._with_live(step.moved, moving, sliced))
        by_fixed = cotangents_like(step.fixed, self.live_fixed, fixed)
        return step.whole(by_fixed, cotangents_like(step.moved, live, moved))

    def at(self, before: Any, moved: Sequence[Any], x: jax.Array, _: Any) -> Transposed:
        """The step from here on, linearised."""
        form, step = self.form, self.step
        leaves, tree = jax.tree.flatten(before)
        riding = chosen([not live for live in form.live], leaves)
        reads = [x] if is_inexact(x) else []

        def arrays(fixed: Any, live: Any, moving: Any, sliced: Any, read: Any) -> Any:
            still = chosen([not live for live in self.live_fixed], step.fixed)
            return (
                joined(self.live_fixed, fixed, still),
                self._with_live(moved, moving, sliced),
                tree.unflatten(joined(form.live, live, riding)),
                read[0] if read else x,
            )

        def carried(*live: Any) -> Any:
            new, _, after = step(*arrays(*live))
            return (form.live_leaves(new), *self._live(after)), jax.tree.leaves(new)

        live_moving, live_sliced = self._live(moved)
        fixed = chosen(self.live_fixed, step.fixed)
        point = (fixed, chosen(form.live, leaves), live_moving, live_sliced, reads)
        results, pull, new = jax.vjp(carried, *point, has_aux=True)
        if form.is_leaf or not jnp.issubdtype(form.output.dtype, jnp.inexact):
            return Transposed(form, pull, results, None, None)
        emit = step.emit(before, x, moved)

        def output(after: Any, *live: Any) -> Any:
            own_fixed, own_moved, own_carry, own_x = arrays(*live)
            whole = joined(form.live, after, chosen([not live for live in form.live], new))
            return emit(own_fixed, own_moved, own_carry, own_x, whole)

        y, pull_output = jax.vjp(output, form.live_leaves(new), *point)
        return Transposed(form, pull, results, pull_output, y)


class Transposed(NamedTuple):
    """A step's transpose at one point.

    Attributes:
      form: of the cell.
      back: from cotangents of the new leaves and Variables to those of all that the step reads.
      results: the primal results of that.
      pull_output: from the cotangent of the output to those of the new leaves and of all that the
        step reads; None where the output is h.
      y: the output; None likewise.
      gates: the step's gates, ``(B, H)`` by their names in :mod:`gradlab.cells.stock`, where the
        transposition has them anyway; None: it does not.
    """

    form: Form
    back: Callable[[Any], Any]
    results: Any
    pull_output: Callable[[Any], Any] | None
    y: Any
    gates: dict[str, jax.Array] | None = None

    def add_output(self, adjoint: Any, from_y: jax.Array) -> Any:
        """The total adjoint, with what comes through the output."""
        if self.pull_output is None:
            return adjoint
        leaves, moving = adjoint.mantissa
        through, *_ = wide(self.pull_output(from_y.astype(self.y.dtype)))
        return adjoint._replace(mantissa=(jax.tree.map(jnp.add, leaves, through), moving))

    def pull(self, adjoint: Scaled, cotangents: Any, total: Any) -> tuple[Any, Any, Any, Any]:
        """The step transposed, with the parameters' part at its true scale.

        Args:
          adjoint: of the state after it.
          cotangents: the adjoint's mantissas ``(leaves, moving)``, where the step is real, and at
            the same exponents those of sliced Variables and of the output.
          total: the gradient that the loop has summed so far.

        Returns:
          That with this step's own, what else the step gives to :meth:`Generic.gradient`, and
          mantissas of the cotangents of the earlier state and of the input.
        """
        together = self.form.half or self.form.shared
        gradient, earlier, from_x = adjoint.pull(self.transpose, cotangents, together)
        by_fixed, by_sliced = gradient
        return jax.tree.map(jnp.add, total, by_fixed), by_sliced, earlier, from_x

    def transpose(self, cotangents: Any) -> tuple[Any, Any, Any]:
        """Cotangents of parameters ``(fixed, sliced)``, of state ``(leaves, moving)``, of input."""
        leaves, moving, sliced, from_y = cotangents
        if sliced is None:
            sliced = jax.tree.map(jnp.zeros_like, self.results[2])
        after = (leaves, moving, sliced)
        narrow = jax.tree.map(lambda ct, made: ct.astype(made.dtype), after, self.results)
        found = wide(self.back(narrow))
        if self.pull_output is not None and from_y is not None:
            _, *past = self.pull_output(from_y.astype(self.y.dtype))
            found = jax.tree.map(jnp.add, found, tuple(wide(past)))
        fixed, leaves, moving, sliced, x = found
        return (fixed, sliced), (leaves, moving), x


# Which arrays are what.


def is_inexact(leaf: Any) -> bool:
    """Whether an array holds floating-point or complex numbers."""
    return jnp.issubdtype(leaf.dtype, jnp.inexact)


def wide_type(leaf: Any) -> Any:
    """The dtype of an array's cotangent within a pass: at least float32."""
    dtype = leaf.dtype
    return jnp.float32 if is_inexact(leaf) and jnp.finfo(dtype).bits < 32 else dtype


def wide(tree: Any) -> Any:
    """Half-precision arrays in float32, others as they are."""
    return jax.tree.map(lambda leaf: leaf.astype(wide_type(leaf)), tree)


def cotangents_like(leaves: Sequence[Any], live: Sequence[bool], found: Sequence[Any]) -> list[Any]:
    """A cotangent of each array: those found for the live ones, float0 zeros for the others."""
    own = iter(found)
    return [
        next(own).astype(leaf.dtype) if alive else no_cotangent(leaf)
        for leaf, alive in zip(leaves, live, strict=True)
    ]


def no_cotangent(leaf: Any) -> Any:
    """Zeros of the type that the cotangents of whole numbers have."""
    return np.zeros(leaf.shape, jax.dtypes.float0)


# Adjoints.


def of_states(form: Form, adjoint: Any, batch: int) -> Any:
    """The adjoint of the states alone, in the order of ``form.states``, an exponent an example."""
    states = tuple(chosen(form.live_batched, adjoint.mantissa[0]))
    exponent = adjoint.exponent
    return Scaled(states, jnp.broadcast_to(exponent, (batch,)) if form.shared else exponent)


def log2_norms(form: Form, adjoint: Scaled) -> dict[str, jax.Array]:
    """log2 of the norm of the adjoint of each state, ``(B,)``, by name."""
    named = zip(form.states, adjoint.mantissa, strict=True)
    return {name: scaling.log2_norm(leaf, adjoint.exponent) for name, leaf in named}


def _direct(form: Form, direct: Any, sliced: Sequence[Any]) -> Any:
    """What enters at each step: the cotangents of the output, and of the Variables of that step."""
    own = direct.of_batch() if direct is not None and form.shared else direct
    if not sliced or not form.shared:  # no step has changed an inexact one
        return None if own is None else own._replace(mantissa=(own.mantissa, None))
    ended = Scaled.of(list(sliced), 1)
    if own is None:
        return ended._replace(mantissa=(None, ended.mantissa))
    aligned, other = own.align(ended)
    return aligned._replace(mantissa=(aligned.mantissa, other))


def _inject(form: Form, after: Any, direct: Any) -> tuple[Any, Any, Any]:
    """The adjoint with what enters at this step, and the cotangents of output and Variables.

    All at one exponent, that of the result. Where the output is h, its cotangent is in the adjoint.
    """
    if direct is None:
        return after, None, None
    aligned, (from_y, from_sliced) = after.align(direct)
    if from_y is None or not form.is_leaf:
        return aligned, from_y, from_sliced
    leaves, moving = aligned.mantissa
    at = form.live_names.index(form.h)
    leaves = [*leaves[:at], leaves[at] + from_y, *leaves[at + 1 :]]
    return aligned._replace(mantissa=(leaves, moving)), None, from_sliced


def _cut(form: Form, adjoint: Scaled, cut: jax.Array) -> Scaled:
    mantissa = _silenced(form, adjoint.mantissa, ~cut)
    if form.shared:
        return adjoint._replace(mantissa=mantissa).normalise()
    return Scaled(mantissa, jnp.where(cut, scaling.ZERO, adjoint.exponent))


def _ended(form: Form, cotangents: Any, exponent: jax.Array | None) -> Any:
    """What enters at the end."""
    if exponent is None:
        return Scaled.of(cotangents, 0 if form.shared else 1)
    return Scaled(cotangents, jnp.max(exponent) if form.shared else exponent).normalise()


def _entered(form: Form, after: Any, late: Any, end: jax.Array) -> Any:
    """The adjoint with the cotangent of the last real carry of the examples that end here."""
    _, moving = after.mantissa
    own = _silenced(form, (late.mantissa, jax.tree.map(jnp.zeros_like, moving)), end)
    return after.add(late._replace(mantissa=own))


def _without(
    route: Route,
    form: Form,
    step: Step,
    before: Any,
    x: jax.Array,
    adjoint: Sequence[jax.Array],
    earlier: Sequence[jax.Array],
) -> list[jax.Array]:
    """The cotangent ``earlier`` of the carry ``before`` with one route left out.

    Args:
      route: not "full".
      form: of the cell.
      step: of the cell.
      before: the carry that it began from.
      x: what it read.
      adjoint: the cotangent of its new carry, of which ``earlier`` was made.
      earlier: see above.
    """
    names, silent = form.live_names, [jnp.zeros_like(leaf) for leaf in earlier]
    at = names.index(form.h)
    if "c" in names:
        cut = at if route == "no_h_path" else names.index("c")
        return [*earlier[:cut], silent[cut], *earlier[cut + 1 :]]
    gate = stock.retention(step.module(), before, x)
    assert gate is not None
    through = silent[at] + gate.astype(earlier[at].dtype) * adjoint[at]
    kept = [*silent[:at], through, *silent[at + 1 :]]
    if route == "no_h_path":
        return kept
    # The barrier keeps a fused multiply-add from leaving a rounding error where nothing is left.
    return jax.tree.map(jnp.subtract, list(earlier), lax.optimization_barrier(kept))


# Masks.


def last_real(mask: jax.Array) -> jax.Array:
    """``(T, B)`` bool: True at each example's last real step; at the last of all if it has none."""
    at = mask.shape[0] - 1 - jnp.argmax(mask[::-1], axis=0)
    return jnp.arange(mask.shape[0])[:, None] == at[None]


def at_end(sequence: jax.Array, mask: jax.Array | None) -> jax.Array:
    """Of an array ``(T, B, ...)`` what it holds at each example's last real step, ``(B, ...)``."""
    if mask is None:
        return sequence[-1]
    at = mask.shape[0] - 1 - jnp.argmax(mask[::-1], axis=0)
    return sequence[at, jnp.arange(mask.shape[1])]


def last_carry(trace: Trace, mask: jax.Array | None) -> Any:
    """The carry after each example's last real step, of a pass that ran on beyond it.

    What is common to the batch is that after the last step.
    """
    if mask is None:
        return trace.final

    def own(before: jax.Array, final: jax.Array) -> jax.Array:
        if final.shape[:1] != mask.shape[1:]:
            return final
        return at_end(jnp.concatenate([before[1:], final[None]]), mask)

    return jax.tree.map(own, trace.before, trace.final)


def _where(flags: jax.Array, yes: Any, no: Any) -> jax.Array:
    """``yes`` for the examples whose flag ``(..., B)`` is true, else ``no``."""
    return jnp.where(flags.reshape(flags.shape + (1,) * (no.ndim - flags.ndim)), yes, no)


def _silent(leaf: jax.Array, real: jax.Array | None) -> jax.Array:
    """Zeros where the step is not real."""
    return leaf if real is None else _where(real, leaf, jnp.zeros_like(leaf))


def _first_real(inputs: jax.Array, mask: jax.Array) -> jax.Array:
    """What each example reads first, ``(B, ...)``; zeros for one that has no real step."""
    first = inputs[jnp.argmax(mask, axis=0), jnp.arange(mask.shape[1])]
    return _silent(first, jnp.any(mask, axis=0))


def harmless(inputs: jax.Array, mask: jax.Array) -> jax.Array:
    """The inputs, with each example's first real one in the place of those that are not real.

    What stands there otherwise may be NaN, of which 0 times is NaN.
    """
    first = _first_real(inputs, mask)
    return _where(mask, inputs, jnp.broadcast_to(first, inputs.shape))


def _hold(form: Form, new: Any, old: Any, real: jax.Array | None) -> Any:
    """``new`` where the step is real, else ``old``; what is common to the batch does not wait."""
    if real is None:
        return new
    leaves, tree = jax.tree.flatten(new)
    each = zip(form.batched, leaves, jax.tree.leaves(old), strict=True)
    return tree.unflatten([_where(real, n, o) if own else n for own, n, o in each])


def _silenced(form: Form, adjoint: Any, real: jax.Array | None) -> Any:
    """The adjoint of the states where the step is real, else zero; all else as it is."""
    leaves, moving = adjoint
    each = zip(form.live_batched, leaves, strict=True)
    return [_silent(leaf, real) if own else leaf for own, leaf in each], moving


def _held_back(form: Form, earlier: Any, adjoint: Any, real: jax.Array) -> Any:
    """Where a state waited, its adjoint passes as it is.

    With what other examples made of the step besides, if they are mixed.
    """
    leaves, moving = earlier
    each = zip(form.live_batched, leaves, adjoint[0], strict=True)

    def held(new: jax.Array, old: jax.Array) -> jax.Array:
        return _where(real, new, new + old if form.mixes else old)

    return [held(new, old) if own else new for own, new, old in each], moving


def _is_silent(form: Form, leaves: Sequence[jax.Array], from_y: Any) -> jax.Array:
    """``(B,)``: whether an example's cotangents at a step are exactly zero."""
    states = [*chosen(form.live_batched, leaves), *([] if from_y is None else [from_y])]
    axes = [tuple(range(1, leaf.ndim)) for leaf in states]
    zero = [jnp.all(leaf == 0, axis=own) for leaf, own in zip(states, axes, strict=True)]
    return jnp.all(jnp.stack(zero), axis=0)
