"""What a W&B report of runs shows: sections of panels as plain data, by W&B's keys."""

from __future__ import annotations

import math
import re
import shlex
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np

from gradlab.compare.recorded import CURVES, SERIES, Recorded
from gradlab.compare.report.uploads import Upload, upload_of
from gradlab.compare.runs import SEED, Entry, part, settings_that_differ
from gradlab.compare.table import HEADINGS
from gradlab.errors import BadInput
from gradlab.record.heatmap import spread
from gradlab.record.keys import key_for_wandb, labels, stem
from gradlab.record.private import scrub_text

MODEL = "facts.model"
"""Where the configuration of a W&B run has the model's name.

``model`` itself may hold an option's name: a parameter of a W&B sweep goes over it.
"""
MOST_KEYS = 3
"""Most settings that runs are grouped by."""
MOST_LAYERS, MOST_LAGS, MOST_COMMANDS = 4, 5, 40
_SAMPLED_STEPS = 16
"""Training steps that are looked at for whether a curve has any value at a lag."""


class Headline(Protocol):
    """What was found, in words. They are data: nothing in them is markup."""

    @property
    def title(self) -> str:
        """One line."""
        ...

    @property
    def lines(self) -> Sequence[str]:
        """More of them."""
        ...


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


@dataclass(frozen=True)
class Content:
    """All that the report and the workspace show.

    Attributes:
      title, lines: the headline.
      project: that the runs are in.
      ids: of W&B's runs; no others are shown.
      grouping: places in the configuration by which runs are grouped.
      columns: of the table of runs.
      sections: none is empty.
      commands: that made the runs.
      notes: what is not there, and why.
      uploads: commands that upload runs which W&B's server may not have.
    """

    title: str
    lines: tuple[str, ...]
    project: str
    ids: tuple[str, ...]
    grouping: tuple[str, ...]
    columns: tuple[Column, ...]
    sections: tuple[Section, ...]
    commands: tuple[str, ...]
    notes: tuple[str, ...]
    uploads: tuple[str, ...]


def content(runs: Sequence[Recorded], headline: Headline, project: str | None = None) -> Content:
    """What to show of ``runs``: only what at least one of them recorded.

    Args:
      runs: any; those that W&B cannot have are left out, and a note says so.
      headline: what was found.
      project: of W&B; that of the runs by default.

    Raises:
      BadInput: no run is in W&B, or they are in several projects and none is given.
    """
    uploads = [upload_of(run.entry) for run in runs]
    known = [run for run, upload in zip(runs, uploads, strict=True) if upload.id]
    if not known:
        reasons = "; ".join(dict.fromkeys(upload.why_not for upload in uploads)) or "no runs"
        raise BadInput("--wandb", reasons, "runs that were recorded to W&B, offline or online")
    projects = sorted({upload.project for upload in uploads if upload.id})
    if project is None and len(projects) > 1:
        hint = "compare the runs of one project at a time"
        raise BadInput("--wandb", projects, "runs of one W&B project", hint)
    seen = _Seen(known)
    settings, unplaced = _settings([run.entry for run in known])
    grouping = tuple(settings[:MOST_KEYS]) or (MODEL,)
    sections = [
        _travels(seen),
        _series(seen),
        _training(seen),
        _final(seen),
        _pictures(seen),
        _apart(seen, settings),
    ]
    columns = [Column("config", place) for place in settings or (MODEL,)]
    columns += [Column("summary", key) for _, key in seen.figures]
    return Content(
        clean(headline.title),
        tuple(map(clean, headline.lines)),
        project or projects[0],
        tuple(dict.fromkeys(upload.id for upload in uploads if upload.id)),
        grouping,
        tuple(columns),
        tuple(section for section in sections if section.panels),
        _commands([run.entry for run in known]),
        tuple(_notes(runs, uploads, seen, settings, unplaced)),
        tuple(upload.command for upload in uploads if upload.command),
    )


def clean(text: str) -> str:
    """One line of printable characters, without anything private."""
    return " ".join(_printable(text).split())


def _printable(text: str) -> str:
    """Line breaks, control characters and what is no whole character are spaces."""
    return scrub_text("".join(char if char.isprintable() else " " for char in text))


class _Seen:
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


# --- sections -------------------------------------------------------------------------------------


