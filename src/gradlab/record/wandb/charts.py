"""What the W&B sink sends at the end of a run: images, charts over lag, and a table."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from gradlab.record.base import Description, Row
from gradlab.record.heatmap import Curves, Histories, heatmap, spread
from gradlab.record.keys import stem

LINES = 12
"""Most training steps in a chart over lag."""
MOST_LAGS = 100
"""Most points of a line in a chart over lag."""
TABLE_ROWS = 9500
"""Most rows of the table ``vanishing``; W&B draws no more than 10,000."""
TABLE_LAGS = 60
"""Most lags of the table ``vanishing`` as long as the training steps leave no room for more."""
VANISHING = ["lag", "train_step", "series", "log10"]
"""Its columns."""


class Charts:
    """Keeps the curves over ``layer`` and lag of a run, and makes pictures and tables of them."""

    def __init__(self, description: Description):
        self.histories = Histories(description)

    def add(self, row: Row) -> None:
        """Keep the row's curves."""
        self.histories.add(row)

    def media(self, chart: str | None, tables: bool = True) -> dict[str, Any]:
        """Everything to log at the end, by key.

        Args:
          chart: ``ENTITY/NAME`` of a custom chart for the table ``vanishing``, or None.
          tables: whether to make what needs a table, all but the heatmaps.
        """
        import wandb

        media: dict[str, Any] = {}
        for curves in self.histories:
            image, caption = heatmap(curves)
            media[f"heatmap/{curves.key}"] = wandb.Image(image, caption=caption)
            if tables:
                media[f"over_lag/{curves.key}"] = self._over_lag(curves)
        if tables and (rows := self.vanishing()):
            table = _table(list(VANISHING), rows)
            if chart is None:
                media["vanishing"] = table
            else:
                fields = {column: column for column in VANISHING}
                media["vanishing"] = wandb.plot_table(chart, table, fields, {"title": "vanishing"})
        return media

    def vanishing(self) -> list[Any]:
        """Rows of :data:`VANISHING`: finite values at training steps and lags spread evenly."""
        series = [curves for curves in self.histories if curves.variable.units == "log10"]
        if not series:
            return []
        lags = spread(series[0].values.shape[1], min(TABLE_LAGS, TABLE_ROWS // len(series)))
        most = max(1, TABLE_ROWS // (len(series) * len(lags)))
        rows = []
        for curves in series:
            text = curves.key.replace("/", " ")
            for index in spread(len(curves.steps), most):
                rows += [
                    [lag, int(curves.steps[index]), text, value]
                    for lag, value in _finite(curves.values[index], lags)
                ]
        return rows

    def _over_lag(self, curves: Curves) -> Any:
        import wandb

        log = curves.variable.units == "log10"
        column, rows = ("log10_" if log else "") + stem(curves.name), []
        lags = spread(curves.values.shape[1], MOST_LAGS)
        for index in spread(len(curves.steps), LINES):
            points = _finite(curves.values[index], lags)
            rows += [[lag, f"step {curves.steps[index]}", value] for lag, value in points]
        return wandb.plot_table(
            "wandb/lineseries/v0",
            _table(["lag", "training_step", column], rows),
            {"step": "lag", "lineKey": "training_step", "lineVal": column},
            {
                "title": f"{curves.variable.long_name} ({curves.variable.units}) over lag",
                "xname": "lag",
            },
        )


def _finite(values: np.ndarray, lags: list[int]) -> Iterator[tuple[int, float]]:
    """Each of the lags at which the value is finite, and the value."""
    for lag in lags:
        if math.isfinite(values[lag]):
            yield lag, float(values[lag])


def _table(columns: list[Any], rows: list[Any]) -> Any:
    """A W&B table of rows that are all of the types of the first.

    W&B infers the types of every row anew, which took 0.4 s for one table; they are in its ``data``
    just the same.
    """
    import wandb

    table = wandb.Table(columns=columns, data=rows[:1])
    table.data.extend(rows[1:])
    return table


def pictures(folder: Path) -> dict[str, Any]:
    """The PNGs in ``folder`` under ``figures/NAME``."""
    import wandb

    return {f"figures/{png.stem}": wandb.Image(str(png)) for png in sorted(folder.glob("*.png"))}
