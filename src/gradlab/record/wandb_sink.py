"""Measurements into Weights & Biases, offline by default; no account is needed for that.

What a run looks like there (``LAYER`` is ``layer_0`` …, one key per layer):

===================================  ===========================================================
``train/loss``, ``val/loss``, …      the scalars, as named
``adj_h/LAYER/lag_00001`` …          log10 of the adjoint's norm 1, 2, 4, … timesteps before the
                                     end; likewise every other variable over ``layer`` and ``t``
``adjoint_slope/LAYER``, …           variables over layers, parameters, gates
``heatmap/adj_h/LAYER``              at the end: timestep over training step, colour = log10
``over_lag/adj_h/LAYER``             at the end: a chart over lag, a line per training step
``figures/…``                        at the end: the PNGs in the run directory's ``figures/``
===================================  ===========================================================

Values that are not finite are left out. The x axis of everything is ``train_step``.
"""

from __future__ import annotations

import itertools
import logging
import math
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from gradlab.record.base import Description, Outcome, Row, Variable
from gradlab.record.directory import plain

Mode = Literal["offline", "online", "disabled"]
MOST_KEYS = 64
"""A variable with more values than this stays in the run directory."""
FIRST = 3
"""How many of a spectrum's values, the largest, get a key."""
_DESCENDING = {"index", "singular"}
_IN_THE_RUN_DIRECTORY = {"t", "unit", "log10_gate"}
MOST_ROWS = 400
"""Most columns of a heatmap."""
LINES = 12
"""Most training steps in a chart over lag."""
MOST_LAGS = 100
"""Most points of a line in a chart over lag."""

# Quiet, cheap, and on disk soon; those that another version of W&B lacks are left out.
_SETTINGS = {
    "console": "off",
    "silent": True,
    "quiet": True,
    "disable_code": True,
    "init_timeout": 30.0,
    "reinit": "create_new",
    "x_disable_stats": True,
    "x_save_requirements": False,
    "x_transaction_log_flush_interval": 2.0,
}
_log = logging.getLogger(__name__)


