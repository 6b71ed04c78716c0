"""The contract of a task: where sequences come from, and what a guess without memory would score.

A task is a frozen dataclass in a file of its own. Its fields are the keys of its yaml in
``conf/task``; a class attribute fixes what cannot change. Add a file and a yaml, and the contract
tests (``tests/tasks/test_contract.py``) find it from the config folder.

Arrays are time-major: ``T`` timesteps, ``B`` examples, ``I`` input features, ``O`` outputs.
"""

from __future__ import annotations

import abc
import dataclasses
import functools
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from gradlab.errors import BadInput, number
from gradlab.errors import whole_number as whole_number  # for tasks, which all need it

Split = Literal["train", "val", "test"]


class Batch(NamedTuple):
    """``B`` sequences and what should be read from them.

    Attributes:
      inputs: ``(T, B, I)`` float, or ``(T, B)`` int32 symbols when ``Task.symbols`` is set.
      targets: what the readout should give. For ``readout="last"``: ``(B, O)`` float under
        ``"mse"``, ``(B,)`` int32 under ``"cross_entropy"``. For ``readout="every"`` the same with
        a leading ``T``.
      weights: ``(T, B)`` weight of each step's loss, summing to 1 over ``T`` for every example;
        None for ``readout="last"``.
      mask: ``(T, B)`` bool, True where ``x_t`` is real, always a prefix of the sequence; None when
        every sequence has the full length.
    """

    inputs: jax.Array
    targets: jax.Array
    weights: jax.Array | None = None
    mask: jax.Array | None = None


class Baseline(NamedTuple):
    """What a guess without memory (or by chance) scores.

    Attributes:
      name: the guess in words, lower case ("always answer 1").
      loss: its loss, in the units of the task's loss.
      accuracy: its accuracy in [0, 1], or None for a task without one.
    """

    name: str
    loss: float
    accuracy: float | None = None


class Task(abc.ABC):
    """A source of sequences.

    Attributes:
      length: ``T``, the number of timesteps the network reads.
      features: ``I``, width of a real-valued input; ignored when ``symbols`` is set.
      symbols: number of distinct input symbols, or None for real-valued inputs.
      outputs: ``O``, width of the readout.
      loss: ``"mse"`` (mean over ``O``) or ``"cross_entropy"`` (nats).
      readout: ``"last"`` reads the state after the last step; ``"every"`` reads every step.
      data: a pytree of arrays that :meth:`sample` draws from, handed to it explicitly so that it
        is an argument of the compiled step and not a constant in it; ``()`` for generated tasks.
    """

    length: int
    features: int = 1
    symbols: int | None = None
    outputs: int
    loss: Literal["mse", "cross_entropy"]
    readout: Literal["last", "every"]
    data: Any = ()

    @abc.abstractmethod
    def sample(self, data: Any, key: jax.Array, batch: int) -> Batch:
        """``batch`` training sequences drawn with ``key``. Pure and traceable; runs on the device.

        Args:
          data: the task's own ``data``.
          key: a JAX random key.
          batch: ``B``.
        """

    @abc.abstractmethod
    def held_out(self, split: Literal["val", "test"]) -> Batch:
        """The fixed sequences of a split that training never draws, all of them in one batch."""

    @abc.abstractmethod
    def baseline(self, split: Split) -> Baseline:
        """The memoryless or chance score on ``split``, measured there or exact."""

    def describe(self) -> str:
        """One line for the terminal: what the network reads and what it must answer."""
        return (type(self).__doc__ or type(self).__name__).strip().splitlines()[0]


SAME = ("features", "symbols", "outputs", "loss", "readout")
"""What of a task one model is built for, and so the same at every length."""


def at_length(task: Task, length: int, key: str) -> Task:
    """The same task with sequences of another length, for the same model.

    Args:
      task: a dataclass with a field ``length``.
      length: ``T`` in timesteps.
      key: the configuration key that asks for it.

    Raises:
      BadInput: naming ``key``, if the task cannot have that length, with its own reason, or is
        there one that needs another model.
    """
    name = type(task).__name__
    if not dataclasses.is_dataclass(task) or isinstance(task, type):
        allowed = f"nothing, with this task: {name} is no dataclass, which a copy is made of"
        raise BadInput(key, length, allowed, f"{key}=[], or @dataclass(frozen=True) at {name}")
    try:
        other = dataclasses.replace(task, length=length)
    except BadInput as error:
        reason = error.allowed
        if error.key != "task.length":
            reason = f"there, {error.key}={error.given} would have to be {reason}"
        raise BadInput(key, length, f"lengths that {name} can have: {reason}") from error
    except Exception as error:  # a user's task may refuse with anything
        reason = f"making it ends with {type(error).__name__}: {error}"
        raise BadInput(key, length, f"lengths that {name} can have: {reason}") from error
    if other.length != length:
        allowed = f"lengths that {name} can have; it makes a length of {other.length} of this one"
        raise BadInput(key, length, allowed)
    for part in SAME:
        here, there = getattr(task, part), getattr(other, part)
        if here != there:
            allowed = (
                f"lengths at which {name} has the same {part} as at task.length={task.length}, "
                f"{here!r}, for it is the same model; at this one it is {there!r}"
            )
            raise BadInput(key, length, allowed)
    return other


