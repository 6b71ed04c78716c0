"""Measurements into Weights & Biases, offline by default; no account is needed for that.

What a run looks like there (``LAYER`` is ``layer_0`` …, one key per layer):

===================================  ===========================================================
``train/loss``, ``val/loss``, …      the scalars, as named
``adj_h/LAYER/lag_00001`` …          log10 of the adjoint's norm 1, 2, 4, … timesteps before the
                                     end; likewise every other variable over ``layer`` and lag
``adjoint_slope/LAYER``, …           variables over layers, parameters, gates
``heatmap/adj_h/LAYER``              at the end: lag over training step, colour = log10
``over_lag/adj_h/LAYER``             at the end: a chart over lag, a line per training step
``vanishing``                        at the end: a table of all curves over lag and training step
``figures/…``                        at the end: the PNGs in the run directory's ``figures/``
artifact ``arrays-ID``               at the end: every array of the run directory
artifact ``code-ID``                 the source of this package
===================================  ===========================================================

Values that are not finite are left out. The x axis of everything is ``train_step``, which is W&B's
own step as well. W&B's run has the id of the run directory's ``run.json``.

Training never waits for W&B: a thread makes every call to it, and rows wait in memory until it has
started. What W&B keeps in the run directory holds neither secrets nor the home folder's path; the
paths in it are relative to the run directory, which may be moved before ``wandb sync``.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from gradlab.errors import number
from gradlab.record.base import Description, Outcome, Row
from gradlab.record.keys import Keys
from gradlab.record.wandb.charts import Charts
from gradlab.record.wandb.sender import Sender
from gradlab.record.wandb.start import Mode, Options


class WandbSink:
    """A sink that records to W&B. Trouble there is logged as one warning, and the run goes on.

    Args:
      directory: the run directory; W&B's files go into its ``wandb/``, and the PNGs in its
        ``figures/`` and the arrays are sent at :meth:`close` (finish them before).
      mode: ``"offline"`` (files only), ``"online"`` or ``"disabled"``. Where ``"online"`` finds no
        server or no account, the run is recorded offline.
      project: the W&B project.
      group: runs of one group are shown together; None for no group.
      job_type: a word such as ``"train"``, or None.
      tags: words to filter by.
      name: the run's name; None for one such as ``"lstm adding T=100 H=64 seed 0"``.
      notes: a longer text, or None.
      finish_timeout: longest that :meth:`close` takes, in seconds; at least 1.
      arrays: whether to send every recorded array.
      code: whether to send this package's source.
      chart: ``ENTITY/NAME`` of the custom chart that shows ``vanishing``; None for a plain table.

    Raises:
      BadInput: ``finish_timeout`` is out of its range.
    """

    part = "wandb"

    def __init__(
        self,
        directory: str | os.PathLike[str],
        mode: Mode = "offline",
        project: str = "gradlab",
        group: str | None = None,
        job_type: str | None = None,
        tags: Sequence[str] = (),
        name: str | None = None,
        notes: str | None = None,
        finish_timeout: float = 60.0,
        arrays: bool = True,
        code: bool = True,
        chart: str | None = None,
    ):
        number("record.wandb.finish_timeout", finish_timeout, 1, 1e6)
        labels = {
            "project": project,
            "group": group,
            "job_type": job_type,
            "tags": list(tags),
            "name": name,
            "notes": notes,
        }
        self.directory = Path(directory).resolve()
        self._options = Options(self.directory, mode, labels, finish_timeout, arrays, code, chart)
        self._sender: Sender | None = None

    @property
    def complete(self) -> bool:
        """After :meth:`close`: whether W&B has everything, in its file or on its server."""
        return self._sender is None or self._sender.complete

    def how_to_see(self) -> str:
        """How to look at the run: its page, or the command that uploads it; empty if disabled.

        Known when W&B has started; final after :meth:`close`, and empty if W&B's copy has no row.
        """
        return self._sender.where if self._sender else ""

    def open(self, description: Description) -> None:
        """Begin to start the W&B run, with configuration, facts and baseline as its config."""
        if self._options.mode == "disabled":
            return
        self._keys, self._charts = Keys(description), Charts(description)
        self._sender = Sender(self._options, description, self._charts)
        self._sender.begin()

    def extend(self, description: Description) -> None:
        """Hand on further variables from here on."""
        if self._sender is not None and not self._sender.failed:
            self._keys = Keys(description)
            self._charts.histories.extend(description)
            self._sender.rows.put(description)

    def log(self, row: Row) -> None:
        """Hand on the row's scalars, and its curves at lags that are powers of two."""
        if self._sender is not None and not self._sender.failed:
            self._charts.add(row)
            self._sender.rows.put((row.step, self._keys(row)))

    def close(self, outcome: Outcome) -> None:
        """Send charts, heatmaps, figures, arrays and the outcome, and end the W&B run."""
        if self._sender is not None:
            self._sender.end(outcome)