def _travels(seen: _Seen) -> Section:
    panels = []
    for name, words in CURVES.items():
        for layer, label in seen.layers.items():
            lags = sorted(seen.lags[name][layer])
            if not lags:
                continue
            shown = [lags[index] for index in spread(len(lags), MOST_LAGS)]
            keys = tuple(f"{stem(name)}/{label}/lag_{lag:05d}" for lag in shown)
            title = f"{words} at lags {', '.join(map(str, shown))}{seen.several(layer)}"
            panels.append(Lines(title, keys, "log10 of the norm"))
            if name == "adj_h_log10":
                counts = seen.lags[name][layer]
                far = max(lag for lag in counts if counts[lag] == max(counts.values()))
                key = f"{stem(name)}/{label}/lag_{far:05d}"
                title = f"{words} at lag {far}{seen.several(layer)}"
                panels.append(Lines(title, (key,), "log10 of the norm"))
    words = (
        "Norms as log10, at lags that are powers of two, over training. Where the lines of one "
        "group lie far apart, the gradient vanishes or explodes on its way back; where they lie "
        "together, it arrives. A line is the mean of a group's runs, its band their lowest and "
        "highest."
    )
    return Section("How the gradient travels back in time", words, tuple(panels))


def _series(seen: _Seen) -> Section:
    panels = []
    for name, words in SERIES.items():
        if not seen.counts[name]:
            continue
        last = "/index_0" if name == "lyapunov_exponent" else ""
        there = {layer for run in seen.runs if run.series(name) is not None for layer in run.layers}
        keys = tuple(
            f"{name}/{label}{last}" for layer, label in seen.layers.items() if layer in there
        )
        panels.append(Lines(words, keys, words))
    words = (
        "Slope: nats per step back; below 0 the gradient vanishes. Horizon: the lag at which it "
        "has fallen by e. λ₁: the largest Lyapunov exponent; above 0 chaos."
    )
    return Section("Slope, horizon, exponent", words, tuple(panels))


def _training(seen: _Seen) -> Section:
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


def _final(seen: _Seen) -> Section:
    panels: list[Panel] = [
        Bars(_heading(name), key) for name, key in seen.figures if name != "steps_per_second"
    ]
    keys = dict(seen.figures)
    best: dict[str, Literal["min", "max"]] = {"test/loss": "min", "test/accuracy": "max"}
    for name, rule in best.items():
        if name in keys:
            word = "lowest" if rule == "min" else "highest"
            panels.append(Best(f"{word} {name} of all runs", keys[name], rule))
    loss = next((name for name in ("test/loss", "val/loss", "train/loss") if name in keys), None)
    if loss and "memory_horizon" in keys:
        title = f"{loss} against the memory horizon (steps)"
        panels.append(Scatter(title, keys["memory_horizon"], keys[loss]))
    words = (
        "Final figures. Bars are means of a group's runs with their lowest and highest; runs that "
        "diverged count where they have a figure. Test figures are of the parameters best in "
        "validation."
    )
    return Section("Final figures", words, tuple(panels))


def _heading(name: str) -> str:
    return " ".join(HEADINGS[name].split())


def _pictures(seen: _Seen) -> Section:
    panels: list[Panel] = []
    curves = [name for name in CURVES if seen.pictured[name]]
    for name in curves:
        keys = tuple(
            f"heatmap/{stem(name)}/{label}"
            for layer, label in seen.layers.items()
            if layer in seen.pictured[name]
        )
        panels.append(Images(f"{CURVES[name]}: timestep (up) over training step", keys))
    if curves:
        charts = dict.fromkeys(_chart_of(run.entry) for run in seen.ended)
        panels += [Chart("vanishing_table", chart) for chart in charts if chart]
        panels += [Table("vanishing")] if None in charts else []
    figures = sorted({png.stem for run in seen.ended for png in _pngs(run.entry)})
    panels += [Images(f"figures: {name}", (f"figures/{name}",)) for name in figures]
    words = (
        "What each run logged at its end. Heatmaps: log10 as colour, each picture with a scale of "
        "its own in its caption. The table vanishing holds whole curves over lag, at up to 60 lags."
    )
    return Section("Heatmaps, curves over lag, figures", words, tuple(panels))


