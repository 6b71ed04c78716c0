"""How many gates are stuck open or shut."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from gradlab.errors import number
from gradlab.probes.base import Seen, Setting, StepProbe, Unsupported
from gradlab.variable import Variable


@dataclass(frozen=True)
class GateSaturation(StepProbe):
    """The fraction of gate activations outside [0.1, 0.9], per layer and gate.

    Definition: the share of activations, over real steps, examples and units, that are below
    ``low`` or above ``high``.

    Source: Karpathy, Johnson & Li (2015), section 4.2.

    Cost: O(T B H) comparisons beside the gates, which are computed again from the states for all
    probes together. Memory O(T B H).

    Mask: only real steps count, above and below the line; a longer example counts for more.

    Limits: of the whole batch, exact but for rounding. It does not depend on T or on the loss. A
    share says nothing of how far beyond the limits a gate is, nor whether the same units are there
    at every step.

    How to read it: a saturated forget gate near 1 keeps its state and carries the gradient, but
    learns slowly itself, since σ' is below 0.09 there. A share that grows during training says
    that the network has decided what to keep.

    Args:
      low: below this a gate counts as shut.
      high: above this it counts as open.
    """

    low: float = 0.1
    high: float = 0.9

    def __post_init__(self):
        key = "probe.measure.gate_saturation"
        number(f"{key}.low", self.low, 0, 1)
        number(f"{key}.high", self.high, self.low, 1, otherwise=f", not below {key}.low")

    def variables(self, setting: Setting) -> dict[str, Variable]:
        """One variable over layers and gates."""
        if not setting.gates:
            raise Unsupported(f"{setting.cell} has no gates that can be seen")
        name = f"share of gate activations outside [{self.low}, {self.high}]"
        return {"gate_saturation": Variable(("layer", "gate"), "1", name)}

    def __call__(self, seen: Seen) -> dict[str, jax.Array]:
        """See the class."""
        mask = seen.mask[..., None]

        def share(gate: jax.Array) -> jax.Array:
            outside = mask & ((gate < self.low) | (gate > self.high))
            real = jnp.sum(mask, axis=(1, 2, 3)) * gate.shape[-1]
            return jnp.sum(outside, axis=(1, 2, 3)) / real

        shares = [share(gate) for gate in seen.gates.values()]
        return {"gate_saturation": jnp.stack(shares, axis=-1)}
