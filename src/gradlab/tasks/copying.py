"""Copying memory (Hochreiter & Schmidhuber 1997; as in Arjovsky, Shah & Bengio 2016)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from gradlab.tasks.base import Baseline, Batch, Generated, Split, below, whole_number, words

MEMORY = 10
"""How many symbols are shown at the start and asked for at the end."""
ALPHABET = 8
"""How many different symbols the memory is drawn from: 0 to 7."""
BLANK = 8
"""The symbol read while waiting, and the right answer before the recall."""
GO = 9
"""The symbol that says: recall from the next step on. It is never an answer."""


@dataclass(frozen=True)
class Copying(Generated):
    """Hold ten symbols over a long blank, then write them down in order.

    The network reads ``T = delay + 20`` symbols, as in Arjovsky et al. (2016): ten of eight
    kinds, ``delay - 1`` blanks, the go marker, and ten blanks during which it must answer the
    ten symbols in order. Before those ten steps the right answer is the blank. There are ten
    input symbols (eight, blank, go) and nine classes (eight, blank), for the marker is never an
    answer. All ``T`` steps weigh the same, so the best guess without memory, blank until the
    recall and then any of the eight alike, scores ``10 ln 8 / T`` nats.

    Args:
      length: ``T`` in timesteps, at least 21; the delay of the papers is ``length - 20``.
      held_out_examples: number of fixed examples in each of validation and test.

    Raises:
      BadInput: if one of the two is not a whole number in its range.
    """

    length: int = 50
    held_out_examples: int = 500

    symbols = ALPHABET + 2
    outputs = ALPHABET + 1
    loss = "cross_entropy"
    readout = "every"

    def __post_init__(self) -> None:
        whole_number("task.length", self.length, 2 * MEMORY + 1)
        whole_number("task.held_out_examples", self.held_out_examples, 1)

    def sample(self, data: tuple[()], key: jax.Array, batch: int) -> Batch:
        """See :meth:`Generated.sample`; inputs, targets (int32) and weights, all ``(T, B)``."""
        memory = below(words(key, MEMORY, batch), ALPHABET)
        blank = jnp.full((self.length, batch), BLANK, jnp.int32)
        inputs = blank.at[:MEMORY].set(memory).at[self.length - MEMORY - 1].set(GO)
        targets = blank.at[self.length - MEMORY :].set(memory)
        return Batch(inputs, targets, jnp.full((self.length, batch), 1 / self.length))

    def baseline(self, split: Split) -> Baseline:
        """Exact: ``10 ln 8 / T`` nats; the accuracy is the share of right steps among all T."""
        right = self.length - MEMORY + MEMORY / ALPHABET
        return Baseline(
            "blank until the recall, then any symbol",
            MEMORY * math.log(ALPHABET) / self.length,
            right / self.length,
        )