def _chart_of(run: Entry) -> str | None:
    chart = part(part(run.config, "record"), "wandb").get("chart")
    return chart if isinstance(chart, str) and re.fullmatch(r"[\w.-]+/[\w.-]+", chart) else None


def _pngs(run: Entry) -> list[Any]:
    found = (run.path / "figures").glob("*.png")
    return [png for png in found if re.fullmatch(r"[\w-]+", png.stem)]


def _apart(seen: _Seen, settings: Sequence[str]) -> Section:
    panels: list[Panel] = []
    figures = [key for name, key in seen.figures if name != "steps_per_second"]
    if settings and figures:
        columns = [Column("config", place) for place in settings]
        columns += [Column("summary", key) for key in figures]
        title = "settings that differ, and what came of them"
        panels.append(Parallel(title, tuple(columns)))
    if len(seen.runs) > 1:
        panels.append(Differences())
    words = "A line through the axes is a run; below, all that differs between the runs."
    return Section("By what the runs differ", words, tuple(panels))


# --- settings -------------------------------------------------------------------------------------


def _settings(runs: Sequence[Entry]) -> tuple[list[str], list[str]]:
    """Places in W&B's configuration of the settings that differ, the seed left out.

    Returns:
      The places, and the settings that have none.
    """
    places, unplaced = {}, []
    for key in settings_that_differ(runs):
        if key == SEED:
            continue
        place = _place(key, runs)
        if place is None:
            unplaced.append(key)
        else:
            places[place] = key
    return list(places), unplaced


def _place(key: str, runs: Sequence[Entry]) -> str | None:
    """Where the configuration of W&B's runs has ``key``, if it is one value there, not a section.

    A group such as ``optimizer`` is told by what it brings: the name of its class.
    """
    ways = (f"facts.{key}", key, f"{key}._target_", f"{key}.rule._target_", f"{key}.preset")
    for place in ways:
        values = [_at(run, place) for run in runs]
        if any(isinstance(value, Mapping | list) for value in values):
            continue
        if len(set(values)) > 1:
            return place
    return None


def _at(run: Entry, place: str) -> Any:
    node: Any = {**run.config, "facts": part(run.info, "facts")}
    for name in place.split("."):
        node = node.get(name) if isinstance(node, Mapping) else None
    return node


# --- words ----------------------------------------------------------------------------------------


def _commands(runs: Sequence[Entry]) -> tuple[str, ...]:
    lines = list(
        dict.fromkeys(
            _printable(f"python -m gradlab {shlex.join(run.overrides)}").strip() for run in runs
        )
    )
    more = len(lines) - MOST_COMMANDS
    return (*lines[:MOST_COMMANDS], *([f"# and {more} more"] if more > 0 else []))


def _notes(
    runs: Sequence[Recorded],
    uploads: Sequence[Upload],
    seen: _Seen,
    settings: Sequence[str],
    unplaced: Sequence[str],
) -> Iterable[str]:
    total = len(seen.runs)
    words = CURVES | SERIES
    nowhere = [said for name, said in words.items() if not seen.counts[name]]
    if nowhere:
        yield f"Recorded by none of the runs, so without a panel: {', '.join(nowhere)}."
    partly = [
        f"{said} ({seen.counts[name]} of {total})"
        for name, said in words.items()
        if 0 < seen.counts[name] < total
    ]
    if partly:
        yield f"Recorded by some of the runs: {', '.join(partly)}."
    if len(seen.all_layers) > MOST_LAYERS:
        yield f"Of {len(seen.all_layers)} layers the first {MOST_LAYERS} are shown."
    if len(settings) > MOST_KEYS:
        yield f"Of {len(settings)} settings that differ, {MOST_KEYS} make the groups."
    if unplaced:
        named = ", ".join(map(clean, unplaced))
        yield f"Differ, but are no single value in W&B's configuration: {named}."
    for run, upload in zip(runs, uploads, strict=True):
        if not upload.id:
            yield clean(f"Run {run.entry.name} is not shown: {upload.why_not}.")
    for run in seen.runs:
        if run.damage:
            yield clean(f"Run {run.entry.name} is damaged: {run.damage}.")
    running = len(seen.runs) - len(seen.ended)
    if running:
        yield f"Without heatmaps, figures and tables, which come at a run's end: {running} of {total}."
