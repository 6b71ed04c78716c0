"""The gradient of anyone's loss, and beside it what its recurrent layers saw of it, in one pass.

The adjoints leave the backward pass as the cotangents of taps (:mod:`gradlab.bptt.unroll`), which
become a further argument of the loss. Which layers it calls, and at what shapes, is found first, by
an abstract call on copies: so the loss is traced twice.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen, nnx

from gradlab.bptt.form import Form
from gradlab.bptt.scaling import LOG10_2
from gradlab.bptt.unroll import FOLDS
from gradlab.errors import BadInput, whole_number
from gradlab.probes.base import norm
from gradlab.watching.gates import gate_tap, measured_folds, measured_gates
from gradlab.watching.layers import RNN
from gradlab.watching.tape import Call, Tape

_log = logging.getLogger("gradlab")
_HINT = "gradlab.watch(module), once, before the loop"


@jax.tree_util.register_pytree_with_keys_class
class Seen(dict[str, dict[str, Any]]):
    """What the recurrent layers saw of one gradient: a dict by the layers' paths, and a pytree.

    A layer that is called twice is there as ``"rnn"`` and ``"rnn#2"``, in the order of the calls.
    For each call, time running in the order in which the layer reads:

    - ``adj_h_log10`` and so on, ``(B, T)``, one for each part of the state: log10 of the 2-norm of
      ∂ℓ/∂h_t, ℓ being the loss of that example alone; -inf where it is exactly zero. Where the part
      that is h has a name of its own, it is there under both.
    - ``mask``: ``(B, T)`` bool, True where a step was real.
    - ``measured``: what the standard step probes make of the gates, by variable, each without its
      axis of layers; empty for a cell whose gates cannot be seen.

    Attributes:
      gradient_norms: the 2-norm of the gradient of each parameter array, by name.
      h: by the layer, the name of the part of its state that is h, where that is not "h".
    """

    def __init__(
        self,
        layers: Mapping[str, dict[str, Any]] | None = None,
        gradient_norms: Mapping[str, Any] | None = None,
        h: Mapping[str, str] | None = None,
    ):
        super().__init__(layers or {})
        self.gradient_norms, self.h = dict(gradient_norms or {}), dict(h or {})

    def tree_flatten_with_keys(self) -> tuple[Any, tuple[tuple[str, str], ...]]:
        """Its two parts of arrays and what is fixed, for JAX."""
        key = jax.tree_util.GetAttrKey
        parts = (key("layers"), dict(self)), (key("gradient_norms"), self.gradient_norms)
        return parts, tuple(sorted(self.h.items()))

    @classmethod
    def tree_unflatten(cls, fixed: tuple[tuple[str, str], ...], parts: Any) -> Seen:
        """Put together again, for JAX."""
        layers, norms = parts
        return cls(layers, norms, dict(fixed))


def value_and_grad(
    loss: Callable[..., Any] | None = None,
    argnums: int | nnx.DiffState | Sequence[int | nnx.DiffState] = 0,
    has_aux: bool = False,
    *,
    reduction: Literal["mean", "sum"] | int = "mean",
    allow_int: bool = False,
    examples: int | None = 8,
    graph: bool | None = None,
    graph_updates: bool | None = None,
) -> Callable[..., Any]:
    """``nnx.value_and_grad``, with what the watched layers saw of the gradient as third result.

    Value and gradient are those of ``nnx.value_and_grad``, with or without ``jit``, and whatever
    the loss changes in its modules is changed once. To find the layers the loss is traced twice;
    the first time on copies and without computing anything, so that only what Python code does
    outside of JAX (a ``print``) is done twice.

    A layer is not seen where the loss calls it within a transformation of its own: ``lax.scan``,
    ``vmap``, ``jit``, ``remat``, ``cond``. A warning of the logger ``gradlab`` names such layers.
    The call of the returned function may itself stand within any of these.

    Args:
      loss: ``loss(*args)`` gives a scalar, or ``(scalar, aux)`` with ``has_aux``..
      argnums: as for ``nnx.value_and_grad``: which arguments to differentiate by.
      has_aux: whether the loss gives more than its value.
      reduction: how the loss is made of the losses of examples. ``"mean"``: over the batch of each
        layer's call, which may differ between layers. ``"sum"``: nothing is multiplied. A whole
        number: a sum divided by it, where it is no layer's batch (a layer that reads ``(B, N, T,
        I)`` has B·N sequences, and the mean may be over B).
      allow_int: as for ``nnx.value_and_grad``.
      examples: of how many examples, the first of the batch, the statistics of the gates are;
        None: of all.
      graph: as for ``nnx.value_and_grad``.
      graph_updates: as for ``nnx.value_and_grad``.

    Returns:
      A function of the loss's arguments, that gives ``(value, gradient, seen)``, or ``((value,
      aux), gradient, seen)`` with ``has_aux``; ``seen`` is a :class:`Seen`.

    Raises:
      BadInput: for arguments that are not these. The returned function, too: without a watched
        layer, for two of one name, and for a loss of another shape.
    """
    options: dict[str, Any] = {"graph": graph, "graph_updates": graph_updates}
    if loss is None:
        return functools.partial(
            value_and_grad,
            argnums=argnums,
            has_aux=has_aux,
            reduction=reduction,
            allow_int=allow_int,
            examples=examples,
            **options,
        )
    _check_loss(loss)
    _check_reduction(reduction)
    if examples is not None:
        whole_number("examples", examples, 1, otherwise=", or null for all")
    alone = isinstance(argnums, int | nnx.DiffState)
    chosen = (argnums,) if alone else tuple(argnums)

    @functools.wraps(loss)
    def differentiate(*args: Any, **kwargs: Any) -> Any:
        args, kwargs = _by_position(loss, args, kwargs)
        names = _differentiated(loss, chosen, args)
        layers = _layers(args, kwargs)
        taps = _taps(loss, has_aux, layers, examples, args, kwargs)
        renamed = {name: tap.form.h for name, tap in taps.items() if "h" not in tap.form.states}

        def tapped(*all_args: Any, **kwargs: Any) -> Any:
            *args, taps = all_args
            tape = Tape({name: _through(tap.taps, tap.reached) for name, tap in taps.items()})
            with tape.running():
                out = loss(*args, **kwargs)
            value, aux = out if has_aux else (out, None)
            calls = {
                name: _of_call(call, examples) for name, call in tape.calls.items() if name in taps
            }
            return value, (aux, calls)

        grad = nnx.value_and_grad(
            tapped, argnums=(*chosen, len(args)), has_aux=True, allow_int=allow_int, **options
        )
        (value, (aux, calls)), (*grads, found) = grad(*args, taps, **kwargs)
        own = {name: _seen(found[name], one, reduction) for name, one in calls.items()}
        seen = Seen(own, _norms(names, grads), renamed)
        return (value, aux) if has_aux else value, grads[0] if alone else tuple(grads), seen

    return differentiate


# The two traces.


class _Tap(NamedTuple):
    """What a layer's call is handed, as an argument to differentiate by.

    Attributes:
      taps: as of :func:`gradlab.bptt.unroll.make_taps`, with that of the gates; the cotangents of
        the others are log2 norms.
      reached: (); its cotangent is 1 if any gradient comes to the layer. Else JAX skips its
        backward pass, and the cotangents of the taps are 0, as of a norm of 1.
      form: of the cell.
    """

    taps: dict[str, Any]
    reached: jax.Array
    form: Form


def _taps(
    loss: Callable[..., Any],
    has_aux: bool,
    layers: Sequence[str],
    examples: int | None,
    args: Any,
    kwargs: Any,
) -> dict[str, _Tap]:
    """Taps for each call of a layer in the loss, by its name.

    Args:
      loss: see :func:`value_and_grad`.
      has_aux: see :func:`value_and_grad`.
      layers: paths of those that it could call.
      examples: see :func:`value_and_grad`.
      args, kwargs: its arguments, of which nothing is changed.
    """

    def look() -> dict[str, _Tap]:
        own, named = nnx.clone((args, kwargs))
        with Tape().running() as tape:
            out = loss(*own, **named)
        _check_result(out, has_aux)
        missed.update(tape.missed)
        return {name: _tap(call, examples) for name, call in tape.calls.items()}

    missed: set[str] = set()
    taps = _abstractly(look)
    _check_seen(taps, missed, layers)
    return jax.tree.map(lambda tap: jnp.zeros(tap.shape, tap.dtype), taps)


def _abstractly(look: Callable[[], Any]) -> Any:
    """What a function would return, as shapes, or as arrays if it needs the numbers themselves."""
    with contextlib.suppress(
        jax.errors.ConcretizationTypeError,
        jax.errors.TracerArrayConversionError,
        jax.errors.TracerIntegerConversionError,
        jax.errors.NonConcreteBooleanIndexError,
    ):
        return jax.eval_shape(look)
    return look()


def _tap(call: Call, examples: int | None) -> _Tap:
    (form,), trace = call.run.forms[0], call.run.traces[0][0]
    taps = {name: jnp.zeros(trace.inputs.shape[:2]) for name in form.states}
    folds = gate_tap(call.cell, form, trace, examples)
    return _Tap({**taps, FOLDS: folds}, jnp.zeros(()), form)


@jax.custom_vjp
def _through(taps: Any, reached: jax.Array) -> Any:
    """The taps of a :class:`_Tap`, as they are."""
    return taps


_through.defvjp(
    lambda taps, reached: (taps, None), lambda _, cotangents: (cotangents, jnp.ones(()))
)


def _of_call(call: Call, examples: int | None) -> dict[str, Any]:
    """What is seen of a call without its backward pass; of the gates, that of so many examples."""
    trace = call.run.traces[0][0]
    mask = jnp.ones(trace.inputs.shape[:2], bool) if call.mask is None else call.mask
    return {"mask": mask.T, "measured": measured_gates(call.cell, trace, mask, examples)}


def _seen(found: _Tap, seen: Mapping[str, Any], reduction: str | int) -> dict[str, Any]:
    """What is seen of a call.

    Args:
      found: the cotangents of its taps.
      seen: without its backward pass.
      reduction: see :func:`value_and_grad`.
    """
    there = found.reached != 0
    folded = measured_folds(found.taps[FOLDS], seen["mask"].T)
    measured = {name: jnp.where(there, folded[name], own) for name, own in seen["measured"].items()}
    return {**_log10(found, seen, reduction), **seen, "measured": measured}


def _log10(found: _Tap, seen: Mapping[str, Any], reduction: str | int) -> dict[str, jax.Array]:
    """log10 of the norms of each example's own adjoints, from the cotangents of the taps."""
    batch = {"mean": seen["mask"].shape[0], "sum": 1}.get(str(reduction), reduction)

    def own(log2: jax.Array) -> jax.Array:
        log10 = (log2 + jnp.log2(jnp.asarray(batch, log2.dtype))) * LOG10_2
        return jnp.where(found.reached == 0, -jnp.inf, log10).T

    norms = {
        "h": found.taps[found.form.h],
        **{name: found.taps[name] for name in found.form.states},
    }
    return {f"adj_{name}_log10": own(log2) for name, log2 in norms.items()}


