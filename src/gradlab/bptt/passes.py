"""One direction of one layer over time: its forward pass, and that pass transposed.

The backward pass stores the carries only and runs each step again where it is transposed. It
carries the adjoint as a mantissa and an exponent per example, so that nothing underflows.

Shapes: time-major ``(T, B, ...)``, in the direction's own reading order.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from gradlab.bptt import scaling
from gradlab.bptt.parts import Parts
from gradlab.bptt.precision import in_all_digits
from gradlab.bptt.scaling import Plain, Scaled
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
      before: the carry that each step began from, leaves ``(T, B, H)``.
      inputs: what it read, ``(T, B, I)``.
      final: the carry after the last step, leaves ``(B, H)``.
    """

    before: Any
    inputs: jax.Array
    final: Any


class Gradients(NamedTuple):
    """What :func:`backward` gives.

    Attributes:
      params: the gradient of the parameters, at its true scale.
      inputs: the cotangent of what was read, ``(T, B, I)``, normalised.
      direct: that of the outputs, as it came in.
      observed: what was made of each step's adjoint, stacked over time.
      start: the adjoint of the carry before the first step, normalised.
    """

    params: Any
    inputs: Scaled | Plain
    direct: Any
    observed: Any
    start: Any


@in_all_digits
def forward(
    cell: nnx.RNNCellBase, start: Any, inputs: jax.Array, mask: jax.Array | None, wanted: bool
) -> tuple[Trace, jax.Array | None]:
    """What a cell goes through from the carry ``start`` on, and its outputs if they are wanted."""
    is_state = output_is_state(cell, start)

    def step(carry: Any, read: Any) -> Any:
        x, real = read
        new, y = cell(carry, x)
        new = _hold(new, carry, real)
        output = (hidden(new) if is_state else y) if wanted else None
        return new, (carry, output)

    final, (before, outputs) = lax.scan(step, start, (inputs, mask))
    return Trace(before, inputs, final), outputs


@in_all_digits
def backward(
    cell: Parts,
    trace: Trace,
    mask: jax.Array | None,
    direct: Any,
    final: Any,
    *,
    observe: Callable[[Any], Any],
    cut: jax.Array | None = None,
    route: Route = "full",
) -> Gradients:
    """The gradients of one direction, from those of its outputs and of its final carry.

    Args:
      cell: its parts.
      trace: of its forward pass.
      mask: as it was there.
      direct: cotangents of its outputs ``(T, B, H)`` in reading order, normalised, or None.
      final: cotangents of its final carry, normalised; the whole pass calculates in numbers of
        this kind, :class:`gradlab.bptt.scaling.Scaled` or :class:`gradlab.bptt.scaling.Plain`.
      observe: what to keep of each step's adjoint, itself no part of the result.
      cut: ``(T, B)`` bool in reading order, True where nothing passes back from the next step into
        this one; of scaled numbers only.
      route: what passes back from each step.
    """

    def apply(params: Any, carry: Any, x: jax.Array) -> Any:
        return cell._replace(params=params).module()(carry, x)

    is_state = output_is_state(cell.module(), final.mantissa)

    def step(state: Any, read: Any) -> Any:
        after, total = state
        before, x, real, from_output, cut_here = read
        if cut_here is not None:
            after = _cut(after, cut_here)
        adjoint, from_y = _inject(after, from_output, is_state)
        _, transpose = jax.vjp(apply, cell.params, before, x)
        cotangents = _silence((adjoint.mantissa, from_y), real)
        gradient, earlier, from_x = adjoint.pull(transpose, cotangents)
        if route != "full":
            earlier = _without(route, cell.module(), before, x, cotangents[0], earlier)
        earlier = adjoint._replace(mantissa=_hold(earlier, adjoint.mantissa, real)).normalise()
        total = jax.tree.map(jnp.add, total, gradient)
        return (earlier, total), (adjoint._replace(mantissa=from_x), observe(adjoint))

    end = (final, jax.tree.map(jnp.zeros_like, cell.params))
    reads = (trace.before, trace.inputs, mask, direct, cut)
    (start, total), (inputs, observed) = lax.scan(step, end, reads, reverse=True)
    return Gradients(total, inputs.normalise(), direct, observed, start)


def _cut(adjoint: Scaled, cut: jax.Array) -> Scaled:
    mantissa = jax.tree.map(lambda leaf: jnp.where(cut[:, None], 0, leaf), adjoint.mantissa)
    return Scaled(mantissa, jnp.where(cut, scaling.ZERO, adjoint.exponent))


