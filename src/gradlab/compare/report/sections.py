"""Which panels a report has, section by section: only those that have something to show.

Panels are plain data here, by the keys that W&B has things by.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

from gradlab.compare.recorded import ADJOINT, CURVES, LOST, SERIES, Recorded
from gradlab.compare.runs import Entry, part
from gradlab.compare.table import HEADINGS, heading
from gradlab.record.heatmap import spread
from gradlab.record.keys import key_for_wandb, labels, stem

MOST_LAGS = 5
MOST_LAYERS = 4
_SAMPLED_STEPS = 16
"""Training steps that are looked at for whether a curve has any value at a lag."""


class Lines(NamedTuple):
    """Keys over training step; ``label`` is the y axis'."""

    title: str
    keys: tuple[str, ...]
    label: str


class Bars(NamedTuple):
    """A final figure, a bar a group."""

    title: str
    key: str


class Best(NamedTuple):
    """The lowest or highest final figure of all runs, as a number."""

    title: str
    key: str
    rule: Literal["min", "max"]


class Scatter(NamedTuple):
    """Two final figures, a point a run."""

    title: str
    x: str
    y: str


class Column(NamedTuple):
    """A setting (by its place in the configuration) or a final figure (by its key)."""

    kind: Literal["config", "summary"]
    name: str


class Parallel(NamedTuple):
    """A line a run through its settings and figures."""

    title: str
    columns: tuple[Column, ...]


class Images(NamedTuple):
    """Pictures that the runs logged."""

    title: str
    keys: tuple[str, ...]


class Table(NamedTuple):
    """A table that the runs logged."""

    key: str


class Chart(NamedTuple):
    """The same drawn by the custom chart ``name``."""

    key: str
    name: str


class Differences(NamedTuple):
    """Settings and figures of the runs side by side, those that differ."""


Panel = Lines | Bars | Best | Scatter | Parallel | Images | Table | Chart | Differences


class Section(NamedTuple):
    """Panels under a heading, and how to read them."""

    name: str
    words: str
    panels: tuple[Panel, ...]


