"""The adding problem (Hochreiter & Schmidhuber 1997; as in Le, Jaitly & Hinton 2015)."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from gradlab.tasks.base import Baseline, Batch, Generated, Split, below, whole_number, words


@dataclass(frozen=True)
class Adding(Generated):
    """Add the two marked numbers of a sequence of random ones.

    ``x_t = (value, marker)`` with values uniform on [0, 1] and exactly two markers, one in each
    half of the sequence; the target is the sum of the two marked values, read at the last step.
    Answering 1 always scores the variance of the sum of two uniforms, 1/6.

    With ``min_length`` every example has a length of its own, uniform on the whole numbers from
    ``min_length`` to ``length``; both markers lie in its real part, the steps after it are zero,
    and ``Batch.mask`` is True on the real part.

    Args:
      length: ``T`` in timesteps, at least 2; the longest length when ``min_length`` is set.
      min_length: the shortest length in timesteps, from 2 to ``length``; None gives every
        example the full length and no mask.
      held_out_examples: number of fixed examples in each of validation and test.

    Raises:
      BadInput: if one of the three is not a whole number in its range.
    """

    length: int = 100
    min_length: int | None = None
    held_out_examples: int = 1000

    features = 2
    outputs = 1
    loss = "mse"
    readout = "last"

    def __post_init__(self) -> None:
        whole_number("task.length", self.length, 2)
        if self.min_length is not None:
            whole_number("task.min_length", self.min_length, 2, self.length)
        whole_number("task.held_out_examples", self.held_out_examples, 1)

    def sample(self, data: tuple[()], key: jax.Array, batch: int) -> Batch:
        """See :meth:`Generated.sample`; inputs ``(T, B, 2)``, targets ``(B, 1)``, mask or None."""
        T, t = self.length, jnp.arange(self.length)[:, None]
        bits = words(key, T + 3, batch)
        values = (bits[:T] >> 8).astype(jnp.result_type(float)) * 2**-24  # uniform on [0, 1)
        lengths, mask = jnp.full(batch, T), None
        if self.min_length is not None:
            lengths = self.min_length + below(bits[T], T + 1 - self.min_length)
            mask = t < lengths[None]
            values = jnp.where(mask, values, 0)
        half = lengths // 2
        first = below(bits[T + 1], half)
        second = half + below(bits[T + 2], lengths - half)
        marks = ((t == first[None]) | (t == second[None])).astype(values.dtype)
        inputs = jnp.stack([values, marks], axis=-1)
        return Batch(inputs, jnp.sum(values * marks, axis=0)[:, None], mask=mask)

    def baseline(self, split: Split) -> Baseline:
        """Exact: the variance of the sum of two independent uniforms, 2/12."""
        return Baseline("always answer 1", 1 / 6)
