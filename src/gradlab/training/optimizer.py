"""From an optax rule to an optimizer: the learning rate's schedule and the clipping around it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import optax

from gradlab.errors import BadInput

Decay = Literal["constant", "cosine", "linear", "exponential"]
_NUMBERS = ("learning_rate", "final_fraction", "clip_norm", "clip_value")


@dataclass(frozen=True)
class Optimizer:
    """Schedule and clipping around an optax rule.

    It holds the numbers and makes the transformations anew whenever they are asked for, so that
    the members of a population can differ in the numbers and share a compiled program.

    Args:
      rule: called with ``learning_rate=`` (a schedule), e.g. ``optax.adam``.
      steps: length of the run; the schedules end there.
      learning_rate: its peak.
      schedule: ``"constant"``, ``"cosine"``, ``"linear"`` or ``"exponential"`` decay.
      warmup_steps: linear rise from 0 before that.
      final_fraction: the share of the peak at which the decay ends (exponential: at least 1e-3).
      clip_norm: largest global norm of the gradient (Pascanu et al. 2013), or None.
      clip_value: largest absolute value of its entries, or None.

    Raises:
      BadInput: for a learning rate or a clip threshold that is not positive, a warm-up that is not
        shorter than the run, or both kinds of clipping.
    """

    rule: Callable[..., optax.GradientTransformation]
    steps: int
    learning_rate: float
    schedule: Decay = "constant"
    warmup_steps: int = 0
    final_fraction: float = 0.0
    clip_norm: float | None = None
    clip_value: float | None = None

    def __post_init__(self) -> None:
        for key in ("clip_norm", "clip_value"):
            value = getattr(self, key)
            if value is not None and value <= 0:
                allowed = "a positive number, or null for no clipping"
                raise BadInput(f"optimizer.{key}", value, allowed)
        if self.learning_rate <= 0:
            raise BadInput("optimizer.learning_rate", self.learning_rate, "a positive number")
        if not 0 <= self.final_fraction <= 1:
            allowed = "a number from 0 to 1"
            raise BadInput("optimizer.final_fraction", self.final_fraction, allowed)
        if not 0 <= self.warmup_steps < self.steps:
            allowed = f"0 to {self.steps - 1}, below trainer.steps"
            raise BadInput("optimizer.warmup_steps", self.warmup_steps, allowed)
        if self.clip_norm is not None and self.clip_value is not None:
            allowed = "null when optimizer.clip_norm is set"
            raise BadInput("optimizer.clip_value", self.clip_value, allowed)
        for key in _NUMBERS:
            if getattr(self, key) is not None:
                object.__setattr__(self, key, float(getattr(self, key)))

    @property
    def clips(self) -> bool:
        """Whether :attr:`clip` does anything."""
        return self.clip_norm is not None or self.clip_value is not None

    @property
    def clip(self) -> optax.GradientTransformation:
        """From the gradient to the clipped gradient; apart, so that a probe can look between."""
        if self.clip_norm is not None:
            return optax.clip_by_global_norm(self.clip_norm)
        return optax.identity() if self.clip_value is None else optax.clip(self.clip_value)

    @property
    def update(self) -> optax.GradientTransformation:
        """From the clipped gradient to what is added to the parameters."""
        made = self.rule(learning_rate=self._rate())
        if not isinstance(made, optax.GradientTransformation):
            allowed = (
                "a function that takes learning_rate and gives an optax.GradientTransformation"
            )
            raise BadInput("optimizer.rule._target_", type(made).__name__, allowed, "optax.adam")
        return made

    def _rate(self) -> optax.Schedule:
        peak, final, steps = self.learning_rate, self.final_fraction, self.steps - self.warmup_steps
        match self.schedule:
            case "cosine":
                rate = optax.cosine_decay_schedule(peak, steps, alpha=final)
            case "linear":
                rate = optax.linear_schedule(peak, peak * final, steps)
            case "exponential":
                rate = optax.exponential_decay(peak, steps, max(final, 1e-3))
            case _:
                rate = optax.constant_schedule(peak)
        if not self.warmup_steps:
            return rate
        rise = optax.linear_schedule(0.0, peak, self.warmup_steps)
        return optax.join_schedules([rise, rate], [self.warmup_steps])