class Seen:
    """What at least one of the runs recorded.

    Attributes:
      layers: the label of each that is shown, by its name.
      lags: by variable and layer: lags that have a key in W&B, and how many runs have a value.
      counts: how many runs recorded each variable.
      ended: the runs that logged what comes at the end.
      pictured: by variable: layers of which any of these has a value.
      figures: the key of each final figure that is a number in some run, by name.
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
            self.counts.update(
                name for name in SERIES if name in run.names and run.series(name) is not None
            )
            for name in CURVES:
                self._look_at(run, name)
        self.figures = {
            name: key_for_wandb(run.entry.key_of(name) or name)
            for name in HEADINGS
            for run in reversed(runs)  # the first of them has the last word
            if math.isfinite(run.entry.figure(name))
        }

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


def sections(seen: Seen, settings: Sequence[str]) -> list[Section]:
    """Those that are not empty.

    Args:
      seen: what there is.
      settings: places in W&B's configuration of the settings that differ.
    """
    found = [
        _travels(seen),
        _series(seen),
        _training(seen),
        _final(seen),
        _pictures(seen),
        _apart(seen, settings),
    ]
    return [section for section in found if section.panels]


def _travels(seen: Seen) -> Section:
    panels = []
    for name, words in CURVES.items():
        for layer, label in seen.layers.items():
            counts = seen.lags[name][layer]
            if not counts:
                continue
            chosen = {"lags": [sorted(counts)[place] for place in spread(len(counts), MOST_LAGS)]}
            if name == ADJOINT:
                most = max(counts.values())
                chosen["lag"] = [max(lag for lag in counts if counts[lag] == most)]
            for word, lags in chosen.items():
                keys = tuple(f"{stem(name)}/{label}/lag_{lag:05d}" for lag in lags)
                title = f"{words} at {word} {', '.join(map(str, lags))}{seen.several(layer)}"
                panels.append(Lines(title, keys, "log10"))
    words = (
        "Norms as log10, at lags that are powers of two, over training. Where the lines of one "
        "group lie far apart, the gradient vanishes or explodes on its way back; where they lie "
        "together, it arrives. A line is the mean of a group's runs, its band their lowest and "
        "highest. A typical unit of the forget product is no norm: a norm is carried by the unit "
        "that forgets least."
    )
    return Section("How the gradient travels back in time", words, tuple(panels))


def _series(seen: Seen) -> Section:
    panels = []
    for name, words in SERIES.items():
        last = "/index_0" if name == "lyapunov_exponent" else ""
        there = set[str]().union(*(_finite_layers(run, name) for run in seen.runs))
        keys = [f"{name}/{label}{last}" for layer, label in seen.layers.items() if layer in there]
        if keys:
            panels.append(Lines(words, tuple(keys), words))
    words = (
        "Decades: powers of ten that the gradient has lost from lag 0 to the longest, and per 100 "
        "steps by the straight line over the lag, whose R² says whether there is one. Slope: that "
        "of the line, in nats per step; below 0 the gradient vanishes. Horizon: the lag at which "
        "it has first fallen by e. λ₁: the largest Lyapunov exponent; above 0 small changes of the "
        "state grow, as in chaos, but also beside an unstable fixed point."
    )
    return Section("Decades, slope, horizon, exponent", words, tuple(panels))


def _finite_layers(run: Recorded, name: str) -> set[str]:
    found = run.series(name) if name in run.names else None  # W&B has what was recorded
    if found is None:
        return set()
    each = zip(run.layers, found.values.T, strict=False)
    return {layer for layer, values in each if np.isfinite(values).any()}


def _training(seen: Seen) -> Section:
    names = dict.fromkeys(name for run in seen.runs for name in run.scalars)
    panels = [
        Lines(name, (key_for_wandb(name),), name)
        for ending in ("/loss", "/accuracy")
        for name in names
        if name.endswith(ending) and any(_finite(run, name) for run in seen.runs)
    ]
    words = "Means of each group's runs over training, with their lowest and highest."
    return Section("Training", words, tuple(panels))


def _finite(run: Recorded, name: str) -> bool:
    found = run.series(name)
    return found is not None and bool(np.isfinite(found.values).any())


def _final(seen: Seen) -> Section:
    panels: list[Panel] = [
        Bars(heading(name), key) for name, key in seen.figures.items() if name != "steps_per_second"
    ]
    keys = seen.figures
    best: dict[str, Literal["min", "max"]] = {"test/loss": "min", "test/accuracy": "max"}
    for name, rule in best.items():
        if name in keys:
            word = "lowest" if rule == "min" else "highest"
            panels.append(Best(f"{word} {name} of all runs", keys[name], rule))
    loss = next((name for name in ("test/loss", "val/loss", "train/loss") if name in keys), None)
    if loss and LOST in keys:
        panels.append(Scatter(f"{loss} against the decades lost", keys[LOST], keys[loss]))
    words = (
        "Final figures. Bars are means of a group's runs with their lowest and highest; runs that "
        "diverged count where they have a figure. Losses and accuracies are of the parameters best "
        "in validation, the gradient's figures of the last row."
    )
    return Section("Final figures", words, tuple(panels))


def _pictures(seen: Seen) -> Section:
    panels: list[Panel] = []
    curves = [name for name in CURVES if seen.pictured[name]]
    for name in curves:
        keys = tuple(
            f"heatmap/{stem(name)}/{label}"
            for layer, label in seen.layers.items()
            if layer in seen.pictured[name]
        )
        panels.append(Images(f"{CURVES[name]}: lag over training step", keys))
    if curves:
        charts = dict.fromkeys(_chart_of(run.entry) for run in seen.ended)
        panels += [Chart("vanishing_table", chart) for chart in charts if chart]
        panels += [Table("vanishing")] if None in charts else []
    pngs = (png for run in seen.ended for png in (run.entry.path / "figures").glob("*.png"))
    figures = sorted({png.stem for png in pngs if re.fullmatch(r"[\w-]+", png.stem)})
    panels += [Images(f"figures: {name}", (f"figures/{name}",)) for name in figures]
    words = (
        "What each run logged at its end. Heatmaps: log10 as colour, each picture with a scale of "
        "its own in its caption. The table vanishing holds whole curves over lag, at up to 60 lags."
    )
    return Section("Heatmaps, curves over lag, figures", words, tuple(panels))


def _chart_of(run: Entry) -> str | None:
    chart = part(part(run.config, "record"), "wandb").get("chart")
    return chart if isinstance(chart, str) and re.fullmatch(r"[\w.-]+/[\w.-]+", chart) else None


def _apart(seen: Seen, settings: Sequence[str]) -> Section:
    panels: list[Panel] = []
    figures = [key for name, key in seen.figures.items() if name != "steps_per_second"]
    if settings and figures:
        columns = [Column("config", place) for place in settings]
        columns += [Column("summary", key) for key in figures]
        title = "settings that differ, and what came of them"
        panels.append(Parallel(title, tuple(columns)))
    if len(seen.runs) > 1:
        panels.append(Differences())
    words = "A line through the axes is a run; below, all that differs between the runs."
    return Section("By what the runs differ", words, tuple(panels))
