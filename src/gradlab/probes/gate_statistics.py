"""Where the retention gate stands, and for how long it keeps what it holds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from gradlab.bptt.closeup import Closeup, LayerView
from gradlab.errors import number, whole_number
from gradlab.probes.base import CloseProbe, Setting, Unsupported, over_layers
from gradlab.variable import Variable


@dataclass(frozen=True)
class GateStatistics(CloseProbe):
    """The distribution of the retention gate f, and the time scale 1/(1 - f) of every unit.

    Definition: ``retention_histogram`` is the share of activations, over real steps, examples and
    units, whose log10 f lies in each of ``bins`` equal bins between ``lowest`` and 0; what is below
    ``lowest``, an exact 0 included, counts in the first bin. ``timescale`` is, for each unit,
    ``1 / (1 - mean f)`` with the mean over real steps and examples; inf where f is always 1.

    Source: Tallec & Ollivier (2018) for the time scale 1/(1 - f). Their chrono initialisation draws
    it between 2 and the longest dependency.

    Cost: O(T E H bins) comparisons, fused into one pass; memory O(T E H) for the gate itself.

    Mask: only real steps count; a longer example counts for more.

    Limits: of the few examples looked at. In float32 f is 1 from a pre-activation of about 17 on,
    which counts as keeping for ever. A mean over time hides a gate that switches: a unit
    that keeps half of the time and forgets in the other half has a time scale of 2.

    How to read it: f near 1 (log10 f near 0) keeps; each decade to the left costs the gradient
    along the memory a factor of ten for every step spent there. A second heap far to the left is
    the network resetting its memory. The time scales should span the lags of the task: with none as
    long as the distance to be remembered, the memory path cannot carry it.

    Args:
      lowest: log10 of the activation at which the histogram begins; below 0.
      bins: how many bins; at least 1.
    """

    lowest: float = -2.0
    bins: int = 40

    def __post_init__(self):
        key = "probe.measure.gate_statistics"
        number(f"{key}.lowest", self.lowest, -30, 0, "[)", ", the log10 of an activation")
        whole_number(f"{key}.bins", self.bins, 1, 1000)

    def variables(self, setting: Setting) -> dict[str, Variable]:
        """Two variables over layers."""
        if setting.retention is None:
            others = ", ".join(setting.gates)
            have = f"its gates are {others}" if others else "it has no gates that can be seen"
            raise Unsupported(f"{setting.cell} has no gate that multiplies its old state; {have}")
        gate = {"gate": setting.retention}
        name = f"share of activations of the retention gate {setting.retention}"
        return {
            "retention_histogram": Variable(("layer", "log10_gate"), "1", name, gate),
            "timescale": Variable(
                ("layer", "unit"), "steps", f"time scale 1/(1 - mean {setting.retention})", gate
            ),
        }

    def coords(self, setting: Setting) -> dict[str, list[Any]]:
        """The centres of the bins, and the units."""
        width = -self.lowest / self.bins
        centres = [self.lowest + (index + 0.5) * width for index in range(self.bins)]
        return {"log10_gate": centres, "unit": list(range(setting.hidden))}

    def __call__(self, closeup: Closeup) -> dict[str, jax.Array]:
        """See the class."""
        return {
            "retention_histogram": over_layers(self._shares, closeup.layers),
            "timescale": over_layers(timescale, closeup.layers),
        }

    def _shares(self, layer: LayerView) -> jax.Array:
        """One layer's histogram, ``(bins,)``."""
        gate, real = _gate(layer), layer.mask[..., None]
        position = (jnp.log10(gate) - self.lowest) * (self.bins / -self.lowest)
        index = jnp.clip(jnp.floor(position), 0, self.bins - 1).astype(jnp.int32)
        bins = jnp.arange(self.bins, dtype=index.dtype)
        inside = index[..., None] == bins.reshape(1, 1, 1, -1)
        counts = jnp.sum(inside & real[..., None], axis=(0, 1, 2)).astype(gate.dtype)
        return counts / (jnp.sum(real) * gate.shape[-1]).astype(gate.dtype)


def timescale(layer: LayerView) -> jax.Array:
    """The time scale of each unit, ``(H,)``."""
    # 1 - f is exact near 1, where the mean of f itself would round it away.
    lost = jnp.where(layer.mask[..., None], 1 - _gate(layer), 0)
    return jnp.sum(layer.mask).astype(lost.dtype) / jnp.sum(lost, axis=(0, 1))


def _gate(layer: LayerView) -> jax.Array:
    gate = layer.retention
    assert gate is not None
    return gate
