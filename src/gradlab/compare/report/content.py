"""What a W&B report of runs shows, as plain data that names W&B's runs, keys and settings."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from gradlab.compare.headline import Headline
from gradlab.compare.recorded import CURVES, SERIES, Recorded
from gradlab.compare.report.sections import MOST_LAYERS, Column, Section, Seen, sections
from gradlab.compare.report.uploads import MODEL, Upload, places, upload_of
from gradlab.compare.runs import Entry
from gradlab.errors import BadInput
from gradlab.record.private import scrub_text

MOST_KEYS = 3
"""Most settings that runs are grouped by."""
MOST_COMMANDS = 40


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
      headline: the answer in words. They are data: nothing in them is markup.
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
    seen = Seen(known)
    settings, unplaced = places([run.entry for run in known])
    grouping = tuple(settings[:MOST_KEYS]) or (MODEL,)
    columns = [Column("config", place) for place in settings or (MODEL,)]
    columns += [Column("summary", key) for key in seen.figures.values()]
    return Content(
        clean(headline.title),
        tuple(map(clean, headline.lines)),
        project or projects[0],
        tuple(dict.fromkeys(upload.id for upload in uploads if upload.id)),
        grouping,
        tuple(columns),
        tuple(sections(seen, settings)),
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


def _commands(runs: Sequence[Entry]) -> tuple[str, ...]:
    lines = list(dict.fromkeys(_printable(run.command) for run in runs))
    more = len(lines) - MOST_COMMANDS
    return (*lines[:MOST_COMMANDS], *([f"# and {more} more"] if more > 0 else []))


def _notes(
    runs: Sequence[Recorded],
    uploads: Sequence[Upload],
    seen: Seen,
    settings: Sequence[str],
    unplaced: Sequence[str],
) -> Iterable[str]:
    total = len(seen.runs)
    words = CURVES | SERIES
    if nowhere := [said for name, said in words.items() if not seen.counts[name]]:
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
    if running := total - len(seen.ended):
        last = "heatmaps, figures and tables, which come at a run's end"
        yield f"Without {last}: {running} of {total}."
