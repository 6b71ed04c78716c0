"""The contract of a regularizer: a differentiable penalty on how gradients travel.

A regularizer is a frozen dataclass in a file of its own with a section in ``conf/trainer``. Its
fields are options; :meth:`Regularizer.penalty` maps a close look at some examples to a number,
which is differentiated by the parameters of the cells and added to the task's gradient::

    def loss(params):
        cell = nnx.merge(graph, params)
        return regularizer.penalty(Closeup([[cell]], inputs, losses))

    gradient = jax.grad(loss)(params)
"""

from __future__ import annotations

import abc
from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp

from gradlab.bptt.closeup import Closeup
from gradlab.errors import BadInput


@dataclass(frozen=True)
class Regularizer(abc.ABC):
    """A penalty beside the task's loss.

    Args:
      weight: what the penalty is multiplied by; at least 0.
      alone: for how many first steps the penalty alone is minimised, before the task's loss counts.
      until: the step from which the penalty counts no more; None: never. At least ``alone``.
      examples: on how many examples of the batch the penalty is computed; None: all.
    """

    name: ClassVar[str] = "regularizer"

    weight: float = 1.0
    alone: int = 0
    until: int | None = None
    examples: int | None = None

    def __post_init__(self):
        self.check()

    def check(self) -> None:
        """Refuse options that no model can have.

        Raises:
          BadInput: naming ``trainer.<name>.<option>``.
        """
        # Written so that nan is refused, too.
        if not 0 <= self.weight < float("inf"):
            raise self._bad("weight", "a finite number of at least 0")
        if self.alone < 0:
            raise self._bad("alone", "a number of steps, at least 0")
        if self.until is not None and self.until < self.alone:
            allowed = f"null (never), or at least trainer.{self.name}.alone = {self.alone}"
            raise self._bad("until", allowed, "raise it, or lower alone")
        if self.examples is not None and self.examples < 1:
            raise self._bad("examples", "null (the whole batch), or at least 1")

    def _bad(self, option: str, allowed: str, hint: str = "") -> BadInput:
        return BadInput(f"trainer.{self.name}.{option}", getattr(self, option), allowed, hint)

    @abc.abstractmethod
    def penalty(self, closeup: Closeup) -> jax.Array:
        """The penalty of some examples, (). Pure, traceable and differentiable.

        Its gradient by the parameters of the closeup's cells is finite wherever the network's own
        trajectory and derivatives are.
        """

    def check_model(self, closeup: Closeup) -> None:
        """Refuse a model on which the penalty has nothing to act on; not traceable.

        Args:
          closeup: a few examples and steps are enough.

        Raises:
          BadInput: if no layer passes anything from one state to the next.
        """
        if not any(_passes(layer.jacobian, layer.mask) for layer in closeup.layers):
            cells = sorted({type(layer.cell).__name__ for layer in closeup.layers})
            raise BadInput(
                "trainer.regularizer",
                self.name,
                f"null for {', '.join(cells)}, which does not read its own state",
                "trainer.regularizer=null",
            )


@jax.jit
def _passes(jacobians: jax.Array, mask: jax.Array) -> jax.Array:
    """Whether any real step's Jacobian is not exactly zero, ()."""
    return jnp.any(mask[..., None, None] & (jacobians != 0))
