"""Dates into ISO form, sequence to sequence (after Sutskever, Vinyals & Le 2014)."""

from __future__ import annotations

import datetime
import functools
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gradlab.errors import BadInput
from gradlab.tasks.base import Baseline, Batch, Divided, Split, draw, settle, whole_number

# spelled out because the calendar module and strftime follow the locale of the machine
MONTHS = (
    *("January", "February", "March", "April", "May", "June", "July", "August"),
    *("September", "October", "November", "December"),
)
WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
"""In the order of ``datetime.date.weekday``."""
FORMS = (
    "{day} {month} {year}",
    "{month} {day}, {year}",
    "{weekday:.3} {day} {month:.3} {year}",
    "{day}.{number}.{year}",
    "{year}/{number}/{day}",
    "{weekday}, {month} {day}, {year}",
)
"""How a day is written; month and weekday by name, ``number`` is the month's, nothing padded."""
WIDTH = len("Wednesday, September 30, 2026")
"""Characters of the longest source; every year has a Wednesday late in September."""
ALPHABET = "".join(sorted({*"0123456789 ,./", *"".join(MONTHS + WEEKDAYS)}))
"""The characters of all sources; ``ALPHABET[i]`` is symbol ``i``."""
PAD = len(ALPHABET)
"""The symbol read where there is nothing to read yet, or any more."""
WRITE = len(ALPHABET) + 1
"""The symbol read at each of the ten writing steps. It tells nothing but that."""
ANSWERS = "0123456789-"
"""The characters that are written; ``ANSWERS[i]`` is class ``i``."""
WRITTEN = len("YYYY-MM-DD")
"""Writing steps, one a character."""


class Table(NamedTuple):
    """``N`` written dates and their answers.

    Attributes:
      sources: ``(N, WIDTH)`` uint8 symbols, padded in front.
      answers: ``(N, WRITTEN)`` uint8 classes.
    """

    sources: Any
    answers: Any


