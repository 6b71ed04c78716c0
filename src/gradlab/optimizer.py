"""From an optax rule to an optimizer: the learning rate's schedule and the clipping around it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import optax

from gradlab.errors import BadInput

Schedule = Literal["constant", "cosine", "linear", "exponential"]


class Optimizer(NamedTuple):
    """Clipping and update rule, kept apart so that a probe sees the gradient between them.

    Attributes:
      clip: optax transformation from the gradient to the clipped gradient.
      rule: optax transformation from the clipped gradient to the update.
      clips: whether ``clip`` does anything.
    """

    clip: optax.GradientTransformation
    rule: optax.GradientTransformation
    clips: bool = True


def build_optimizer(
    rule: Callable[..., optax.GradientTransformation],
    *,
    steps: int,
    learning_rate: float,
    schedule: Schedule = "constant",
    warmup_steps: int = 0,
    final_fraction: float = 0.0,
    clip_norm: float | None = None,
    clip_value: float | None = None,
) -> Optimizer:
    """Put schedule and clipping around an optax rule.

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
    for key, value in (("clip_norm", clip_norm), ("clip_value", clip_value)):
        if value is not None and value <= 0:
            raise BadInput(f"optimizer.{key}", value, "a positive number, or null for no clipping")
    if learning_rate <= 0:
        raise BadInput("optimizer.learning_rate", learning_rate, "a positive number")
    if not 0 <= final_fraction <= 1:
        raise BadInput("optimizer.final_fraction", final_fraction, "a number from 0 to 1")
    if not 0 <= warmup_steps < steps:
        raise BadInput(
            "optimizer.warmup_steps", warmup_steps, f"0 to {steps - 1}, below trainer.steps"
        )
    if clip_norm is not None and clip_value is not None:
        raise BadInput("optimizer.clip_value", clip_value, "null when optimizer.clip_norm is set")
    clip = optax.identity()
    if clip_norm is not None:
        clip = optax.clip_by_global_norm(clip_norm)
    elif clip_value is not None:
        clip = optax.clip(clip_value)
    rate = _schedule(schedule, learning_rate, steps - warmup_steps, final_fraction)
    if warmup_steps:
        rise = optax.linear_schedule(0.0, learning_rate, warmup_steps)
        rate = optax.join_schedules([rise, rate], [warmup_steps])
    clips = clip_norm is not None or clip_value is not None
    return Optimizer(clip, rule(learning_rate=rate), clips)


def _schedule(name: Schedule, peak: float, steps: int, final: float) -> optax.Schedule:
    match name:
        case "cosine":
            return optax.cosine_decay_schedule(peak, steps, alpha=final)
        case "linear":
            return optax.linear_schedule(peak, peak * final, steps)
        case "exponential":
            return optax.exponential_decay(peak, steps, max(final, 1e-3))
        case _:
            return optax.constant_schedule(peak)