class WandbSink:
    """A sink that records to W&B. If that fails, the run goes on: one warning is logged.

    Args:
      directory: the run directory; W&B's files go into its ``wandb/``, and the PNGs in its
        ``figures/`` are sent at :meth:`close` (draw them before).
      mode: ``"offline"`` (files only), ``"online"`` or ``"disabled"``. Where ``"online"`` finds no
        server or no account, the run is recorded offline.
      project: the W&B project.
      group: runs of one group are shown together; None for no group.
      job_type: a word such as ``"train"``, or None.
      tags: words to filter by.
      name: the run's name; None lets W&B make one up.
      notes: a longer text, or None.
      finish_timeout: longest wait for uploads at the end, in seconds.
    """

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
    ):
        self.directory = Path(directory).resolve()
        self.mode: Mode = mode
        self.finish_timeout = finish_timeout
        self.labels = {
            "project": project,
            "group": group,
            "job_type": job_type,
            "tags": list(tags),
            "name": name,
            "notes": notes,
        }
        self.run: Any = None
        self._where = ""

    def how_to_see(self) -> str:
        """How to look at the run: its page, or the command that uploads it; empty if disabled."""
        return self._where

    def open(self, description: Description) -> None:
        """Start the W&B run, with the configuration, the facts and the baseline as its config."""
        if self.mode == "disabled":
            return
        self.variables, self.coords = description.variables, description.coords
        self.lags = _lags(description)
        self.histories = {
            name: _History(MOST_ROWS)
            for name, variable in description.variables.items()
            if variable.dims == ("layer", "t")
        }
        self.train_step = 0
        config = {"facts": description.facts, "baseline": description.baseline}
        self._guarded("start", self._start, plain({**description.config, **config}))

    def log(self, row: Row) -> None:
        """Send the row's scalars, and its curves at lags that are powers of two."""
        if self.run is None:
            return
        self.train_step = row.step
        values = dict(row.scalars)
        for name, array in row.arrays.items():
            values.update(self._flat(name, np.asarray(array)))
            if name in self.histories:
                self.histories[name].add(row.step, np.array(array, np.float32))
        finite = {key: float(value) for key, value in values.items() if math.isfinite(value)}
        self._guarded("log", self.run.log, {"train_step": row.step, **finite})

    def close(self, outcome: Outcome) -> None:
        """Send charts, heatmaps, figures and the outcome, and end the W&B run."""
        if self.run is None:
            return
        self._guarded("send the charts", self._send_media)
        if self.run is not None:
            self._guarded("send the summary", self._send_summary, outcome)
        if self.run is not None:
            code = 0 if outcome.status == "finished" else 1
            self._guarded("finish", self.run.finish, exit_code=code)
        self.run = None

    def _guarded(self, what: str, action: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        """Call ``action``; if it fails say so once, and leave W&B alone from then on."""
        try:
            action(*args, **kwargs)
        except Exception as error:  # noqa: BLE001  (W&B must never end a run)
            _log.warning("W&B could not %s, recording there stops: %s", what, _first_line(error))
            run, self.run = self.run, None
            if run is not None and what != "finish":
                self._guarded("finish", run.finish, exit_code=1)

    def _start(self, config: dict[str, Any]) -> None:
        try:
            self.run = self._init(self.mode, config)
        except Exception as error:
            if self.mode != "online":
                raise
            _log.warning("W&B is not reachable, recording offline: %s", _first_line(error))
            self.run = self._init("offline", config)
        offline = self.run.settings.mode == "offline"
        self._where = f"wandb sync {self.run.settings.sync_dir}" if offline else self.run.url
        self.run.define_metric("train_step", hidden=True)
        for stem in sorted({_stem(name).split("/")[0] for name in self.variables}):
            self.run.define_metric(f"{stem}/*", step_metric="train_step")

    def _init(self, mode: Mode, config: dict[str, Any]) -> Any:
        import wandb

        wanted = {**_SETTINGS, "finish_timeout": self.finish_timeout}
        known = wandb.Settings.model_fields
        settings = wandb.Settings(**{key: wanted[key] for key in wanted if key in known})
        self.directory.mkdir(parents=True, exist_ok=True)
        return wandb.init(
            dir=str(self.directory), mode=mode, config=config, settings=settings, **self.labels
        )

    def _flat(self, name: str, array: np.ndarray) -> Iterator[tuple[str, float]]:
        """One key for each value of a small variable; a curve at its power-of-two lags."""
        variable = self.variables[name]
        if variable.dims == ("layer", "t"):
            for (label, curve), (lag, t) in itertools.product(
                zip(self._labels("layer"), array, strict=True), self.lags
            ):
                yield f"{_stem(name)}/{label}/lag_{lag:05d}", curve[t]
        elif not _IN_THE_RUN_DIRECTORY & set(variable.dims):
            first = tuple(slice(FIRST if dim in _DESCENDING else None) for dim in variable.dims)
            if array[first].size > MOST_KEYS:
                return
            labels = itertools.product(
                *(self._labels(dim)[one] for dim, one in zip(variable.dims, first, strict=True))
            )
            for label, value in zip(labels, array[first].ravel(), strict=True):
                yield "/".join([_stem(name), *label]), value

    def _labels(self, dim: str) -> list[str]:
        """The values of ``dim`` as parts of a key: W&B nests at ``.``, so there is none in it."""
        prefix = "" if dim in ("parameter", "gate") else f"{dim}_"
        return [
            prefix + str(value).replace(".", "_").replace(" ", "_") for value in self.coords[dim]
        ]

    def _send_media(self) -> None:
        import wandb

        media: dict[str, Any] = {}
        for name, history in self.histories.items():
            steps, curves = history.all()
            for index, label in enumerate(self._labels("layer") if len(steps) else []):
                key, layer = f"{_stem(name)}/{label}", curves[:, index]
                image = _heatmap(steps, layer, self.variables[name])
                media[f"heatmap/{key}"] = wandb.Image(image[0], caption=image[1])
                media[f"over_lag/{key}"] = self._chart(name, steps, layer)
        for png in sorted((self.directory / "figures").glob("*.png")):
            media[f"figures/{png.stem}"] = wandb.Image(str(png))
        if media:
            self.run.log({"train_step": self.train_step, **media})

    def _chart(self, name: str, steps: np.ndarray, curves: np.ndarray) -> Any:
        import wandb

        column = f"log10_{_stem(name)}"
        rows = []
        for index in _spread(len(steps), LINES):
            for t in _spread(curves.shape[1], MOST_LAGS)[::-1]:
                lag, value = int(self.lag_of[t]), float(curves[index, t])
                if math.isfinite(value):
                    rows.append([lag, f"step {steps[index]}", value])
        table = wandb.Table(columns=["lag", "training_step", column], data=rows)
        return wandb.plot_table(
            "wandb/lineseries/v0",
            table,
            {"step": "lag", "lineKey": "training_step", "lineVal": column},
            {"title": f"{self.variables[name].long_name} (log10) over lag", "xname": "lag"},
        )

    @property
    def lag_of(self) -> np.ndarray:
        """Lag of every position along ``t``, in timesteps."""
        t = np.asarray(self.coords["t"])
        return t.max() - t

    def _send_summary(self, outcome: Outcome) -> None:
        figures = {**outcome.timings, **outcome.summary}
        finite = {
            key: float(value)
            for key, value in figures.items()
            if value is not None and math.isfinite(value)
        }
        words = {"status": outcome.status, "reason": outcome.reason}
        self.run.summary.update({**finite, **words, "verdict": "\n".join(outcome.verdict)})


class _History:
    """At most ``capacity`` evenly spaced rows of a sequence of unknown length, and its last."""

    def __init__(self, capacity: int):
        self.capacity, self.stride, self.seen = capacity, 1, 0
        self.kept: list[tuple[int, np.ndarray]] = []
        self.last: tuple[int, np.ndarray] | None = None

    def add(self, step: int, array: np.ndarray) -> None:
        if self.seen % self.stride == 0:
            self.kept.append((step, array))
        if len(self.kept) > self.capacity:
            self.kept, self.stride = self.kept[::2], self.stride * 2
        self.seen, self.last = self.seen + 1, (step, array)

    def all(self) -> tuple[np.ndarray, np.ndarray]:
        """The kept steps ``(n,)`` and their arrays ``(n, ...)``, the last one included."""
        rows = list(self.kept)
        if self.last is not None and rows[-1][0] != self.last[0]:
            rows.append(self.last)
        return np.array([step for step, _ in rows]), np.array([array for _, array in rows])


def _stem(name: str) -> str:
    return name.removesuffix("_log10")


def _lags(description: Description) -> list[tuple[int, int]]:
    """Power-of-two lags within reach, each with its position along ``t``."""
    t = list(description.coords.get("t", []))
    position = {max(t) - value: index for index, value in enumerate(t)}
    powers = (2**k for k in range(20))
    return [(lag, position[lag]) for lag in powers if lag in position]


def _spread(length: int, most: int) -> list[int]:
    """At most ``most`` positions in ``range(length)``, evenly spread, both ends included."""
    return sorted({round(x) for x in np.linspace(0, length - 1, min(length, most))})


def _heatmap(steps: np.ndarray, curves: np.ndarray, variable: Variable) -> tuple[np.ndarray, str]:
    """``curves`` (n, T) as uint8 colours (height, width, 3), and a caption: how to read it."""
    from gradlab.record.figures import colour_limits, heat_colours

    t = _spread(curves.shape[1], 512)
    values = curves[:, t].T[::-1]
    low, high = colour_limits(values)
    scaled = np.ma.masked_invalid((values - low) / (high - low))
    scaled = np.ma.where(np.isneginf(values), -1.0, scaled)
    colours = heat_colours()(scaled, bytes=True)[..., :3]
    tall, wide = (max(1, 600 // n) for n in values.shape)
    caption = (
        f"{variable.long_name}, log10: dark {low:.3g}, bright {high + 0.0:.3g}, "
        "black exactly zero. "
        f"Across: training step {steps[0]} to {steps[-1]}. "
        "Up: from the first timestep (bottom) to the last (top)."
    )
    return np.repeat(np.repeat(colours, tall, 0), wide, 1), caption


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
