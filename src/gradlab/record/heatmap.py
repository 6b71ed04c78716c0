"""The curves of a run kept for its end, and a picture of them: the lag over training step."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from gradlab.record.base import Description, Row, Variable
from gradlab.record.keys import curves_of, labels, spread, stem
from gradlab.record.lags import values_by_lag

MOST_COLUMNS = 400
"""Most columns of a heatmap, but for the last training step."""
_MOST_LAGS = 512
_PIXELS = 600


class Curves(NamedTuple):
    """One variable over the lag in one layer, as training went on.

    Attributes:
      key: e.g. ``"adj_h/layer_0"``.
      name: the variable's, e.g. ``"adj_h_log10"``.
      variable: what it is.
      steps: training steps ``(n,)``.
      values: ``(n, T)``, float32, by ascending lag.
    """

    key: str
    name: str
    variable: Variable
    steps: np.ndarray
    values: np.ndarray


class Histories:
    """The curves over ``layer`` and lag of a run, at no more than ``capacity`` training steps.

    Iterating gives one :class:`Curves` for each variable and layer that was measured.
    """

    def __init__(self, description: Description, capacity: int = MOST_COLUMNS):
        self._capacity = capacity
        self._histories: dict[str, History] = {}
        self.extend(description)

    def extend(self, description: Description) -> None:
        """Keep further variables from here on."""
        self._layers = labels("layer", description.coords.get("layer", []))
        self._variables = curves_of(description.variables)
        for name in self._variables.keys() - self._histories.keys():
            self._histories[name] = History(self._capacity)

    def add(self, row: Row) -> None:
        """Take the curves of the next row."""
        for name in self._variables.keys() & row.arrays.keys():
            self._histories[name].add(row.step, values_by_lag(row.arrays, name))

    def __iter__(self) -> Iterator[Curves]:
        for name, variable in self._variables.items():
            steps, values = self._histories[name].all()
            for index, layer in enumerate(self._layers if len(steps) else []):
                yield Curves(f"{stem(name)}/{layer}", name, variable, steps, values[:, index])


class History:
    """At most ``capacity`` evenly spaced rows of a sequence of unknown length, and its last.

    Only what is kept is copied, in float32: most rows of a long run are not.
    """

    def __init__(self, capacity: int = MOST_COLUMNS):
        self.capacity, self.stride, self.seen = capacity, 1, 0
        self.kept: list[tuple[int, np.ndarray]] = []
        self.last: tuple[int, np.ndarray] | None = None

    def add(self, step: int, array: np.ndarray) -> None:
        """Take the next row."""
        if self.seen % self.stride == 0:
            self.kept.append((step, np.array(array, np.float32)))
        if len(self.kept) > self.capacity:
            self.kept, self.stride = self.kept[::2], self.stride * 2
        self.seen, self.last = self.seen + 1, (step, array)

    def all(self) -> tuple[np.ndarray, np.ndarray]:
        """The kept steps ``(n,)`` and their arrays ``(n, ...)``, the last one included."""
        rows = list(self.kept)
        if self.last is not None and rows[-1][0] != self.last[0]:
            rows.append(self.last)
        steps, arrays = [step for step, _ in rows], [array for _, array in rows]
        return np.array(steps), np.array(arrays, np.float32)


def heatmap(curves: Curves) -> tuple[np.ndarray, str]:
    """The curves as colours ``(height, width, 3)``, uint8, and a caption: how to read them."""
    from gradlab.record.figures import colour_limits, heat_colours

    steps, variable = curves.steps, curves.variable
    values = curves.values[:, spread(curves.values.shape[1], _MOST_LAGS)].T
    low, high = colour_limits(values)
    scaled = np.ma.masked_invalid((values - low) / (high - low))
    scaled = np.ma.where(np.isneginf(values), -1.0, scaled)
    colours = heat_colours()(scaled, bytes=True)[..., :3]
    tall, wide = (max(1, _PIXELS // n) for n in values.shape)
    log10 = variable.units == "log10"  # all but shares
    caption = (
        f"{variable.long_name}{', log10' if log10 else ''}: "
        f"dark {low:.3g}, bright {high + 0.0:.3g}{', black exactly zero' if log10 else ''}. "
        f"Across: training step {steps[0]} to {steps[-1]}. "
        "Down: the lag, from the end of the sequence (top) back to its start (bottom)."
    )
    return np.repeat(np.repeat(colours, tall, 0), wide, 1), caption
