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

    How to read it: T is health. Anything less says that the network itself overflowed, before any
    gradient was taken: a linear or ReLU network with a spectral radius above 1 does that at about
    ``log(largest float) / log(radius)`` steps. The other close probes measure each example up to
    the step before its own end and see nothing after it.
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