def _norms(names: Sequence[str], grads: Sequence[Any]) -> dict[str, jax.Array]:
    """The norm of each array of the gradients, by its name; of several, after the argument's."""
    found = {}
    for name, grad in zip(names, grads, strict=True):
        leaves = jax.tree.leaves_with_path(grad, is_leaf=lambda one: isinstance(one, nnx.Variable))
        for path, leaf in leaves:
            if jnp.issubdtype(leaf.dtype, jnp.inexact):
                place = jax.tree_util.keystr(path, simple=True, separator="/")
                own = [name] if len(grads) > 1 or not place else []
                found["/".join([*own, *([place] if place else [])])] = norm(leaf[...])
    return found


# Arguments.


def _by_position(
    loss: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments as ``argnums`` counts them, as ``nnx.value_and_grad`` does it."""
    if isinstance(loss, functools.partial):
        return args, kwargs
    bound = inspect.signature(loss).bind(*args, **kwargs)
    bound.apply_defaults()
    return bound.args, bound.kwargs


def _differentiated(loss: Callable[..., Any], argnums: Sequence[Any], args: Any) -> list[str]:
    """The names of the arguments to differentiate by.

    Raises:
      BadInput: if they are not there, or are nothing that has a gradient.
    """
    known = [] if isinstance(loss, functools.partial) else list(inspect.signature(loss).parameters)
    names = []
    for one in argnums:
        at = one.argnum if isinstance(one, nnx.DiffState) else one
        if not isinstance(at, int) or not -len(args) <= at < len(args):
            raise BadInput("argnums", at, f"positions among the {len(args)} arguments of the loss")
        at %= len(args)
        names.append(known[at] if at < len(known) else str(at))
        given, key = args[at], f"argument {names[-1]}"
        if inspect.isclass(given):
            hint = f"an instance: {given.__name__}(…)"
            raise BadInput(key, f"the class {given.__name__}", "an nnx.Module", hint)
        if isinstance(given, linen.Module):
            shown, hint = f"{type(given).__name__}, a linen module", "its like of flax.nnx"
            raise BadInput(key, shown, "an nnx.Module", hint)
    return names


def _layers(args: Any, kwargs: Any) -> list[str]:
    """The paths of the watched layers among the arguments."""
    return [node.path for _, node in nnx.iter_graph((args, kwargs)) if isinstance(node, RNN)]


# Refusals.


def _check_loss(loss: Any) -> None:
    if isinstance(loss, nnx.Module) or not callable(loss):
        allowed = "a function loss(module, ...) that gives a scalar"
        raise BadInput("loss", type(loss).__name__, allowed)
    bound = getattr(loss, "__self__", None)
    if isinstance(bound, nnx.Module):
        name = f"{type(bound).__name__}.{loss.__name__}"
        allowed = "a function that is handed the module; this one is bound to it"
        raise BadInput("loss", name, allowed, f"value_and_grad({name})(module, ...)")


def _check_reduction(reduction: Any) -> None:
    if reduction not in ("mean", "sum"):
        whole_number("reduction", reduction, 1, otherwise=', or "mean" or "sum"')


def _check_result(out: Any, has_aux: bool) -> None:
    """Refuse what a loss must not give."""
    value = out
    if has_aux:
        if not (isinstance(out, tuple) and len(out) == 2):
            allowed = "a pair (value, aux), as has_aux=True says"
            raise BadInput("loss", f"a loss that gives {_shape(out)}", allowed)
        value, _ = out
    if not isinstance(value, jax.Array | float):
        hint = "has_aux=True" if isinstance(out, tuple) and len(out) == 2 else ""
        raise BadInput("loss", f"a loss that gives {_shape(value)}", "one number, ()", hint)
    if jnp.shape(value) != ():
        allowed = "one number, ()"
        hint = "its mean over the examples: jnp.mean(...)"
        raise BadInput("loss", f"a loss that gives {_shape(value)}", allowed, hint)
    if not jnp.issubdtype(jnp.result_type(value), jnp.floating):
        raise BadInput("loss", f"a loss that gives {_shape(value)}", "a real number")


def _shape(out: Any) -> str:
    """What a loss gives, in words."""
    if isinstance(out, jax.Array):
        return f"{out.dtype} {out.shape}"
    return f"a {type(out).__name__} of {len(out)}" if isinstance(out, tuple) else type(out).__name__


def _check_seen(taps: Mapping[str, Any], missed: set[str], layers: Sequence[str]) -> None:
    """Refuse a loss without a layer that can be seen; tell of those that it does not call.

    Args:
      taps: by name of the calls that were seen.
      missed: paths of those called where they cannot be seen, of which the tape has told.
      layers: paths of those that the loss could call.
    """
    unseen = [path for path in layers if path not in taps and path not in missed]
    if taps:
        for path in unseen:
            _tell(path)
        return
    allowed = "a loss that calls a recurrent layer which gradlab watches"
    hint = _HINT
    if missed:
        allowed += f"; {', '.join(sorted(missed))} is called within a transformation of JAX"
        hint = "call it outside of that; or transform the step that calls gradlab.value_and_grad"
    elif layers:
        allowed += f"; it is handed {', '.join(layers)}"
        hint = "call it in the loss itself, not in a function that was compiled before"
    raise BadInput("loss", "a loss that calls none", allowed, hint)


@functools.cache
def _tell(path: str) -> None:
    reason = "the loss does not call it, or in a function that was compiled before"
    _log.warning("gradlab cannot see %s: %s", path, reason)
