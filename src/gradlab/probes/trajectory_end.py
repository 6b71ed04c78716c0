"""When the forward pass left the float range."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from gradlab.bptt.closeup import Closeup, LayerView
from gradlab.probes.base import CloseProbe, Setting, over_layers
from gradlab.variable import Variable


@dataclass(frozen=True)
class TrajectoryEnd(CloseProbe):
    """The first timestep at which a state is not finite.

    Definition: the smallest t such that a component of the state s_t of any of the examples is inf
    or nan; T if there is none. A backward direction counts its steps from the end of the sequence,
    where it begins to read.

    Source: none; a check that the other close measurements rest on.

    Cost: O(T E S) time, no memory beyond the states.

    Mask: the state waits while there is nothing to read, so that padding neither makes a state that
    is not finite nor hides one. T is the length of the padded batch. A backward direction reads
    the padding first, which t counts.

    Limits: of the examples looked at alone, and the first of them to leave the floats: another may
    go on for long. In float32 that is at 3.4·10³⁸; float64 would go on eight times as many decades.
    A state can be far from any use long before.

    How to read it: T is health. Anything less says that the network itself overflowed, before any
    gradient was taken: a linear or ReLU network with a spectral radius above 1 does that at about
    ``log(largest float) / log(radius)`` steps. The other close probes measure each example up to
    the step before its own end and see nothing after it. A positive Lyapunov exponent is chaos only
    where this is T, the state is bounded and it does not rest: a network on its way out of the
    floats has one, too.
    """

    def variables(self, setting: Setting) -> dict[str, Variable]:
        """One variable over layers."""
        name = "first timestep with a state that is not finite (T: none)"
        return {"trajectory_end": Variable(("layer",), "steps", name)}

    def __call__(self, closeup: Closeup) -> dict[str, jax.Array]:
        """See the class."""
        return {"trajectory_end": over_layers(end, closeup.layers)}


def end(layer: LayerView) -> jax.Array:
    """The end of one layer's trajectory, ()."""
    finite = jnp.all(jnp.isfinite(layer.after), axis=(1, 2))
    first = jnp.where(jnp.all(finite), len(finite), jnp.argmin(finite))
    return first.astype(layer.after.dtype)
