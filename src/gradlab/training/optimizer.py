"""From an optax rule to an optimizer: the learning rate's schedule and the clipping around it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import jax
import optax

from gradlab.errors import MOST, BadInput, cannot_be, number, whole_number

Decay = Literal["constant", "cosine", "linear", "exponential"]
Range = tuple[float, float, Literal["[]", "[)"]]
_SHARE: Range = (0, 1, "[)")
_SMALL: Range = (0, 1, "[]")
RANGES: dict[str, Range] = {
    **dict.fromkeys(("b1", "b2", "b3", "decay", "decay_rate", "momentum", "rho"), _SHARE),
    **dict.fromkeys(("beta", "eps", "eps_root", "trust_coefficient"), _SMALL),
    "seed": (0, MOST, "[]"),
}
"""What the numbers of optax's rules can be, by the name of the argument; optax checks none."""
OTHERS: Range = (0, 1e6, "[]")
"""Of those that are not named: thresholds, weights and scales."""
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
        shorter than the run, both kinds of clipping, or a rule whose arguments cannot be.
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
            if value is not None:
                none = ", or null for no clipping"
                number(f"optimizer.{key}", value, 1e-30, 1e30, otherwise=none)
        number("optimizer.learning_rate", self.learning_rate, 1e-30, 1e6)
        number("optimizer.final_fraction", self.final_fraction, 0, 1)
        most, below = self.steps - 1, ", below trainer.steps"
        whole_number("optimizer.warmup_steps", self.warmup_steps, 0, most, below)
        if self.clip_norm is not None and self.clip_value is not None:
            allowed = "null when optimizer.clip_norm is set"
            raise BadInput("optimizer.clip_value", self.clip_value, allowed)
        for key in _NUMBERS:
            if getattr(self, key) is not None:
                object.__setattr__(self, key, float(getattr(self, key)))
        self._check_rule()

    def _check_rule(self) -> None:
        """Refuse arguments that the rule cannot have: by the table, and by one step without data.

        Raises:
          BadInput: naming the argument, or the rule with what it says itself.
        """
        given = self.rule.keywords if isinstance(self.rule, functools.partial) else {}
        if str(getattr(_bare(self.rule), "__module__", "")).startswith("optax."):
            for name, value in given.items():
                if isinstance(value, int | float) and not isinstance(value, bool):
                    number(f"optimizer.rule.{name}", value, *RANGES.get(name, OTHERS))
        check_rule(self, {"w": jax.ShapeDtypeStruct((2, 2), "float32")})

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


def check_rule(optimizer: Optimizer, params: Any) -> None:
    """Refuse a rule or a clipping that cannot step these parameters, by one step without data.

    Args:
      optimizer: whose.
      params: their shapes and types.

    Raises:
      BadInput: naming the rule, or the kind of clipping, with what it says itself.
    """
    name = getattr(_bare(optimizer.rule), "__qualname__", str(optimizer.rule))
    parts = [("optimizer.rule", name, lambda: optimizer.update)]
    parts += [("optimizer.clip_value", optimizer.clip_value, lambda: optimizer.clip)]
    for key, given, made in parts:
        try:
            part = made()
            with jax.numpy_dtype_promotion("standard"):  # as in a step
                jax.eval_shape(lambda p, part=part: part.update(p, part.init(p), p), params)
        except BadInput:
            raise
        except Exception as error:
            raise BadInput(key, given, cannot_be(error)) from error


def _bare(rule: Any) -> Any:
    """The function itself, of one whose arguments are partly given."""
    return rule.func if isinstance(rule, functools.partial) else rule
