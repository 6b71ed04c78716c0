"""What one step of the network does to a small change of its state."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from gradlab.bptt import scaling
from gradlab.bptt.closeup import Closeup, LayerView
from gradlab.bptt.products import log10_largest
from gradlab.errors import whole_number
from gradlab.probes.base import CloseProbe, Setting, mean_log10
from gradlab.variable import Variable


@dataclass(frozen=True)
class StepJacobian(CloseProbe):
    """Norms of the step Jacobian and of its blocks, at every timestep.

    Definition: ``J_t = ∂s_t/∂s_{t-1}``, rows = output, with s = [c; h] in an LSTM and h elsewhere.
    ``step_jacobian_log10`` is log10 of its largest singular value; ``step_jacobian_block_log10`` is
    log10 of the Frobenius norm of each block ``∂to_t/∂from_{t-1}``. Mean over examples of the
    logs, over those with a nonzero value. Of a complex part of the state both its real and its
    imaginary part are in s. What a cell carries besides, a counter or dropout's random stream, is
    held as it was at that step.

    Source: Pascanu, Mikolov & Bengio (2013), equation 6 and section 2.2: the factors of the
    product that transports the gradient.

    Cost: the Jacobians, O(T E S²) memory and S forward derivatives of each step; the singular
    value O(T E S³), some ten matrix products each.

    Mask: at each t the mean is over the examples that are real there; nan where none is. A padded
    step is no step, and is not counted as one of norm 1.

    Limits: of ``examples`` examples alone, one unless more are asked for. The largest singular
    value is right to 10⁻³ in the log10, and never too high. Nothing here depends on T. In float32
    the slope of a unit that is saturated beyond float32's digits is 0, and its row with it.

    How to read it: above 0 a step can amplify a change of the state, below 0 no change survives
    undiminished. The product over time may still be far smaller than the product of these norms,
    since its factors do not amplify the same direction. In an LSTM the block c to c is the path
    through the memory alone, and the others are what the recurrent weights add; where these are
    the larger ones, the memory cell is not what carries the gradient.

    Args:
      examples: how many of the examples looked at are used; all if there are fewer.
    """

    examples: int = 1

    def __post_init__(self):
        """Refuse what cannot be for any model."""
        whole_number("probe.measure.step_jacobian.examples", self.examples, 1)

    def variables(self, setting: Setting) -> dict[str, Variable]:
        """Two variables."""
        return {
            "step_jacobian_log10": Variable(
                ("layer", "t"), "log10", "largest singular value of the step Jacobian J_t"
            ),
            "step_jacobian_block_log10": Variable(
                ("layer", "to", "from", "t"),
                "log10",
                "Frobenius norm of a block ∂(to)_t/∂(from)_{t-1} of the step Jacobian",
            ),
        }

    def coords(self, setting: Setting) -> dict[str, list[Any]]:
        """The parts of the state."""
        return {"to": list(setting.states), "from": list(setting.states)}

    def __call__(self, closeup: Closeup) -> dict[str, jax.Array]:
        """See the class."""
        layers = closeup.first(self.examples)
        largest = [mean_log10(log10_largest(one.jacobian), one.mask) for one in layers]
        return {
            "step_jacobian_log10": jnp.stack(largest),
            "step_jacobian_block_log10": jnp.stack([_blocks(one) for one in layers]),
        }


def _blocks(layer: LayerView) -> jax.Array:
    """``(to, from, T)`` of one layer."""
    plain = jnp.zeros(layer.mask.shape, jnp.int32)

    def norm(to: str, source: str) -> jax.Array:
        block = layer.jacobian[..., layer.part(to), layer.part(source)]
        return mean_log10(scaling.log10_norm(block, plain), layer.mask)

    return jnp.stack([jnp.stack([norm(to, one) for one in layer.states]) for to in layer.states])