@dataclass(frozen=True)
class Dates(Divided):
    """Read a date as people write it, then write it as YYYY-MM-DD.

    One recurrent network is both halves of Sutskever, Vinyals & Le's (2014) encoder and decoder:
    it reads the source one character a step, and then writes ten characters, one a step, while
    it reads the symbol ``write``. It never reads a previous answer, neither the right one (no
    teacher forcing) nor its own (no decoding loop), so what is scored is exactly what it would
    write, in training as in test. The other side of it: one character cannot lean on the ones
    before it but through the state.

    The ``T`` steps are the source in the first 29, ``length - 39`` pads, and ten writing steps.
    A source shorter than 29 characters is padded in front, so that every form ends, and every
    year that comes last lies, at the same distance from the writing: the delay is a number and
    not a matter of the form. A longer ``length`` puts its pads between reading and writing, and
    so lengthens the time that the date must be held.

    Every day of the years is written in six forms: ``5 March 1998``, ``March 5, 1998``,
    ``Thu 5 Mar 1998``, ``5.3.1998``, ``1998/3/5`` and ``Thursday, March 5, 1998``. A day belongs
    to one split in all its forms, so the network is tested on days that it never read in any.
    Training draws a day and a form, all alike. The writing steps weigh a tenth each, so that
    the accuracy is the share of right characters; the two hyphens are among them, and given.

    Args:
      length: ``T`` in timesteps, at least 39: 29 to read the longest form and 10 to write.
      first_year: first year of the days, 1583 (the calendar's first whole one) to 9999.
      last_year: last year of the days, at most 399 after the first, for then all repeats.
      val_fraction: share of the days held out for validation, in (0, 1).
      test_fraction: share of the days held out for test, in (0, 1).
      split_seed: seed of the split, at least 0; separate from the seed of the run, so that
        runs with different seeds are scored on the same dates.
      held_out_examples: written dates in each of validation and test at most, at least 1.

    Raises:
      BadInput: if a field is out of its range, or a split would lack a day.
    """

    length: int = WIDTH + WRITTEN
    first_year: int = 1950
    last_year: int = 2049
    val_fraction: float = 0.1
    test_fraction: float = 0.1
    split_seed: int = 0
    held_out_examples: int = 1000
    data: Table = field(init=False, repr=False, compare=False)
    _held_out: dict[str, Table] = field(init=False, repr=False, compare=False)

    symbols = len(ALPHABET) + 2
    outputs = len(ANSWERS)
    loss = "cross_entropy"
    readout = "every"

    def __post_init__(self) -> None:
        whole_number("task.length", self.length, 1)
        if self.length < WIDTH + WRITTEN:
            raise BadInput(
                "task.length",
                self.length,
                f"at least {WIDTH + WRITTEN}: {WIDTH} steps read the longest form of a date and "
                f"{WRITTEN} write it",
                f"task.length={WIDTH + WRITTEN}",
            )
        whole_number("task.first_year", self.first_year, 1583, 9999)
        last = min(self.first_year + 399, 9999)
        whole_number("task.last_year", self.last_year, self.first_year, last)
        self.check_fractions()
        whole_number("task.split_seed", self.split_seed, 0, 2**32 - 1)
        whole_number("task.held_out_examples", self.held_out_examples, 1)

        table = _table(self.first_year, self.last_year)
        # RandomState's stream is frozen for good, so the split outlives versions of numpy.
        random = np.random.RandomState(self.split_seed)
        days = random.permutation(len(table.sources) // len(FORMS))
        there = f"there are {len(days)} days from {self.first_year} to {self.last_year}"
        sizes = self.checked_sizes(len(days), "a day", there)
        val, test, train = np.split(days, np.cumsum([sizes["val"], sizes["test"]]))
        held_out = {}
        for name, part in (("val", val), ("test", test)):
            chosen = random.permutation(len(part) * len(FORMS))[: self.held_out_examples]
            held_out[name] = _take(table, _rows(part)[chosen])
        data = jax.tree.map(jnp.asarray, _take(table, _rows(train)))
        settle(self, _held_out=held_out, data=data)

    def sample(self, data: Table, key: jax.Array, batch: int) -> Batch:
        """See :meth:`Divided.sample`; inputs, targets (int32) and weights, all ``(T, B)``.

        Args:
          data: the days of training in every form.
          key: a JAX random key.
          batch: ``B``.
        """
        rows = draw(key, batch, data.sources.shape[0])
        return _lay_out(self.length, _take(data, rows))

    def held_out(self, split: Literal["val", "test"]) -> Batch:
        """See :meth:`Divided.held_out`; a fixed choice from the days of the split and the forms."""
        return _lay_out(self.length, self._held_out[split])

    def baseline(self, split: Split) -> Baseline:
        """Measured on ``split``: at each writing step, how often each character stands there.

        The loss is the entropy of those frequencies in nats, the mean over the ten steps: the
        lowest that can be reached on those examples without reading them. The accuracy is the
        mean share of the most frequent character. Of training, all days count.
        """
        answers = np.asarray((self.data if split == "train" else self._held_out[split]).answers)
        share = (answers[..., None] == np.arange(len(ANSWERS))).mean(0)  # (WRITTEN, O)
        log_share = np.log(share, where=share > 0, out=np.zeros_like(share))
        return Baseline(
            "the frequencies of each position's characters",
            float(-(share * log_share).sum(-1).mean()),
            float(share.max(-1).mean()),
        )

    def decode(self, symbols: np.ndarray) -> str:
        """What ``symbols (N,)`` of one example's inputs read, without pads and ``write``."""
        return "".join(ALPHABET[symbol] for symbol in np.asarray(symbols) if symbol < PAD)


@functools.partial(jax.jit, static_argnums=0)
def _lay_out(length: int, examples: Table) -> Batch:
    """Sources ``(B, WIDTH)`` and answers ``(B, WRITTEN)`` over the ``length`` steps."""
    batch = examples.answers.shape[0]
    start = length - WRITTEN
    inputs = jnp.full((length, batch), PAD, jnp.int32)
    inputs = inputs.at[:WIDTH].set(examples.sources.T.astype(jnp.int32)).at[start:].set(WRITE)
    # before the writing nothing is asked: class 0 stands there with weight 0
    targets = jnp.zeros((length, batch), jnp.int32)
    targets = targets.at[start:].set(examples.answers.T.astype(jnp.int32))
    weights = jnp.zeros((length, batch)).at[start:].set(1 / WRITTEN)
    return Batch(inputs, targets, weights)


def _rows(days: np.ndarray) -> np.ndarray:
    """Where the table has ``days (N,)`` in all their forms, ``(N * len(FORMS),)`` ascending."""
    return (np.sort(days)[:, None] * len(FORMS) + np.arange(len(FORMS))).ravel()


def _take(table: Table, rows: Any) -> Table:
    """The written dates ``rows (B,)`` of ``table``."""
    return Table(table.sources[rows], table.answers[rows])


@functools.lru_cache(maxsize=4)
def _table(first_year: int, last_year: int) -> Table:
    """Every day of the years in every form, the forms of a day together."""
    first, last = datetime.date(first_year, 1, 1), datetime.date(last_year, 12, 31)
    sources, answers = [], []
    for ordinal in range(first.toordinal(), last.toordinal() + 1):
        day = datetime.date.fromordinal(ordinal)
        parts = {
            "day": day.day,
            "number": day.month,
            "month": MONTHS[day.month - 1],
            "year": day.year,
            "weekday": WEEKDAYS[day.weekday()],
        }
        sources += [form.format(**parts).rjust(WIDTH, "\0") for form in FORMS]
        answers += [day.isoformat()] * len(FORMS)
    return Table(_encode(sources, ALPHABET), _encode(answers, ANSWERS))


def _encode(texts: list[str], alphabet: str) -> np.ndarray:
    """The places in ``alphabet`` of texts of one length, ``(N, length)`` uint8; NUL is ``PAD``."""
    places = np.full(128, PAD, np.uint8)
    places[[ord(character) for character in alphabet]] = np.arange(len(alphabet))
    characters = np.frombuffer("".join(texts).encode("ascii"), np.uint8)
    return places[characters].reshape(len(texts), -1)