def _without(route: Route, cell: Any, before: Any, x: jax.Array, adjoint: Any, earlier: Any) -> Any:
    """The cotangent ``earlier`` of the carry ``before`` with one route left out.

    Args:
      route: not "full".
      cell: of the step.
      before: the carry that it began from.
      x: what it read.
      adjoint: the cotangent of its new carry, of which ``earlier`` was made.
      earlier: see above.
    """
    leaves, tree = jax.tree.flatten(earlier)
    names, silent = state_names(before), [jnp.zeros_like(leaf) for leaf in leaves]
    if "c" in names:
        cut = names.index("h" if route == "no_h_path" else "c")
        return tree.unflatten([*leaves[:cut], silent[cut], *leaves[cut + 1 :]])
    gate = stock.retention(cell, before, x)
    assert gate is not None
    kept = hidden_plus(tree.unflatten(silent), gate.astype(leaves[0].dtype) * hidden(adjoint))
    if route == "no_h_path":
        return kept
    # The barrier keeps a fused multiply-add from leaving a rounding error where nothing is left.
    return jax.tree.map(jnp.subtract, earlier, lax.optimization_barrier(kept))


def _inject(after: Any, direct: Any, is_state: bool) -> tuple[Any, jax.Array]:
    """The total adjoint of the state, and the cotangent of the output where that is not a state.

    Both at one exponent, that of the result.
    """
    nothing = jnp.zeros_like(hidden(after.mantissa))
    if direct is None:
        return after, nothing
    aligned, from_y = after.align(direct)
    if is_state:
        return aligned._replace(mantissa=hidden_plus(aligned.mantissa, from_y)), nothing
    return aligned, from_y


def log2_norms(adjoint: Scaled) -> dict[str, jax.Array]:
    """log2 of the norm of each part of the state, ``(B,)``, by name."""
    leaves = jax.tree.leaves(adjoint.mantissa)
    return {
        name: scaling.log2_norm(leaf, adjoint.exponent)
        for name, leaf in zip(state_names(adjoint.mantissa), leaves, strict=True)
    }


# Carries.


def state_names(carry: Any) -> tuple[str, ...]:
    """Names of a carry's leaves: its fields, ``("h",)`` for an array, ``("c", "h")`` for a pair."""
    if hasattr(carry, "_fields"):
        return tuple(carry._fields)
    leaves = jax.tree.leaves(carry)
    known = {1: ("h",), 2: ("c", "h")}
    return known.get(len(leaves), tuple(f"s{i}" for i in range(len(leaves))))


def hidden_index(carry: Any) -> int:
    """The position of h among a carry's leaves; Flax puts it last."""
    names = state_names(carry)
    return names.index("h") if "h" in names else len(names) - 1


def hidden(carry: Any) -> jax.Array:
    """The h of a carry."""
    return jax.tree.leaves(carry)[hidden_index(carry)]


def hidden_plus(carry: Any, addend: jax.Array) -> Any:
    """The carry with ``addend`` added to its h."""
    leaves, tree = jax.tree.flatten(carry)
    index = hidden_index(carry)
    leaves[index] = leaves[index] + addend
    return jax.tree.unflatten(tree, leaves)


def _hold(new: Any, old: Any, real: jax.Array | None) -> Any:
    """``new`` where the step is real, else ``old``."""
    if real is None:
        return new
    return jax.tree.map(lambda n, o: jnp.where(real[:, None], n, o), new, old)


def _silence(tree: Any, real: jax.Array | None) -> Any:
    if real is None:
        return tree
    return jax.tree.map(lambda leaf: jnp.where(real[:, None], leaf, 0), tree)


def output_is_state(cell: nnx.RNNCellBase, carry: Any) -> bool:
    """Whether the cell's output *is* the h of its carry, as in every common cell."""
    leaf = jax.tree.leaves(carry)[0]
    width = cell.in_features  # pyright: ignore[reportAttributeAccessIssue]
    x = jax.ShapeDtypeStruct((*leaf.shape[:-1], width), leaf.dtype)
    jaxpr = jax.make_jaxpr(lambda c, x: cell(c, x))(carry, x).jaxpr
    return jaxpr.outvars[hidden_index(carry)] is jaxpr.outvars[-1]
