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

from gradlab.bptt.closeup import MIXES, Closeup
from gradlab.errors import BadInput, number, whole_number


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
        key = f"trainer.{self.name}"
        number(f"{key}.weight", self.weight, 0, 1e6)
        whole_number(f"{key}.alone", self.alone, 0)
        if self.until is not None:
            whole_number(f"{key}.until", self.until, 0, otherwise=", or null (never)")
            if self.until < self.alone:
                allowed = f"null (never), or at least {key}.alone = {self.alone}"
                raise BadInput(f"{key}.until", self.until, allowed, "raise it, or lower alone")
        if self.examples is not None:
            whole_number(f"{key}.examples", self.examples, 1, otherwise=", or null (the batch)")

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
          BadInput: if no layer passes anything from one state to the next, or a step of one mixes
            the examples of the batch.
        """
        mixing = [type(layer.cell).__name__ for layer in closeup.layers if layer.form.shared]
        if mixing:
            allowed = f"null: {MIXES.format(mixing[0])}"
            raise BadInput("trainer.regularizer", self.name, allowed, "trainer.regularizer=null")
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
