"""What at least one of several runs recorded, under the keys that W&B has it by."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

from gradlab.compare.recorded import CURVES, SERIES, Recorded
from gradlab.compare.table import HEADINGS
from gradlab.record.keys import key_for_wandb, labels

MOST_LAYERS = 4
_SAMPLED_STEPS = 16
"""Training steps that are looked at for whether a curve has any value at a lag."""


class Seen:
    """What at least one of the runs recorded.

    Attributes:
      layers: the label of each that is shown, by its name.
      lags: by variable and layer: lags that have a key in W&B, and how many runs have a value.
      counts: how many runs recorded each variable.
      ended: the runs that logged what comes at the end.
      pictured: by variable: layers of which any of these has a value.
      figures: name and key of each final figure that is a number in some run.
    """

    def __init__(self, runs: Sequence[Recorded]):
        self.runs = runs
        self.ended = [run for run in runs if run.entry.info.get("ended")]
        self.all_layers = list(dict.fromkeys(layer for run in runs for layer in run.layers))
        shown = self.all_layers[:MOST_LAYERS]
        self.layers = dict(zip(shown, labels("layer", shown), strict=True))
        self.lags = {name: {layer: Counter[int]() for layer in shown} for name in CURVES}
        self.pictured = {name: set[str]() for name in CURVES}
        self.counts = Counter[str]()
        for run in runs:
            self.counts.update(name for name in SERIES if run.series(name) is not None)
            for name in CURVES:
                self._look_at(run, name)
        self.figures = list(self._figures())

    def several(self, layer: str) -> str:
        """``, layer 0``, where there is more than one."""
        return f", layer {layer}" if len(self.all_layers) > 1 else ""

    def _look_at(self, run: Recorded, name: str) -> None:
        curve = run.curve(name, _SAMPLED_STEPS)
        if curve is None:
            return
        self.counts[name] += 1
        for index, layer in enumerate(run.layers):
            there = np.isfinite(curve.values[:, index]).any(0)
            if layer in self.layers and there.any():
                lags = curve.lags[there].tolist()
                powers = (lag for lag in lags if lag and lag & (lag - 1) == 0)
                self.lags[name][layer].update(powers)
                if run.entry.info.get("ended"):
                    self.pictured[name].add(layer)

    def _figures(self) -> Iterable[tuple[str, str]]:
        for name in HEADINGS:
            for run in self.runs:
                if math.isfinite(run.entry.figure(name)):
                    yield name, key_for_wandb(run.entry.key_of(name) or name)
                    break
