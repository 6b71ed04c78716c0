"""Put gradlab's layers in the place of Flax's, inside anyone's module."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from functools import cache
from typing import Any, TypeVar

from flax import linen, nnx

from gradlab.errors import BadInput
from gradlab.watching.layers import RNN, Bidirectional

M = TypeVar("M", bound=nnx.Module)

_log = logging.getLogger("gradlab")


def watch(module: M) -> M:
    """Let gradlab see every recurrent layer of a module, however deep it lies.

    Each ``nnx.RNN`` and ``nnx.Bidirectional`` becomes gradlab's own, in place: the same object with
    the same parameters and options, so that whoever holds it goes on holding it, and the module's
    state has the same form. Each layer is named by its place, ``"encoder/rnn"``; a layer at two
    places has the first of them by the alphabet, the order in which Flax goes through a module: it
    is the same in a compiled step, where the order of the attributes is lost. To watch a module
    again changes nothing.

    What holds a state over time but cannot be seen is told as a warning of the logger ``gradlab``,
    once each: a cell that no layer holds, which somebody calls in a loop of their own, in a
    ``lax.scan`` or in a layer made while the module is called; a subclass of ``nnx.RNN`` that
    writes its own call; a linen module. A loop over bare arrays, without a cell, is not noticed.

    Args:
      module: any module; itself an ``nnx.RNN`` too.

    Returns:
      The same module.

    Raises:
      BadInput: for what is no ``nnx.Module``, a module without a recurrent layer, and two layers
        whose places read the same.
    """
    _refuse_unless_a_module(module)
    nodes = [("/".join(map(str, path)), node) for path, node in nnx.iter_graph(module)]
    unseen = dict(_unseen(nodes))
    layers = _layers(nodes)
    if not layers:
        allowed = "a module that holds an nnx.RNN or an nnx.Bidirectional"
        hint = "\n".join(f"{place}: {why}" for place, why in unseen.items())
        raise BadInput("module", f"a {type(module).__name__} without one", allowed, hint)
    for _, node in nodes:
        if kind := _kind(type(node)):
            node.__class__ = kind
    for name, layer in layers.items():
        layer.path = name
    for place, why in unseen.items():
        _log.warning("gradlab cannot see %s: %s", place, why)
    return module


def _refuse_unless_a_module(module: Any) -> None:
    allowed = "an nnx.Module"
    if isinstance(module, type):
        made = f"an instance: {module.__name__}(…)"
        raise BadInput("module", f"the class {module.__name__}", allowed, made)
    if isinstance(module, linen.Module):
        given = f"{type(module).__name__}, a linen module"
        raise BadInput("module", given, allowed, "the layer of flax.nnx of the same name")
    if not isinstance(module, nnx.Module):
        raise BadInput("module", f"a {type(module).__name__}", allowed)


def _layers(nodes: list[tuple[str, Any]]) -> dict[str, Any]:
    """The layers that can be seen, by name."""
    layers: dict[str, Any] = {}
    for path, node in nodes:
        if isinstance(node, RNN) or (isinstance(node, nnx.RNN) and _kind(type(node))):
            name = path or "rnn"
            if name in layers:
                allowed = "layers at places whose names differ, joined by /"
                raise BadInput(f"module at {name}", "two layers of this name", allowed)
            layers[name] = node
    return layers


def _unseen(nodes: list[tuple[str, Any]]) -> Iterator[tuple[str, str]]:
    """What may hold a state over time and cannot be seen: its place, and why."""
    held: set[int] = set()
    for _, node in nodes:
        if isinstance(node, nnx.RNN):
            held |= {id(part) for _, part in nnx.iter_graph(node.cell)}
    for path, node in reversed(nodes):  # whoever holds a cell before the cell
        place = f"{path or 'the module'} ({type(node).__name__})"
        if isinstance(node, linen.Module):
            yield place, "a linen module; use the layer of flax.nnx of the same name"
        elif isinstance(node, nnx.RNN) and not (isinstance(node, RNN) or _kind(type(node))):
            yield place, "it writes its own __call__; derive it from gradlab.RNN and call super()"
        elif isinstance(node, nnx.RNNCellBase) and id(node) not in held:
            held |= {id(part) for _, part in nnx.iter_graph(node)}
            reason = "no layer holds this cell, so that its steps are somebody's own loop or scan"
            yield place, f"{reason}; hold nnx.RNN(cell) in its place, from __init__ on"


def _kind(kind: type) -> type | None:
    """gradlab's class for one of Flax's, or for a subclass that leaves the call as it is."""
    for theirs, ours in ((nnx.RNN, RNN), (nnx.Bidirectional, Bidirectional)):
        own = issubclass(kind, theirs) and not issubclass(kind, ours)
        if own and kind.__call__ is theirs.__call__:
            return ours if kind is theirs else _derived(ours, kind)
    return None


@cache
def _derived(ours: type, kind: type) -> type:
    """A subclass of a layer of Flax's that runs as gradlab's; it can be pickled as ``kind`` can."""

    def reduced(self: Any, protocol: Any) -> Any:
        _, _, *state = object.__reduce_ex__(self, protocol)
        return (_empty, (ours, kind), *state)

    names = {"__module__": kind.__module__, "__doc__": kind.__doc__, "__reduce_ex__": reduced}
    return type(ours)(kind.__name__, (ours, kind), names)


def _empty(ours: type, kind: type) -> Any:
    return object.__new__(_derived(ours, kind))