def settle(task: Task, **computed: Any) -> None:
    """Set what a frozen task computes from its options when it is made."""
    for name, value in computed.items():
        object.__setattr__(task, name, value)


def generate_held_out(task: Task, split: str, examples: int) -> Batch:
    """The validation or test set of a task without ``data``: by a fixed key that no run has.

    Compiled once for all tasks with the same options; each time for one that holds more than its
    options, such as a table from a file, since that may differ where the options do not.
    """
    key = jax.random.fold_in(jax.random.key(0x7E57), {"val": 1, "test": 2}[split])
    options = {field.name for field in dataclasses.fields(task)}  # type: ignore[arg-type]
    if vars(task).keys() <= options:
        return _generate(task, key, examples)
    return jax.jit(lambda key: task.sample((), key, examples))(key)


@functools.partial(jax.jit, static_argnums=(0, 2))
def _generate(task: Task, key: jax.Array, examples: int) -> Batch:
    return task.sample((), key, examples)


class Generated(Task):
    """A task without ``data``, whose held-out examples are drawn like all others.

    Attributes:
      held_out_examples: how many in each of validation and test.
    """

    held_out_examples: int

    def held_out(self, split: Literal["val", "test"]) -> Batch:
        """See :meth:`Task.held_out`; generated from a key that no training run uses."""
        return generate_held_out(self, split, self.held_out_examples)


class Divided(Task):
    """A task with ``data``, fractions of which are held out.

    Attributes:
      val_fraction: share held out for validation.
      test_fraction: share held out for test.
    """

    val_fraction: float
    test_fraction: float

    def check_fractions(self) -> None:
        """Refuse with :class:`BadInput` unless both are in (0, 1) and something is left over."""
        for key in ("val_fraction", "test_fraction"):
            number(f"task.{key}", getattr(self, key), 0, 1, "()")
        if self.val_fraction + self.test_fraction >= 1:
            raise BadInput(
                "task.test_fraction",
                self.test_fraction,
                f"less than {1 - self.val_fraction:g}, since task.val_fraction={self.val_fraction} "
                "and something must be left to train on",
            )

    def sizes(self, total: int) -> dict[str, int]:
        """How many of ``total`` items each split gets: rounded for val and test, else to train."""
        val, test = round(total * self.val_fraction), round(total * self.test_fraction)
        return {"train": total - val - test, "val": val, "test": test}

    def checked_sizes(self, total: int, item: str, there: str) -> dict[str, int]:
        """The same, after a check that each split gets something.

        Args:
          total: as there.
          item: what each split must get, in words.
          there: of how much, in words.

        Raises:
          BadInput: for a split that would get nothing, naming the fraction at fault.
        """
        sizes = self.sizes(total)
        for name in ("val", "test", "train"):
            if sizes[name] < 1:
                key = "val_fraction" if name == "val" else "test_fraction"
                allowed = (
                    f"fractions that give each split {item}; {there}, and {name} would get none"
                )
                raise BadInput(f"task.{key}", getattr(self, key), allowed)
        return sizes


def words(key: jax.Array, rows: int, batch: int) -> jax.Array:
    """Uniform random 32-bit words ``(rows, batch)``: all the chance one call of a task needs.

    One draw in one dimension compiles in a fraction of the time of a draw for each quantity, or
    of one in two dimensions (0.3 s against 2 s on a CPU, in a program that is otherwise small).
    """
    return jax.random.bits(key, (rows * batch,), jnp.uint32).reshape(rows, batch)


def below(bits: jax.Array, n: int | jax.Array) -> jax.Array:
    """Random whole numbers 0 … n-1, int32, from uniform 32-bit words of any shape.

    No number is likelier than another by more than one part in ``2**32 / n``.
    """
    return (bits % jnp.asarray(n, bits.dtype)).astype(jnp.int32)


def draw(key: jax.Array, batch: int, n: int) -> jax.Array:
    """``batch`` random whole numbers 0 … n-1, int32."""
    return below(words(key, 1, batch)[0], n)
