"""How many gates are stuck open or shut."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from gradlab.bptt.folding import Folded, Gates
from gradlab.errors import number
from gradlab.probes.base import GateProbe, Setting, Unsupported
from gradlab.variable import Variable


@dataclass(frozen=True)
class GateSaturation(GateProbe):
    """The fraction of gate activations outside [0.1, 0.9], per layer and gate.

    Definition: the share of activations, over real steps, examples and units, that are below
    ``low`` or above ``high``.

    Source: Karpathy, Johnson & Li (2015), section 4.2.

    Cost: O(T B H) comparisons of gates that the backward pass has at hand, O(B H) memory.

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

    def begin(self, gates: Gates) -> Any:
        """How often each unit of each example was outside so far, by gate; and how many there were.

        As floats, which XLA adds fastest, and which count up to 2^24.
        """
        counts = [jnp.zeros(gate.shape, jnp.float32) for gate in gates.named.values()]
        return counts, jnp.float32(0)

    def step(self, carry: Any, gates: Gates, real: jax.Array | None) -> tuple[Any, None]:
        """One step more."""
        counts, all_ = carry

        def more(count: jax.Array, gate: jax.Array) -> jax.Array:
            outside = (gate < self.low) | (gate > self.high)
            outside = outside if real is None else outside & real[:, None]
            return count + outside.astype(count.dtype)

        examples, units = counts[0].shape
        rows = jnp.float32(examples) if real is None else jnp.sum(real, dtype=all_.dtype)
        return (list(map(more, counts, gates.named.values())), all_ + rows * units), None

    def finish(self, carry: Any, kept: None) -> Folded:
        """The sums: ``(gates,)`` outside, of how many."""
        counts, all_ = carry
        return Folded(sums=(jnp.stack([jnp.sum(count) for count in counts]), all_))

    def measure(self, folded: Folded, mask: jax.Array) -> dict[str, jax.Array]:
        """See :meth:`gradlab.probes.base.GateProbe.measure`."""
        outside, all_ = folded.sums
        return {"gate_saturation": outside / all_[:, None]}
