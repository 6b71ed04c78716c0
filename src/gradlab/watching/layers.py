"""Drop-in replacements of Flax's recurrent layers, whose gradients gradlab can see.

``RNN`` and ``Bidirectional`` have the constructors and the call of ``nnx.RNN`` and
``nnx.Bidirectional``, and give the same outputs and gradients. Their backward pass is that of
:mod:`gradlab.bptt.unroll`.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from flax.nnx.nn.recurrent import flip_sequences

from gradlab.bptt.unroll import Unrolled, unroll, unroll_plainly
from gradlab.watching import tape as tapes


class RNN(nnx.RNN):
    """A cell over time, as ``nnx.RNN``; arguments are those of Flax's.

    Attributes:
      path: the name of the layer in what is seen; :func:`gradlab.watch` sets it.
    """

    path: str = "rnn"

    def __call__(
        self,
        inputs: jax.Array,
        *,
        initial_carry: Any = None,
        seq_lengths: jax.Array | None = None,
        return_carry: bool | None = None,
        time_major: bool | None = None,
        reverse: bool | None = None,
        keep_order: bool | None = None,
        rngs: nnx.Rngs | nnx.RngStream | None = None,
    ) -> Any:
        """Read a batch of sequences; arguments and results are those of ``nnx.RNN``."""
        return_carry = self.return_carry if return_carry is None else return_carry
        time_major = self.time_major if time_major is None else time_major
        reverse = self.reverse if reverse is None else reverse
        keep_order = self.keep_order if keep_order is None else keep_order
        if (tape := tapes.current()) is not None:
            seq_lengths = tape.seq_lengths if seq_lengths is None else seq_lengths
            initial_carry = tape.starts.get(self.path) if initial_carry is None else initial_carry
        x = inputs if time_major else jnp.swapaxes(inputs, 0, 1)
        if reverse:
            x = flip_sequences(x, seq_lengths, num_batch_dims=1, time_major=True)
        start = initial_carry
        if start is None:
            stream = self.rngs if rngs is None else rngs
            stream = stream.carry.fork() if isinstance(stream, nnx.Rngs) else stream
            start = self.cell.initialize_carry(x.shape[1:], stream)
        mask = None
        if seq_lengths is not None:
            mask = jnp.arange(x.shape[0])[:, None] < seq_lengths[None]
        run = self._run(x, start, mask)
        outputs = run.outputs
        assert outputs is not None
        if reverse and keep_order:
            outputs = flip_sequences(outputs, seq_lengths, num_batch_dims=1, time_major=True)
        outputs = outputs if time_major else jnp.swapaxes(outputs, 0, 1)
        return (run.traces[0][0].final, outputs) if return_carry else outputs

    def _run(self, x: jax.Array, start: Any, mask: jax.Array | None) -> Unrolled:
        tape = tapes.current()
        if tape is None:
            return unroll([[self.cell]], x, start=[[start]])
        name = tape.name(self.path)
        if name in tape.given:
            run, state = tape.given[name]
            nnx.update(self.cell, state)
        elif tape.plainly:
            run = unroll_plainly([[self.cell]], x, start=[[start]])
        else:
            taps = tape.taps.get(name)
            run = unroll([[self.cell]], x, start=[[start]], taps=None if taps is None else [[taps]])
        tape.calls[name] = tapes.Call(self.cell, run, mask, x, start)
        return run


class Bidirectional(nnx.Bidirectional):
    """Two layers that read in both directions, as ``nnx.Bidirectional``."""
