"""Put gradlab's layers in the place of Flax's, inside anyone's module."""

from __future__ import annotations

from typing import TypeVar

from flax import nnx

from gradlab.watching.layers import RNN, Bidirectional

M = TypeVar("M", bound=nnx.Module)
_KINDS: dict[type, type] = {nnx.RNN: RNN, nnx.Bidirectional: Bidirectional}


def watch(module: M) -> M:
    """Let gradlab see every recurrent layer of a module, however deep it lies.

    Each ``nnx.RNN`` and ``nnx.Bidirectional`` becomes gradlab's own, in place: the same object with
    the same parameters and options, so that whoever holds it goes on holding it.

    Args:
      module: any module; itself an ``nnx.RNN`` too.

    Returns:
      The same module.
    """
    for path, node in nnx.iter_graph(module):
        if kind := _KINDS.get(type(node)):
            node.__class__ = kind
        if isinstance(node, RNN):
            node.path = "/".join(map(str, path)) or "rnn"
    return module
