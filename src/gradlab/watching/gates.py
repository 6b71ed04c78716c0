"""What the standard step probes make of the gates of one layer."""

from __future__ import annotations

from typing import Any

import jax
from flax import nnx
from jax import lax

from gradlab import probes
from gradlab.bptt.folding import Folding, Folds, Tap
from gradlab.bptt.form import Form, Step
from gradlab.bptt.parts import Parts
from gradlab.bptt.passes import Trace, wide
from gradlab.cells import stock
from gradlab.probes.base import GateProbe, Seen, Setting, stacked
from gradlab.probes.setting import supported

OF_GATES: dict[str, GateProbe] = {
    "forget_product": probes.ForgetProduct(),
    "gate_saturation": probes.GateSaturation(),
}
"""The standard step probes of gates."""


def usable(cell: nnx.RNNCellBase) -> tuple[GateProbe, ...]:
    """Those that can measure a cell; none where no gate can be seen."""
    view = stock.gate_view(cell)
    setting = Setting(type(cell).__name__, (), view.names, view.retention)
    return tuple(OF_GATES[name] for name in supported(OF_GATES, setting, by_preset=True)[0])


def gate_tap(cell: nnx.RNNCellBase, form: Form, trace: Trace, examples: int | None) -> Tap:
    """A tap for the backward pass of a layer, which has the gates at hand.

    Args:
      cell: of the layer.
      form: of the cell.
      trace: what it went through.
      examples: of how many examples, the first; None: of all.
    """
    before, x = jax.tree.map(lambda leaf: leaf[0], (trace.before, trace.inputs))
    folding = Folding(Folds(usable(cell), examples), Step(Parts.of(cell), form))
    return folding.tap(before, x, trace.inputs.shape[0])


def measured_folds(tap: Tap, mask: jax.Array) -> dict[str, jax.Array]:
    """Their variables, each without its axis of layers, from the results of a backward pass.

    Args:
      tap: with the results.
      mask: ``(T, B)`` bool.
    """
    mask, measured = mask[None, :, : tap.folds.examples], {}
    for probe, folded in zip(tap.folds.each, tap.folded, strict=True):
        assert isinstance(probe, GateProbe)
        measured |= probe.measure(stacked([folded]), mask)
    return {name: values[0] for name, values in measured.items()}


def measured_gates(
    cell: nnx.RNNCellBase, trace: Trace, mask: jax.Array, examples: int | None = None
) -> dict[str, jax.Array]:
    """The same from gates that are computed again, where there is no backward pass.

    Args:
      cell: of the layer.
      trace: what it went through.
      mask: ``(T, B)`` bool.
      examples: of how many examples, the first; None: of all.
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
    seen = Seen({}, mask[None], gates, gates.get(view.retention or ""), {}, {}, {}, {})
    measured: dict[str, Any] = {}
    for probe in usable(cell):
        measured |= {key: value[0] for key, value in probe(seen).items()}
    return measured
