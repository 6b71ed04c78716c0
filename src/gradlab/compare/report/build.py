"""The contents of a report as W&B's own objects: a Report, and a Workspace with the same panels."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from gradlab.compare.report import sections as of
from gradlab.compare.report.content import Content
from gradlab.compare.report.library import reports, workspaces
from gradlab.record.wandb.charts import VANISHING

STEP = "train_step"
WIDTH, HEIGHT, ACROSS = 12, 8, 2
"""Of a panel in a report, whose grid has 24 columns, and how many stand side by side."""
TITLE = 128
"""Most characters of a report's title; W&B's limit."""
MOST_LINES = 100
"""Most runs, or groups of them, in a chart; W&B shows 10 by default."""
RUNSET = "these runs"
MADE, MISSING = "How the runs were made", "What is not here"


def report(content: Content, entity: str) -> Any:
    """A ``wandb_workspaces.reports.v2.Report``; nothing is sent."""
    wr, count = reports(), len(content.ids)
    blocks: list[Any]
    title, blocks = content.title, [wr.P(line) for line in content.lines]
    if len(title) > TITLE:
        title, blocks = f"{title[: TITLE - 1]}…", [wr.P(title), *blocks]
    for index, section in enumerate(content.sections):
        grid = wr.PanelGrid(
            runsets=[_runset(content, section.name)],
            panels=list(_panels(section.panels, content, section.name)),
            hide_run_sets=index > 0,
        )
        blocks += [wr.H2(section.name), wr.P(section.words), grid]
    blocks += [wr.H2(MADE), wr.CodeBlock("\n".join(content.commands), language="python")]
    if content.notes:
        blocks += [wr.H2(MISSING), wr.UnorderedList(list(content.notes))]
    return wr.Report(
        project=content.project,
        entity=entity,
        title=title or "gradlab",
        description=f"{count} run{'s' if count > 1 else ''} compared by gradlab",
        blocks=blocks,
        width="fluid",
    )


def workspace(content: Content, entity: str) -> Any:
    """A ``wandb_workspaces.workspaces.Workspace``; nothing is sent."""
    wr, ws = reports(), workspaces()

    def section(name: str, text: str, panels: Iterable[Any] = ()) -> Any:
        """Panels after the words on them."""
        words = wr.MarkdownPanel(text)
        words._id = _id("workspace", name, text)
        every = [words, *panels]
        rows = -(-len(every) // ACROSS)
        layout = ws.SectionLayoutSettings(columns=min(len(every), ACROSS), rows=rows)
        settings = ws.SectionPanelSettings(x_axis=STEP)
        return ws.Section(name, every, True, layout_settings=layout, panel_settings=settings)

    headline = [f"**{markdown(content.title)}**", *map(markdown, content.lines)]
    sections = [section("In words", "\n\n".join(headline))]
    for one in content.sections:
        panels = _panels(one.panels, content, f"workspace {one.name}")
        sections.append(section(one.name, one.words, panels))
    if content.notes:
        notes = "\n".join(f"- {markdown(note)}" for note in content.notes)
        sections.append(section(MISSING, notes))
    return ws.Workspace(
        entity=entity,
        project=content.project,
        name=_plain(content.title)[:TITLE] or "gradlab",
        sections=sections,
        settings=ws.WorkspaceSettings(x_axis=STEP, max_runs=MOST_LINES),
        runset_settings=ws.RunsetSettings(
            filters=_filter(content.ids),
            groupby=[ws.Config(_in_config(place)) for place in content.grouping],
            pinned_columns=["run:displayName", *map(_column, content.columns)],
        ),
    )


def markdown(text: str) -> str:
    """``text`` as markdown that shows it letter by letter: every mark of punctuation is escaped."""
    return re.sub(r"([!-/:-@\[-`{-~])", r"\\\1", text)


def _plain(text: str) -> str:
    """Without emojis and signs such as ``=``, which W&B takes for emojis in a workspace's name."""
    kept = (" " if unicodedata.category(char)[0] == "S" else char for char in text)
    return " ".join("".join(kept).split())


