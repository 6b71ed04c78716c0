"""The way out of a function: what its recurrent layers are handed and hand back while it runs.

A layer cannot return what was seen inside of it, since its caller's code stands between. While a
function runs under a :class:`Tape`, each call of a :class:`gradlab.watching.layers.RNN` finds its
taps there and leaves what it went through.
"""

from __future__ import annotations

import logging
import operator
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import cache
from typing import Any, NamedTuple

import jax
from flax import nnx
from jax.extend.core import get_opaque_trace_state

from gradlab.bptt.port import Port, fork
from gradlab.bptt.unroll import Unrolled, unroll_plainly
from gradlab.errors import BadInput

_log = logging.getLogger("gradlab")


class Call(NamedTuple):
    """One call of one layer.

    Attributes:
      cell: of the layer.
      run: what it went through, time-major ``(T, B, ...)``, in its own reading order.
      mask: ``(T, B)`` bool, True where a step is real; None if all are.
      inputs: what it read, time-major, in its own reading order.
      start: the carry before the first step.
      own_start: whether the cell itself made that.
      begun, ended: of a plain run, the cell's Variables but for its parameters, before the first
        step and after the last.
      axes: what becomes of them over time, as ``state_axes`` of :func:`gradlab.bptt.unroll.unroll`.
    """

    cell: nnx.RNNCellBase
    run: Unrolled
    mask: jax.Array | None
    inputs: jax.Array
    start: Any
    own_start: bool = True
    begun: Any = None
    ended: Any = None
    axes: Any = None


class Given(NamedTuple):
    """What a call gives in place of running.

    Attributes:
      run: its result.
      state: what it leaves in the cell's Variables, but for its parameters.
    """

    run: Unrolled
    state: nnx.State


class Tape:
    """What the layers are handed and hand back while a function runs.

    Args:
      taps: by name of the call, of :func:`gradlab.bptt.unroll.make_taps`; absent: none.
      plainly: run so that any derivative can be taken, as by
        :func:`gradlab.bptt.unroll.unroll_plainly`.
      given: by name of the call, what it gives in place of running.
      seq_lengths: ``(B,)``, for layers whose caller gives them none.
      starts: by path, the carry before the first step, likewise.

    Attributes:
      calls: what was called, by name, in order: the layer's path, with ``#2``, ``#3`` at further
        calls of the same layer.
      ports: of the outputs that were handed over, with these, by their identity, in order.
      missed: paths of the layers that were called where they cannot be seen.
    """

    def __init__(
        self,
        taps: Mapping[str, Any] | None = None,
        *,
        plainly: bool = False,
        given: Mapping[str, Given] | None = None,
        seq_lengths: jax.Array | None = None,
        starts: Mapping[str, Any] | None = None,
    ):
        self.taps, self.plainly, self.given = taps or {}, plainly, given or {}
        self.seq_lengths, self.starts = seq_lengths, starts or {}
        self.calls: dict[str, Call] = {}
        self.ports: dict[int, tuple[jax.Array, Port]] = {}
        self.missed: set[str] = set()
        self._count: dict[str, int] = {}
        self._cells: dict[str, nnx.RNNCellBase] = {}
        self._place: Any = None

    def reaches(self, path: str) -> bool:
        """Whether what a layer goes through now can be handed out; else it is told."""
        if self._place == _place():
            return True
        self.missed.add(path)
        _tell(path)
        return False

    def name(self, path: str, cell: nnx.RNNCellBase) -> str:
        """What the next call of the layer at ``path``, with this cell, is called.

        Raises:
          BadInput: if another layer has this path.
        """
        if not _same(self._cells.setdefault(path, cell), cell):
            given = (
                f"two layers of this name, with a {_kind(self._cells[path])} and a {_kind(cell)}"
            )
            hint = (
                "gradlab.watch(the whole module) names each by its place; for two modules, "
                "gradlab.watch(nnx.Dict(encoder=encoder, decoder=decoder)), once"
            )
            raise BadInput(f"layer {path}", given, "one layer of each name", hint)
        self._count[path] = self._count.get(path, 0) + 1
        return path if self._count[path] == 1 else f"{path}#{self._count[path]}"

    def hand_over(self, outputs: jax.Array, port: Port) -> None:
        """Let whoever reads these outputs hand their cotangent to the port."""
        self.ports[id(outputs)] = outputs, port

    def port_of(self, inputs: jax.Array) -> Port | None:
        """A port of these inputs, if they are outputs that a layer has handed over."""
        if id(inputs) not in self.ports:
            return None
        outputs, port = self.ports[id(inputs)]
        own, rest = fork(port)
        self.ports[id(inputs)] = outputs, rest
        return own

    @contextmanager
    def running(self) -> Iterator[Tape]:
        """Let the layers that are called meanwhile use this tape.

        Not within a transformation that the function makes itself (``lax.scan``, ``nnx.vmap``,
        ``nnx.remat``, ``nnx.jit``): what a layer leaves there has no meaning outside.
        """
        before, self._place = current(), _place()
        _running.tape = self
        try:
            yield self
        finally:
            _running.tape = before


def _place() -> Any:
    """Which transformation of JAX traces the code that runs now."""
    return get_opaque_trace_state(convention="nnx")


@cache
def _tell(path: str) -> None:
    reason = "its call is within a transformation (jit, remat, scan, vmap, grad) in the loss"
    hint = "transform the whole step that calls gradlab.value_and_grad instead"
    _log.warning("gradlab cannot see %s: %s; %s", path, reason, hint)


def _same(one: nnx.RNNCellBase, other: nnx.RNNCellBase) -> bool:
    """Whether two cells are one, or hold the very same parameters."""
    own, others = (jax.tree.leaves(nnx.state(cell, nnx.Param)) for cell in (one, other))
    shared = len(own) == len(others) and all(map(operator.is_, own, others))
    return one is other or (bool(own) and shared)


def _kind(cell: nnx.RNNCellBase) -> str:
    return type(cell).__name__


_running = threading.local()


def current() -> Tape | None:
    """The tape that runs now in this thread, or None."""
    return getattr(_running, "tape", None)


def run_plainly(
    cell: nnx.RNNCellBase, read: jax.Array, *, state_axes: Any, broadcast_rngs: Any, **options: Any
) -> tuple[Unrolled, Any, Any, Any]:
    """A plain run that moves the cell's Variables on, and the last three fields of its call.

    Arguments as for :func:`gradlab.bptt.unroll.unroll_plainly`.
    """
    axes = {nnx.All(nnx.RngState, broadcast_rngs): None, **state_axes}
    streams = nullcontext()
    if broadcast_rngs is not None:
        streams = nnx.split_rngs([cell], splits=1, only=broadcast_rngs, squeeze=True)
    with streams:
        begun = _variables(cell)
        run = unroll_plainly([[cell]], read, state_axes=axes, moves=True, **options)
    return run, begun, _variables(cell), axes


def _variables(cell: nnx.RNNCellBase) -> nnx.State:
    """Those of a cell but for its parameters, as they are now."""
    return jax.tree.map(lambda leaf: leaf, nnx.state(cell, nnx.Not(nnx.Param)))
