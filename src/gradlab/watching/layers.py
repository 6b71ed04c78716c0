"""Drop-in replacements of Flax's recurrent layers, whose gradients gradlab can see.

``RNN`` and ``Bidirectional`` have the constructors and the call of ``nnx.RNN`` and
``nnx.Bidirectional``, and give the same outputs and gradients. They are Flax's own layers until a
:class:`gradlab.watching.tape.Tape` runs; then their pass is that of :mod:`gradlab.bptt.unroll`,
which hands the adjoints out and can be differentiated once, backwards.

Where a layer reads what another one gave out, the very array, the adjoint goes from one to the
other with its exponent (:mod:`gradlab.bptt.port`). Through other code between them it goes as a
plain number, which ends at 10^-38 in float32.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from flax.nnx.nn.recurrent import flip_sequences

from gradlab.bptt.port import Port
from gradlab.bptt.unroll import Unrolled, unroll
from gradlab.errors import BadInput
from gradlab.watching import tape as tapes
from gradlab.watching.tape import Tape


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
        tape = tapes.current()
        tape = tape if tape is not None and tape.reaches(self.path) else None
        if tape is not None:
            seq_lengths = tape.seq_lengths if seq_lengths is None else seq_lengths
            initial_carry = tape.starts.get(self.path) if initial_carry is None else initial_carry
        return_carry = self.return_carry if return_carry is None else return_carry
        time_major = self.time_major if time_major is None else time_major
        reverse = self.reverse if reverse is None else reverse
        keep_order = self.keep_order if keep_order is None else keep_order

        order = _Order.of(inputs, self.cell.num_feature_axes, seq_lengths, time_major, reverse)
        rngs = self.rngs if rngs is None else rngs
        rngs = rngs.carry.fork() if isinstance(rngs, nnx.Rngs) else rngs
        own_start = initial_carry is None
        if own_start:
            initial_carry = self.cell.initialize_carry(order.of_a_step, rngs)
        # Flax cannot give the last real one of a state without the axes of the batch.
        flax_can = seq_lengths is None or not return_carry or order.batches(initial_carry)
        if tape is None and flax_can:
            return super().__call__(
                inputs,
                initial_carry=initial_carry,
                seq_lengths=seq_lengths,
                return_carry=return_carry,
                time_major=time_major,
                reverse=reverse,
                keep_order=keep_order,
            )
        run = self._run(tape, order, inputs, initial_carry, own_start)
        order = order._replace(reverse=reverse and keep_order)
        assert run.outputs is not None
        outputs = order.give(run.outputs)
        if tape is not None and run.port is not None:
            tape.hand_over(outputs, Port(*map(order.give, run.port)))
        if not return_carry:
            return outputs
        return order.give_carry(run.finals[0][0], initial_carry), outputs

    def _run(
        self, tape: Tape | None, order: _Order, inputs: jax.Array, carry: Any, own_start: bool
    ) -> Unrolled:
        read, cells = order.read(inputs), [[self.cell]]
        start, mask = order.read_carry(carry), order.mask(read.shape[0])
        options = {
            "start": [[start]],
            "as_given": True,
            "mask": mask,
            "waits": False,
            "state_axes": self.state_axes,
            "broadcast_rngs": self.broadcast_rngs,
            "steps_at_once": self.unroll,
        }
        if tape is None:
            return unroll(cells, read, **options)
        name, more = tape.name(self.path, self.cell), ()
        if 0 in read.shape[:2]:
            given = f"{read.shape[0]} timesteps of {read.shape[1]} examples"
            raise BadInput(f"layer {name}", given, "at least one of each, to be measured")
        if name in tape.given:
            run, state = tape.given[name]
            nnx.update(self.cell, state)
        elif tape.plainly:
            run, *more = tapes.run_plainly(self.cell, read, **options)
        elif taps := tape.taps.get(name):
            port = tape.port_of(inputs)
            if port is not None:
                fits = port.exponent.shape == inputs.shape[: order.axes]
                port = Port(*map(order.read, port)) if fits else None
            run = unroll(cells, read, taps=[[taps]], port=port, ported=True, **options)
        else:
            run = unroll(cells, read, **options)
        tape.calls[name] = tapes.Call(self.cell, run, mask, read, start, own_start, *more)
        return run


class _Order(NamedTuple):
    """How the arrays of a layer lie, and in which order it reads them.

    Attributes:
      time: the axis of time.
      batch: the sizes of the axes of the batch, any number of them.
      features: those of the input's features.
      lengths: how long each example is, ``(B,)``, or None.
      reverse: whether the last real step comes first.
    """

    time: int
    batch: tuple[int, ...]
    features: tuple[int, ...]
    lengths: jax.Array | None
    reverse: bool

    @classmethod
    def of(
        cls, inputs: jax.Array, features: int, lengths: Any, time_major: bool, reverse: bool
    ) -> _Order:
        """That of these inputs, of which the last so many axes are features."""
        axes, sizes = inputs.ndim - features, inputs.shape
        time = 0 if time_major else axes - 1
        batch = (*sizes[:time], *sizes[time + 1 : axes])
        lengths = None if lengths is None else jnp.reshape(jnp.asarray(lengths), -1)
        return cls(time, batch, sizes[axes:], lengths, reverse)

    @property
    def axes(self) -> int:
        """How many axes of the inputs are no features."""
        return len(self.batch) + 1

    @property
    def of_a_step(self) -> tuple[int, ...]:
        """The form of what a step reads."""
        return (*self.batch, *self.features)

    def mask(self, steps: int) -> jax.Array | None:
        """``(T, B)``, True where an example has something to read; None if it has everywhere."""
        if self.lengths is None:
            return None
        return jnp.arange(steps, dtype=self.lengths.dtype)[:, None] < self.lengths[None]

    def read(self, array: jax.Array) -> jax.Array:
        """The array as ``(T, B, ...)``, in the order of reading."""
        array = jnp.moveaxis(array, self.time, 0)
        array = array.reshape(array.shape[0], math.prod(self.batch), *array.shape[self.axes :])
        return self._turned(array)

    def give(self, array: jax.Array) -> jax.Array:
        """An array ``(T, B, ...)`` in the axes of the inputs."""
        array = self._turned(array)
        array = array.reshape(array.shape[0], *self.batch, *array.shape[2:])
        return jnp.moveaxis(array, 0, self.time)

    def _turned(self, array: jax.Array) -> jax.Array:
        if not self.reverse:
            return array
        return flip_sequences(array, self.lengths, num_batch_dims=1, time_major=True)

    def read_carry(self, carry: Any) -> Any:
        """The carry with one axis of the batch, wherever it has those axes."""

        def flat(leaf: Any) -> jax.Array:
            leaf = jnp.asarray(leaf)
            if not self._batched(leaf):
                return leaf
            return leaf.reshape(math.prod(self.batch), *leaf.shape[len(self.batch) :])

        return jax.tree.map(flat, carry)

    def give_carry(self, carry: Any, like: Any) -> Any:
        """The carry in the form of the first one."""

        def whole(leaf: jax.Array, first: Any) -> jax.Array:
            return leaf.reshape(*self.batch, *leaf.shape[1:]) if self._batched(first) else leaf

        return jax.tree.map(whole, carry, like)

    def batches(self, carry: Any) -> bool:
        """Whether every leaf has the axes of the batch."""
        return all(map(self._batched, jax.tree.leaves(carry)))

    def _batched(self, leaf: Any) -> bool:
        return jnp.shape(leaf)[: len(self.batch)] == self.batch


class Bidirectional(nnx.Bidirectional):
    """Two layers that read in both directions, as ``nnx.Bidirectional``; arguments are Flax's."""

    def __call__(self, inputs: jax.Array, **options: Any) -> Any:
        """Read a batch of sequences; arguments and results are those of ``nnx.Bidirectional``."""
        tape = tapes.current()
        before = 0 if tape is None else len(tape.ports)
        result: Any = super().__call__(inputs, **options)
        if tape is None or self.merge_fn is not nnx.Bidirectional.merge_fn:
            return result
        handed = [port for _, port in tape.ports.values()][before:]
        own = isinstance(self.forward_rnn, RNN) and isinstance(self.backward_rnn, RNN)
        if own and len(handed) == 2:
            forward, backward = handed
            joined = jnp.concatenate([forward.mantissa, backward.mantissa], axis=-1)
            port = Port(joined, forward.exponent + backward.exponent)
            returns = options.get("return_carry")
            returns = self.return_carry if returns is None else returns
            tape.hand_over(result[1] if returns else result, port)
        return result
