"""The panels of a report as plain data, by W&B's keys."""

from __future__ import annotations

from typing import Literal, NamedTuple


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
