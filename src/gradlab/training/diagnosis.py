"""Where a run stopped being finite: the step, the layer and the timestep."""

from __future__ import annotations

from typing import Any

import numpy as np

from gradlab.bptt.unroll import forms_of
from gradlab.training.program import Program
from gradlab.training.step import Steps


def diagnose(program: Program, member: int = 0) -> str:
    """Say in words where the step that a member is about to make stops being finite.

    Looked for in the order of computation: the states from the first timestep on, the loss, the
    adjoints from the last timestep back, the gradients, and last the parameters after the update.

    Args:
      program: that made the steps.
      member: which; its state is as the last finite step left it.
    """
    steps = program.steps
    loss, grads, adjoints, finite = program.inspect(member)
    where = _in_states(steps, finite)
    if where is None and not np.isfinite(loss):
        where = f"the loss is {loss}, from finite states"
    if where is None:
        where = _in_adjoints(steps, adjoints)
    if where is None:
        bad = [name for name, grad in grads.items() if not np.all(np.isfinite(grad))]
        where = (
            f"the gradient of {bad[0]} is not finite"
            if bad
            else "loss and gradient are finite, but the update makes parameters that are not"
        )
    return f"diverged at step {program.step(member)}: {where}"


def _in_states(steps: Steps, finite: Any) -> str | None:
    layers = steps.model(steps.first).layers
    forms = [form for layer in forms_of(layers, steps.shape, steps.reads) for form in layer]
    flat = [states for layer in finite for states in layer]
    for layer, form, states in zip(steps.names, forms, flat, strict=True):
        for name, after in zip(form.names, states, strict=True):
            if not after.all():
                t = int(np.argmin(after))
                return f"in layer {layer} the state {name} is not finite from timestep {t} on"
    return None


def _in_adjoints(steps: Steps, adjoints: dict[str, np.ndarray]) -> str | None:
    """The first adjoint, on the way back from the top layer, beyond what float32 can hold."""
    limit = np.log10(np.finfo(np.float32).max)
    for row in reversed(range(len(steps.names))):
        for name, log10 in adjoints.items():
            largest = log10[row].max(axis=-1)
            bad = ~(largest < limit)
            if bad.any():
                t = int(np.flatnonzero(bad)[-1])
                return (
                    f"in layer {steps.names[row]} the adjoint of {name} exceeds float32 from "
                    f"timestep {t} back (log10 norm {largest[t]:.1f} there)"
                )
    return None
