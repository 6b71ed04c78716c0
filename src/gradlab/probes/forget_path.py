"""Which way the gradient takes: through the gated memory, or around it."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from gradlab.bptt.closeup import Closeup, LayerView
from gradlab.bptt.products import Paths, paths
from gradlab.errors import whole_number
from gradlab.probes.base import CloseProbe, Setting, Unsupported, both_means, over_layers
from gradlab.variable import Variable, over_lag


@dataclass(frozen=True)
class ForgetPath(CloseProbe):
    """The derivative of the last memory by an earlier one, divided into two paths.

    Definition: m is the part of the state that the retention gate multiplies (c in an LSTM, h in a
    GRU) and ``M_t = ∂m_{T-1}/∂m_t``, its block of the long-term Jacobian of the whole state. The
    forget path is the diagonal matrix of ``∏_{k>t}`` of the retention gate, per unit; the residual
    path is the rest, ``M_t`` minus that: everything that goes through a recurrent weight on its
    way. Frobenius norms per example; mean over examples of log10, over those with a nonzero value.
    With a cut ``trainer.backward`` all three are of what the backward pass multiplies by: there
    ``no_h_path`` leaves no residual path, and ``no_c_path`` no forget path.

    Source: Hochreiter & Schmidhuber (1997) and Gers, Schmidhuber & Cummins (2000) take the first
    path for the whole; this measures how far that holds. The division is exact algebra.

    Cost: the Jacobians; two matrix products of half the state's size at each step, O(T E S³) time,
    O(E S²) memory. The residual has a recursion of its own, so that nothing cancels.

    Mask: a step of padding is the identity with a gate of 1, so that M_t ends at each example's own
    last real step.

    Limits: what differs from the gate by less than 8 units of rounding counts as the gate. The
    paths of one example by default (``examples``), so that the spread over examples is not seen.

    How to read it: the share ``R²/(F² + R²)`` of the squared norms, F of the forget path and R of
    the residual one, is what goes through h: 0 where the recurrent weights are 0. Where the forget
    path is the upper curve, the gates tell the memory of the
    network, and a forget product may be read as a horizon. Where the residual path is above it, by
    decades as in an untrained LSTM with a forget bias of 1, the gradient travels through the
    hidden state and the recurrent weights, and the gates alone underestimate it. The whole path is
    the norm of their sum, below both where they cancel. Whether the forget path suffices to learn
    the task is seen by training without the other: ``trainer.backward=no_h_path``.

    Args:
      examples: how many of the examples looked at are used; all if there are fewer.
    """

    research: ClassVar[Mapping[str, Any]] = {"examples": 4}

    examples: int = 1

    def __post_init__(self):
        """Refuse what cannot be for any model."""
        whole_number("probe.measure.forget_path.examples", self.examples, 1)

    def variables(self, setting: Setting) -> dict[str, Variable]:
        """Three variables, and by lag; of a cell with a retention gate only."""
        if setting.retention is None:
            has = (
                f"its gates are {', '.join(setting.gates)}" if setting.gates else "it has no gates"
            )
            raise Unsupported(
                f"{setting.cell} has no retention gate that multiplies its old state ({has}), "
                "so there is no forget path"
            )
        what = f"∂{setting.memory}_T/∂{setting.memory}_t"
        attrs = {"gate": setting.retention}
        found = {
            "forget_path_log10": Variable(
                ("layer", "t"), "log10", f"{what} through the gate {setting.retention} alone", attrs
            ),
            "residual_path_log10": Variable(
                ("layer", "t"), "log10", f"{what} through the recurrent weights", attrs
            ),
            "whole_path_log10": Variable(("layer", "t"), "log10", f"{what}, Frobenius norm", attrs),
        }
        return found | over_lag(found)

    def __call__(self, closeup: Closeup) -> dict[str, jax.Array]:
        """See the class."""
        layers = closeup.first(self.examples)
        norms = over_layers(_paths, layers)._asdict()
        mask = jnp.stack([layer.mask for layer in layers])
        found = [both_means(f"{name}_path_log10", one, mask) for name, one in norms.items()]
        return dict(ChainMap(*found))


def _paths(layer: LayerView) -> Paths:
    assert layer.kept is not None
    return paths(layer.transport, layer.kept, layer.part(layer.memory))
