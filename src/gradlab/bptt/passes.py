"""One direction of one layer over time: its forward pass, and that pass transposed.

The backward pass stores the carries only and runs each step again where it is transposed. It
carries the adjoint as a mantissa and an exponent per example, so that nothing underflows.

Shapes: time-major ``(T, B, ...)``, in the direction's own reading order.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from gradlab.bptt import scaling
from gradlab.bptt.scaling import Scaled


class Saved(NamedTuple):
    """What the backward pass of one direction needs, in its reading order."""

    before: Any
    inputs: jax.Array
    mask: jax.Array | None


class Gradients(NamedTuple):
    """What :func:`backward` gives.

    Attributes:
      params: the gradient of the parameters, at its true scale.
      inputs: the cotangent of what was read, ``(T, B, I)``, normalised.
      norms: state name -> ``(T, B)``: log2 of the adjoint's norm; empty where nothing is scaled.
      adjoint: the adjoints themselves, a carry with leaves ``(T, B, H)``, or None if not kept.
      direct: what came in from the outputs.
    """

    params: Any
    inputs: Scaled
    norms: dict[str, jax.Array]
    adjoint: Scaled | None
    direct: Scaled | None


def forward(cell, run: Saved, wanted: bool):
    """``(final carry, carries before each step, outputs or None)``; ``run.before`` is the start."""
    is_state = output_is_state(cell, run.before)

    def step(carry, read):
        x, real = read
        new, y = cell(carry, x)
        new = _hold(new, carry, real)
        output = (hidden(new) if is_state else y) if wanted else None
        return new, (carry, output)

    final, (before, outputs) = lax.scan(step, run.before, (run.inputs, run.mask))
    return final, before, outputs


def backward(graph, params, rest, saved: Saved, direct: Scaled | None, final: Scaled, keep, cuts):
    """The gradients of one direction, from those of its outputs and of its final carry.

    Args:
      graph, params, rest: the cell.
      saved: what its forward pass kept.
      direct: cotangents of its outputs ``(T, B, H)`` in reading order, normalised, or None.
      final: cotangents of its final carry, normalised.
      keep: whether to give every adjoint itself besides its norm.
      cuts: of this direction, as for :func:`gradlab.bptt.unroll.backward`.
    """

    def apply(params, carry, x):
        return merge(graph, params, rest)(carry, x)

    is_state = output_is_state(merge(graph, params, rest), final.mantissa)

    def step(state, read):
        after, total = state
        before, x, real, from_output, cut = read
        after = _cut(after, cut)
        adjoint, from_y = _inject(after, from_output, is_state)
        gradient, earlier, from_x = _transpose(apply, params, before, x, adjoint, from_y, real)
        total = jax.tree.map(jnp.add, total, gradient)
        return (earlier, total), (from_x, _log2_norms(adjoint), adjoint if keep else None)

    start = (final, jax.tree.map(jnp.zeros_like, params))
    reads = (saved.before, saved.inputs, saved.mask, direct, cuts)
    (_, total), (inputs, norms, adjoints) = lax.scan(step, start, reads, reverse=True)
    return Gradients(total, scaling.normalise(inputs), norms, adjoints, direct)


def _cut(adjoint: Scaled, cut: jax.Array | None) -> Scaled:
    if cut is None:
        return adjoint
    assert adjoint.exponent is not None
    mantissa = jax.tree.map(lambda leaf: jnp.where(cut[:, None], 0, leaf), adjoint.mantissa)
    return Scaled(mantissa, jnp.where(cut, scaling.ZERO, adjoint.exponent))


def _inject(after: Scaled, direct: Scaled | None, is_state: bool) -> tuple[Scaled, jax.Array]:
    """The total adjoint of the state, and the cotangent of the output where that is not a state.

    Both at one exponent, that of the result.
    """
    nothing = jnp.zeros_like(hidden(after.mantissa))
    if direct is None:
        return after, nothing
    aligned, from_y = scaling.align(after, direct)
    if is_state:
        return Scaled(hidden_plus(aligned.mantissa, from_y), aligned.exponent), nothing
    return aligned, from_y


def _transpose(apply, params, before, x, adjoint: Scaled, from_y: jax.Array, real):
    """One step transposed: ``(parameter gradient, adjoint before it, gradient of x)``.

    The parameters are shared by all examples, so their gradient is taken at its true scale; the
    other two keep the exponent of the adjoint.
    """
    _, pull = jax.vjp(apply, params, before, x)
    cotangent = _silence((adjoint.mantissa, from_y), real)
    gradient, earlier, from_x = pull(cotangent)
    if adjoint.exponent is not None:
        gradient, _, _ = pull(scaling.shift(cotangent, adjoint.exponent))
    earlier = Scaled(_hold(earlier, adjoint.mantissa, real), adjoint.exponent)
    return gradient, scaling.normalise(earlier), Scaled(from_x, adjoint.exponent)


def _log2_norms(adjoint: Scaled) -> dict[str, jax.Array]:
    if adjoint.exponent is None:
        return {}
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


def merge(graph, params, rest):
    """The cell with these parameters; a copy of its own, so that a trace cannot leak into it."""
    return nnx.merge(graph, params, rest, copy=True)


def output_is_state(cell: nnx.RNNCellBase, carry: Any) -> bool:
    """Whether the cell's output *is* the h of its carry, as in every common cell."""
    leaf = jax.tree.leaves(carry)[0]
    width = cell.in_features  # pyright: ignore[reportAttributeAccessIssue]
    x = jax.ShapeDtypeStruct((*leaf.shape[:-1], width), leaf.dtype)
    jaxpr = jax.make_jaxpr(lambda c, x: cell(c, x))(carry, x).jaxpr
    return jaxpr.outvars[hidden_index(carry)] is jaxpr.outvars[-1]
