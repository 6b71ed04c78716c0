"""Temporal order (Hochreiter & Schmidhuber 1997; as in Pascanu, Mikolov & Bengio 2013)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from gradlab.tasks.base import Baseline, Batch, Generated, Split, below, whole_number, words


@dataclass(frozen=True)
class TemporalOrder(Generated):
    """Say which of A and B came first and which second among distractors.

    Six symbols: A = 0, B = 1, and the distractors c, d, e, f = 2 … 5. An A or a B, each as
    likely, stands at one step ``p0`` of [0.1 T, 0.2 T) and another at ``p1`` of [0.5 T, 0.6 T);
    every other step is a random distractor. The class, read at the last step, is
    ``2 * first + second``: AA = 0, AB = 1, BA = 2, BB = 3. Pascanu et al. (2013) count an
    example as wrong or right, and a run as solved below 1 % wrong.

    Args:
      length: ``T`` in timesteps, at least 10.
      held_out_examples: number of fixed examples in each of validation and test.

    Raises:
      BadInput: if one of the two is not a whole number in its range.
    """

    length: int = 50
    held_out_examples: int = 1000

    symbols = 6
    outputs = 4
    loss = "cross_entropy"
    readout = "last"

    def __post_init__(self) -> None:
        whole_number("task.length", self.length, 10)
        whole_number("task.held_out_examples", self.held_out_examples, 1)

    def sample(self, data: tuple[()], key: jax.Array, batch: int) -> Batch:
        """See :meth:`Generated.sample`; inputs ``(T, B)`` and targets ``(B,)``, both int32."""
        T, t = self.length, jnp.arange(self.length)[:, None]
        bits = words(key, T + 4, batch)
        distractors = 2 + below(bits[:T], 4)
        first, second = below(bits[T, None], 2), below(bits[T + 1, None], 2)
        p0, p1 = (
            self._tenths(n) + below(bits[row, None], self._tenths(n + 1) - self._tenths(n))
            for n, row in ((1, T + 2), (5, T + 3))
        )
        inputs = jnp.where(t == p0, first, jnp.where(t == p1, second, distractors))
        return Batch(inputs, (2 * first + second)[0])

    def baseline(self, split: Split) -> Baseline:
        """Exact: four classes, equally likely."""
        return Baseline("any of the four classes", math.log(4), 1 / 4)

    def _tenths(self, n: int) -> int:
        """The first step at or after n/10 of the sequence."""
        return -(-n * self.length // 10)
