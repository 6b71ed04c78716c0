"""What the standard step probes make of the gates of one layer."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from gradlab import probes
from gradlab.bptt.passes import Trace, wide
from gradlab.cells import stock
from gradlab.probes.base import Seen, Setting, StepProbe
from gradlab.probes.setting import supported

OF_GATES: dict[str, StepProbe] = {
    "forget_product": probes.ForgetProduct(),
    "gate_saturation": probes.GateSaturation(),
}
"""The standard step probes of gates."""


def measured_gates(
    cell: nnx.RNNCellBase, trace: Trace, mask: jax.Array, examples: int | None = None
) -> dict[str, jax.Array]:
    """Their variables, each without its axis of layers; none where no gate can be seen.

    Args:
      cell: of the layer.
      trace: what it went through.
      mask: ``(T, B)`` bool.
      examples: of how many examples, the first; None: of all. The gates are computed again from
        the states, which costs more than the rest of what is seen.
    """
    view = stock.gate_view(cell)
    if not view.names:
        return {}
    went = lax.stop_gradient((trace.before, trace.inputs, mask))
    before, inputs, mask = jax.tree.map(lambda leaf: leaf[:, :examples], went)
    graph, state = nnx.split(cell)
    own = nnx.merge(graph, lax.stop_gradient(state), copy=True)
    found: Any = stock.gates(own, before, inputs)
    gates = {name: wide(getattr(found, name))[None] for name in view.names}
    retention = gates.get(view.retention or "")
    seen = Seen({}, mask[None], gates, retention, {}, {}, {}, {})
    setting = Setting(type(cell).__name__, (), view.names, view.retention)
    usable, _ = supported(OF_GATES, setting, by_preset=True)
    measured: dict[str, Any] = {}
    for name in usable:
        measured |= {key: value[0] for key, value in OF_GATES[name](seen).items()}
    return jax.tree.map(lambda leaf: leaf.astype(jnp.float32), measured)