# --- which runs -----------------------------------------------------------------------------------


def _runset(content: Content, name: str) -> Any:
    """Exactly the runs of ``content``.

    Entity and project are left out: W&B takes the report's own, and looks nothing up beforehand.
    """
    wr = reports()

    columns = list(map(_column, content.columns))
    runset = wr.Runset(
        name=RUNSET,
        filters=_filter(content.ids),
        groupby=[f"config.{_in_config(place)}" for place in content.grouping],
        visible_columns=columns,
        column_order=columns,
    )
    runset._id = _id("runset", name)
    return runset


def _filter(ids: Sequence[str]) -> str:
    """In the library's own language; the ids are letters, digits, ``-`` and ``_`` only."""
    quoted = ", ".join(f"'{id}'" for id in ids)
    return f"Metric('ID') in [{quoted}]"


def _in_config(place: str) -> str:
    """``optimizer.learning_rate`` as W&B's server has it: each outermost key holds a ``value``."""
    first, *rest = place.split(".")
    return ".".join([first, "value", *rest])


def _column(column: of.Column) -> str:
    if column.kind == "config":
        return f"config:{_in_config(column.name)}"
    return f"summary:{column.name}"


# --- panels ---------------------------------------------------------------------------------------


def _panels(panels: Sequence[of.Panel], content: Content, where: str) -> Iterator[Any]:
    wr = reports()

    for index, one in enumerate(panels):
        panel = _panel(one, content)
        panel.layout = wr.Layout(
            x=WIDTH * (index % ACROSS), y=HEIGHT * (index // ACROSS), w=WIDTH, h=HEIGHT
        )
        panel._id = _id(where, repr(one))
        yield panel


def _panel(panel: of.Panel, content: Content) -> Any:
    wr = reports()

    grouped: dict[str, Any] = {"groupby_aggfunc": "mean", "groupby_rangefunc": "minmax"}
    if len(content.grouping) == 1:  # a panel takes one; several are those of the table of runs
        grouped["groupby"] = _in_config(content.grouping[0])
    match panel:
        case of.Lines(title, keys, label):
            return wr.LinePlot(
                title=title,
                x=STEP,
                y=list(keys),
                title_x="training step",
                title_y=label,
                max_runs_to_show=MOST_LINES,
                **grouped,
            )
        case of.Bars(title, key):
            return wr.BarPlot(title=title, metrics=[key], max_bars_to_show=MOST_LINES, **grouped)
        case of.Best(title, key, rule):
            return wr.ScalarChart(title=title, metric=key, groupby_aggfunc=rule)
        case of.Scatter(title, x, y):
            return wr.ScatterPlot(title=title, x=wr.SummaryMetric(x), y=wr.SummaryMetric(y))
        case of.Parallel(title, columns):
            axes = [wr.ParallelCoordinatesPlotColumn(_metric(column)) for column in columns]
            return wr.ParallelCoordinatesPlot(title=title, columns=axes)
        case of.Images(title, keys):
            return wr.MediaBrowser(title=title, media_keys=list(keys), num_columns=2)
        case of.Table(key):
            return wr.WeavePanelSummaryTable(table_name=key)
        case of.Chart(key, name):
            chart = wr.CustomChart.from_table(
                key,
                chart_fields={column: column for column in VANISHING},
                chart_strings={"title": "vanishing"},
            )
            chart.chart_name = name
            return chart
        case of.Differences():
            return wr.RunComparer(diff_only="split")


def _metric(column: of.Column) -> Any:
    wr = reports()

    return (wr.Config if column.kind == "config" else wr.SummaryMetric)(column.name)


def _id(*parts: str) -> str:
    """A name for a panel, the same each time: what is sent is what was written to disk."""
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]
