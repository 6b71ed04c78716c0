"""The way out of a function: what its recurrent layers are handed and hand back while it runs.

A layer cannot return what was seen inside of it, since its caller's code stands between. While a
function runs under a :class:`Tape`, each call of a :class:`gradlab.watching.layers.RNN` finds its
taps there and leaves what it went through.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import jax
from flax import nnx
from flax.nnx.tracers import TraceState

from gradlab.bptt.unroll import Unrolled


class Call(NamedTuple):
    """One call of one layer.

    Attributes:
      cell: of the layer.
      run: what it went through, time-major ``(T, B, ...)``, in its own reading order.
      mask: ``(T, B)`` bool, True where a step is real; None if all are.
      inputs: what it read, time-major, in its own reading order.
      start: the carry before the first step.
    """

    cell: nnx.RNNCellBase
    run: Unrolled
    mask: jax.Array | None
    inputs: jax.Array
    start: Any


class Given(NamedTuple):
    """What a call gives in place of running.

    Attributes:
      run: its result.
      state: what the step leaves in the cell's Variables, but for its parameters.
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
        self._count: dict[str, int] = {}

    def is_here(self) -> bool:
        """Whether the calling code is traced at the level at which the tape began to run."""
        return TraceState() == self._trace

    def name(self, path: str) -> str:
        """What the next call of the layer at ``path`` is called."""
        self._count[path] = self._count.get(path, 0) + 1
        return path if self._count[path] == 1 else f"{path}#{self._count[path]}"

    @contextmanager
    def running(self) -> Iterator[Tape]:
        """Let the layers that are called meanwhile use this tape.

        Not within a transformation that the function makes itself (``lax.scan``, ``nnx.vmap``,
        ``nnx.remat``, ``nnx.jit``): what a layer leaves there has no meaning outside.
        """
        before = getattr(_running, "tape", None)
        _running.tape, self._trace = self, TraceState()
        try:
            yield self
        finally:
            _running.tape = before


_running = threading.local()


def current() -> Tape | None:
    """The tape that runs now, in this thread and at this level of transformations, or None."""
    tape: Tape | None = getattr(_running, "tape", None)
    return tape if tape is not None and tape.is_here() else None
