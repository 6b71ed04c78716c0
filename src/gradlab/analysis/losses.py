"""What the caller wants differentiated, as a function of arrays alone."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from flax.errors import TraceContextError
from jax.extend import core

from gradlab.errors import BadInput, first_line
from gradlab.model import per_example_loss

Loss = Callable[[Any, Any, Any, Any], jax.Array]
"""From outputs, the state of the network, what the loss needs besides and lengths (or None)."""


class Answer(NamedTuple):
    """What a network gives, of which a loss is made.

    Attributes:
      outputs: shapes and dtypes.
      network: what a loss is handed that takes the network, too; taken apart by ``nnx.split``.
        None: no loss may.
      examples: ``B``.
      caller_first: whether an array of the outputs is handed to the caller with its first two axes
        swapped.
      time_first: whether the outputs begin with time.
      last: whether targets may be those of the last output alone.
      classes: whether targets of whole numbers are classes.
    """

    outputs: Any
    network: tuple[Any, Any] | None
    examples: int
    caller_first: bool
    time_first: bool
    last: bool
    classes: bool


def loss_of(given: Any, answer: Answer) -> tuple[Loss, Any]:
    """The loss, and what it needs besides: the arrays that it closes over, or the targets.

    Raises:
      BadInput: for what is neither a loss of one value for each example nor targets that fit.
    """
    if callable(given):
        return _callers_loss(given, answer)
    outputs, key = answer.outputs, "targets_or_loss"
    if not isinstance(outputs, jax.ShapeDtypeStruct):
        shapes = jax.tree.map(jnp.shape, outputs)
        raise BadInput(key, given, f"a callable, for a network that gives {shapes}")
    try:
        targets = jnp.asarray(given)
    except (TypeError, ValueError):
        allowed = f"a callable, or an array of targets {outputs.shape}"
        raise BadInput(key, given, allowed) from None
    classes = answer.classes and jnp.issubdtype(targets.dtype, jnp.integer)
    kind = "cross_entropy" if classes else "mse"
    wanted = outputs.shape[:-1] if classes else outputs.shape
    every = len(outputs.shape) == 3
    swaps = every and not answer.time_first
    last = wanted[1:] if answer.time_first else (wanted[0], *wanted[2:])
    if answer.last and every and targets.shape == last:
        return _TargetLoss(kind, last=True, swaps=swaps), targets
    if every and answer.caller_first and targets.ndim > 1:
        targets = jnp.swapaxes(targets, 0, 1)
    if targets.shape != wanted:
        allowed = f"a callable, or targets {wanted}"
        allowed += " (time first)" if every and answer.time_first else ""
        raise BadInput(key, f"{targets.dtype} {targets.shape}", allowed)
    return _TargetLoss(kind, last=False, swaps=swaps), targets


class _CallersLoss(NamedTuple):
    """The caller's loss as it was traced: what it closed over is handed to it."""

    jaxpr: Any
    takes_network: bool

    def __call__(self, outputs: Any, state: Any, captured: Any, lengths: Any) -> jax.Array:
        arguments = (outputs, state) if self.takes_network else (outputs,)
        closed = core.ClosedJaxpr(self.jaxpr, captured)
        return core.jaxpr_as_fun(closed)(*jax.tree.leaves(arguments))[0]


class _TargetLoss(NamedTuple):
    """The distance to targets, of the last output alone or of whatever is read out."""

    kind: Literal["mse", "cross_entropy"]
    last: bool
    swaps: bool

    def __call__(self, outputs: jax.Array, state: Any, targets: jax.Array, lengths: Any):
        if self.swaps:
            outputs = jnp.swapaxes(outputs, 0, 1)
            targets = targets if self.last else jnp.swapaxes(targets, 0, 1)
        steps = outputs.shape[0]
        if self.last and lengths is None:
            outputs = outputs[-1]
        elif self.last:
            outputs = outputs[lengths - 1, jnp.arange(len(targets))]
        weights = None
        if outputs.ndim == 3:
            own = jnp.full(outputs.shape[1], steps) if lengths is None else lengths
            weights = real(own, steps).astype(outputs.dtype) / own[None].astype(outputs.dtype)
        return per_example_loss(self.kind, outputs, targets, weights)


def real(lengths: jax.Array, steps: int) -> jax.Array:
    """``(T, B)`` bool, True where a step is real."""
    return jnp.arange(steps)[:, None] < lengths[None]


def takes_network(loss: Callable[..., Any]) -> bool:
    """Whether a loss has two arguments that it cannot do without: the outputs and the network."""
    try:
        named = inspect.signature(loss).parameters.values()
    except (TypeError, ValueError):  # of a builtin
        return False
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return sum(one.kind in kinds and one.default is one.empty for one in named) == 2


def _accepts(given: Callable[..., Any], count: int) -> bool:
    """Whether it can be called with so many arguments, as far as it tells."""
    try:
        signature = inspect.signature(given)
    except (TypeError, ValueError):  # of something built in
        return True
    try:
        signature.bind(*range(count))
    except TypeError:
        return False
    return True


def _callers_loss(given: Callable[..., Any], answer: Answer) -> tuple[Loss, list[jax.Array]]:
    """The loss as it is now, and the arrays that it closes over as they are now."""
    whole = takes_network(given)
    if whole and answer.network is None:
        allowed = "a loss of the outputs alone, for a cell or a gradlab.SequenceModel"
        hint = "nnx.RNN(cell), or a module of your own, in the place of the network"
        raise BadInput("targets_or_loss", "a loss of two arguments", allowed, hint)
    network: Any = answer.network or (None, None)
    graph, state = network
    if not _accepts(given, 2 if whole else 1):
        allowed = "a function of the outputs alone that gives one value per example (B,)"
        allowed += ", or of (outputs, network)" if answer.network is not None else ""
        given_as = f"a function of {inspect.signature(given)}"
        hint = "lambda outputs: …, which closes over the targets"
        raise BadInput("targets_or_loss", given_as, allowed, hint)

    def loss(outputs: Any, *state: Any) -> Any:
        own: Any = jnp.swapaxes(outputs, 0, 1) if answer.caller_first else outputs
        return given(own, nnx.merge(graph, *state, copy=True)) if state else given(own)

    arguments = (answer.outputs, state) if whole else (answer.outputs,)
    try:
        traced, shapes = jax.make_jaxpr(loss, return_shape=True)(*arguments)
    except TraceContextError as error:
        allowed = "a loss that changes nothing outside of itself"
        hint = "module.eval(), which sets dropout and batch normalization at rest"
        raise BadInput("targets_or_loss", first_line(error), allowed, hint) from None
    got = jax.tree.map(lambda one: one.shape, shapes)
    if got != (answer.examples,):
        allowed = f"a loss that gives one value per example, ({answer.examples},)"
        raise BadInput("targets_or_loss", f"a loss that gives {got}", allowed)
    return _CallersLoss(traced.jaxpr, whole), jax.tree.map(jnp.asarray, traced.consts)
